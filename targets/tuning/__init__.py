"""Autotuning: what can be chosen, what was measured, and how measurements are kept and used.

`option` and `task` name a choice and a problem, `outcome` is one measurement, `records` and `log` keep measurements on
disk, and `tuned` answers the compiler's question which option to use. Nothing in here knows passes or frontends.
"""
