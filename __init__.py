"""Tersor: compiler-style graph optimization for PyTorch models, with every speedup measured.

Names are imported when they are first used, so that ``import tersor`` is quick and needs neither torch nor tvm.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import ir
    from .compiler import compile, run_passes
    from .compression.compress import compress
    from .compression.sensitivity.analyze import analyze_sensitivity
    from .exits import choose_exits, measure_exits
    from .frontend import Arguments, from_onnx, from_torch
    from .ir import TersorError
    from .passes import list_passes, register_pass
    from .passes.calibration import CalibrationData
    from .targets import load
    from .targets.runtime.exits import EarlyExits
    from .training.zeros import keep_zeros

    __version__: str

_MODULES = {
    "Arguments": ".frontend",
    "CalibrationData": ".passes.calibration",
    "EarlyExits": ".targets.runtime.exits",
    "TersorError": ".ir",
    "compile": ".compiler",
    "analyze_sensitivity": ".compression.sensitivity.analyze",
    "choose_exits": ".exits",
    "compress": ".compression.compress",
    "from_onnx": ".frontend",
    "from_torch": ".frontend",
    "keep_zeros": ".training.zeros",
    "list_passes": ".passes",
    "load": ".targets",
    "measure_exits": ".exits",
    "register_pass": ".passes",
    "run_passes": ".compiler",
}

__all__ = ["__version__", "ir", *_MODULES]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("tersor")
    elif name == "ir":
        value = import_module(".ir", __name__)
        import_module(".frontend", __name__)  # registers ``graph.to_torch()``
    elif name in _MODULES:
        value = getattr(import_module(_MODULES[name], __name__), name)
        if name == "load":
            import_module(".shapes", __name__)  # registers what makes programs for new shapes
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
