from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass

import pytest

import tersor.tests.passes.example_passes as examples
from tersor.ir import TersorError
from tersor.passes import (
    PRESETS,
    Exactness,
    Pass,
    Pipeline,
    PipelineError,
    as_pipeline,
    find_pass,
    list_passes,
    parse_pipeline,
    register_pass,
)
from tersor.passes.canonicalize import Canonicalize
from tersor.passes.dce import DeadCodeElimination


@pytest.mark.parametrize(
    "text",
    [
        "",
        "dce",
        "O3",
        "O0,dce,O1",
        "canonicalize{max_sweeps=3},dce",
        "test-options{number=-3,ratio=0.25,flag=true,text=tucker2,mood=wild,sizes=[1,2,3],pair=[4,0.5],maybe=7}",
        'test-options{text="with space, {braces} and \\"quotes\\""}',
        'test-options{word="none"}',
        "test-options{word=any}",
        "test-options{ratio=1e-06}",
        "test-required{rank=4}",
    ],
)
def test_text_prints_back_the_same(text):
    pipeline = parse_pipeline(text)
    assert str(pipeline) == text
    assert parse_pipeline(str(pipeline)) == pipeline


def test_values_are_converted():
    (one,) = parse_pipeline("test-options{ratio=2,flag=true,mood=wild,sizes=[],pair=[1,2],maybe=none}").passes
    assert one == examples.Options(ratio=2.0, flag=True, mood=examples.Mood.WILD, pair=(1, 2.0))
    assert isinstance(one.ratio, float)


def test_space_and_defaults_are_left_out():
    assert str(parse_pipeline(" canonicalize { max_sweeps = 20 } , dce ")) == "canonicalize,dce"


def test_presets_expand_and_nest():
    assert parse_pipeline("O1,cse").passes == (Canonicalize(), DeadCodeElimination(), find_pass("cse")())
    assert parse_pipeline("O0").passes == ()


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_exact_or_close(name):
    assert all(one.exactness is not Exactness.APPROXIMATE for one in parse_pipeline(name).passes)


def test_as_pipeline_takes_passes():
    assert as_pipeline([DeadCodeElimination()]) == Pipeline((DeadCodeElimination(),)) == parse_pipeline("dce")
    assert as_pipeline(parse_pipeline("dce")) == parse_pipeline("dce")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("canonicalize,fsue", "column 14: unknown pass 'fsue'; did you mean 'fuse'?"),
        ("O9", "column 1: unknown pass 'O9'; did you mean 'O"),
        ("dce,", "column 5: expected the name of a pass, found the end"),
        ("dce,,cse", "column 5: expected the name of a pass, found ','"),
        ("dce cse", "column 5: expected ',' or the end, found 'c'"),
        ("dce}", "column 4: expected ',' or the end, found '}'"),
        ("canonicalize{", "column 14: expected the name of an option, found the end"),
        ("canonicalize{max_sweeps}", "column 24: expected '=', found '}'"),
        ("canonicalize{max_sweeps=", "column 25: expected a value, found the end"),
        ("canonicalize{max_sweeps=3 4}", "column 27: expected ',', found '4'"),
        (
            "canonicalize{max_swep=3}",
            "column 14: pass 'canonicalize' has no option 'max_swep'; did you mean 'max_sweeps'?",
        ),
        ("dce{size=1}", "column 5: pass 'dce' has no option 'size'; it has none"),
        ("canonicalize{max_sweeps=1,max_sweeps=2}", "column 27: option 'max_sweeps' is given twice"),
        (
            "canonicalize{max_sweeps=x}",
            "column 25: option 'max_sweeps' of pass 'canonicalize': expected an integer, got 'x'",
        ),
        ("canonicalize{max_sweeps=1.5}", "expected an integer, got '1.5'"),
        ("canonicalize{max_sweeps=[1]}", "expected an integer, got a list"),
        ("canonicalize{max_sweeps=0}", "column 1: pass 'canonicalize': max_sweeps must be positive, not 0"),
        ("test-options{flag=yes}", "expected one of true, false, got 'yes'"),
        ("test-options{flag=ture}", "got 'ture'; did you mean 'true'?"),
        ("test-options{mood=clam}", "expected one of calm, wild, got 'clam'; did you mean 'calm'?"),
        ("test-options{mood=[calm]}", "expected one of calm, wild, got a list"),
        ("test-options{sizes=1}", "expected a list such as [1,2], got '1'"),
        ("test-options{sizes=[1,b]}", "expected an integer, got 'b'"),
        ("test-options{sizes=[1,", "column 23: expected a value, found the end"),
        ("test-options{pair=[1]}", "expected 2 items, got 1"),
        ("test-options{maybe=x}", "expected an integer, got 'x'"),
        ('test-options{number="1"}', "expected an integer, got '1'"),
        ('test-options{text="open}', "expected a string with a closing quote"),
        ('test-options{text="\\q"}', "column 19: malformed string"),
        ("test-required", "column 1: pass 'test-required' needs option 'rank'"),
        ("O3{fast=true}", "column 3: preset O3 takes no options"),
        ("?", "column 1: expected the name of a pass, found '?'"),
    ],
)
def test_mistakes_show_their_position(text, message):
    with pytest.raises(PipelineError) as caught:
        parse_pipeline(text)
    assert message in str(caught.value)
    assert str(caught.value).startswith("pipeline, column ")
    assert "\n" not in str(caught.value)


def test_list_passes_describes_options():
    infos = {info.name: info for info in list_passes()}
    assert {"canonicalize", "cse", "dce", "fold-batchnorm", "fold-constants", "fuse"} <= set(infos)
    assert list(infos) == sorted(infos)
    assert infos["test-options"].summary == "One option of each type."
    rank = infos["test-required"].options[0]
    assert (rank.name, rank.type, rank.required) == ("rank", "int", True)
    assert all(info.summary.endswith(".") for info in infos.values())


def test_name_can_be_registered_once():
    with pytest.raises(TersorError, match="pass 'dce' is registered twice; choose another name"):

        @register_pass("dce")
        @dataclass(frozen=True)
        class Again(Pass):
            """Again."""


def test_pass_must_derive_from_pass():
    with pytest.raises(TersorError, match="'test-loose' must be a class that derives from"):

        @register_pass("test-loose")
        class Loose:
            """Not a pass."""


def test_registered_pass_is_a_frozen_dataclass():
    @register_pass("test-plain")
    class Plain(Pass):
        """Plain."""

        rank: int = 3

    assert Plain(rank=5) == Plain(5) != Plain()
    with pytest.raises(FrozenInstanceError):
        Plain().rank = 1


def test_find_pass_suggests():
    with pytest.raises(TersorError, match="unknown pass 'fold-batchnrm'; did you mean 'fold-batchnorm'"):
        find_pass("fold-batchnrm")
