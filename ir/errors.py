"""Errors that a user can act on. Every message says what is wrong, where, and what to do."""

from __future__ import annotations


class TersorError(Exception):
    """Base of all errors caused by what the user gave us; the command line prints them as one line and exits with 2."""


class IRError(TersorError):
    """An op, a graph or IR text that breaks a rule of the IR."""


class TersorWarning(UserWarning):
    """Something that the user gave us is suspicious, but is kept as it is."""


def shorten(text: object, limit: int = 80) -> str:
    """Foreign text for a message: its first line, cut to ``limit`` characters; ``...`` stands for what is left out."""
    whole = str(text).strip()
    line = whole.split("\n", 1)[0].rstrip()
    if len(line) > limit:
        return line[: limit - 3] + "..."
    return line
