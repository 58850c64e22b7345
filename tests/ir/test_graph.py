from __future__ import annotations

import pytest
import torch

from tersor.ir import (
    DType,
    IRError,
    RewriteLog,
    Rewriter,
    TensorType,
    WeightStore,
    apply_rules,
    dataflow,
    evaluate,
    fingerprint,
    is_constant,
    live_ops,
    post_dominators,
    structurally_equal,
    suggest,
    verify,
    weights_loaded,
)
from tersor.ir.analysis import EXIT
from tersor.ir.arrangement import Arrangement, HeldWeight
from tersor.ir.ops import AddOp, EmbeddingOp, MulOp, ReluOp, SigmoidOp, TanhOp
from tersor.tests.random_graphs import GraphBuilder


def chain() -> GraphBuilder:
    b = GraphBuilder({"x": TensorType((2, 3))})
    b.done(b.op(ReluOp, b.op(AddOp, b.graph.inputs[0], b.weight(3), location="sum"), location="act"))
    return b


# Values, ops, graphs --------------------------------------------------------------------------------------------


def test_use_lists_follow_operands():
    b = GraphBuilder({"x": TensorType((2,)), "y": TensorType((2,))})
    x, y = b.graph.inputs
    value = b.op(AddOp, x, x)
    assert (len(x.uses), x.users, x.has_one_use) == (2, (value.op,), False)
    value.op.set_operand(1, y)
    assert x.has_one_use
    assert y.users == (value.op,)
    b.done(value, value)
    assert value.is_output
    value.replace_uses(x)
    assert b.graph.outputs == (x, x)
    assert not value.uses


def test_op_that_does_not_fit_leaves_no_use():
    b = GraphBuilder({"x": TensorType((2,)), "y": TensorType((3,))})
    with pytest.raises(IRError, match=r"add at 'here': shapes \[2\] and \[3\] do not broadcast"):
        b.op(AddOp, *b.graph.inputs, location="here")
    assert not b.graph.inputs[0].uses


def test_op_that_is_read_cannot_be_removed():
    graph = chain().graph
    with pytest.raises(IRError, match="add at 'sum' cannot be removed: its result is still read"):
        graph.remove(graph.ops[1])


def test_op_belongs_to_one_graph():
    graph = chain().graph
    with pytest.raises(IRError, match="is already in graph 'test'"):
        graph.clone().append(graph.ops[0])
    with pytest.raises(IRError, match="reorder needs a permutation"):
        graph.reorder(graph.ops[1:])


def test_ops_are_put_in_and_taken_out_anywhere():
    graph = chain().graph
    first, *_, last = graph.ops
    made = [ReluOp((graph.inputs[0],), location=name) for name in "abc"]
    graph.insert(made[0], before=first)
    graph.insert(made[1], before=last)
    graph.append(made[2])
    ops = graph.ops
    assert (ops[0], ops[-3:], len(graph)) == (made[0], (made[1], last, made[2]), len(ops))
    assert [graph.following(op) for op in ops] == [*ops[1:], None]
    for op in made:
        graph.remove(op)
    assert set(made).isdisjoint(graph.ops) and graph.ops[-1] is last
    verify(graph)


def test_result_needs_exactly_one():
    graph = chain().graph
    graph.ops[-1].results = ()
    with pytest.raises(IRError, match="relu at 'act' has 0 results, not one"):
        _ = graph.ops[-1].result


def test_clone_shares_weights_and_nothing_else():
    graph = chain().graph
    copy = graph.clone()
    assert structurally_equal(copy, graph)
    assert copy.weights["w"] is graph.weights["w"]
    copy.weights.add(torch.zeros(1), "more")
    copy.ops[-1].location = "changed"
    assert "more" not in graph.weights
    assert graph.ops[-1].location == "act"
    verify(copy)


def test_cost_counts_multiply_adds_and_bytes():
    b = GraphBuilder({"x": TensorType((1, 4, 6, 6))})
    conv = b.conv(b.graph.inputs[0], 8, groups=2)
    assert conv.op.macs() == 8 * 36 * 2 * 9
    assert conv.op.cost().bytes == 4 * (4 * 36 + 8 * 2 * 9 + 8 + 8 * 36)
    assert b.done(conv).cost().macs == conv.op.macs()


# Interpreter ----------------------------------------------------------------------------------------------------


def test_interpreter_agrees_with_torch_and_observes():
    graph = chain().graph
    seen = []
    x = torch.randn(2, 3)
    (y,) = evaluate(graph, [x], lambda op, results: seen.append((op.name, tuple(results[0].shape))))
    assert torch.equal(y, torch.relu(x + graph.weights["w"]))
    assert seen == [("weight", (3,)), ("add", (2, 3)), ("relu", (2, 3))]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], r"test takes 1 inputs \(x: f32\[2,3\]\), got 0"),
        ([torch.zeros(3, 2)], r"input 'x' must have shape \[2, 3\], got \[3, 2\]"),
        ([torch.zeros(2, 3, dtype=torch.int32)], "input 'x' must be f32, got torch.int32; cast it first"),
    ],
)
def test_inputs_that_do_not_fit(inputs, message):
    with pytest.raises(IRError, match=message):
        chain().graph.evaluate(*inputs)


def test_missing_weight_is_an_ir_error():
    graph = chain().graph
    graph.weights.keep([])
    with pytest.raises(IRError, match="weight 'w' is not in the graph's weight store"):
        graph.evaluate(torch.zeros(2, 3))


# Comparison -----------------------------------------------------------------------------------------------------


def test_equality_ignores_names_but_not_weights():
    left, right = chain().graph, chain().graph
    right.name = "other"
    right.inputs[0].name = "z"
    assert structurally_equal(left, right)
    assert fingerprint(left) == fingerprint(right)
    right.weights._tensors["w"] = right.weights["w"] + 1
    right.weights._digests.clear()
    assert not structurally_equal(left, right)
    assert fingerprint(left) != fingerprint(right)


def test_equality_sees_locations_and_outputs():
    left, right = chain().graph, chain().graph
    right.ops[-1].location = "elsewhere"
    assert not structurally_equal(left, right)
    right = chain().graph
    right.outputs = (right.ops[1].result,)
    assert not structurally_equal(left, right)


# Weights --------------------------------------------------------------------------------------------------------


def test_weight_ids_are_fresh_and_copies_independent():
    store = WeightStore()
    first, second = store.add(torch.zeros(2), "w"), store.add(torch.ones(2), "w")
    assert first == "w"
    assert second != "w"
    assert second.startswith("w")
    copy = store.copy()
    copy.keep([second])
    assert sorted(store) == sorted([first, second])
    assert list(copy) == [second]


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bfloat16, torch.bool])
def test_a_single_element_of_another_tensor_has_a_digest(dtype):
    numbers = torch.ones(4, 6).to(dtype)
    single = numbers[::2, ::3][:1, :1]
    assert single.is_contiguous() and single.stride() == (12, 3)
    store = WeightStore()
    assert (
        len({store.digest(store.add(one, "w")) for one in (single, single.clone(), numbers[:1].expand(1, 6)[:, :1])})
        == 1
    )


def test_digest_depends_on_type_shape_and_numbers():
    numbers = torch.tensor([1.0, 2.0])
    tensors = [numbers, numbers + 1, numbers.reshape(1, 2), numbers.double(), numbers.view(torch.int32), torch.zeros(0)]
    store = WeightStore({str(index): tensor for index, tensor in enumerate(tensors)})
    assert len({store.digest(id) for id in store}) == len(tensors)
    assert store.digest("0") == WeightStore({"a": numbers.clone()}).digest("a")


def test_shared_and_strided_weights_round_trip(tmp_path):
    base = torch.arange(6.0).reshape(2, 3)
    store = WeightStore({"a": base, "b": base})
    store.add(base.t(), "c")
    store.save(tmp_path / "w.safetensors")
    again = WeightStore.load(tmp_path / "w.safetensors")
    assert all(torch.equal(again[id], store[id]) for id in store)
    assert len(again) == 3


def test_overlapping_weights_round_trip(tmp_path):
    base = torch.arange(6.0)
    store = WeightStore({"all": base, "tail": base[2:], "head": base[:3], "column": base.reshape(2, 3)[:, 1]})
    store.save(tmp_path / "w.safetensors")
    again = WeightStore.load(tmp_path / "w.safetensors")
    assert sorted(again) == sorted(store)
    assert all(torch.equal(again[id], store[id]) for id in store)


def test_weights_are_loaded_when_all_are_there():
    b = GraphBuilder({})
    graph = b.done(b.weight(2, hint="a"), b.weight(2, hint="b"))
    assert weights_loaded(graph)
    graph.weights.keep(["a"])
    assert not weights_loaded(graph)


# Evaluation -----------------------------------------------------------------------------------------------------


def test_evaluation_that_fails_names_the_op():
    b = GraphBuilder({"ids": TensorType((2,), DType.I64)})
    graph = b.done(b.op(EmbeddingOp, b.weight(3, 2), b.graph.inputs[0], location="table"))
    with pytest.raises(
        IRError, match="embedding at 'table': cannot be evaluated on these operands: index out of range"
    ):
        graph.evaluate(torch.tensor([0, 3]))


# Analyses -------------------------------------------------------------------------------------------------------


def test_dominators_and_liveness():
    b = GraphBuilder({"x": TensorType((2,))})
    top = b.op(ReluOp, b.graph.inputs[0])
    left, right = b.op(SigmoidOp, top), b.op(TanhOp, top)
    join = b.op(MulOp, left, right)
    dead = b.op(ReluOp, join)
    graph = b.done(join)
    dominators = post_dominators(graph)
    assert dominators[top.op] is join.op
    assert dominators[join.op] == EXIT
    assert dead.op not in dominators
    assert live_ops(graph) == {top.op, left.op, right.op, join.op}
    assert set(dataflow(graph).successors(top.op)) == {left.op, right.op}


def test_constants():
    b = chain()
    assert is_constant(b.graph.ops[0].result)
    assert is_constant(b.number(1.0))
    assert not is_constant(b.graph.inputs[0])
    assert b.graph.ops[0] not in dataflow(b.graph)
    assert b.graph.ops[0] in dataflow(b.graph, constants=True)


# Rewriter -------------------------------------------------------------------------------------------------------


def test_rewriter_needs_a_commit():
    graph = chain().graph
    with pytest.raises(IRError, match="a rewrite must call commit"):
        Rewriter(graph).replace(graph.ops[-1], graph.inputs[0])


def test_rewriter_names_and_places_new_ops():
    graph = chain().graph
    relu = graph.ops[-1]
    rewriter = Rewriter(graph)
    assert rewriter.commit("swap", relu)
    new = rewriter.create(TanhOp, (relu.x,))
    elsewhere = rewriter.create(TanhOp, (relu.x,), location="elsewhere")
    rewriter.replace(relu, new.result)
    assert (new.location, new.rule, elsewhere.location) == ("act", "swap", "elsewhere")
    assert rewriter.log.applied == ["swap: relu at 'act'"]
    assert rewriter.changed
    assert graph.outputs == (new.result,)
    verify(graph)


def test_rewriter_refuses_other_types():
    graph = chain().graph
    rewriter = Rewriter(graph)
    rewriter.commit("wrong", graph.ops[-1])
    with pytest.raises(IRError, match=r"relu at 'act': cannot be replaced by values of other types: f32\[3\]"):
        rewriter.replace(graph.ops[-1], graph.ops[0].result)


def test_limit_and_refusals():
    graph = chain().graph
    log = RewriteLog(limit=1)
    rewriter = Rewriter(graph, log)
    assert rewriter.commit("one", graph.ops[0])
    assert not rewriter.commit("two", graph.ops[0])
    rewriter.refuse("three", graph.ops[-1], "no")
    assert [str(refusal) for refusal in log.refused] == ["three refused relu at 'act': no"]


def test_apply_rules_reports_whether_it_settled():
    def toggle(op, rewriter):
        kind = {ReluOp: TanhOp, TanhOp: ReluOp}.get(type(op))
        if kind is None or not rewriter.commit("toggle", op):
            return False
        rewriter.replace(op, rewriter.create(kind, (op.x,)).result)
        return True

    assert not apply_rules(Rewriter(chain().graph), [toggle], max_sweeps=5)
    assert apply_rules(Rewriter(chain().graph, RewriteLog(limit=3)), [toggle])


def test_suggest():
    assert suggest("rleu", ["relu", "gelu"]) == "; did you mean 'relu'?"
    assert suggest("zzz", ["b", "a"]) == "; known: a, b"
    assert suggest("zzz", []) == ""


def test_a_weight_that_was_handed_over_is_restored_when_asked_for():
    weight = torch.arange(6.0).reshape(2, 3)
    packed = weight.t().reshape(-1)
    store = WeightStore({"a": weight, "b": weight + 1})
    digest = WeightStore({"a": weight}).digest("a")
    store.hand_over("a", HeldWeight(packed, Arrangement((3, 2), (1, 0), (2, 3)), torch.float32, (2, 3)))
    copy, replaced = store.copy(), store.replaced({"a": weight + 2})
    assert list(store) == ["a", "b"] and "a" in store and len(store) == 2
    packed[0] = 9  # not yet restored: it is read when it is asked for
    assert store["a"][0, 0] == 9 and store["a"] is store["a"]
    packed[0] = 0
    assert store["a"][0, 0] == 9 and torch.equal(copy["a"], weight)
    assert copy.digest("a") == digest
    assert copy.held("a") is store.held("a") is not None
    assert replaced.held("a") is None and torch.equal(replaced["a"], weight + 2)
    copy.keep(["b"])
    assert list(copy) == ["b"] and copy.held("a") is None


def test_a_weight_that_was_handed_over_is_saved(tmp_path):
    weight = torch.arange(6.0).reshape(2, 3)
    store = WeightStore({"a": weight})
    plain = WeightStore({"a": weight}).digest_of_all()
    store.hand_over("a", HeldWeight(weight.t().reshape(-1), Arrangement((3, 2), (1, 0), (2, 3)), torch.float32, (2, 3)))
    store.save(tmp_path / "w.safetensors")
    assert torch.equal(WeightStore.load(tmp_path / "w.safetensors")["a"], weight)
    assert store.digest_of_all() == plain


def test_lent_memory_is_copied_in_time():
    ours, theirs = torch.ones(2, 3), torch.ones(2, 3)
    store = WeightStore()
    for name, tensor in (("ours", ours), ("theirs", theirs), ("part", theirs[1:])):
        assert store.add(tensor, name, lent=tensor is not ours) == name
    copy = store.copy()
    copy.own(copy.lent)
    theirs.zero_()
    assert not store["theirs"].any() and not store["part"].any()
    assert bool(copy["theirs"].all()) and bool(copy["part"].all())
    assert copy["ours"].data_ptr() == ours.data_ptr()
    assert copy.lent == frozenset() != store.lent
