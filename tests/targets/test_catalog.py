"""The machines known by name, and the one that the tests run on."""

from __future__ import annotations

import os

import pytest
from tersor import TersorError
from tersor.targets import Target, list_targets, resolve_target
from tersor.targets.machines import catalog
from tersor.targets.machines.catalog import TARGETS, detect_host, host_features, usable_cores


@pytest.mark.parametrize("target", list_targets(), ids=lambda target: target.name)
def test_records_are_consistent(target: Target):
    assert resolve_target(target.name) is target
    assert target.name.split(":")[0] == target.family
    wide = "avx512f" in target.features
    assert target.family != "x86" or (target.vector_bytes, target.vector_registers) == ((64, 32) if wide else (32, 16))
    assert target.lanes() * 4 == target.lanes(1) == target.vector_bytes
    assert target.family != "arm" or (target.vector_bytes, target.vector_registers) == (16, 32)
    assert 16 * 1024 <= target.l1_bytes < target.l2_bytes
    assert target.family == "cuda" or target.l2_bytes < target.l3_bytes
    assert target.cores >= 1
    assert len(set(target.features)) == len(target.features)


@pytest.mark.parametrize("target", [t for t in list_targets() if t.family != "cuda"], ids=lambda target: target.name)
def test_llvm_knows_every_processor_and_has_its_instruction_sets(target: Target):
    features = pytest.importorskip("tersor.targets.machines.features")
    assert target.tvm_target()["mcpu"] == target.mcpu
    required = set(features.required_features(target))
    assert required >= set(target.features)
    assert ("avx512f" in required) == (target.vector_bytes == 64)
    assert ("asimddp" in required) == (target.name == "arm:cortex-a76")


def test_names_are_listed_in_order():
    names = [target.name for target in list_targets()]
    assert names == sorted(names) == sorted(TARGETS)
    assert {"arm:cortex-a72", "arm:cortex-a76", "x86:avx2", "x86:skylake-avx512", "x86:znver4"} <= set(names)


def test_records_resolve_to_themselves():
    target = TARGETS["x86:avx2"]
    assert resolve_target(target) is target


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("x86:znver5", "x86:znver4"), ("x86:nativ", "x86:native"), ("x86:sapphirerapid", "x86:sapphirerapids")],
)
def test_unknown_names_suggest_the_nearest(name: str, suggestion: str):
    with pytest.raises(TersorError, match=f"unknown target '{name}'.*{suggestion}.*tersor targets"):
        resolve_target(name)


def test_unknown_names_without_a_near_one():
    with pytest.raises(
        TersorError, match=r"unknown target 'quantum'; known: arm:cortex-a72, .* \(see `tersor targets`\)"
    ):
        resolve_target("quantum")


def test_this_machine():
    target = detect_host()
    assert target == resolve_target("x86:native")
    assert host_features() >= set(target.features)
    assert target.mcpu == TARGETS[target.name].mcpu
    assert 1 <= target.cores == usable_cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize("name", sorted(name for name in TARGETS if name.startswith("x86:")))
def test_detection_takes_the_most_capable_record(name: str, monkeypatch: pytest.MonkeyPatch):
    record = TARGETS[name]
    vendor = "AuthenticAMD" if record.mcpu.startswith("znver") else "GenuineIntel"
    pretended = {"flags": " ".join(("sse2", *record.features)), "vendor_id": vendor}
    monkeypatch.setattr(catalog, "_cpuinfo", lambda key: pretended.get(key, ""))
    detected = detect_host()
    assert detected.features == record.features
    assert detected.name.startswith("x86:znver") == record.mcpu.startswith("znver") or not _has_both_vendors(record)


def _has_both_vendors(record: Target) -> bool:
    same = [other for other in TARGETS.values() if other.features == record.features]
    return len({other.mcpu.startswith("znver") for other in same}) == 2


def test_old_processors_are_told_what_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(catalog, "_cpuinfo", lambda key: "sse2 avx" if key == "flags" else "")
    with pytest.raises(TersorError, match=r"needs an x86-64 processor with AVX2.*name a target instead: .*x86:avx2"):
        detect_host()


def test_other_architectures_are_told_what_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(catalog.platform, "machine", lambda: "aarch64")
    with pytest.raises(TersorError, match="this one is aarch64"):
        detect_host()


def test_unreadable_caches_fall_back_to_the_record(monkeypatch: pytest.MonkeyPatch):
    assert catalog._cache_bytes(9, 12345) == 12345
