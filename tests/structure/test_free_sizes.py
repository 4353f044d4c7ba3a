"""Images of a free size that are flattened before a linear layer: their channels are cut."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sdp_compile import NothingToPartition
from sdp_compile.capture import capture
from sdp_compile.ir.sizes import FreeSize
from sdp_compile.structure.analysis import analyse
from tests.structure.subnetworks import Network, exact_plan, share

Tensor = torch.Tensor

# Networks of images (2, 3, 8, 8), whose convolution has 16 channels.
IMAGES: dict[str, Callable[[], nn.Module]] = {
    "flatten": lambda: nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10)),
    "view of the rest": lambda: flattened(lambda h: h.view(h.shape[0], -1), 1024),
    "view to a number": lambda: flattened(lambda h: h.view(h.shape[0], 1024), 1024),
    "view of a number": lambda: flattened(lambda h: h.view(-1, 1024), 1024),
    "channels last": lambda: flattened(lambda h: h.permute(0, 2, 3, 1).reshape(h.shape[0], 1024), 1024),
    "pooled": lambda: flattened(lambda h: F.max_pool2d(h, 2).reshape(h.shape[0], -1), 256),
    "half of the channels": lambda: flattened(lambda h: F.glu(h, 1).flatten(1), 512),
    "two sorts of channels": lambda: flattened(lambda h: torch.cat([h.flatten(1), h.sin().flatten(1)], 1), 2048),
    "other dimensions": lambda: flattened(lambda h: h.view(h.shape[0], 32, 32).transpose(1, 2).mean(1), 32),
    "batch norm of positions": lambda: nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.Flatten(), nn.BatchNorm1d(1024), nn.ReLU(), nn.Linear(1024, 10)
    ),
    "groups": lambda: nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1, groups=4), nn.Flatten(1), nn.Linear(1024, 10)
    ),
}


def flattened(function: Callable[[Tensor], Tensor], features: int) -> nn.Module:
    return Network(
        lambda self, x: self.down(function(self.up(x).relu())),
        up=nn.Conv2d(3, 16, 3, padding=1),
        down=nn.Linear(features, 10),
    )


@pytest.mark.parametrize("case", IMAGES)
def test_channels_of_a_flattened_image(case: str) -> None:
    plan = exact_plan(IMAGES[case](), (torch.randn(2, 3, 8, 8),), others=[(torch.randn(5, 3, 8, 8),)])
    assert share(plan) < 0.52


def test_another_image_of_as_many_positions() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Flatten(), nn.Linear(16 * 24, 10))
    plan = exact_plan(model, (torch.randn(2, 3, 4, 6),), others=[(torch.randn(3, 3, 2, 12),)])
    assert share(plan) < 0.52


def test_three_free_sizes() -> None:
    model = nn.Sequential(
        nn.Conv3d(1, 8, 3, padding=1),
        nn.GroupNorm(4, 8),
        nn.ReLU(),
        nn.Conv3d(8, 12, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.Flatten(),
        nn.Linear(12 * 2 * 4 * 4, 3),
    )
    assert share(exact_plan(model, (torch.randn(2, 1, 4, 8, 8),))) < 0.55


class TwoImages(nn.Module):
    """The size of neither image follows from the linear layer alone."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)
        self.down = nn.Linear(1536, 10)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.down(torch.cat([self.left(x).flatten(1), self.right(y).flatten(1)], 1))


def test_images_whose_sizes_may_vary_stay_whole() -> None:
    with pytest.raises(NothingToPartition, match="free size"):
        exact_plan(TwoImages(), (torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)))


def test_lookups_of_fewer_channels_than_there_are() -> None:
    """A shorter index does not make two dimensions one."""
    model = Network(
        lambda self, x: self.down(self.up(x).gather(0, (self.keys(x) > 0).long()).mean((2, 3))),
        up=nn.Conv2d(3, 16, 1),
        keys=nn.Conv2d(3, 12, 1),
        down=nn.Linear(12, 2),
    )
    structure = analyse(capture(model, (torch.randn(2, 3, 4, 4),))).structure
    assert not any("up.weight" in axis.parameters for axis in structure.axes)


def test_what_is_computed_from_a_free_size_is_free() -> None:
    size = FreeSize(80056)
    for number in (size + 1, 1 + size, size - 2, 2 - size, size * 3, 3 * size, size // 2, size % 7, 80056 // size):
        assert isinstance(number, FreeSize)
    assert size // 2 == 40028 and hash(size) == hash(80056)
