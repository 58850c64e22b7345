"""Runnable examples; start one with ``python -m examples.NAME`` from the checkout."""
