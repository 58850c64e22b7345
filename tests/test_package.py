from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import tersor


def test_import_is_light():
    script = "import sys, tersor.cli.main; print({'torch', 'tvm', 'numpy', 'networkx'} & sys.modules.keys())"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_every_package_is_installed():
    """A checkout finds packages by itself; `pip install .` takes those that are listed."""
    root = Path(tersor.__file__).parent
    listed = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"]
    folders = (path.parent.relative_to(root).parts for path in root.rglob("__init__.py"))
    apart = ("tests", "benchmarks", "examples")
    packages = (parts for parts in folders if not (parts and (parts[0] in apart or parts[0].startswith("."))))
    assert set(listed) == {".".join(("tersor", *parts)) for parts in packages}


def test_public_names():
    assert set(tersor.__all__) <= set(dir(tersor))
    for name in ("TersorError", "from_torch", "ir", "list_passes", "register_pass", "run_passes", "__version__"):
        assert getattr(tersor, name) is not None
    with pytest.raises(AttributeError, match="module 'tersor' has no attribute 'nonsense'"):
        _ = tersor.nonsense
