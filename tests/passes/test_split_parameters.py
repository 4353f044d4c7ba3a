"""Backward masking: the full model's graph over [owned | rest] parameters."""

from __future__ import annotations

import copy
import pickle
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdp_compile import BlockPolicy, NeuronPolicy, check, sdp_compile
from sdp_compile.capture import capture
from sdp_compile.passes import SplitParameters
from sdp_compile.policies import Policy
from tests.graph_text import text_of
from tests.passes.programs import context_of, lines, rewritten

_GENERATOR = torch.Generator().manual_seed(0)
ROWS, IMAGES = torch.randn(3, 4, generator=_GENERATOR), torch.randn(2, 3, 9, 9, generator=_GENERATOR)
TOKENS = torch.randint(0, 11, (2, 5), generator=_GENERATOR)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_operators_with_a_narrow_form_take_the_parts_and_others_take_them_joined() -> None:
    """Worker 1 owns the second half of the hidden units.

    (0, 4, 4) are the lengths of its runs along the cut dimension: none owned, 4 that it does not own, 4 that it owns.
    """
    text = """
        x: f32[3, 4] = placeholder
        up: f32[8, 4] = get_attr[up.weight]
        scale: f32[8] = get_attr[scale]
        down: f32[4, 8] = get_attr[down.weight]
        bias: f32[4] = get_attr[down.bias]
        linear: f32[3, 8] = aten.linear(x, up)
        mul: f32[3, 8] = aten.mul.Tensor(linear, scale)
        linear_1: f32[3, 4] = aten.linear(mul, down, bias)
        return linear_1"""
    context = context_of(text, NeuronPolicy(masking="backward"), rank=1)
    assert rewritten(context, SplitParameters()) == lines("""
        x: f32[3, 4] = placeholder
        up: f32[8, 4] = get_attr[up.weight]
        up_weight_unowned0 = get_attr[up.weight_unowned0]
        scale: f32[8] = get_attr
        scale_unowned0 = get_attr
        down: f32[4, 8] = get_attr[down.weight]
        down_weight_unowned1 = get_attr[down.weight_unowned1]
        bias: f32[4] = get_attr[down.bias]
        linear: f32[3, 8] = narrow.linear(x, up, up_weight_unowned0, None, 0, (0, 4, 4))
        join: f32[8] = narrow.join(scale, scale_unowned0, 0, (0, 4, 4))
        mul: f32[3, 8] = aten.mul.Tensor(linear, join)
        linear_1: f32[3, 4] = narrow.linear(mul, down, down_weight_unowned1, bias, 1, (0, 4, 4))
        return linear_1""")


def test_a_parameter_of_which_the_worker_owns_nothing_is_read_from_a_buffer() -> None:
    text = """
        x: f32[3, 4] = placeholder
        first: f32[4, 4] = get_attr[first.weight]
        second: f32[4, 4] = get_attr[second.weight]
        linear: f32[3, 4] = aten.linear(x, first)
        add: f32[3, 4] = aten.add.Tensor(x, linear)
        linear_1: f32[3, 4] = aten.linear(add, second)
        add_1: f32[3, 4] = aten.add.Tensor(add, linear_1)
        return add_1"""
    context = context_of(text, BlockPolicy(masking="backward"), rank=0)
    assert rewritten(context, SplitParameters()) == lines(text).replace("second.weight", "second.weight_unowned")


def test_a_cast_parameter_is_cast_in_parts() -> None:
    text = """
        x: bf16[3, 4] = placeholder
        up: f32[8, 4] = get_attr[up.weight]
        down: bf16[4, 8] = get_attr[down.weight]
        cast: bf16[8, 4] = aten.to.dtype(up, torch.bfloat16)
        linear: bf16[3, 8] = aten.linear(x, cast)
        linear_1: bf16[3, 4] = aten.linear(linear, down)
        return linear_1"""
    assert rewritten(context_of(text, NeuronPolicy(masking="backward")), SplitParameters()) == lines("""
        x: bf16[3, 4] = placeholder
        up: f32[8, 4] = get_attr[up.weight]
        up_weight_unowned0 = get_attr[up.weight_unowned0]
        down: bf16[4, 8] = get_attr[down.weight]
        down_weight_unowned1 = get_attr[down.weight_unowned1]
        to_dtype: bf16[8, 4] = aten.to.dtype(up, torch.bfloat16)
        to_dtype_1: bf16[8, 4] = aten.to.dtype(up_weight_unowned0, torch.bfloat16)
        linear: bf16[3, 8] = narrow.linear(x, to_dtype, to_dtype_1, None, 0, (4, 4))
        linear_1: bf16[3, 4] = narrow.linear(linear, down, down_weight_unowned1, None, 1, (4, 4))
        return linear_1""")


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.relu(self.up(x)))


class Convolutions(nn.Module):
    """Plain, in groups, depthwise, padded by name, transposed, in one dimension, with norms between them."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.norm = nn.Conv2d(3, 12, 3, padding="same"), nn.BatchNorm2d(12)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False)
        self.grouped = nn.Conv2d(12, 8, 3, stride=2, groups=4)
        self.group_norm = nn.GroupNorm(4, 8)
        self.even = nn.Conv2d(8, 8, 2, padding="same", groups=2)
        self.upwards = nn.ConvTranspose2d(8, 6, 3, stride=2, output_padding=1)
        self.shrink = nn.Conv2d(6, 4, 1)
        self.line = nn.Conv1d(4, 6, 3, dilation=2, padding=2)
        self.out = nn.Conv1d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.norm(self.expand(x)))
        x = F.silu(self.group_norm(self.grouped(F.relu(self.depthwise(x)))))
        x = self.shrink(F.gelu(self.upwards(F.relu(self.even(x))))).flatten(2)
        return self.out(F.relu_(self.line(x)))


class Sequences(nn.Module):
    """Embedding and head of one weight, layer norms, a product with a stored matrix, an einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.norm = nn.LayerNorm(8)
        self.stored, self.offset = nn.Parameter(torch.randn(8, 12)), nn.Parameter(torch.randn(12))
        self.experts = nn.Parameter(torch.randn(3, 12, 8))
        self.scale = nn.Parameter(torch.randn(8))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        hidden = F.relu(torch.addmm(self.offset, self.norm(x).flatten(0, 1), self.stored))
        mixed = torch.einsum("th,ehw->tw", hidden, self.experts)
        return F.linear(x + self.scale * mixed.view_as(x), self.embed.weight)


EVERYTHING: dict[str, Any] = {"axes": "all", "scope": "all", "replicas": 3}
CASES = [
    (MLP, ROWS, NeuronPolicy(masking="backward")),
    (MLP, ROWS, BlockPolicy(masking="backward", replicas=4)),
    (Convolutions, IMAGES, NeuronPolicy(masking="backward")),
    (Convolutions, IMAGES, NeuronPolicy(masking="backward", **EVERYTHING)),
    (Sequences, TOKENS, NeuronPolicy(masking="backward")),
    (Sequences, TOKENS, NeuronPolicy(masking="backward", **EVERYTHING)),
]


@pytest.mark.parametrize(("build", "x", "policy"), CASES)
def test_gradients_are_the_masked_gradients_of_the_original(build: Any, x: Tensor, policy: Policy) -> None:
    result = check(build(), policy, (x,), workers=4)
    assert result.verdict == "exact", result.reason


def test_weights_are_never_joined_where_an_operator_has_a_narrow_form() -> None:
    """All convolutions have one but those whose padding is not symmetric."""
    model = Convolutions()
    text = text_of(capture(model, (IMAGES,)).programs["train"].graph)
    policy = NeuronPolicy(masking="backward", axes="all", replicas=3)
    context = context_of(text, policy, workers=4, rank=1, buffers=[name for name, _ in model.named_buffers()])
    after = rewritten(context, SplitParameters())
    # A join without a value is of one dimension of two that are cut; the operator takes the other one apart.
    whole = re.findall(r"^\w+: f32\[.*, .*\] = narrow\.join\(\w+, (\w+),", after, re.MULTILINE)
    assert whole == ["even_weight_unowned1"]
    assert after.count(" = narrow.convolution(") == 7


def test_what_a_worker_holds() -> None:
    """Each cut parameter once; unowned blocks without gradient or state; the rests outside of ``state_dict()``."""
    x = torch.randn(3, 4)
    model = nn.Sequential(MLP(), MLP())
    for policy in (NeuronPolicy(masking="backward"), BlockPolicy(masking="backward")):
        module = sdp_compile(model, policy, (x,), workers=2, rank=0)
        held = sum(tensor.numel() for tensor in (*module.parameters(), *module.buffers()))
        assert held == sum(p.numel() for p in model.parameters())
        owned = sum(p.numel() for p in module.parameters())
        assert 0.45 < owned / held < 0.62
        assert set(module.state_dict()) == {name for name, _ in module.named_parameters()}
        torch.testing.assert_close(module(x), model(x))
        torch.testing.assert_close(module.eval()(x), model(x))
        memory = module.plan.memory(0)
        itemsize = x.element_size()
        assert (memory.parameters, memory.gradients) == (held * itemsize, owned * itemsize)


@pytest.mark.parametrize(("build", "x"), [(MLP, ROWS), (Sequences, TOKENS)])
def test_autocast_is_the_original_s(build: Any, x: Tensor) -> None:
    model = build()
    policy = NeuronPolicy(masking="backward", **(EVERYTHING if build is Sequences else {}))
    module = sdp_compile(model, policy, (x,), workers=4, rank=1)
    with torch.autocast("cpu", torch.bfloat16):
        mine, theirs = module(x), model(x)
    assert mine.dtype == theirs.dtype
    torch.testing.assert_close(mine, theirs, rtol=0.05, atol=0.05)
    mine.float().square().sum().backward()
    theirs.float().square().sum().backward()
    for name, parameter in module.named_parameters():
        expected = model.get_parameter(name).grad[module.plan.mask(name, 1)]
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32
        deviation = (parameter.grad.reshape(-1) - expected).norm() / expected.norm()
        assert deviation < 0.05, name


def test_a_worker_follows_its_module_to_other_dtypes_and_copies() -> None:
    model, x = MLP(), torch.randn(3, 4)
    module = sdp_compile(model, NeuronPolicy(masking="backward"), (x,), workers=2, rank=0)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(x), module(x))
    torch.testing.assert_close(module.double()(x.double()), model.double()(x.double()))
    out = module.to(torch.bfloat16)(x.bfloat16())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, model.to(torch.bfloat16)(x.bfloat16()), rtol=0.05, atol=0.05)
