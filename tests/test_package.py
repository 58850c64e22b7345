from __future__ import annotations

import subprocess
import sys

import pytest

import tersor


def test_import_is_light():
    script = "import sys, tersor.cli.main; print({'torch', 'tvm', 'numpy', 'networkx'} & sys.modules.keys())"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_public_names():
    assert set(tersor.__all__) <= set(dir(tersor))
    for name in ("TersorError", "from_torch", "ir", "list_passes", "register_pass", "run_passes", "__version__"):
        assert getattr(tersor, name) is not None
    with pytest.raises(AttributeError, match="module 'tersor' has no attribute 'nonsense'"):
        _ = tersor.nonsense
