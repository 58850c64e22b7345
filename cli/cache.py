"""The commands ``tersor cache …``: look at what is kept on disk to compile sooner, and remove it."""

from __future__ import annotations

import typer
from rich.console import Console

from .options import JsonOption, print_json

cache = typer.Typer(name="cache", help="Look at the kernels that are kept, or remove them.", no_args_is_help=True)


@cache.command()
def show(as_json: JsonOption = False) -> None:
    """Show where compiled kernels and measured times are kept, how many there are, and how much room they take.

    \b
    Examples:
      tersor cache show
      tersor cache show --json
    """
    from ..targets.codegen.kernel_cache import KernelCache
    from ..targets.tuning.times import FILE, count_times

    kernels = KernelCache.of_user()
    use, times = kernels.use(), kernels.folder.parent / FILE
    count = count_times(times)
    if as_json:
        found = {"folder": str(kernels.folder), "kernels": use.kernels, "bytes": use.bytes}
        print_json(found | {"limit_bytes": kernels.limit, "times_file": str(times), "times": count})
        return
    size = f"{_megabytes(use.bytes)} of at most {_megabytes(kernels.limit)} MB"
    _console().print(f"{kernels.folder}: {use.kernels} compiled kernels, {size}")
    _console().print(f"{times}: {count} measured times of graphs")


@cache.command()
def clear(as_json: JsonOption = False) -> None:
    """Remove all compiled kernels and measured times; whatever needs them makes them again.

    \b
    Examples:
      tersor cache clear
    """
    from ..ir.files import writing
    from ..targets.codegen.kernel_cache import KernelCache
    from ..targets.tuning.times import FILE

    kernels = KernelCache.of_user()
    removed, times = kernels.clear(), kernels.folder.parent / FILE
    with writing(times):
        times.unlink(missing_ok=True)
    if as_json:
        print_json({"folder": str(kernels.folder), "kernels": removed.kernels, "bytes": removed.bytes})
        return
    size = f"{_megabytes(removed.bytes)} MB"
    _console().print(f"{kernels.folder}: removed {removed.kernels} compiled kernels, {size}")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f}"


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True, markup=False)
