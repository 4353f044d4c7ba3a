"""Sizes, group counts and slice bounds become the worker's where they depend on a cut axis."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sdp_compile import NeuronPolicy, sdp_compile
from sdp_compile.passes import SliceParameters
from tests.oracle import assert_exact, randomise
from tests.passes.programs import context_of, lines, rewritten

ONE_OWNER = NeuronPolicy(replicas=1)


def test_linear_layers_need_no_rewrite_but_smaller_parameters() -> None:
    text = """
        x: f32[3, 4] = placeholder
        up: f32[8, 4] = get_attr[up.weight]
        down: f32[4, 8] = get_attr[down.weight]
        bias: f32[4] = get_attr[down.bias]
        linear: f32[3, 8] = aten.linear(x, up)
        relu: f32[3, 8] = aten.relu(linear)
        linear_1: f32[3, 4] = aten.linear(relu, down, bias)
        return linear_1"""
    context = context_of(text, ONE_OWNER)
    assert rewritten(context, SliceParameters()) == lines(text)
    assert {name: context.holdings.shape(name) for name in context.plan.state} == {
        "up.weight": (4, 4),
        "down.weight": (4, 4),
        "down.bias": (4,),
    }


def test_attention_over_half_of_the_heads() -> None:
    """Of four heads of size 2, worker 0 has two. Shapes behind a colon stay the full model's; see `Verify`.

    The scale 1 / sqrt(2), which follows from the head size, is written down, since a cut of that size would change it.
    """
    text = """
        x: f32[n0, n1, 8] = placeholder
        qkv: f32[24, 8] = get_attr[qkv.weight]
        out: f32[8, 8] = get_attr[out.weight]
        batch: n0 = aten.sym_size.int(x, 0)
        length: n1 = aten.sym_size.int(x, 1)
        linear: f32[n0, n1, 24] = aten.linear(x, qkv)
        view: f32[n0, n1, 3, 4, 2] = aten.view(linear, [batch, length, 3, 4, 2])
        permute: f32[3, n0, 4, n1, 2] = aten.permute(view, [2, 0, 3, 1, 4])
        q: f32[n0, 4, n1, 2] = aten.select.int(permute, 0, 0)
        k: f32[n0, 4, n1, 2] = aten.select.int(permute, 0, 1)
        v: f32[n0, 4, n1, 2] = aten.select.int(permute, 0, 2)
        attention: f32[n0, 4, n1, 2] = aten.scaled_dot_product_attention(q, k, v)
        transpose: f32[n0, n1, 4, 2] = aten.transpose.int(attention, 1, 2)
        reshape: f32[n0, n1, 8] = aten.reshape(transpose, [batch, length, 8])
        linear_1: f32[n0, n1, 8] = aten.linear(reshape, out)
        return linear_1"""
    assert rewritten(context_of(text, ONE_OWNER), SliceParameters()) == lines("""
        x: f32[n0, n1, 8] = placeholder
        qkv: f32[24, 8] = get_attr[qkv.weight]
        out: f32[8, 8] = get_attr[out.weight]
        batch: n0 = aten.sym_size.int(x, 0)
        length: n1 = aten.sym_size.int(x, 1)
        linear: f32[n0, n1, 24] = aten.linear(x, qkv)
        view: f32[n0, n1, 3, 4, 2] = aten.view(linear, [batch, length, 3, 2, 2])
        permute: f32[3, n0, 4, n1, 2] = aten.permute(view, [2, 0, 3, 1, 4])
        q: f32[n0, 4, n1, 2] = aten.select.int(permute, 0, 0)
        k: f32[n0, 4, n1, 2] = aten.select.int(permute, 0, 1)
        v: f32[n0, 4, n1, 2] = aten.select.int(permute, 0, 2)
        attention: f32[n0, 4, n1, 2] = aten.scaled_dot_product_attention(q, k, v, scale=0.7071067811865476)
        transpose: f32[n0, n1, 4, 2] = aten.transpose.int(attention, 1, 2)
        reshape: f32[n0, n1, 8] = aten.reshape(transpose, [batch, length, 4])
        linear_1: f32[n0, n1, 8] = aten.linear(reshape, out)
        return linear_1""")


def test_a_grouped_convolution_has_the_worker_s_channels_as_groups() -> None:
    text = """
        x: f32[2, 3, 6, 6] = placeholder
        expand: f32[8, 3, 1, 1] = get_attr[expand.weight]
        depthwise: f32[8, 1, 3, 3] = get_attr[depthwise.weight]
        shrink: f32[3, 8, 1, 1] = get_attr[shrink.weight]
        conv2d: f32[2, 8, 6, 6] = aten.conv2d(x, expand)
        conv2d_1: f32[2, 8, 6, 6] = aten.conv2d(conv2d, depthwise, None, [1, 1], [1, 1], [1, 1], 8)
        conv2d_2: f32[2, 3, 6, 6] = aten.conv2d(conv2d_1, shrink)
        return conv2d_2"""
    before, after = lines(text).splitlines(), rewritten(context_of(text, ONE_OWNER), SliceParameters()).splitlines()
    assert [(a, b) for a, b in zip(before, after, strict=True) if a != b] == [
        (
            "conv2d_1: f32[2, 8, 6, 6] = aten.conv2d(conv2d, depthwise, None, [1, 1], [1, 1], [1, 1], 8)",
            "conv2d_1: f32[2, 8, 6, 6] = aten.conv2d(conv2d, depthwise, None, [1, 1], [1, 1], [1, 1], 4)",
        )
    ]


def test_a_free_size_that_holds_a_cut_dimension_is_converted() -> None:
    """Rows are batch x heads: a size of the full model on its way into a tensor, and back on its way out."""
    text = """
        x: f32[n0, 6] = placeholder
        project: f32[12, 6] = get_attr[project.weight]
        merge: f32[6, 12] = get_attr[merge.weight]
        batch: n0 = aten.sym_size.int(x, 0)
        linear: f32[n0, 12] = aten.linear(x, project)
        rows: 4*n0 = mul(batch, 4)
        view: f32[4*n0, 3] = aten.view(linear, [rows, 3])
        tanh: f32[4*n0, 3] = aten.tanh(view)
        again: 4*n0 = aten.sym_size.int(tanh, 0)
        view_1: f32[n0, 12] = aten.view(tanh, [batch, 12])
        linear_1: f32[n0, 6] = aten.linear(view_1, merge)
        mul: f32[n0, 6] = aten.mul.Tensor(linear_1, again)
        return mul"""
    assert rewritten(context_of(text, ONE_OWNER), SliceParameters()) == lines("""
        x: f32[n0, 6] = placeholder
        project: f32[12, 6] = get_attr[project.weight]
        merge: f32[6, 12] = get_attr[merge.weight]
        batch: n0 = aten.sym_size.int(x, 0)
        linear: f32[n0, 12] = aten.linear(x, project)
        rows: 4*n0 = mul(batch, 4)
        mul_1 = mul(rows, 1)
        floordiv = floordiv(mul_1, 2)
        view: f32[4*n0, 3] = aten.view(linear, [floordiv, 3])
        tanh: f32[4*n0, 3] = aten.tanh(view)
        again: 4*n0 = aten.sym_size.int(tanh, 0)
        mul_2 = mul(again, 2)
        floordiv_1 = floordiv(mul_2, 1)
        view_1: f32[n0, 12] = aten.view(tanh, [batch, 6])
        linear_1: f32[n0, 6] = aten.linear(view_1, merge)
        mul: f32[n0, 6] = aten.mul.Tensor(linear_1, floordiv_1)
        return mul""")


def test_a_size_that_the_operator_infers_stays_inferred() -> None:
    text = """
        x: f32[3, 6] = placeholder
        project: f32[8, 6] = get_attr[project.weight]
        merge: f32[6, 8] = get_attr[merge.weight]
        linear: f32[3, 8] = aten.linear(x, project)
        view: f32[3, 4, 2] = aten.view(linear, [3, -1, 2])
        softmax: f32[3, 4, 2] = aten.softmax.int(view, 2)
        view_1: f32[3, 8] = aten.view(softmax, [3, -1])
        linear_1: f32[3, 6] = aten.linear(view_1, merge)
        return linear_1"""
    context = context_of(text, ONE_OWNER)
    assert context.holdings.shape("project.weight") == (4, 6)
    assert rewritten(context, SliceParameters()) == lines(text)


class Sizes(nn.Module):
    """Merges the batch with the heads, and asks a sliced tensor for its size."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(6, 12, bias=False)
        self.merge = nn.Linear(12, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.project(x).view(x.shape[0] * 4, 3)
        y = torch.tanh(heads)
        return self.merge(y.view(y.shape[0] // 4, 12)) * heads.shape[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("rank", range(2))
def test_sizes_that_hold_a_cut_dimension_are_exact(rank: int) -> None:
    model = randomise(Sizes().double())
    x = torch.randn(3, 6, dtype=torch.double)
    module = sdp_compile(model, ONE_OWNER, (x,), workers=2, rank=rank)
    assert module.plan.local_shape("project.weight", rank) == (6, 6)
    for batch in (3, 5):
        assert_exact(module, model, module.plan, rank, (torch.randn(batch, 6, dtype=torch.double),), {})
