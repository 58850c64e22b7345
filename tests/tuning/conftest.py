"""Tests of tuning start from nothing: the records that ship would decide what is measured, on some machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from tersor.targets.tuning import tuned


@pytest.fixture(autouse=True)
def nothing_shipped(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of the shipped records."""
    folder = tmp_path_factory.mktemp("shipped")
    monkeypatch.setattr(tuned, "shipped_log_dir", lambda: folder)
    return folder
