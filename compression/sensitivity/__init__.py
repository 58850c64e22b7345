"""Sensitivity as one command: each layer alone is compressed at several settings, and the outputs are compared.

`axes` says what can be changed, one way a file; `variants` is what an axis plans, `sweep` evaluates it, `analyze` puts
it together, and `page` shows it. What comes out is data of `tersor.passes.sensitivity`, which passes read.
"""
