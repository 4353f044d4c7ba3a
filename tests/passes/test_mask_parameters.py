"""The reference lowering of forward masking: parameters keep their size, and are read through masks."""

from __future__ import annotations

import torch

from sdp_compile import NeuronPolicy
from sdp_compile.passes import MaskParameters
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


def test_a_parameter_that_is_owned_in_part_is_read_through_a_mask_of_its_cut_dimension() -> None:
    """The bias is owned whole by both workers."""
    context = context_of(MLP, NeuronPolicy(replicas=1), lowering="masked")
    assert rewritten(context, MaskParameters()) == lines("""
        x: f32[3, 4] = placeholder
        up: f32[8, 4] = get_attr[up.weight]
        _sdp_mask_up_weight_0: b8[8, 1] = get_attr
        mask_parameter: f32[8, 4] = masks.mask_parameter(up, _sdp_mask_up_weight_0)
        down: f32[4, 8] = get_attr[down.weight]
        _sdp_mask_down_weight_1: b8[1, 8] = get_attr
        mask_parameter_1: f32[4, 8] = masks.mask_parameter(down, _sdp_mask_down_weight_1)
        bias: f32[4] = get_attr[down.bias]
        linear: f32[3, 8] = aten.linear(x, mask_parameter)
        relu: f32[3, 8] = aten.relu(linear)
        linear_1: f32[3, 4] = aten.linear(relu, mask_parameter_1, bias)
        return linear_1""")
    masks = context.holdings.constants
    assert torch.equal(masks["_sdp_mask_up_weight_0"].flatten(), torch.tensor([True] * 4 + [False] * 4))
    assert torch.equal(masks["_sdp_mask_down_weight_1"].flatten(), torch.tensor([True] * 4 + [False] * 4))


def test_a_parameter_that_is_cut_twice_has_two_masks() -> None:
    text = """
        x: f32[3, 4] = placeholder
        first: f32[8, 4] = get_attr[first.weight]
        second: f32[6, 8] = get_attr[second.weight]
        third: f32[4, 6] = get_attr[third.weight]
        linear: f32[3, 8] = aten.linear(x, first)
        relu: f32[3, 8] = aten.relu(linear)
        linear_1: f32[3, 6] = aten.linear(relu, second)
        relu_1: f32[3, 6] = aten.relu(linear_1)
        linear_2: f32[3, 4] = aten.linear(relu_1, third)
        return linear_2"""
    context = context_of(text, NeuronPolicy(replicas=2, axes="all"), workers=3, lowering="masked")
    assert "= masks.mask_parameter(second, _sdp_mask_second_weight_0, _sdp_mask_second_weight_1)\n" in rewritten(
        context, MaskParameters()
    )


def test_a_worker_that_owns_everything_has_no_masks() -> None:
    context = context_of(MLP, NeuronPolicy(coverage=1.0), lowering="masked")
    assert rewritten(context, MaskParameters()) == lines(MLP)
