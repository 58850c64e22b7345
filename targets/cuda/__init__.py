"""NVIDIA GPUs: kernels of our own on tensor cores, and TVM's default schedules for the rest.

Only `tersor.targets.cuda.backend` is used from outside; see ``docs/cuda.md``.
"""
