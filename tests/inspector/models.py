"""Small models. The golden files contain line numbers of this file, so change it as little as possible."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(24, 72)
        self.out = nn.Linear(24, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.unflatten(-1, (4, 6)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(24)
        self.attention = Attention()
        self.norm2 = nn.LayerNorm(24)
        self.mlp = nn.Sequential(nn.Linear(24, 32), nn.GELU(), nn.Linear(32, 24))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Tiny(nn.Module):
    """A transformer that fits on a page: three layers, tied embeddings."""

    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        self.tokens = nn.Embedding(16, 24)
        self.layers = nn.ModuleList([Layer() for _ in range(layers)])
        self.head = nn.Linear(24, 16, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tokens(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


HOSTILE = (
    "<script>alert(1)</script>",
    "[red]danger[/red]",
    "[/]",
    "名前 ünï",
    "line\nbreak",
    "\x1b[2J",
    '"quoted" \\n back',
    "long" * 60,
)


class Hostile(nn.Module):
    """Modules whose names are markup, HTML, escape sequences, or just long."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential()
        for name in HOSTILE:
            self.body.add_module(name, nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)))
        self.register_parameter("[bold]scale", nn.Parameter(torch.randn(8)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) * getattr(self, "[bold]scale")
