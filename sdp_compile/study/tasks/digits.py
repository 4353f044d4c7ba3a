"""scikit-learn's digits, which come with the package, and a residual network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdp_compile.errors import SDPError
from sdp_compile.models.gpt import kept_branches
from sdp_compile.study.tasks.base import Batch, Part, Shape, Task


@dataclass(frozen=True)
class Digits(Task):
    """scikit-learn's 1,797 images of digits, repeated, and a residual network with BatchNorm.

    Args:
        width: Channels of the residual stream.
        hidden: Channels inside each block.
        blocks: Number of blocks.
        training: Number of images that are trained on; the others are held out.
        noise: Standard deviation of noise that is added to training images.
    """

    name: ClassVar[str] = "digits"
    goal: ClassVar[str] = "accuracy"
    width: int = 16
    hidden: int = 32
    blocks: int = 4
    training: int = 797
    noise: float = 0.1

    def __post_init__(self) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        if self.training > len(digits.target) - 2:
            raise SDPError(
                f"training={self.training} leaves nothing to hold out: there are {len(digits.target)} images, and both "
                "held-out parts need one."
            )
        images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        object.__setattr__(self, "_images", images[order])
        object.__setattr__(self, "_labels", torch.tensor(digits.target)[order])

    def build(self, shape: Shape) -> nn.Module:
        return _Residual(self.width, max(1, round(self.hidden * shape.share)), self.blocks, shape)

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        chosen = torch.randint(self.training, (count,), generator=generator)
        images = vars(self)["_images"][chosen]
        moved = torch.randint(-1, 2, (2,), generator=generator).tolist()
        noise = self.noise * torch.randn(images.shape, generator=generator)
        return torch.roll(images, moved, (2, 3)) + noise, vars(self)["_labels"][chosen]

    @torch.no_grad()
    def evaluate(self, model: nn.Module, part: Part) -> dict[str, float]:
        mine = slice(self.training + (part == "final"), None, 2)
        images, labels = vars(self)["_images"][mine], vars(self)["_labels"][mine]
        output = model(images)
        return {
            "loss": float(F.cross_entropy(output, labels)),
            "accuracy": float((output.argmax(1) == labels).double().mean()),
        }

    def calibration(self) -> list[Tensor]:
        return list(vars(self)["_images"][: self.training].split(200))


class _Block(nn.Module):
    def __init__(self, width: int, hidden: int, shape: Shape) -> None:
        super().__init__()
        self.up, self.up_norm = nn.Conv2d(width, hidden, 3, padding=1, bias=False), nn.BatchNorm2d(hidden)
        self.down, self.down_norm = nn.Conv2d(hidden, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.drop = nn.Dropout2d(shape.dropout) if shape.dropout else nn.Identity()
        self.drop_branch = shape.drop_branch

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_norm(self.down(self.drop(torch.relu(self.up_norm(self.up(x))))))
        return kept_branches(out, self.drop_branch, self.training)


class _Residual(nn.Module):
    def __init__(self, width: int, hidden: int, blocks: int, shape: Shape) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.branches = nn.ModuleList(_Block(width, hidden, shape) for _ in range(blocks))
        self.norm, self.head = nn.BatchNorm2d(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for branch in self.branches:
            x = x + branch(x)
        logits: Tensor = self.head(torch.relu(self.norm(x)).mean((2, 3)))
        return logits
