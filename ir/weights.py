"""Weights of a graph: tensors by id, shared, never overwritten in place.

Folding and compression make fresh ids; an id keeps its tensor for the life of the graph. Stores are cheap to copy,
since copies share the tensors. On disk a store is one safetensors file.

Weights may be most of the memory of a process. So a store can do without memory of its own in two cases. A weight that
is *lent* lies in memory that its owner, such as a module, may write to later: `WeightStore.own` copies it in time.
A weight that another tensor *holds*, in another order, is restored when it is asked for (`WeightStore.hand_over`).

An id is a name, and what was done to the tensor: ``features.0.weight..pruned..folded`` takes the place of
``features.0.weight``. No name of PyTorch contains two dots in a row. So a user can be told the names that are known
from the model (`names_of`), whatever became of the tensors.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from .arrangement import HeldWeight
from .errors import IRError

CHANGED = ".."  # between a name and each change of the tensor

_DIGEST = "digest"  # the metadata that ties weights to their text
_UNREADABLE = (SafetensorError, OSError, ValueError, KeyError, RuntimeError)


class WeightStore(Mapping[str, torch.Tensor]):
    """Read-only mapping from weight id to tensor; `add` is the only way to extend it.

    Attributes
    ----------
    lent
        Addresses of the memory that was lent to it, or to a store that it was copied from.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor] | None = None) -> None:
        self._tensors: dict[str, torch.Tensor | None] = dict(tensors or {})  # None for what is not restored
        self._held: dict[str, HeldWeight] = {}
        self._digests: dict[str, str] = {}
        self.lent: frozenset[int] = frozenset()

    def __getitem__(self, id: str) -> torch.Tensor:
        tensor = self._tensors[id]
        if tensor is None:
            tensor = self._tensors[id] = self._held[id].restored()
        return tensor

    def __contains__(self, id: object) -> bool:
        return id in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def add(self, tensor: torch.Tensor, hint: str, *, lent: bool = False) -> str:
        """Store ``tensor`` (detached, on the CPU, contiguous) under a fresh id that begins with ``hint``.

        ``lent`` says that the tensor's memory belongs to someone who may write to it later, see `own`.
        """
        id, number = hint, 1
        while id in self._tensors:
            id, number = f"{hint}{'_' if CHANGED in hint else CHANGED}{number}", number + 1
        stored = tensor.detach().cpu().contiguous()
        # Any strides count as contiguous where there is one element; its bytes are read by those of a new tensor.
        self._tensors[id] = stored.clone(memory_format=torch.contiguous_format) if stored.numel() == 1 else stored
        if lent:
            self.lent |= {memory_of(tensor)}
        return id

    def own(self, lent: frozenset[int]) -> None:
        """Copy the weights that lie in memory of others, whose addresses are given."""
        for id, tensor in self._tensors.items():
            if tensor is not None:
                self._tensors[id] = owned(tensor, lent)
        self.lent -= lent

    def hand_over(self, id: str, held: HeldWeight) -> None:
        """Let go of a tensor that another one holds bit for bit."""
        self._tensors[id], self._held[id] = None, held

    def held(self, id: str) -> HeldWeight | None:
        """Where a weight is held that was handed over."""
        return self._held.get(id)

    def digest(self, id: str) -> str:
        """SHA-256 of a tensor's dtype, shape and bytes."""
        if id not in self._digests:
            tensor = self._read(id)
            digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
            self._digests[id] = digest.hexdigest()
        return self._digests[id]

    def _read(self, id: str) -> torch.Tensor:
        """A tensor, which is not kept if it must be restored."""
        tensor = self._tensors[id]
        return self._held[id].restored() if tensor is None else tensor

    def keep(self, ids: Iterable[str]) -> None:
        """Forget every weight that is not among ``ids``."""
        wanted = set(ids)
        self._tensors = {id: tensor for id, tensor in self._tensors.items() if id in wanted}
        self._held = {id: held for id, held in self._held.items() if id in wanted}
        self._digests = {id: digest for id, digest in self._digests.items() if id in wanted}

    def copy(self) -> WeightStore:
        """A store of its own that shares the tensors."""
        return self.replaced({})

    def replaced(self, tensors: Mapping[str, torch.Tensor]) -> WeightStore:
        """A store of its own that shares all tensors but those given, which it has in place of, or beside, its own."""
        other = WeightStore()
        other._tensors = {**self._tensors, **tensors}
        other._held = {id: held for id, held in self._held.items() if id not in tensors}
        other._digests = {id: digest for id, digest in self._digests.items() if id not in tensors}
        other.lent = self.lent
        return other

    def digest_of_all(self) -> str:
        """SHA-256 of all ids and tensors."""
        return hashlib.sha256("".join(f"{id}\n{self.digest(id)}\n" for id in sorted(self)).encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write all weights to a safetensors file, in place; raises OSError when that is impossible."""
        storages: set[int] = set()
        tensors = {}
        for id in self:
            tensor = self._read(id)
            storage = memory_of(tensor)
            # The format has no views: tensors that may overlap are written out one by one.
            shared = tensor.numel() > 0 and storage in storages
            storages.add(storage)
            tensors[id] = tensor.clone(memory_format=torch.contiguous_format) if shared else tensor.contiguous()
        write_tensors(path, tensors, {_DIGEST: self.digest_of_all()})

    @classmethod
    def load(cls, path: str | Path) -> WeightStore:
        """Read a safetensors file; raises IRError when there is none or it is damaged."""
        if not Path(path).is_file():
            raise IRError(f"{path}: no such weights file; IR text needs its .safetensors file beside it")
        return cls(read_tensors(path))


def memory_of(tensor: torch.Tensor) -> int:
    """The address of the memory that a tensor is a view of."""
    return tensor.untyped_storage().data_ptr()


def owned(tensor: torch.Tensor, lent: frozenset[int]) -> torch.Tensor:
    """``tensor``, or a copy if it lies in memory of others."""
    return tensor.clone(memory_format=torch.contiguous_format) if memory_of(tensor) in lent else tensor


def changed_id(id: str, change: str) -> str:
    """The id of a tensor that takes the place of the tensor ``id``: ``"conv.weight"`` -> ``"conv.weight..folded"``."""
    return CHANGED.join([name_of(id), *(one for one in changes_of(id) if one != change), change])


def changes_of(id: str) -> list[str]:
    """What was done to a tensor, without numbers that tell ids apart: ``"conv.weight..folded_1"`` -> ``["folded"]``."""
    changes = (re.sub(r"_?\d+$", "", one) for one in id.split(CHANGED)[1:])
    return [one for one in changes if one]


def name_of(id: str) -> str:
    """The name in an id: ``"conv.weight..pruned..folded"`` -> ``"conv.weight"``."""
    return id.partition(CHANGED)[0]


def names_of(ids: Iterable[str]) -> dict[str, str]:
    """Names for ``ids``, all of them different, by id.

    Each gets the name in its id, if no other has it. Of several the one that was not changed gets it, or else the
    first. The others get their last change too: ``"conv.weight..pruned..folded"`` -> ``"conv.weight_folded"``.
    """
    names = dict.fromkeys(ids, "")
    taken: set[str] = set()
    for id in sorted(names, key=lambda one: CHANGED in one):  # stable, the unchanged ones first
        name, number = name_of(id), 1
        if name in taken:
            name = f"{name}_{id.rpartition(CHANGED)[2] or number}"
        longer = name
        while name in taken:
            name, number = f"{longer}_{number}", number + 1
        names[id] = name
        taken.add(name)
    return names


def read_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file; raises IRError when it is damaged."""
    try:
        return load_file(str(path))
    except _UNREADABLE as error:
        raise IRError(f"{path}: not a readable safetensors file ({error}); write it again") from error


def read_digest(path: str | Path) -> str:
    """What `WeightStore.save` noted of its content; empty in a file that something else wrote."""
    try:
        with safe_open(str(path), "pt") as file:
            return str((file.metadata() or {}).get(_DIGEST, ""))
    except _UNREADABLE as error:
        raise IRError(f"{path}: not a readable safetensors file ({error}); write it again") from error


def write_tensors(path: str | Path, tensors: Mapping[str, torch.Tensor], notes: dict[str, str] | None = None) -> None:
    """Write a safetensors file, in place; raises OSError when that is impossible."""
    try:
        save_file(dict(tensors), str(path), notes)
    except SafetensorError as error:  # what the operating system says is within its text
        raise OSError(str(error)) from error
