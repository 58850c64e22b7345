"""What PyTorch prints and logs of its own accord while it traces, kept from the terminal."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

_LOGGERS = ("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes")


@contextmanager
def quiet() -> Iterator[None]:
    """Say nothing of errors that are exceptions already; PyTorch logs them, and prints the graph traced so far.

    What the model itself prints comes at the end. Logging that somebody asked for (``TORCH_LOGS``) stays.
    """
    loggers = [one for one in map(logging.getLogger, _LOGGERS) if one.getEffectiveLevel() >= logging.WARNING]
    before = [one.disabled for one in loggers]
    for one in loggers:
        one.disabled = True
    printed, graph = io.StringIO(), ""
    try:
        with redirect_stderr(printed):
            yield
    except Exception as error:
        graph = f"{error.partial_fx_graph}\n" if hasattr(error, "partial_fx_graph") else ""
        raise
    finally:
        for one, was_disabled in zip(loggers, before, strict=True):
            one.disabled = was_disabled
        sys.stderr.write(printed.getvalue().replace(graph, "") if graph else printed.getvalue())
