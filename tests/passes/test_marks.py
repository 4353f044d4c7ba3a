"""The check that every shared gradient passes a mark for each of its owner sets."""

from __future__ import annotations

import pytest

from sdp_compile import LoweringError, NeuronPolicy
from sdp_compile.passes.marks import check_marks
from tests.graph_text import parse
from tests.passes.programs import context_of

MLP = """
    x: f32[3, 4] = placeholder
    up: f32[8, 4] = get_attr[up.weight]
    down: f32[4, 8] = get_attr[down.weight]
    linear: f32[3, 8] = aten.linear(x, up)
    linear_1: f32[3, 4] = aten.linear(linear, down)
    return linear_1"""

MARKED = """
    x: f32[3, 4] = placeholder
    up: f32[8, 4] = get_attr[up.weight]
    down: f32[4, 8] = get_attr[down.weight]
    one = marks.all_reduce_mean(down, up, bucket=4, owners=(0, 3))
    down_1: f32[4, 8] = getitem(one, 0)
    up_1: f32[8, 4] = getitem(one, 1)
    two = marks.all_reduce_mean(down_1, up_1, bucket=1, owners=(0, 1))
    down_2: f32[4, 8] = getitem(two, 0)
    up_2: f32[8, 4] = getitem(two, 1)
    linear: f32[3, 8] = aten.linear(x, up_2)
    linear_1: f32[3, 4] = aten.linear(linear, down_2)
    return linear_1"""
"""The same program on worker 0 of four, which shares a part of the hidden units with 1 and a part with 3."""


@pytest.mark.parametrize(
    ("edit", "missing"),
    [
        (("aten.linear(x, up_2)", "aten.linear(x, up_1)"), r"'up\.weight' does not pass a mark of the owners \(0, 1\)"),
        (("aten.linear(x, up_2)", "aten.linear(x, up)"), r"'up\.weight' does not pass a mark of the owners \(0, 1\)"),
        (("two = marks.all_reduce_mean(down_1, up_1", "two = marks.all_reduce_mean(down, up_1"), r"'down\.weight'"),
        (("owners=(0, 3)", "owners=(0, 2)"), r"mark of the owners \(0, 3\)"),
    ],
)
def test_a_missing_mark_is_an_error(edit: tuple[str, str], missing: str) -> None:
    plan = context_of(MLP, NeuronPolicy(replicas=2), workers=4).plan
    check_marks(parse(MARKED), plan, 0)
    with pytest.raises(LoweringError, match=rf"{missing}.*Keep the pass 'sync_gradients', and its nodes"):
        check_marks(parse(MARKED.replace(*edit)), plan, 0)


def test_a_parameter_that_is_never_used_needs_no_mark() -> None:
    plan = context_of(MLP, NeuronPolicy(replicas=2), workers=4).plan
    check_marks(parse("x: f32[3, 4] = placeholder\nup: f32[8, 4] = get_attr[up.weight]\nreturn x"), plan, 0)


def test_an_element_with_one_owner_needs_no_mark() -> None:
    check_marks(parse(MLP), context_of(MLP, NeuronPolicy(replicas=1)).plan, 0)
