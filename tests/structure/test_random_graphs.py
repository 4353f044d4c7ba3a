"""An operator can cost coverage, never correctness: random graphs against the masked original.

The graphs mix operators that have rules with some that have none, in place and out of place, over views of each other,
so that axes are refined, unified and frozen in orders that nobody thought of.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from sdp_compile import NeuronPolicy, NothingToPartition, sdp_compile
from tests.oracle import assert_exact, randomise

Tensor = torch.Tensor
WIDTH = 12

# Functions of one hidden tensor (batch, 12).
UNARY: tuple[Callable[[Tensor], Tensor], ...] = (
    F.gelu,
    torch.sigmoid,
    torch.cos,
    lambda h: h.clone().relu_(),
    lambda h: h.clone().add_(0.5),
    lambda h: h.view(h.shape[0], 3, 4).transpose(1, 2).reshape(h.shape[0], 12),
    lambda h: h.view(h.shape[0], 4, 3).flip(2).flatten(1),
    lambda h: h.view(h.shape[0], 2, 6).sum(1).repeat(1, 2),
    lambda h: torch.cat([h[:, 4:], h[:, :4]], 1),
    lambda h: torch.cat(list(reversed(h.chunk(3, 1))), 1),
    lambda h: torch.cat([part * 2 for part in h.split([3, 5, 4], 1)], 1),
    lambda h: h - h.amax(1, keepdim=True),
    lambda h: h + h.sum(1, keepdim=True),
    lambda h: h * h.mean(0, keepdim=True),
    lambda h: h.softmax(1),
    lambda h: F.layer_norm(h, (12,)),
    lambda h: F.group_norm(h, 4),
    lambda h: F.normalize(h, dim=1),
    lambda h: h.cumsum(1),
    lambda h: h.sort(1).values,
    lambda h: h.roll(3, 1),
    lambda h: torch.tril(h),
    lambda h: h[:, torch.arange(11, -1, -1)],
    lambda h: h * torch.linspace(0.1, 1, 12, dtype=h.dtype),
    lambda h: F.pad(h[:, 1:], (0, 1)),
    lambda h: h.masked_fill(h > 0.3, 0.0),
    lambda h: (h.unsqueeze(2) * h.unsqueeze(1)).sum(2),
    lambda h: (h @ h.t()).tanh() @ h,
    lambda h: F.glu(torch.cat([h, h.sigmoid()], 1), 1),
    lambda h: h.view(h.shape[0] * 4, 3).tanh().view(h.shape[0], 12),
    lambda h: h.unsqueeze(1).expand(-1, 2, -1).mean(1),
    lambda h: torch.stack([h, h.exp()], 0).unbind(0)[1],
    lambda h: F.scaled_dot_product_attention(*(h.view(h.shape[0], 1, 4, 3).transpose(1, 2),) * 3).flatten(1),
    lambda h: torch.where(h > 0, h, h.square()),
    # Without a rule.
    lambda h: torch.renorm(h, 2, 0, 1.0),
    lambda h: h * h.take(torch.tensor([3])),
    lambda h: h.masked_scatter(h > 0, h.cos()),
    # Means and norms over what is 0, or is not, at a missing unit.
    lambda h: h * torch.rsqrt(h.square().mean(1, keepdim=True) + 1e-3),
    lambda h: h - h.exp().mean(1, keepdim=True),
    lambda h: h.view(h.shape[0], 3, 4).mean(1).repeat(1, 3),
    lambda h: F.batch_norm(h.unsqueeze(0), None, None, training=True).squeeze(0),
    lambda h: F.batch_norm(h.t().unsqueeze(0), None, None, training=True)[0].t(),
    # Places, parts and shapes.
    lambda h: h.clone().index_add_(0, torch.tensor([1, 0]), h[:2] * 3),
    lambda h: torch.zeros_like(h).index_put_((torch.tensor([2, 0]),), h[:2]),
    lambda h: h.gather(0, torch.tensor([[0], [2], [1], [1]]).expand(-1, 12)),
    lambda h: h.sort(0).values,
    lambda h: F.pad(h[:, 2:10], (2, 2)),
    lambda h: h.repeat_interleave(2, 1)[:, ::2],
    lambda h: F.channel_shuffle(h.view(h.shape[0], 12, 1, 1), 3).flatten(1),
    lambda h: torch.view_as_real(torch.complex(h, h.cos()) * 1j)[..., 0],
    lambda h: torch.cat([h.tensor_split(5, 1)[i] for i in (4, 1, 2, 0, 3)], 1),
    lambda h: (
        F.unfold(h.view(h.shape[0], 4, 3, 1), (2, 1))
        .view(h.shape[0], 4, 2, 2)
        .mean(3)
        .repeat(1, 1, 2)[..., :3]
        .flatten(1)
    ),
)

# Functions of two hidden tensors.
BINARY: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    torch.add,
    torch.mul,
    lambda a, b: a / (1 + b.abs()),
    lambda a, b: torch.maximum(a, b),
    lambda a, b: torch.cat([a[:, :6], b[:, 6:]], 1),
    lambda a, b: torch.cat([a[:, ::2], b[:, ::2]], 1),
    lambda a, b: torch.stack([a, b], 2).flatten(1)[:, :12],
    lambda a, b: torch.einsum("bi,bi,bj->bj", a, b, a),
    lambda a, b: a.clone().mul_(b),
    lambda a, b: torch.cat([a, b], 1).view(-1, 12, 2).sum(2),
    lambda a, b: torch.cdist(a, b) @ a,
    lambda a, b: torch.kron(a[:1, :3], b[:1, :4]).expand(a.shape[0], -1),
    lambda a, b: torch.multiply(a, torch.greater(b, 0)),
    lambda a, b: a.scatter_add(0, torch.tensor([[1], [0]]).expand(-1, 12), b[:2]),
    lambda a, b: torch.einsum("...i,...i", a, b).unsqueeze(1) * torch.maximum(a, b),
)


class RandomGraph(nn.Module):
    """Hidden tensors from an input, combined at random with linear layers in between, summed to an output."""

    def __init__(self, program: list[tuple[str, int, int, int]]) -> None:
        super().__init__()
        self.program = program
        self.inputs = nn.ModuleList(nn.Linear(5, WIDTH) for _ in range(2))
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=i % 2 == 0) for i in range(len(program)))
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(WIDTH)) for _ in program)
        self.norms = nn.ModuleList(nn.BatchNorm1d(WIDTH) for _ in program)
        self.output = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = [layer(x) for layer in self.inputs]
        for number, (kind, which, first, second) in enumerate(self.program):
            a, b = hidden[first % len(hidden)], hidden[second % len(hidden)]
            if kind == "unary":
                hidden.append(UNARY[which % len(UNARY)](a))
            elif kind == "binary":
                hidden.append(BINARY[which % len(BINARY)](a, b))
            elif kind == "linear":
                hidden.append(self.layers[number](a))
            elif kind == "scale":
                hidden.append(a * self.scales[number])
            else:
                hidden.append(self.norms[number](a))
        return self.output(hidden[-1]) + self.output(hidden[-2])


STEP = st.tuples(
    st.sampled_from(["unary", "unary", "binary", "linear", "linear", "scale", "norm"]),
    st.integers(0, 200),
    st.integers(0, 12),
    st.integers(0, 12),
)


def check(program: list[tuple[str, int, int, int]], policy: NeuronPolicy) -> bool:
    """Whether something could be cut; what was cut must be exact."""
    model = randomise(RandomGraph(program).double())
    x = torch.randn(4, 5, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    try:
        module = sdp_compile(model, policy, (x,), workers=4, rank=1)
    except NothingToPartition:
        return False
    assert_exact(module, model, module.plan, 1, (x,), {}, tolerance=1e-8)
    return True


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(STEP, min_size=2, max_size=7), st.sampled_from(["disjoint", "all"]))
def test_random_graphs_are_exact(program: list[tuple[str, int, int, int]], axes: Any) -> None:
    check(program, NeuronPolicy(replicas=3 if axes == "all" else 2, axes=axes, scope="all"))


@pytest.mark.parametrize("which", range(len(UNARY)))
def test_each_function_between_linear_layers(which: int) -> None:
    check([("unary", which, 0, 0), ("linear", 0, 2, 0), ("unary", which, 3, 0)], NeuronPolicy(scope="all"))


@pytest.mark.parametrize("which", range(len(BINARY)))
def test_each_pair_between_linear_layers(which: int) -> None:
    check([("binary", which, 0, 1), ("linear", 0, 2, 0), ("binary", which, 3, 2)], NeuronPolicy(scope="all"))
