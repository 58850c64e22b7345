"""The machines known by name, and the one that the tests run on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import tvm

from tersor import TersorError
from tersor.measuring import runs_here
from tersor.targets import Cpu, Gpu, list_targets, resolve_target
from tersor.targets.machines import catalog
from tersor.targets.machines.catalog import TARGETS, detect_host, features_in, host_features, usable_cores
from tersor.targets.machines.features import most_capable, obstacle_here, required_features
from tersor.targets.tuning.driver import check_measurable

CPUINFO = Path(__file__).parent / "cpuinfo"  # one processor of each text, as Linux lists it on such machines


PROCESSORS = [target for target in list_targets() if isinstance(target, Cpu)]


@pytest.mark.parametrize("target", PROCESSORS, ids=lambda target: target.name)
def test_records_are_consistent(target: Cpu):
    assert resolve_target(target.name) is target
    assert target.name.split(":")[0] == target.family
    wide = "avx512f" in target.features
    assert target.family != "x86" or (target.vector_bytes, target.vector_registers) == ((64, 32) if wide else (32, 16))
    assert target.lanes() * 4 == target.lanes(1) == target.vector_bytes
    assert target.family != "arm" or (target.vector_bytes, target.vector_registers) == (16, 32)
    assert 16 * 1024 <= target.l1_bytes < target.l2_bytes
    assert target.l2_bytes < target.l3_bytes
    assert target.cores >= 1
    assert len(set(target.features)) == len(target.features)


@pytest.mark.parametrize("target", PROCESSORS, ids=lambda target: target.name)
def test_llvm_knows_every_processor_and_has_its_instruction_sets(target: Cpu):
    assert target.tvm_target()["mcpu"] == target.mcpu
    required = set(required_features(target))
    assert required >= set(target.features)
    assert ("avx512f" in required) == (target.vector_bytes == 64)
    assert ("asimddp" in required) == (target.name == "arm:cortex-a76")


@pytest.mark.parametrize("target", [one for one in list_targets() if one.family == "cuda"], ids=lambda one: one.name)
def test_gpus_are_no_processors(target: Gpu):
    assert resolve_target(target.name) is target
    assert target.name == f"{target.family}:{target.architecture}"
    assert target.shared_bytes < target.l1_bytes < target.l2_bytes
    assert target.lanes(2) == 8
    assert target.layout_costs() is None
    assert required_features(target) == ()
    assert tvm.target.Target(target.tvm_target()).host.attrs["mcpu"] == "x86-64"
    with pytest.raises(TersorError, match=f"kernels for {target.name} are not measured; name a processor"):
        check_measurable(target)


def test_names_are_listed_in_order():
    names = [target.name for target in list_targets()]
    assert names == sorted(names) == sorted(TARGETS)
    assert {"arm:cortex-a72", "arm:cortex-a76", "x86:avx2", "x86:skylake-avx512", "x86:znver4"} <= set(names)


def test_records_resolve_to_themselves():
    target = TARGETS["x86:avx2"]
    assert resolve_target(target) is target


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("x86:znver6", "x86:znver5"), ("x86:nativ", "x86:native"), ("x86:sapphirerapid", "x86:sapphirerapids")],
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


RIGHT = {
    "skylake-x": "x86:skylake-avx512",
    "cascade-lake": "x86:cascadelake",
    "ice-lake": "x86:icelake-server",
    "sapphire-rapids": "x86:sapphirerapids",
    "granite-rapids": "x86:sapphirerapids",
    "alder-lake": "x86:alderlake",
    "zen2": "x86:znver3",
    "zen3": "x86:znver3",
    "zen4": "x86:znver4",
    "zen5": "x86:znver5",
    "neoverse-n1": "arm:cortex-a76",
    "neoverse-v1": "arm:cortex-a76",
    "cortex-a72": "arm:cortex-a72",
    "cortex-a76": "arm:cortex-a76",
    # It has all of Zen 4's features, but LLVM's code for a Zen 4 uses SSE4a as well.
    "vm-sapphire-rapids-without-amx": "x86:icelake-server",
    "vm-skylake-without-avx512": "x86:avx2",
    "vm-zen3": "x86:znver3",
}


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts another text in place of this machine's /proc/cpuinfo; all its instruction sets may be used."""

    def replace(cpuinfo: str) -> None:
        monkeypatch.setattr(catalog, "_cpuinfo", lambda: cpuinfo)
        monkeypatch.setattr(catalog, "_request_tiles", lambda: True)
        monkeypatch.setattr(catalog.platform, "machine", lambda: "aarch64" if "Features" in cpuinfo else "x86_64")

    return replace


def cpuinfo_of(processor: str) -> str:
    return (CPUINFO / f"{processor}.txt").read_text(encoding="utf-8")


def test_a_processor_whose_number_is_hidden_is_told_by_family_and_model():
    assert catalog._name_in(cpuinfo_of("vm-zen3")) == "AMD EPYC (family 25, model 1)"
    assert catalog._name_in(cpuinfo_of("vm-skylake-without-avx512")).endswith("@ 2.00GHz (family 6, model 85)")
    assert catalog._name_in(cpuinfo_of("zen3")) == "AMD EPYC 7763 64-Core Processor"
    assert catalog._name_in("") == ""


def test_every_stored_processor_has_a_right_answer():
    assert {path.stem for path in CPUINFO.iterdir()} == set(RIGHT)


@pytest.mark.parametrize("processor", RIGHT)
def test_detection_takes_the_most_capable_record_that_is_right(processor: str, pretend: Callable[[str], None]):
    text = cpuinfo_of(processor)
    found = most_capable(features_in(text))
    assert found is TARGETS[RIGHT[processor]]
    pretend(text)
    native, other = ("x86:native", "arm:native")[:: 1 if found.family == "x86" else -1]
    assert resolve_target(native) == detect_host()
    assert detect_host().name == found.name
    assert obstacle_here(detect_host()) == ""
    check_measurable(detect_host())
    assert runs_here(detect_host())
    with pytest.raises(TersorError, match=f"{other} is not this machine, .*; use {native}"):
        resolve_target(other)


@pytest.mark.parametrize("target", PROCESSORS, ids=lambda target: target.name)
def test_every_record_is_right_for_a_processor_with_what_it_needs(target: Cpu):
    assert most_capable(frozenset(required_features(target))) is target


def test_tiles_that_linux_refuses_are_not_used(pretend: Callable[[str], None], monkeypatch: pytest.MonkeyPatch):
    pretend(cpuinfo_of("sapphire-rapids"))
    assert "amx_tile" in host_features()
    monkeypatch.setattr(catalog, "_request_tiles", lambda: False)
    assert not [name for name in host_features() if name.startswith("amx")]
    assert detect_host().name == "x86:icelake-server"


@pytest.mark.parametrize("cpuinfo", ["flags : sse2 avx", ""])
def test_old_processors_are_told_what_to_do(cpuinfo: str, pretend: Callable[[str], None]):
    pretend(cpuinfo)
    with pytest.raises(TersorError, match=r"needs an x86-64 processor with AVX2.* name a target instead: .*x86:avx2"):
        detect_host()


def test_other_architectures_are_told_what_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(catalog.platform, "machine", lambda: "aarch64")
    with pytest.raises(TersorError, match="this one is aarch64 without"):
        detect_host()


def test_unreadable_caches_fall_back_to_the_record(monkeypatch: pytest.MonkeyPatch):
    assert catalog._cache_bytes(9, 12345) == 12345
