"""The reference lowering of backward masking: the full model, with masked gradients."""

from __future__ import annotations

import torch

from sdp_compile import NeuronPolicy, sdp_compile
from sdp_compile.passes import MaskGradients
from tests.passes.programs import context_of, lines, rewritten

POLICY = NeuronPolicy(replicas=1, masking="backward")


def test_a_parameter_that_is_owned_in_part_is_read_through_a_mask_of_its_gradient() -> None:
    text = """
        x: f32[3, 4] = placeholder
        up: f32[8, 4] = get_attr[up.weight]
        down: f32[4, 8] = get_attr[down.weight]
        bias: f32[4] = get_attr[down.bias]
        linear: f32[3, 8] = aten.linear(x, up)
        relu: f32[3, 8] = aten.relu(linear)
        linear_1: f32[3, 4] = aten.linear(relu, down, bias)
        return linear_1"""
    assert rewritten(context_of(text, POLICY, lowering="masked"), MaskGradients()) == lines("""
        x: f32[3, 4] = placeholder
        up: f32[8, 4] = get_attr[up.weight]
        _sdp_mask_up_weight_0: b8[8, 1] = get_attr
        mask_gradient: f32[8, 4] = masks.mask_gradient(up, _sdp_mask_up_weight_0)
        down: f32[4, 8] = get_attr[down.weight]
        _sdp_mask_down_weight_1: b8[1, 8] = get_attr
        mask_gradient_1: f32[4, 8] = masks.mask_gradient(down, _sdp_mask_down_weight_1)
        bias: f32[4] = get_attr[down.bias]
        linear: f32[3, 8] = aten.linear(x, mask_gradient)
        relu: f32[3, 8] = aten.relu(linear)
        linear_1: f32[3, 4] = aten.linear(relu, mask_gradient_1, bias)
        return linear_1""")


def test_the_output_is_the_original_s_and_so_are_the_owned_gradients() -> None:
    model, x = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4)), torch.randn(3, 4)
    module = sdp_compile(model, POLICY, (x,), workers=2, rank=1, lowering="masked")
    assert torch.equal(module(x), model(x))
    module(x).square().sum().backward()
    model(x).square().sum().backward()
    for name, parameter in model.named_parameters():
        mask = module.plan.mask(name, 1)
        assert parameter.grad is not None and module.get_parameter(name).grad is not None
        torch.testing.assert_close(module.get_parameter(name).grad, parameter.grad * mask)
