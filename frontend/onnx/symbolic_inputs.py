"""What users say of the extents that calls choose, as symbols and shapes of an ONNX file's inputs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch.export import Dim

from ...ir import Symbol, TersorError, shorten
from ...ir.extents import evaluate
from ...ir.foreign import UserObject
from ...ir.names import suggest

Declared = Mapping[str, Sequence[int | str] | None]  # extents by input name: numbers, names, or None for any rank
_HINT, _FIRST_HINT = 64, 2  # of an extent, and of a first one, which is mostly a batch, where nothing else is said
_NAME = re.compile(r"[A-Za-z_]\w*")


def symbolic_shapes(
    dynamic: UserObject, declared: Declared, shapes: Mapping[str, Sequence[int]], numbers: Mapping[str, int]
) -> tuple[dict[str, Sequence[Any]], tuple[Symbol, ...]]:
    """Shapes by input name, with extents in symbols, and these symbols.

    Parameters
    ----------
    dynamic
        For each input, by name or in the file's order, what each dimension is: a name, a formula such as ``32*height``,
        a `torch.export.Dim`, or a number. A dict has some dimensions, a sequence all. True stands for the names of the
        file.
    declared
        The extents that the file gives.
    shapes
        Example shapes. They fix the dimensions that are not dynamic, and are the hints of those that are.
    numbers
        Hints by name, which come before those.

    Raises
    ------
    TersorError
        For an input, a dimension, or a name that makes no sense, or numbers that contradict each other.
    """
    wanted = _by_input(dynamic, declared)
    texts: dict[str, dict[int, str]] = {}
    bounds: dict[str, tuple[int, int | None]] = {}
    fixed: dict[str, list[Any]] = {}
    for name, dims in wanted.items():
        own = declared[name]
        example = list(shapes.get(name, own or ()))
        if own is None and name not in shapes and not _is_whole(dims):
            raise TersorError(f"input {name!r} is of any rank: say what each of its dimensions is")
        fixed[name] = example or [""] * len(dims)
        texts[name] = {}
        for axis, dim in dims.items():
            if not 0 <= axis < len(fixed[name]):
                raise TersorError(f"dynamic_shapes names dimension {axis} of input {name!r}, which is {_shown(own)}")
            if type(dim) is int:
                fixed[name][axis] = dim
            elif dim is not None:
                texts[name][axis] = _text(dim, bounds)
    hints = _hints(texts, fixed, numbers)
    symbols = tuple(Symbol(name, *_within(hint, *bounds.get(name, (1, None)))) for name, hint in hints.items())
    extents = {symbol.name: symbol.extent for symbol in symbols}
    result: dict[str, Sequence[Any]] = dict(shapes)
    for name, formulas in texts.items():
        for axis, text in formulas.items():
            fixed[name][axis] = evaluate(text, extents)
        result[name] = fixed[name]  # names that are left are told by the reader
    return result, symbols


def _by_input(dynamic: UserObject, declared: Declared) -> dict[str, dict[int, UserObject]]:
    """Dimensions by input name and axis."""
    if dynamic is True:
        return _of_file(declared)
    if isinstance(dynamic, tuple | list):
        if len(dynamic) > len(declared):
            raise TersorError(f"dynamic_shapes has {len(dynamic)} entries, for {len(declared)} inputs")
        dynamic = dict(zip(declared, dynamic, strict=False))
    if not isinstance(dynamic, Mapping):
        raise TersorError('dynamic_shapes must be a dict by input names, for example {"x": {0: "batch"}}, or True')
    found: dict[str, dict[int, UserObject]] = {}
    for name, dims in dynamic.items():
        if name not in declared:
            raise TersorError(f"dynamic_shapes names {shorten(repr(name))}{suggest(str(name), declared)}")
        if isinstance(dims, Mapping):
            found[name] = dict(dims)
        elif isinstance(dims, tuple | list):
            found[name] = dict(enumerate(dims))
            own = declared[name]
            if own is not None and len(own) != len(dims):
                raise TersorError(f"dynamic_shapes has {len(dims)} dimensions for input {name!r}: it is {_shown(own)}")
        elif dims is not None:
            raise TersorError(f"dynamic_shapes must have a dict of dimensions for input {name!r}")
        if any(type(axis) is not int for axis in found.get(name, ())):
            raise TersorError(f"dimensions of input {name!r} are named by whole numbers from 0 on in dynamic_shapes")
    return found


def _of_file(declared: Declared) -> dict[str, dict[int, UserObject]]:
    """The names that the file has; those that are none are made of the input's name and the dimension."""
    found: dict[str, dict[int, UserObject]] = {}
    for name, dims in declared.items():
        for axis, dim in enumerate(dims or ()):
            if isinstance(dim, str):
                own = re.sub(r"\W", "_", f"{name}_{axis}")
                found.setdefault(name, {})[axis] = dim if _is_name(dim) else own if _is_name(own) else f"_{own}"
    if not found:
        raise TersorError("the file has no symbolic dimensions; name those that vary in dynamic_shapes")
    return found


def _is_name(text: str) -> bool:
    try:
        Symbol(text, _FIRST_HINT)
    except TersorError:
        return False
    return True


def _is_whole(dims: Mapping[int, UserObject]) -> bool:
    return bool(dims) and set(dims) == set(range(len(dims)))


def _text(dim: UserObject, bounds: dict[str, tuple[int, int | None]]) -> str:
    """The formula of a dimension; notes the bounds of a `Dim`."""
    if isinstance(dim, Dim):
        root = getattr(dim, "root", dim)
        most = root.max if isinstance(root.max, int) else None
        bounds[root.__name__] = max(int(root.min), 1), most
        return str(dim.__name__)
    if not isinstance(dim, str):
        raise TersorError(
            f"dynamic_shapes must have names, formulas, numbers or torch.export.Dim, not {shorten(repr(dim))}"
        )
    return dim


def _hints(
    texts: Mapping[str, Mapping[int, str]], example: Mapping[str, Sequence[Any]], numbers: Mapping[str, int]
) -> dict[str, int]:
    """A hint for each name, in the order of the inputs: one that is given, that of the example, or a usual one."""
    names = dict.fromkeys(name for text in _all(texts) for name in _NAME.findall(text))
    if not names:
        raise TersorError("dynamic_shapes names no extent")
    hints = {name: numbers[name] for name in names if name in numbers}
    for input_name, formulas in texts.items():
        for axis, text in formulas.items():
            known = example[input_name][axis]
            own = list(dict.fromkeys(_NAME.findall(text)))
            number = known if isinstance(known, int) else _HINT if axis else _FIRST_HINT
            solved = _solved(text, number) if len(own) == 1 else None
            if solved is None and len(own) == 1 and isinstance(known, int):
                raise TersorError(f"input {input_name!r} has extent {known} in dimension {axis}, which is no {text}")
            for name in own:
                hints.setdefault(name, solved or _FIRST_HINT)
    return {name: hints[name] for name in names}


def _all(texts: Mapping[str, Mapping[int, str]]) -> Iterator[str]:
    for formulas in texts.values():
        yield from formulas.values()


def _solved(text: str, number: int) -> int | None:
    """The number of the only symbol of a formula where that is ``number``; None if there is none."""
    one, two = (evaluate(text, _Same(value)) for value in (1, 2))
    slope = two - one
    if not slope or (number - one) % slope:
        return None
    return 1 + (number - one) // slope


class _Same(dict[str, int]):
    """One number for all names."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> int:
        return self.number


def _within(hint: int, least: int, most: int | None) -> tuple[int, int, int | None]:
    """A hint of 2 or more within the bounds, and these."""
    hint = max(hint, least, _FIRST_HINT)
    return (hint if most is None else min(hint, most)), least, most


def _shown(declared: Sequence[int | str] | None) -> str:
    return "of any rank" if declared is None else f"[{', '.join(map(str, declared))}]"
