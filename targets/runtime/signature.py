"""What compiled code takes and returns, read from the program of TVM's virtual machine without running it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tvm

_CALL = re.compile(r"call +(\S+) +in: (.*?) +dst: (\S+)")
_RETURN = re.compile(r"ret +(\S+)")
_POOL = re.compile(r"Constant pool .*?: \[(.*)\]$", re.MULTILINE)
_CONSTANT = re.compile(r'(".*?"|[^,"]+)(?:, |$)')  # of the pool: a text, shapetuple[7], or an element type
_BUILTIN = "vm.builtin."

Buffer = tuple[str, int]  # a flat array: element type as TVM names it, and elements


@dataclass(frozen=True)
class Signature:
    """The signature of a program for processors.

    Attributes
    ----------
    inputs, constants, outputs
        What the program takes and returns, in order.
    kernels
        Names of the functions that it calls, in execution order.
    activation_bytes
        Memory that one call allocates.
    """

    inputs: tuple[Buffer, ...]
    constants: tuple[Buffer, ...]
    outputs: tuple[Buffer, ...]
    kernels: tuple[str, ...]
    activation_bytes: int


def read_signature(module: tvm.runtime.Module) -> Signature:
    """The signature of a loaded module that `tersor.targets.codegen.relax_module` made.

    Raises
    ------
    ValueError
        When it is another program.
    """
    try:
        return _read(str(module["as_text"]()), str(module["stats"]()))
    except (AttributeError, LookupError, RuntimeError) as error:
        raise ValueError(f"its program is of another kind: {type(error).__name__}") from error


def _read(program: str, statistics: str) -> Signature:
    pool = _CONSTANT.findall(_POOL.findall(statistics)[0])
    types: dict[str, str] = {}  # of registers
    sizes: dict[str, int] = {}
    tuples: dict[str, dict[int, str]] = {}  # registers of the members, by index
    checked, kernels = [], []
    activation_bytes, constants, outputs = 0, "", ""
    for line in program.split("\n\n", 1)[0].splitlines():
        if returned := _RETURN.search(line):
            outputs = returned[1]
        if not (called := _CALL.search(line)):
            continue
        name, given, result = called.groups()
        operands = [pool[int(one[2:-1])] if one.startswith("c[") else one for one in given.split(", ")]
        if not name.startswith(_BUILTIN):
            kernels.append(name)
        match name.removeprefix(_BUILTIN), operands:
            case "check_tensor_info", [register, _, dtype, _]:
                checked.append(register)
                types[register] = dtype
            case "match_shape", [register, _, _, _, extent, _]:
                sizes[register] = _number(extent)
            case "check_tuple_info", [constants, _, _]:
                tuples[constants] = {}
            case "tuple_getitem", [whole, index]:
                tuples[whole].setdefault(_number(index), result)
            case "make_tuple", members:
                tuples[result] = dict(enumerate(members))
            case "alloc_storage", [_, size, *_]:
                activation_bytes += _number(size)
            case "alloc_tensor", [_, _, size, dtype]:
                types[result], sizes[result] = dtype, _number(size)

    def buffers(registers: Iterable[str]) -> tuple[Buffer, ...]:
        return tuple((types[register], sizes[register]) for register in registers)

    members = [tuples[constants][index] for index in range(len(tuples[constants]))]
    return Signature(
        buffers(register for register in checked if register not in members),
        buffers(members),
        buffers(tuples[outputs].values()),
        tuple(kernels),
        activation_bytes,
    )


def _number(text: str) -> int:
    """The number in an immediate (i7), a register (%7) or a shape (shapetuple[7])."""
    return int(text.removeprefix("shapetuple[").strip("i%]"))
