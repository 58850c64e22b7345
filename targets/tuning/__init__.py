"""Autotuning: what can be chosen, what was measured, and how measurements are kept and used.

`option` and `task` name a choice and a problem, `outcome` is one measurement, `records` and `log` keep measurements on
disk, and `tuned` answers the compiler's question which option to use. `driver` tunes a graph: `session` asks
`scheduler` for a task, `search` and `model` for candidates, and `measure` for their times. Nothing in here knows passes
or frontends. See docs/tuning.md.
"""
