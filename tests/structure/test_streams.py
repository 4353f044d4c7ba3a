"""Which sums lie on a residual stream: those whose axis comes from before the branches, not any sum of two layers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sdp_compile.capture import capture
from sdp_compile.structure.analysis import analyse
from tests.structure.subnetworks import Network, cut, exact_plan, share

Tensor = torch.Tensor


class LowRank(nn.Module):
    """W x + s B A x, with W fixed."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs).requires_grad_(False)
        self.a, self.b = nn.Linear(inputs, 4, bias=False), nn.Linear(4, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2.0 * self.b(self.a(x))


class AdaptedMlp(nn.Module):
    """Residual MLPs of adapted layers: the stream of 16 stays, the hidden units are cut."""

    def __init__(self) -> None:
        super().__init__()
        self.first = LowRank(6, 16)
        self.up, self.down = (nn.ModuleList(LowRank(*sizes) for _ in range(2)) for sizes in ((16, 48), (48, 16)))
        self.last = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(F.gelu(up(x)))
        return self.last(x)


class Splines(nn.Module):
    """A Kolmogorov-Arnold layer: B-splines on a fixed grid beside a linear layer."""

    def __init__(self, inputs: int, outputs: int, grid: int = 3, order: int = 2) -> None:
        super().__init__()
        knots = torch.arange(-order, grid + order + 1) * (2 / grid) - 1
        self.register_buffer("grid", knots.expand(inputs, -1).contiguous())
        self.order = order
        self.base = nn.Parameter(torch.empty(outputs, inputs))
        self.spline = nn.Parameter(torch.empty(outputs, inputs, grid + order))
        self.scale = nn.Parameter(torch.empty(outputs, inputs))

    def basis(self, x: Tensor) -> Tensor:
        grid, x = self.grid, x.unsqueeze(-1)
        bases = ((x >= grid[:, :-1]) & (x < grid[:, 1:])).to(x.dtype)
        for k in range(1, self.order + 1):
            left = (x - grid[:, : -(k + 1)]) / (grid[:, k:-1] - grid[:, : -(k + 1)]) * bases[:, :, :-1]
            right = (grid[:, k + 1 :] - x) / (grid[:, k + 1 :] - grid[:, 1:-k]) * bases[:, :, 1:]
            bases = left + right
        return bases

    def forward(self, x: Tensor) -> Tensor:
        weight = (self.spline * self.scale.unsqueeze(-1)).view(self.base.size(0), -1)
        return F.linear(F.silu(x), self.base) + F.linear(self.basis(x).view(x.size(0), -1), weight)


def highway(self: nn.Module, x: Tensor) -> Tensor:
    gate = self.gate(x).sigmoid()
    return self.out(self.left(x).tanh() * gate + self.right(x) * (1 - gate))


# Networks of (4, 6) without a residual stream, and the largest share of parameters that a worker may keep.
SUMS: dict[str, tuple[Callable[[], nn.Module], float]] = {
    "adapted mlp": (AdaptedMlp, 0.6),
    "adapted layers": (
        lambda: nn.Sequential(LowRank(6, 16), nn.ReLU(), LowRank(16, 24), nn.GELU(), LowRank(24, 3)),
        0.65,
    ),
    "adapted square layers": (
        lambda: nn.Sequential(LowRank(6, 16), nn.ReLU(), LowRank(16, 16), nn.Linear(16, 3)),
        0.65,
    ),
    "splines": (lambda: nn.Sequential(Splines(6, 12), Splines(12, 8), Splines(8, 3)), 0.65),
    "two layers": (
        lambda: Network(
            lambda self, x: self.out((self.left(x) + self.right(x.sin())).relu()),
            left=nn.Linear(6, 32),
            right=nn.Linear(6, 32),
            out=nn.Linear(32, 3),
        ),
        0.52,
    ),
    "highway": (
        lambda: Network(
            highway, gate=nn.Linear(6, 32), left=nn.Linear(6, 32), right=nn.Linear(6, 32), out=nn.Linear(32, 3)
        ),
        0.52,
    ),
    "two kernels with batch norms": (
        lambda: Network(
            lambda self, x: self.out((self.wide(x) + self.narrow(x)).relu()),
            wide=nn.Sequential(nn.Conv1d(6, 16, 3, padding=1), nn.BatchNorm1d(16)),
            narrow=nn.Sequential(nn.Conv1d(6, 16, 1), nn.BatchNorm1d(16)),
            out=nn.Conv1d(16, 3, 1),
        ),
        0.52,
    ),
}


@pytest.mark.parametrize("case", SUMS)
def test_sums_of_layers_that_read_one_input(case: str) -> None:
    build, most = SUMS[case]
    shape = (4, 6, 5) if "kernels" in case else (4, 6)
    assert share(exact_plan(build(), (torch.randn(shape).tanh(),))) < most


def streams_of(model: nn.Module, x: Tensor) -> frozenset[str]:
    return analyse(capture(model, (x,))).structure.residual


def residual(function: Callable[[nn.Module, Tensor], Tensor]) -> nn.Module:
    return Network(
        function,
        first=nn.Linear(6, 16),
        up=nn.Linear(16, 32),
        down=nn.Linear(32, 16),
        other=nn.Linear(16, 16),
        last=nn.Linear(16, 3),
    )


def branch(self: nn.Module, x: Tensor) -> Tensor:
    return self.down(self.up(x).relu())


def scaled_skip(self: nn.Module, x: Tensor) -> Tensor:
    x = self.first(x)
    return self.last(x * 0.5 + branch(self, x))


def normalised_skip(self: nn.Module, x: Tensor) -> Tensor:
    x = F.silu(self.first(x))
    return self.last(F.silu(x) + branch(self, x))


def parallel(self: nn.Module, x: Tensor) -> Tensor:
    x = self.first(x)
    return self.last(x + (self.other(x) + branch(self, x)))


def before_the_sum(self: nn.Module, x: Tensor) -> Tensor:
    x = self.first(x)
    x = self.other(x) + branch(self, x)
    return self.last(x + branch(self, x))


@pytest.mark.parametrize("forward", [scaled_skip, normalised_skip, parallel, before_the_sum])
def test_what_a_branch_reads_and_is_added_to_is_a_stream(forward: Callable[[nn.Module, Tensor], Tensor]) -> None:
    model = residual(forward)
    if forward not in (parallel, before_the_sum):
        del model.other  # which is not used
    assert streams_of(model, torch.randn(4, 6)) == {"first.weight[0]"}
    assert cut(exact_plan(model, (torch.randn(4, 6),))) == {"up.weight[0]"}


def test_a_projected_shortcut_begins_no_stream() -> None:
    """Neither operand of the sum carries an axis that the other is computed from."""
    model = residual(lambda self, x: self.last((self.other(self.first(x)) + branch(self, self.first(x))).relu()))
    assert not streams_of(model, torch.randn(4, 6))
