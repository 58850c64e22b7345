"""Artifacts whose manifest says something else, with digests that fit; and a process that loads and calls many of them.

As a program: ``python -m tersor.tests.targets.forged ARTIFACT EXPECTED.pt FIRST STEP`` tries every ``STEP``-th variant
of the manifest, and prints one line of JSON before and after each, so that a crash shows which one it was.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tersor.targets.packaging.archive import ArchiveWriter
from tersor.targets.packaging.artifact import MANIFEST
from tersor.targets.packaging.manifest import Manifest

MISSING = object()
INTEGERS: tuple[Any, ...] = (0, -1, 2**31, 2**63, 10**30, 1.5, "1", None, [], True)
TEXTS: tuple[Any, ...] = ("", "nonsense", "x\0y", "../x", 1, None, [], {})
# What makes sense in one place may be swapped for what makes sense in another.
PLAUSIBLE = (
    "aarch64", "x86_64", "Darwin", "arm", "x86", "cuda", "x86:avx2", "arm:cortex-a72", "znver3", "cortex-a72",
    "aarch64-linux-gnu", "x86_64-linux-gnu", "f32[1]", "f32[2,3,8,8]", "i64[1,3]", "float32", "int8", "float64",
)  # fmt: skip


def contents(path: Path) -> dict[str, bytes]:
    """All members of an artifact."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def read_manifest(path: Path) -> Manifest:
    """What an artifact says about itself."""
    return Manifest.from_text(contents(path)[MANIFEST])


def rewrite(source: Path, path: Path, edit: Callable[[dict[str, Any]], None], **replaced: bytes | None) -> Path:
    """Write a copy with an edited manifest and replaced members (None: left out), all hashes right."""
    members = contents(source)
    manifest = json.loads(members.pop(MANIFEST))
    with ArchiveWriter(path) as archive:
        for name, data in (members | {name.replace("_", "."): data for name, data in replaced.items()}).items():
            if data is not None:
                member = archive.add(name, len(data), [data])
                manifest["members"][name] = {"size": member.size, "digest": member.digest}
        edit(manifest)
        archive.add_index(MANIFEST, json.dumps(manifest).encode())
    return path


def variants(tree: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Every place of a JSON tree with every other value for it; `MISSING` for none."""
    if isinstance(tree, dict):
        others: list[Any] = [None, [], {}, "text", {**tree, "another": 1}]
        for key, value in tree.items():
            yield (*path, key), MISSING
            yield from variants(value, (*path, key))
    elif isinstance(tree, list):
        others = [None, {}, "text", [], tree[:-1], [*tree, *tree[-1:]], tree[::-1], [*tree, None]]
        for index, value in enumerate(tree):
            yield from variants(value, (*path, index))
    elif tree is None:
        others = [{}, [], "text", 0, {"thresholds": [0.5], "confidence": "max-softmax"}]
    elif isinstance(tree, bool):
        others = [not tree, int(tree), None, "true"]
    elif isinstance(tree, int):
        others = [tree + 1, tree - 1, 2 * tree, *INTEGERS]
    else:
        others = [tree + "x", tree[:-1], *TEXTS, *PLAUSIBLE]
    if path:
        yield from ((path, other) for other in others if other != tree or type(other) is not type(tree))


def edited(manifest: Any, path: tuple[str | int, ...], value: Any) -> Any:
    """A manifest with one place changed."""
    manifest = copy.deepcopy(manifest)
    place = manifest
    for key in path[:-1]:
        place = place[key]
    if value is MISSING:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return manifest


def try_variants(artifact: Path, expected: Path, first: int, step: int) -> None:
    """Load and call variants; print what came of each."""
    import torch

    import tersor

    inputs, outputs = torch.load(expected, weights_only=True)
    members = contents(artifact)
    manifest = json.loads(members.pop(MANIFEST))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "forged.tersor"
        for place, value in list(variants(manifest))[first::step]:
            said = "left out" if value is MISSING else repr(value)[:60]
            print(json.dumps(["begin", ".".join(map(str, place)), said]), flush=True)
            path.unlink(missing_ok=True)
            with ArchiveWriter(path) as archive:
                for name, data in members.items():
                    archive.add(name, len(data), [data])
                archive.add_index(MANIFEST, json.dumps(edited(manifest, place, value)).encode())
            try:
                executable = tersor.load(path, threads=1)
                results = executable(*inputs)
                repr((executable, executable.graph, executable.random_inputs()))
            except tersor.TersorError as error:
                outcome = "refused" if "\n" not in str(error) and len(str(error)) < 600 else "a message of many lines"
            except Exception as error:
                outcome = f"{type(error).__name__}: {error}"[:200]
            else:
                results = results if isinstance(results, tuple) else (results,)
                same = len(results) == len(outputs) and all(map(torch.equal, results, outputs))
                outcome = "right" if same else "wrong numbers"
            print(json.dumps(["end", outcome]), flush=True)


if __name__ == "__main__":
    try_variants(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
