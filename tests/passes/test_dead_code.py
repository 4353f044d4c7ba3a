"""What has no effect on the worker's results or on its state goes."""

from __future__ import annotations

import pytest

from sdp_compile import BlockPolicy, NeuronPolicy
from sdp_compile.passes import BypassBlocks, DeadCode
from tests.passes.programs import context_of, lines, rewritten


def cleaned(text: str) -> str:
    """The program after the pass, on the one worker that there is."""
    return rewritten(context_of(text, NeuronPolicy(), workers=1, buffers=["mean", "count"]), DeadCode())


def test_what_nobody_reads_goes_random_numbers_included() -> None:
    assert cleaned("""
        x: f32[4] = placeholder
        noise: f32[4] = aten.rand_like(x)
        scaled: f32[4] = aten.mul.Tensor(noise, x)
        y: f32[4] = aten.relu(x)
        return y""") == lines("""
        x: f32[4] = placeholder
        y: f32[4] = aten.relu(x)
        return y""")


def test_inputs_stay_though_nobody_reads_them() -> None:
    text = """
        x: f32[4] = placeholder
        mask: b8[4] = placeholder
        y: f32[4] = aten.relu(x)
        return y"""
    assert cleaned(text) == lines(text)


def test_a_write_counts_when_the_value_is_read_later() -> None:
    assert cleaned("""
        x: f32[4] = placeholder
        y: f32[4] = aten.neg(x)
        view: f32[] = aten.select.int(y, 0, 0)
        written: f32[] = aten.zero_(view)
        result: f32[4] = aten.exp(y)
        late: f32[4] = aten.relu_(y)
        return result""") == lines("""
        x: f32[4] = placeholder
        y: f32[4] = aten.neg(x)
        view: f32[] = aten.select.int(y, 0, 0)
        written: f32[] = aten.zero_(view)
        result: f32[4] = aten.exp(y)
        return result""")


def test_a_write_to_a_dead_value_goes() -> None:
    assert cleaned("""
        x: f32[4] = placeholder
        noise: f32[4] = aten.empty_like(x)
        drawn: f32[4] = aten.bernoulli_.float(noise, 0.5)
        return x""") == lines("""
        x: f32[4] = placeholder
        return x""")


UNCHANGED = {
    "a write to what is returned": """
        x: f32[4] = placeholder
        y: f32[4] = aten.neg(x)
        written: f32[4] = aten.relu_(y)
        return y""",
    "a write to the caller's tensor": """
        x: f32[2, 2] = placeholder
        flat: f32[4] = aten.view(x, [-1])
        written: f32[4] = aten.relu_(flat)
        y: f32[2] = aten.ones([2])
        return y""",
    "a counter": """
        x: f32[2, 4] = placeholder
        count: i64[] = get_attr
        counted: i64[] = aten.add_.Tensor(count, 1)
        return x""",
    "the running statistics of an unused normalisation": """
        x: f32[2, 4] = placeholder
        mean: f32[4] = get_attr
        y: f32[2, 4] = aten.batch_norm(x, None, None, mean, mean, True, 0.1, 1e-05, False)
        return x""",
}


@pytest.mark.parametrize("name", UNCHANGED)
def test_what_somebody_sees_stays(name: str) -> None:
    assert cleaned(UNCHANGED[name]) == lines(UNCHANGED[name])


NORMALISED_BRANCH = """
    x: f32[3, 4] = placeholder
    stem: f32[4, 4] = get_attr[stem.weight]
    first: f32[4, 4] = get_attr[first.weight]
    second: f32[4, 4] = get_attr[second.weight]
    scale: f32[4] = get_attr[second.scale]
    shift: f32[4] = get_attr[second.shift]
    count: i64[] = get_attr[second.count]
    mean: f32[4] = get_attr[second.mean]
    var: f32[4] = get_attr[second.var]
    skip: f32[3, 4] = aten.linear(x, stem)
    linear: f32[3, 4] = aten.linear(skip, first)
    add: f32[3, 4] = aten.add.Tensor(skip, linear)
    linear_1: f32[3, 4] = aten.linear(add, second)
    counted: i64[] = aten.add_.Tensor(count, 1)
    norm: f32[3, 4] = aten.batch_norm(linear_1, scale, shift, mean, var, True, 0.1, 1e-05, False)
    add_1: f32[3, 4] = aten.add.Tensor(add, norm)
    return add_1"""
"""The second branch ends in a batch norm, with a counter of batches and running statistics."""


def test_the_state_of_a_dropped_block_is_written_by_its_owners_only() -> None:
    owner, other = (  # worker 0 owns the larger block
        context_of(
            NORMALISED_BRANCH,
            BlockPolicy(replicas=1),
            rank=rank,
            buffers=["second.count", "second.mean", "second.var"],
        )
        for rank in range(2)
    )
    assert rewritten(other, BypassBlocks(), DeadCode()) == lines("""
        x: f32[3, 4] = placeholder
        stem: f32[4, 4] = get_attr[stem.weight]
        first: f32[4, 4] = get_attr[first.weight]
        skip: f32[3, 4] = aten.linear(x, stem)
        linear: f32[3, 4] = aten.linear(skip, first)
        add: f32[3, 4] = aten.add.Tensor(skip, linear)
        return add""")
    assert rewritten(owner, BypassBlocks(), DeadCode()) == lines("""
        x: f32[3, 4] = placeholder
        stem: f32[4, 4] = get_attr[stem.weight]
        second: f32[4, 4] = get_attr[second.weight]
        scale: f32[4] = get_attr[second.scale]
        shift: f32[4] = get_attr[second.shift]
        count: i64[] = get_attr[second.count]
        mean: f32[4] = get_attr[second.mean]
        var: f32[4] = get_attr[second.var]
        skip: f32[3, 4] = aten.linear(x, stem)
        linear_1: f32[3, 4] = aten.linear(skip, second)
        counted: i64[] = aten.add_.Tensor(count, 1)
        norm: f32[3, 4] = aten.batch_norm(linear_1, scale, shift, mean, var, True, 0.1, 1e-05, False)
        add_1: f32[3, 4] = aten.add.Tensor(skip, norm)
        return add_1""")
