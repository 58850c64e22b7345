"""Errors that a user can act on. Every message says what is wrong, where, and what to do."""

from __future__ import annotations


class TersorError(Exception):
    """Base of all errors caused by what the user gave us; the command line prints them as one line and exits with 2."""


class IRError(TersorError):
    """An op, a graph or IR text that breaks a rule of the IR."""


class TersorWarning(UserWarning):
    """Something that the user gave us is suspicious, but is kept as it is."""
