"""Models with parts of no size: they are partitioned as without them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sdp_compile import NeuronPolicy, check

pytestmark = pytest.mark.timeout(120)


class Skip(nn.Module):
    """A decoder whose skip connection may have no channels, as segmentation-models-pytorch has for some encoders."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.skip = nn.Conv2d(3, 16, 1), nn.Conv2d(3, channels, 1) if channels else None
        self.up, self.out = nn.Conv2d(16 + channels, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = x[:, :0] if self.skip is None else self.skip(x)
        h: Tensor = self.out(torch.relu(self.up(torch.cat([torch.relu(self.down(x)), skip], dim=1))))
        return h


class Rotary(nn.Module):
    """Turns the first numbers of each head, perhaps all of them, and joins them with the rest."""

    def __init__(self, turned: int) -> None:
        super().__init__()
        self.turned = turned
        self.query, self.key, self.value, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.register_buffer("angles", torch.randn(5, turned))

    def rotate(self, x: Tensor) -> Tensor:
        x, rest = x[..., : self.turned], x[..., self.turned :]
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
        other = torch.stack((-second, first), dim=-1).flatten(-2)
        return torch.cat((x * self.angles.cos() + other * self.angles.sin(), rest), dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (4, 4)).transpose(1, 2) for part in (self.query, self.key, self.value))
        attended = nn.functional.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v)
        h: Tensor = x + self.out(attended.transpose(1, 2).flatten(2))
        return h


class Split(nn.Module):
    """Splits off what may be nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        kept, dropped = torch.relu(self.up(x)).split([12, 0], dim=-1)
        h: Tensor = self.down(torch.cat([dropped, kept, dropped], dim=-1))
        return h


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (lambda: Skip(0), (2, 3, 8, 8)),
        (lambda: Skip(4), (2, 3, 8, 8)),
        (lambda: Rotary(4), (2, 5, 16)),
        (lambda: Rotary(2), (2, 5, 16)),
        (Split, (2, 6)),
    ],
    ids=["no skip", "skip", "all turned", "half turned", "split"],
)
def test_models_with_empty_parts_are_exact_and_cut(model: type[nn.Module], shape: tuple[int, ...]) -> None:
    result = check(model(), NeuronPolicy(coverage=0.5), torch.randn(shape), workers=2)
    assert result.verdict == "exact", result.reason
    assert max(result.kept) < 0.75
