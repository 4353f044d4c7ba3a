"""Small models for end-to-end tests: a residual network with BatchNorm, and a transformer with tied embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Branch(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, hidden, 3, padding=1, bias=False), nn.BatchNorm2d(hidden)
        self.conv2, self.norm2 = nn.Conv2d(hidden, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))


class ResidualNet(nn.Module):
    def __init__(self, width: int = 6, hidden: int = 8, blocks: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.branches = nn.ModuleList(Branch(width, hidden) for _ in range(blocks))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for branch in self.branches:
            x = torch.relu(x + branch(x))
        return self.head(x.mean((2, 3)))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    def __init__(
        self, vocabulary: int = 13, width: int = 16, heads: int = 4, hidden: int = 24, layers: int = 2
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(Layer(width, heads, hidden) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def build(name: str, seed: int = 0) -> nn.Module:
    """The named model in float64 with random values everywhere, zero-initialised parts included."""
    torch.manual_seed(seed)
    model: nn.Module = {"cnn": ResidualNet, "transformer": Transformer}[name]().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def batch(name: str, seed: int, size: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if name == "cnn":
        return torch.randn(size, 1, 6, 6, dtype=torch.float64, generator=generator)
    return torch.randint(0, 13, (size, 7), generator=generator)


def loss_of(name: str, output: Tensor, x: Tensor) -> Tensor:
    """A loss that needs no labels: those follow from the input."""
    if name == "cnn":
        return F.cross_entropy(output, (x.flatten(1).sum(1).abs() * 3).long() % 5)
    return F.cross_entropy(output[:, :-1].flatten(0, 1), x[:, 1:].flatten())
