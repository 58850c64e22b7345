"""Calling what ``package.module:name`` names, where it is the factory of a model."""

from __future__ import annotations

from torch import nn

from ..ir import TersorError
from ..ir.foreign import UserObject
from ..ir.imports import find_attribute, one_line


def call_factory(spec: str) -> UserObject:
    """Import the module, with the current directory on the path as by ``python -m``, and call the factory.

    Raises
    ------
    TersorError
        When the name is malformed, the module or attribute does not exist (the nearest name is suggested), or either
        raises.
    """
    factory = find_attribute(spec, "no such file, and not of the form package.module:factory")
    if not callable(factory) or isinstance(factory, nn.Module):
        kind = type(factory).__name__
        raise TersorError(f"{spec}: is a {kind}; name a function that returns (module, example_inputs)")
    try:
        return factory()
    except TersorError:
        raise
    except Exception as error:  # the user's own code
        raise TersorError(f"{spec}: calling it raised {type(error).__name__}: {one_line(error)}") from error
