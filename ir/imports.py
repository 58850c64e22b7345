"""What ``package.module:name`` names: functions that users write, found by name.

It is in the lowest folder because passes, models and data are named like this.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from .errors import TersorError
from .foreign import UserObject
from .names import suggest


def find_attribute(spec: str, malformed: str) -> UserObject:
    """What ``package.module:name`` names, the module imported with the current directory on the path.

    Parameters
    ----------
    malformed
        What to say of a name that is not of this form.

    Raises
    ------
    TersorError
        When the name is malformed, the module or attribute does not exist (the nearest name is suggested), or importing
        it raises.
    """
    module_name, _, attribute = spec.partition(":")
    parts = [*module_name.split("."), attribute]
    if not all(part.isidentifier() for part in parts):
        raise TersorError(f"{spec}: {malformed}")
    module = _import(spec, module_name)
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        named = vars(module).items()
        known = [name for name, value in named if not name.startswith("_") and not isinstance(value, ModuleType)]
        raise TersorError(f"{spec}: module {module_name} has no {attribute!r}{suggest(attribute, known)}") from error


def find_function(spec: str, purpose: str) -> Callable[..., UserObject]:
    """The function that ``package.module:name`` names; ``purpose`` says what it is for, as in "that scores channels".

    Raises
    ------
    TersorError
        As `find_attribute` does, and when what is named cannot be called.
    """
    found = find_attribute(spec, "is not of the form package.module:function")
    if not callable(found):
        raise TersorError(f"{spec}: is a {type(found).__name__}; name a function {purpose}")
    function: Callable[..., UserObject] = found
    return function


def _import(spec: str, name: str) -> ModuleType:
    directory = str(Path.cwd())
    if directory not in sys.path:
        sys.path.insert(0, directory)  # stays: the factory may import when it is called
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing != name and not name.startswith(f"{missing}."):
            raise TersorError(f"{spec}: importing {name} needs module {missing!r}, which is not installed") from error
        raise TersorError(f"{spec}: no module named {missing!r}{suggest(missing, _siblings(missing))}") from error
    except Exception as error:  # the user's own code
        raise TersorError(f"{spec}: importing {name} raised {type(error).__name__}: {one_line(error)}") from error


def _siblings(name: str) -> list[str]:
    """Modules that could have been meant: those of the parent package, or of the current directory."""
    parent, _, _ = name.rpartition(".")
    places = list(getattr(sys.modules.get(parent), "__path__", [])) if parent else [str(Path.cwd())]
    prefix = f"{parent}." if parent else ""
    return [prefix + module.name for module in pkgutil.iter_modules(places)]


def one_line(error: Exception) -> str:
    """The message of an error of the user's code, without line breaks."""
    return " ".join(str(error).split())
