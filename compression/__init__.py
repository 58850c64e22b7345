"""Compression as one command: a pipeline in steps, each compiled, timed, scored and reported.

`plan` divides the pipeline, `session` runs it, `judge` measures after each step, `data` and `evaluation` are what the
user gives, `result` is what comes out, and `page` shows it. See docs/compression.md.
"""
