"""Trained networks that packages bring: compiled, they must answer as the runtime that they ship for."""
