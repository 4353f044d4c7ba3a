"""Models with methods beside forward that users call in training: a dual encoder and an autoencoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class DualEncoder(nn.Module):
    """Two encoders that share a block, as CLIP calls them, and a method that calls forward."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(10, width), Block(width), Block(width))
        self.text = nn.Sequential(nn.Embedding(20, width), Block(width), Block(width))
        self.shared = Block(width)
        self.image_head = nn.Linear(width, 8)
        self.text_head = nn.Linear(width, 8)
        self.scale = nn.Parameter(torch.tensor(0.7))

    def encode_image(self, image: Tensor, normalize: bool = True) -> Tensor:
        """Returns the embedding of an image."""
        result = self.image_head(self.shared(self.image(image)))
        return result / result.norm(dim=-1, keepdim=True) if normalize else result

    def encode_text(self, ids: Tensor) -> Tensor:
        result = self.text_head(self.shared(self.text(ids)).mean(1))
        return result / result.norm(dim=-1, keepdim=True)

    def similarity(self, image: Tensor, ids: Tensor) -> dict[str, Tensor]:
        return {"log": self(image, ids).log_softmax(-1)}

    def forward(self, image: Tensor, ids: Tensor) -> Tensor:
        return self.scale.exp() * self.encode_image(image) @ self.encode_text(ids).T


class Autoencoder(nn.Module):
    """A convolutional autoencoder with running statistics, whose decoder alone has residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
        self.widen = nn.Linear(4, 12)
        self.blocks = nn.Sequential(Block(12), Block(12))
        self.narrow = nn.Linear(12, 2)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, spread = self.encoder(x).chunk(2, 1)
        return mean, spread.exp()

    def decode(self, z: Tensor) -> Tensor:
        return self.narrow(self.blocks(self.widen(z.movedim(1, -1)))).movedim(-1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(torch.cat(self.encode(x), 1))


def dual_inputs(seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(4, 10, generator=draw, dtype=torch.float64), torch.randint(0, 20, (4, 5), generator=draw)


def auto_inputs(seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes: Any = ((3, 2, 4, 4), (3, 4, 4, 4))
    image, latent = (torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes)
    return image, latent
