"""How a model is called and what it returns, as data: nested tuples, lists, dicts and records of tensors.

A graph takes and returns flat tensors. The structure around them is kept beside it, as text that names classes but
never loads them: a record is made again only of a class that this process has given to PyTorch's pytree itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch.utils import _pytree as pytree

from .errors import TersorError, shorten
from .foreign import Array, UserObject
from .names import suggest

Constant = None | bool | int | float | str
KINDS = ("tensor", "constant", "tuple", "list", "dict", "record", "named tuple")
CONSTANTS = ""  # key of a record's member that is no field: what else its class needs to be made again


@dataclass(frozen=True)
class Tree:
    """A nested value.

    Attributes
    ----------
    kind
        One of `KINDS`. A record is an object with named fields, for example a dataclass.
    children
        The members, in order.
    keys
        Their keys in a dict, or names in a record or a named tuple.
    name
        Of a record's or a named tuple's class, with its module.
    value
        Of a constant: None, a number or a text.
    made_of
        The class, where this process knows it.
    """

    kind: str = "tensor"
    children: tuple[Tree, ...] = ()
    keys: tuple[str | int, ...] = ()
    name: str = ""
    value: Constant = None
    made_of: type | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.keys and (len(self.keys) != len(self.children) or len(set(self.keys)) != len(self.keys)):
            raise ValueError("keys must be different, one for each member")

    def nodes(self) -> Iterator[Tree]:
        """The tree itself and all below it."""
        yield self
        for child in self.children:
            yield from child.nodes()

    @property
    def tensors(self) -> int:
        """How many tensors there are."""
        return sum(node.kind == "tensor" for node in self.nodes())

    def with_classes(self) -> Tree:
        """The tree with the classes that this process knows."""
        children = tuple(child.with_classes() for child in self.children)
        return replace(self, children=children, made_of=self.made_of or _find_class(self))

    def unknown_classes(self) -> list[str]:
        """Names of classes in whose place dicts and tuples come back."""
        return [node.name for node in self.nodes() if node.name and node.made_of is None]

    def flatten(self, value: UserObject, where: str) -> Iterator[UserObject]:
        """What stands in the place of each tensor; raises TersorError, naming ``where``, for another structure."""
        if self.kind == "tensor":
            if value is None or isinstance(value, tuple | list | Mapping):
                raise TersorError(f"{where} must be a tensor, not {_describe(value)}")
            yield value
        elif self.kind == "constant":
            if type(value) is not type(self.value) or value != self.value:
                given = "an array" if hasattr(value, "__dlpack__") else shorten(repr(value))
                raise TersorError(
                    f"{where} was {self.value!r} in the example inputs, got {given}; compile the model again for this"
                )
        else:
            names = self.keys or range(len(self.children))
            for child, name, item in zip(self.children, names, self._members(value, where), strict=True):
                yield from child.flatten(item, f"{where}[{name!r}]")

    def _members(self, value: UserObject, where: str) -> Sequence[UserObject]:
        if isinstance(value, Mapping):
            if set(value) == set(self.keys):
                return [value[key] for key in self.keys]
        elif isinstance(value, tuple | list):
            if self.kind != "dict" and len(value) == len(self.children):
                return value
        elif CONSTANTS in self.keys and type(value) is self.made_of:
            members, (names, constants) = pytree.SUPPORTED_NODES[self.made_of].flatten_fn(value)
            if (*names, CONSTANTS) == self.keys:
                return [*members, constants]
        elif self.kind == "record" and all(hasattr(value, str(key)) for key in self.keys):
            return [getattr(value, str(key)) for key in self.keys]
        raise TersorError(f"{where} must be {self._description()}, not {_describe(value)}")

    def _description(self) -> str:
        if self.keys:
            fields = [key for key in self.keys if not (self.kind == "record" and key == CONSTANTS)]
            return f"{self.name or 'a dict'} with {', '.join(map(repr, fields))}"
        return f"a {self.kind} of {len(self.children)}"

    def build(self, tensors: Iterator[Array]) -> UserObject:
        """The value, with one of ``tensors`` in the place of each tensor."""
        if self.kind == "tensor":
            return next(tensors)
        if self.kind == "constant":
            return self.value
        members = [child.build(tensors) for child in self.children]
        if self.made_of is not None:
            return _make(self.made_of, self.keys, members)
        if self.kind == "list":
            return members
        named = dict(zip(self.keys, members, strict=True)) if self.keys else {}
        if self.kind == "record":
            named.pop(CONSTANTS, None)
        return named if self.kind in ("dict", "record") else tuple(members)


@dataclass(frozen=True)
class Structure:
    """How a model is called and what it returns.

    Attributes
    ----------
    positional
        A tuple of the positional arguments; its keys are the names of the parameters where they are known.
    keyword
        A dict of the arguments given by name.
    result
        What the model returns.
    """

    positional: Tree
    keyword: Tree
    result: Tree

    def with_classes(self) -> Structure:
        """The structure with the classes that this process knows."""
        return Structure(*(tree.with_classes() for tree in (self.positional, self.keyword, self.result)))

    def flatten(self, args: Sequence[UserObject], kwargs: Mapping[str, UserObject]) -> list[UserObject]:
        """What a call gives for each tensor; raises TersorError when the call is not like that of the example inputs.

        Positional arguments may be given by their names, and those that were None may be left out.
        """
        given = dict(kwargs)
        if len(args) > len(self.positional.children):
            raise TersorError(f"takes {len(self.positional.children)} positional arguments, got {len(args)}")
        leaves: list[UserObject] = []
        names = self.positional.keys or [None] * len(self.positional.children)
        for index, (tree, name) in enumerate(zip(self.positional.children, names, strict=True)):
            where = f"argument {index if name is None else name!r}"
            if index < len(args):
                leaves += tree.flatten(args[index], where)
            elif name in given or (tree.kind == "constant" and tree.value is None):
                leaves += tree.flatten(given.pop(str(name), None), where)
            else:
                raise TersorError(f"{where} is missing")
        for name, tree in zip(self.keyword.keys, self.keyword.children, strict=True):
            if name not in given and not (tree.kind == "constant" and tree.value is None):
                raise TersorError(f"argument {name!r} is missing")
            leaves += tree.flatten(given.pop(str(name), None), f"argument {name!r}")
        if given:
            known = [str(name) for name in (*self.positional.keys, *self.keyword.keys)]
            unknown = next(iter(given))
            raise TersorError(f"takes no argument {shorten(unknown)!r}{suggest(unknown, known)}; the example had none")
        return leaves


def class_name(kind: type) -> str:
    """A class's name as trees hold it."""
    return f"{kind.__module__}.{kind.__qualname__}"


def _find_class(tree: Tree) -> type | None:
    """The class that a tree names, if the process has registered it, and it has the tree's fields."""
    if not tree.name:
        return None
    found: type | None = next((kind for kind in pytree.SUPPORTED_NODES if _is_named(kind, tree.name)), None)
    if found is None or not all(isinstance(key, str) for key in tree.keys):
        return None
    if issubclass(found, tuple):
        fields = getattr(found, "_fields", getattr(found, "__match_args__", ()))
        fits = tree.kind == "named tuple" and fields == tree.keys
    elif dataclasses.is_dataclass(found):
        fits = set(tree.keys) <= {entry.name for entry in dataclasses.fields(found) if entry.init}
    else:
        fits = tree.kind == "record"
    return found if fits else None


def _is_named(kind: object, name: str) -> bool:
    return isinstance(kind, type) and class_name(kind) == name


def _make(kind: type, keys: Sequence[UserObject], members: list[UserObject]) -> UserObject:
    if issubclass(kind, tuple):
        return kind(*members) if hasattr(kind, "_fields") else kind(members)  # the latter: torch.return_types
    if CONSTANTS in keys:
        return pytree.SUPPORTED_NODES[kind].unflatten_fn(members[:-1], [list(keys[:-1]), members[-1]])
    if kind in pytree.SUPPORTED_NODES and not dataclasses.is_dataclass(kind):
        return pytree.SUPPORTED_NODES[kind].unflatten_fn(members, list(keys))
    return kind(**dict(zip(keys, members, strict=True)))


def _describe(value: UserObject) -> str:
    if value is None:
        return "None"
    if isinstance(value, Mapping):
        return f"{type(value).__name__} with {shorten(', '.join(map(repr, value)), 100) or 'nothing in it'}"
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, tuple | list) else type(value).__name__
