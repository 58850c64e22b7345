"""Whether what a manifest says fits the target, the graph and the code that it comes with; nothing of them is run."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ...ir import Graph, IRError, TersorError, bind, check_numbers, verify_interface
from ...ir.printer import graph_symbol, value_names
from ...ir.segments import Segment, cut_into_segments
from ..machines.catalog import TARGETS
from ..machines.families import FAMILIES
from ..machines.target import Cpu, Target
from ..runtime.model_info import KernelInfo, ModelInfo, Port, described
from ..runtime.ports import STORED_AS, ports
from ..runtime.signature import Buffer, read_signature
from .manifest import ArtifactError, Constant, Manifest, ProgramEntry

if TYPE_CHECKING:
    import tvm

_ELF_MACHINES = {"x86_64": 62, "aarch64": 183}  # e_machine of the ELF specification
_ELF_HEADER = struct.Struct("<4sBB12xH")  # magic number, class, byte order, machine
ELF_HEADER_BYTES = _ELF_HEADER.size


def is_library_for(machine: str, header: bytes) -> bool:
    """Whether a file that starts with ``header`` is a shared object for an architecture."""
    if len(header) < _ELF_HEADER.size or machine not in _ELF_MACHINES:
        return False
    magic, bits, order, number = _ELF_HEADER.unpack_from(header)
    return (magic, bits, order, number) == (b"\x7fELF", 2, 1, _ELF_MACHINES[machine])


def check_target(target: Target) -> None:
    """See that a target is one that Tersor knows by name, or is of a known family and under a name of its own.

    Caches and cores may be those of any machine.

    Raises
    ------
    ArtifactError
        When it is not; LLVM must not be asked about any other.
    """
    known, family = TARGETS.get(target.name, target), FAMILIES.get(target.family)
    if not isinstance(target, Cpu):
        if target in TARGETS.values():
            return
        raise ArtifactError(f"target {target.name!r} is unknown")
    counts = (target.l1_bytes, target.l2_bytes, target.l3_bytes, target.cores - 1)
    if family is None or not target.name.startswith(f"{target.family}:") or min(counts) < 0:
        raise ArtifactError(f"target {target.name!r} of family {target.family!r} with {target.cores} cores is unknown")
    if target.mtriple not in {record.mtriple for record in family.records if isinstance(record, Cpu)}:
        raise ArtifactError(f"target {target.name!r} has the triple {target.mtriple!r}, which no {family.name} has")
    sizes = ("l1_bytes", "l2_bytes", "l3_bytes", "cores")
    if target != replace(known, **{name: getattr(target, name) for name in sizes}):
        raise ArtifactError(f"target {target.name!r} differs from the known one; give it a name of its own")


def check_graph(info: ModelInfo, graph: Graph) -> None:
    """See that names, inputs, outputs and kernels are those of the graph.

    Raises
    ------
    ArtifactError
        When one is not.
    """
    inputs, outputs = ports(graph)
    _agree("inputs", "graph", [replace(port, name="") for port in info.inputs], [replace(p, name="") for p in inputs])
    _agree("outputs", "graph", info.outputs, outputs)
    _agree("states", "graph", info.states, graph.states)
    try:
        verify_interface(graph, weights=False)
    except IRError as error:
        raise ArtifactError(str(error)) from error
    if any(port.type.channel_block for port in (*inputs, *outputs)):
        raise ArtifactError("inputs and outputs must be stored row by row")
    written = [graph_symbol(graph), *(value_names(graph)[value] for value in graph.inputs)]
    graph.name = info.name
    for value, port in zip(graph.inputs, info.inputs, strict=True):
        value.name = port.name
    _agree("names", "graph", [graph_symbol(graph), *(value_names(graph)[value] for value in graph.inputs)], written)
    places = {"", *(op.location for op in graph.ops)}
    known = {(described(op), op.location, cost.macs, cost.bytes) for op in graph.ops for cost in (op.cost(),)}
    for index, kernel in enumerate(info.kernels):
        work = (kernel.op, kernel.location, kernel.macs, kernel.bytes)
        if work not in known and not (_copies(kernel) and kernel.location in places):
            raise ArtifactError(f"kernel {index} of the manifest belongs to no op of the graph")


def check_program(entry: ProgramEntry, whole: Graph, part: Graph, graph: Graph, constants: int) -> None:
    """See that a program of an artifact is for numbers that its graph may be bound to, and reads what is there.

    Parameters
    ----------
    whole, part, graph
        The artifact's graph, that or the segment of it which the program is for, and the program's own.
    constants
        How many the artifact has.

    Raises
    ------
    ArtifactError
        When it is not.
    """
    try:
        check_numbers(whole.symbols, entry.numbers)
        inputs, outputs = ports(bind(part, entry.numbers) if part.symbols else part)
    except TersorError as error:
        raise ArtifactError(f"a program does not fit the graph ({error})") from error
    _agree("inputs", "graph", [port.type for port in entry.model.inputs], [port.type for port in inputs])
    _agree("outputs", "graph", entry.model.outputs, outputs)
    if graph.symbols and whole is not graph:
        raise ArtifactError("the graph of a program must have fixed shapes")
    if any(not 0 <= index < constants for index in entry.constants):
        raise ArtifactError("a program reads constants that the manifest does not have")


def cut_as_said(whole: Graph, manifest: Manifest) -> tuple[Segment, ...]:
    """The segments of an artifact's graph, one for each program; none where it has no exits.

    Raises
    ------
    ArtifactError
        When the graph cannot have these exits.
    """
    if manifest.exits is None:
        return ()
    try:
        manifest.exits.check(ports(whole)[1])
        segments = cut_into_segments(whole)
    except TersorError as error:
        raise ArtifactError(f"its exits do not fit the graph ({error})") from error
    if len(segments) != len(manifest.programs) or whole.symbols or whole.states:
        raise ArtifactError("there must be one program for each exit, of a graph with fixed shapes and without state")
    return segments


def check_code(info: ModelInfo, constants: Iterable[Constant], module: tvm.runtime.Module) -> None:
    """See that inputs, outputs, constants, kernels and memory are those that loaded code for a processor has.

    Raises
    ------
    ArtifactError
        When one is not.
    """
    try:
        signature = read_signature(module)
    except ValueError as error:
        raise ArtifactError(f"its code is not what Tersor compiles ({error})") from error
    _agree("inputs", "code", [_stored(port) for port in info.inputs], signature.inputs)
    _agree("outputs", "code", [_stored(port) for port in info.outputs], signature.outputs)
    _agree("constants", "code", [(one.dtype, one.count) for one in constants], signature.constants)
    _agree("kernels", "code", [kernel.function for kernel in info.kernels], signature.kernels)
    templates = [name.rpartition("_")[0] for name in signature.kernels]  # functions are named so by `relax_module`
    _agree("templates", "code", [kernel.template for kernel in info.kernels], templates)
    _agree("activation_bytes", "code", [info.activation_bytes], [signature.activation_bytes])


def _agree(what: str, where: str, said: Iterable[object], found: Iterable[object]) -> None:
    if tuple(said) != tuple(found):
        raise ArtifactError(f"{what} of the manifest are not those of the {where}")


def _copies(kernel: KernelInfo) -> bool:
    """Whether a kernel only moves data, which no op of the graph asks for."""
    return kernel.op == kernel.template and kernel.macs == 0


def _stored(port: Port) -> Buffer:
    dtype: torch.dtype = STORED_AS.get(port.type.dtype, port.type.dtype.torch)
    return str(dtype).removeprefix("torch."), port.type.size
