"""Autotuning: what can be chosen, what was measured, and how measurements are kept and used.

`option` and `task` name a choice and a problem, `outcome` is one measurement, `records` and `log` keep measurements on
disk, and `tuned` answers the compiler's question which option to use. `driver` tunes a graph: `session` asks
`scheduler` for a task, `search` and `model` for candidates, and `measure` for their times. Nothing in here knows passes
or frontends. See docs/tuning.md.
"""

from __future__ import annotations

from pathlib import Path

DEFAULT_LOG_DIR = Path("tuning_logs")  # in the current folder: where records go unless told otherwise
