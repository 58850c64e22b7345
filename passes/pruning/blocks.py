"""Residual blocks: additions of a value and of what layers make of it.

::

    %8 = …                     computed from %x by layers: the branch
    %9 = add(%x, %8)           of the type of %x

Without the branch, ``%9`` is ``%x``. Every reader takes it as it is, since the types agree. A projection in place of
``%x`` (where a ResNet halves the picture) leaves no value that could stand for the sum, so such a block is none here.

A sum of several branches (``x + f(x) + g(x)``) is several blocks: what stays of the second sum may be a sum itself, of
which one term is what the branch was computed from. No op of a block is known by name: a branch counts if multiply-adds
are saved without it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from ...ir import Graph, Op, Value, append_clones, is_constant
from ...ir.ops import AddOp


@dataclass(frozen=True, eq=False)
class Block:
    """A residual block of a graph.

    Attributes
    ----------
    name
        The path that its layers share in the model, with a number where several blocks have the same.
    layers
        The names of its layers.
    add
        The addition.
    stays
        Which operand of the addition stays.
    """

    name: str
    layers: tuple[str, ...]
    add: Op
    stays: int

    @property
    def kept(self) -> Value:
        """What takes the place of the sum."""
        value = self.add.operands[self.stays]
        assert value is not None  # an addition has both
        return value

    @property
    def is_there(self) -> bool:
        """Whether it is still in its graph: another block that was removed may have held it."""
        return self.add.graph is not None

    def private_ops(self) -> list[Op]:
        """What nobody else reads, constants included, in execution order; the addition is not among it."""
        return _private_ops(self.add, self.stays)

    def macs(self) -> int:
        """Multiply-adds that are saved without it."""
        return sum(op.cost().macs for op in self.private_ops())

    def alone(self) -> tuple[Graph, Graph]:
        """Graphs of the block by itself and of what is left of it, for the referee."""
        return _alone(self, [*self.private_ops(), self.add], self.add.results[0]), _alone(self, [], self.kept)


def find_blocks(graph: Graph) -> list[Block]:
    """All residual blocks of a graph without fused and dead ops, in execution order."""
    reached = _reached(graph)
    found = []
    for op in graph.ops:
        if isinstance(op, AddOp):
            found += [(op, stays) for stays in (0, 1) if _is_block(op, stays, reached)]
    layers = {add: _layers(add, stays) for add, stays in found}
    names = _numbered([_shared_path(layers[add]) or add.location or add.describe() for add, _ in found])
    return [Block(name, layers[add], add, stays) for (add, stays), name in zip(found, names, strict=True)]


def _is_block(add: Op, stays: int, reached: dict[Value, int]) -> bool:
    kept, branch = add.operands[stays], add.operands[1 - stays]
    assert kept is not None and branch is not None
    if kept.type != add.results[0].type or not kept.type.dtype.is_floating or is_constant(kept):
        return False
    if reached[kept] & _own(reached, branch):
        return False  # the other way round
    starts = 0
    for term in _terms(kept):
        starts |= _own(reached, term)
    return bool(reached[branch] & starts) and any(op.cost().macs for op in _private_ops(add, stays))


def _reached(graph: Graph) -> dict[Value, int]:
    """For each value, as the bits of a number, the inputs and ops that it is computed from, its own op included.

    Constants have no bit: what only shares a weight is not computed from it.
    """
    found = {value: 1 << index for index, value in enumerate(graph.inputs)}
    for index, op in enumerate(graph.ops, start=len(graph.inputs)):
        bits = 1 << index if op.inputs else 0
        for value in op.inputs:
            bits |= found[value]
        found.update((result, bits) for result in op.results)
    return found


def _own(reached: dict[Value, int], value: Value) -> int:
    """The bit of an input, or of the op that makes a value: the highest one."""
    bits = reached[value]
    return 1 << (bits.bit_length() - 1) if bits else 0


def _terms(value: Value) -> set[Value]:
    """A value, and the terms of its type that it is the sum of."""
    found, pending = {value}, [value]
    while pending:
        op = pending.pop().op
        terms = {one for one in op.inputs if one.type == value.type} if isinstance(op, AddOp) else set()
        pending += terms - found
        found |= terms
    return found


def _private_ops(add: Op, stays: int) -> list[Op]:
    """The ops that only the branch of an addition needs, of a graph without dead ops."""
    graph = add.graph
    assert graph is not None
    before = graph.ops[: graph.ops.index(add)]
    private: set[Op] = set()
    for op in reversed(before):
        uses = [use for result in op.results for use in result.uses]
        if all(use.user in private or (use.user is add and use.index != stays) for use in uses):
            private.add(op)
    return [op for op in before if op in private]


def _layers(add: Op, stays: int) -> tuple[str, ...]:
    """The names of the layers of a branch, each once."""
    named = (op.location for op in _private_ops(add, stays) if op.cost().macs and op.location)
    return tuple(dict.fromkeys(named))


def _shared_path(names: tuple[str, ...]) -> str:
    """``layer1.0`` of ``layer1.0.conv1`` and ``layer1.0.conv2``."""
    paths = [name.split(".") for name in names]
    shared = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def _numbered(names: list[str]) -> Iterator[str]:
    """The names, with numbers from the second of its name on."""
    seen: Counter[str] = Counter()
    for name in names:
        seen[name] += 1
        yield name if seen[name] == 1 else f"{name} #{seen[name]}"


def _alone(block: Block, ops: list[Op], output: Value) -> Graph:
    """Some ops of a block as a graph of what the whole block reads."""
    source = block.add.graph
    assert source is not None
    inside = [*block.private_ops(), block.add]
    made = {result for op in inside for result in op.results}
    outer = dict.fromkeys(value for op in inside for value in op.inputs if value not in made)
    variable = [value for value in outer if not is_constant(value)]
    inputs = [(f"x{index}", value.type) for index, value in enumerate(variable)]
    graph = Graph(f"{source.name}_block", inputs, source.weights.copy())
    mapping: dict[Value, Value] = dict(zip(variable, graph.inputs, strict=True))
    append_clones(graph, ops, mapping)
    graph.outputs = (mapping[output],)
    return graph
