"""Parameters pass a mark for each of their owner sets on the way to their first use."""

from __future__ import annotations

from sdp_compile import NeuronPolicy
from sdp_compile.passes import SyncGradients
from sdp_compile.passes.sync_gradients import by_rounds
from tests.graph_text import text_of
from tests.passes.programs import context_of, lines, rewritten

MLP = """
    x: f32[3, 4] = placeholder
    up: f32[8, 4] = get_attr[up.weight]
    down: f32[4, 8] = get_attr[down.weight]
    bias: f32[4] = get_attr[down.bias]
    linear: f32[3, 8] = aten.linear(x, up)
    relu: f32[3, 8] = aten.relu(linear)
    linear_1: f32[3, 4] = aten.linear(relu, down, bias)
    return linear_1"""


def test_a_parameter_that_all_workers_own_passes_one_mark_before_its_first_use() -> None:
    """The two weights have one owner per element: nothing of them is averaged."""
    assert rewritten(context_of(MLP, NeuronPolicy(replicas=1)), SyncGradients()) == lines("""
        x: f32[3, 4] = placeholder
        up: f32[8, 4] = get_attr[up.weight]
        down: f32[4, 8] = get_attr[down.weight]
        bias: f32[4] = get_attr[down.bias]
        linear: f32[3, 8] = aten.linear(x, up)
        relu: f32[3, 8] = aten.relu(linear)
        all_reduce_mean = marks.all_reduce_mean(bias, bucket=0, owners=(0, 1))
        getitem: f32[4] = getitem(all_reduce_mean, 0)
        linear_1: f32[3, 4] = aten.linear(relu, down, getitem)
        return linear_1""")


def test_a_parameter_of_several_owner_sets_passes_one_mark_for_each_of_them() -> None:
    """Of four workers, 0 shares a part of the hidden units with 1, and a part with 3.

    Backward meets the buckets in ascending order: it passes the last mark first.
    """
    assert rewritten(context_of(MLP, NeuronPolicy(replicas=2), workers=4), SyncGradients()) == lines("""
        x: f32[3, 4] = placeholder
        up: f32[8, 4] = get_attr[up.weight]
        down: f32[4, 8] = get_attr[down.weight]
        bias: f32[4] = get_attr[down.bias]
        all_reduce_mean = marks.all_reduce_mean(down, up, bucket=4, owners=(0, 3))
        getitem: f32[4, 8] = getitem(all_reduce_mean, 0)
        getitem_1: f32[8, 4] = getitem(all_reduce_mean, 1)
        all_reduce_mean_1 = marks.all_reduce_mean(getitem, getitem_1, bucket=1, owners=(0, 1))
        getitem_2: f32[4, 8] = getitem(all_reduce_mean_1, 0)
        getitem_3: f32[8, 4] = getitem(all_reduce_mean_1, 1)
        linear: f32[3, 8] = aten.linear(x, getitem_3)
        relu: f32[3, 8] = aten.relu(linear)
        all_reduce_mean_2 = marks.all_reduce_mean(bias, bucket=0, owners=(0, 1, 2, 3))
        getitem_4: f32[4] = getitem(all_reduce_mean_2, 0)
        linear_1: f32[3, 4] = aten.linear(relu, getitem_2, getitem_4)
        return linear_1""")


def test_smaller_buckets_let_the_reduction_of_late_layers_start_early() -> None:
    """One bucket of all parameters would be complete only when backward reaches the first layer."""
    context = context_of(MLP, NeuronPolicy(coverage=1.0))
    assert rewritten(context, SyncGradients(bucket_bytes=128)) == lines("""
        x: f32[3, 4] = placeholder
        up: f32[8, 4] = get_attr[up.weight]
        down: f32[4, 8] = get_attr[down.weight]
        bias: f32[4] = get_attr[down.bias]
        all_reduce_mean = marks.all_reduce_mean(up, bucket=2, owners=(0, 1))
        getitem: f32[8, 4] = getitem(all_reduce_mean, 0)
        linear: f32[3, 8] = aten.linear(x, getitem)
        relu: f32[3, 8] = aten.relu(linear)
        all_reduce_mean_1 = marks.all_reduce_mean(down, bucket=1, owners=(0, 1))
        getitem_1: f32[4, 8] = getitem(all_reduce_mean_1, 0)
        all_reduce_mean_2 = marks.all_reduce_mean(bias, bucket=0, owners=(0, 1))
        getitem_2: f32[4] = getitem(all_reduce_mean_2, 0)
        linear_1: f32[3, 4] = aten.linear(relu, getitem_1, getitem_2)
        return linear_1""")


def test_inputs_and_state_move_before_the_first_computation() -> None:
    """So that a mark can stand anywhere."""
    text = """
        x: f32[3, 4] = placeholder
        relu: f32[3, 4] = aten.relu(x)
        weight: f32[4, 4] = get_attr
        linear: f32[3, 4] = aten.linear(relu, weight)
        return linear"""
    assert rewritten(context_of(text, NeuronPolicy(coverage=1.0)), SyncGradients()) == lines("""
        x: f32[3, 4] = placeholder
        weight: f32[4, 4] = get_attr
        relu: f32[3, 4] = aten.relu(x)
        all_reduce_mean = marks.all_reduce_mean(weight, bucket=0, owners=(0, 1))
        getitem: f32[4, 4] = getitem(all_reduce_mean, 0)
        linear: f32[3, 4] = aten.linear(relu, getitem)
        return linear""")


def test_one_worker_has_nothing_to_average() -> None:
    assert rewritten(context_of(MLP, NeuronPolicy(), workers=1), SyncGradients()) == lines(MLP)


def executed(bucket_bytes: int) -> str:
    """What worker 0 of four executes of the program, after checking that the marked one stays as it is."""
    context = context_of(MLP, NeuronPolicy(replicas=2), workers=4)
    marked = SyncGradients(bucket_bytes=bucket_bytes).run(context.analysis.programs["train"], context)
    before = text_of(marked.graph)
    result = by_rounds(marked)
    assert text_of(marked.graph) == before and by_rounds(result) is result
    return text_of(result.graph)


def test_a_round_is_executed_with_one_mark_for_all_of_its_buckets() -> None:
    assert executed(2**20) == lines("""
        x: f32[3, 4] = placeholder
        up: f32[8, 4] = get_attr[up.weight]
        down: f32[4, 8] = get_attr[down.weight]
        bias: f32[4] = get_attr[down.bias]
        complete_round = marks.complete_round(bias, down, up, round=0)
        getitem_5: f32[4] = getitem(complete_round, 0)
        getitem_6: f32[4, 8] = getitem(complete_round, 1)
        getitem_7: f32[8, 4] = getitem(complete_round, 2)
        linear: f32[3, 8] = aten.linear(x, getitem_7)
        relu: f32[3, 8] = aten.relu(linear)
        linear_1: f32[3, 4] = aten.linear(relu, getitem_6, getitem_5)
        return linear_1""")


def test_rounds_are_passed_in_their_order() -> None:
    """Backward passes the last mark first, and each as soon as the gradients of its round are complete."""
    assert executed(64) == lines("""
        x: f32[3, 4] = placeholder
        up: f32[8, 4] = get_attr[up.weight]
        down: f32[4, 8] = get_attr[down.weight]
        bias: f32[4] = get_attr[down.bias]
        complete_round = marks.complete_round(up, round=2)
        getitem_5: f32[8, 4] = getitem(complete_round, 0)
        linear: f32[3, 8] = aten.linear(x, getitem_5)
        relu: f32[3, 8] = aten.relu(linear)
        complete_round_1 = marks.complete_round(down, round=1)
        getitem_6: f32[4, 8] = getitem(complete_round_1, 0)
        complete_round_2 = marks.complete_round(bias, round=0)
        getitem_7: f32[4] = getitem(complete_round_2, 0)
        linear_1: f32[3, 4] = aten.linear(relu, getitem_6, getitem_7)
        return linear_1""")
