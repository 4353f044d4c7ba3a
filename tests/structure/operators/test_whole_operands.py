"""Operators that need all of an axis, and group counts that divide it differently.

Where a worker lacks units that are 0, lowering puts zeros in their place.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import weight_norm as old_weight_norm
from torch.nn.utils.parametrizations import weight_norm

from sdp_compile import NothingToPartition
from tests.structure.subnetworks import Network, exact_plan, share

Tensor = torch.Tensor
ORDER = torch.tensor([5, 0, 7, 11, 2, 9, 1, 10, 3, 8, 4, 6])

MOVED: dict[str, Callable[[Tensor], Tensor]] = {
    "rolled": lambda h: h.roll(3, -1),
    "flipped": lambda h: h.flip(-1),
    "flipped twice": lambda h: h.flip(-1).relu().flip(-1),
    "in another order": lambda h: h[:, ORDER],
    "selected": lambda h: h.index_select(1, ORDER),
    "gathered": lambda h: h.gather(1, ORDER.expand(h.shape[0], -1)),
    "by a mask": lambda h: h[:, ORDER > 3],
    "rolled along two dimensions": lambda h: h.view(-1, 3, 4).roll((1, 2), (1, 2)).flatten(1),
    "normalised": lambda h: F.layer_norm(h, (12,)),
}


def between(function: Callable[[Tensor], Tensor]) -> nn.Module:
    width = function(torch.zeros(4, 12)).shape[-1]
    return Network(lambda self, x: self.down(function(self.up(x))), up=nn.Linear(20, 12), down=nn.Linear(width, 3))


@pytest.mark.parametrize("case", MOVED)
def test_layers_before_an_operator_that_needs_all_units(case: str) -> None:
    assert share(exact_plan(between(MOVED[case]), (torch.randn(4, 20),))) < 0.6


@pytest.mark.parametrize("function", [lambda h: h.sigmoid().roll(1, -1), lambda h: h.cos()[:, ORDER]])
def test_what_is_not_0_at_missing_units_stays_whole(function: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(NothingToPartition):
        exact_plan(between(function), (torch.randn(4, 20),))


def test_layers_with_layer_norms_between_them() -> None:
    layers = [nn.Linear(6, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 32), nn.LayerNorm(32), nn.GELU()]
    plan = exact_plan(nn.Sequential(*layers, nn.Linear(32, 3)), (torch.randn(4, 6),), others=[(torch.randn(7, 6),)])
    assert share(plan) < 0.6


def divided() -> nn.Module:
    """6 and 4 groups share units of 12 channels; 8 and 3 groups share none, so zeros are put between them."""
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1),
        nn.GroupNorm(6, 24),
        nn.SiLU(),
        nn.Conv2d(24, 48, 3, padding=1, groups=4),
        nn.GroupNorm(8, 48),
        nn.SiLU(),
        nn.Conv2d(48, 24, 1, groups=3),
        nn.GroupNorm(1, 24),
        nn.Conv2d(24, 2, 1),
    )


def norm(channels: int, groups: int, convolution: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, channels, 3),
        nn.GroupNorm(groups, channels),
        nn.SiLU(),
        convolution,
        nn.SiLU(),
        nn.Conv2d(12, 2, 1),
    )


# Networks of images (2, 3, 5, 5), and the largest share of parameters that a worker may keep.
GROUPS: dict[str, tuple[Callable[[], nn.Module], float]] = {
    "all of it": (divided, 0.55),
    "9 and 6 groups": (lambda: norm(36, 9, nn.Conv2d(36, 12, 1, groups=6)), 0.7),
    "5 and 6 groups": (lambda: norm(30, 5, nn.Conv2d(30, 12, 1, groups=6)), 0.65),
    "6 and 4 groups, transposed": (lambda: norm(24, 6, nn.ConvTranspose2d(24, 12, 2, groups=4)), 0.55),
    "5 and 6 groups, transposed": (lambda: norm(30, 5, nn.ConvTranspose2d(30, 12, 2, groups=6)), 0.7),
    "one group": (lambda: norm(24, 1, nn.Conv2d(24, 12, 1)), 0.65),
    "shuffled": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 24, 1),
            nn.Conv2d(24, 24, 1, groups=4),
            nn.ChannelShuffle(6),
            nn.Conv2d(24, 24, 1, groups=3),
            nn.ReLU(),
            nn.Conv2d(24, 2, 1),
        ),
        0.55,
    ),
    "before a flattened image": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 24, 1), nn.GroupNorm(6, 24), nn.Conv2d(24, 24, 1, groups=4), nn.Flatten(), nn.Linear(600, 4)
        ),
        0.55,
    ),
}


@pytest.mark.parametrize("case", GROUPS)
def test_channels_divided_into_groups_in_several_ways(case: str) -> None:
    build, most = GROUPS[case]
    assert share(exact_plan(build(), (torch.randn(2, 3, 5, 5),))) < most


def test_views_that_divide_an_axis_differently() -> None:
    """4 rows of 6 and 6 rows of 4 share 2 rows of 12."""
    model = Network(
        lambda self, x: self.down(self.up(x).view(-1, 4, 6).softmax(2).view(-1, 24).view(-1, 6, 4).sum(2)),
        up=nn.Linear(5, 24),
        down=nn.Linear(6, 3),
    )
    plan = exact_plan(model, (torch.randn(4, 5),))
    assert [family.units for family in plan.families] == [2]
    assert share(plan) < 0.55


class Chomped(nn.Module):
    """A block of a temporal convolutional network."""

    def __init__(self, inputs: int, outputs: int, dilation: int) -> None:
        super().__init__()
        self.cut = 2 * dilation
        options = {"padding": self.cut, "dilation": dilation}
        self.first = weight_norm(nn.Conv1d(inputs, outputs, 3, **options))
        self.second = weight_norm(nn.Conv1d(outputs, outputs, 3, **options))
        self.shortcut = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x)[..., : -self.cut])
        return F.relu(F.relu(self.second(y)[..., : -self.cut]) + self.shortcut(x))


# Networks of (4, 6, 10) whose hidden units have normalised weights, and the largest share that a worker may keep.
NORMED: dict[str, tuple[Callable[[], nn.Module], float]] = {
    "blocks": (lambda: nn.Sequential(Chomped(6, 16, 1), Chomped(16, 16, 2), nn.Conv1d(16, 2, 1)), 0.75),
    "layers": (
        lambda: nn.Sequential(
            weight_norm(nn.Linear(10, 32)), nn.ReLU(), weight_norm(nn.Linear(32, 32)), nn.ReLU(), nn.Linear(32, 3)
        ),
        0.65,
    ),
    "by a hook": (lambda: nn.Sequential(old_weight_norm(nn.Linear(10, 32)), nn.ReLU(), nn.Linear(32, 30)), 0.7),
    "transposed": (
        lambda: nn.Sequential(weight_norm(nn.ConvTranspose1d(6, 32, 3)), nn.ReLU(), nn.Conv1d(32, 2, 1)),
        0.75,
    ),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("case", NORMED)
def test_units_of_normalised_weights(case: str) -> None:
    """What is normalised stays on all workers; its lengths, its biases and the layer after it are cut."""
    build, most = NORMED[case]
    plan = exact_plan(build(), (torch.randn(4, 6, 10),))
    assert share(plan) < most
    assert all(plan.mask(name, 0)[:, 0].all() for name in plan.state if name.endswith("original1"))
