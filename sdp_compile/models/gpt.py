"""The small GPT of the main job, in plain PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class GPTConfig:
    """Sizes of the GPT. By default it learns the look of source text in minutes on two cores.

    With ``tied``, the head has the weight of the token embedding. ``head_width`` is the width of a head, if heads
    together are not as wide as the model. In training, ``dropout`` drops hidden units of both branches, and
    ``drop_branch`` whole branches of single samples.
    """

    layers: int = 6
    width: int = 256
    heads: int = 8
    hidden: int = 1024
    vocabulary: int = 256
    sequence: int = 128
    tied: bool = False
    head_width: int | None = None
    dropout: float = 0.0
    drop_branch: float = 0.0

    def smaller(self, share: float) -> GPTConfig:
        """Returns the sizes of a subnetwork: as deep and as wide, with a share of the heads and of the hidden units."""
        return replace(
            self,
            heads=max(1, round(self.heads * share)),
            hidden=max(1, round(self.hidden * share)),
            head_width=self.head_width or self.width // self.heads,
        )


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.heads, self.head_width = config.heads, config.head_width or config.width // config.heads
        inner = self.heads * self.head_width
        self.qkv = nn.Linear(config.width, 3 * inner)
        self.out = nn.Linear(inner, config.width)
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        batch, sequence, _ = x.shape
        qkv = self.qkv(x).view(batch, sequence, 3, self.heads, self.head_width)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        mixed = mixed.transpose(1, 2).reshape(batch, sequence, self.heads * self.head_width)
        out: Tensor = self.out(_dropped(mixed, self.dropout, self.training))
        return out


class MLP(nn.Module):
    """Two linear layers around a GELU."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, config.hidden)
        self.down = nn.Linear(config.hidden, config.width)
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(_dropped(F.gelu(self.up(x)), self.dropout, self.training))
        return out


class Layer(nn.Module):
    """Attention and MLP, each a residual branch behind a norm."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = Attention(config)
        self.mlp_norm = nn.LayerNorm(config.width)
        self.mlp = MLP(config)
        self.drop_branch = config.drop_branch

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._kept(self.attention(self.attention_norm(x)))
        x = x + self._kept(self.mlp(self.mlp_norm(x)))
        return x

    def _kept(self, branch: Tensor) -> Tensor:
        """Drops the branch of some samples in training: stochastic depth (arXiv 1603.09382)."""
        return kept_branches(branch, self.drop_branch, self.training)


def kept_branches(branch: Tensor, drop: float, training: bool) -> Tensor:
    """Returns the output of a residual branch, in training zero for a share ``drop`` of the samples, at random.

    Source: "Deep Networks with Stochastic Depth", arXiv 1603.09382; what is kept is scaled up, as in Dropout.
    """
    if not drop or not training:
        return branch
    keep = 1 - drop
    one_each = branch[(slice(None), *[slice(1)] * (branch.dim() - 1))]
    return branch * torch.empty_like(one_each).bernoulli_(keep) / keep


def _dropped(x: Tensor, share: float, training: bool) -> Tensor:
    return F.dropout(x, share, training) if share else x


class GPT(nn.Module):
    """Byte-level language model: maps tokens ``(batch, sequence)`` to logits ``(batch, sequence, vocabulary)``."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Embedding(config.sequence, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        if config.tied:
            self.head.weight = self.tokens.weight
        self.apply(self._initialise)
        # Residual branches start small, so that their sum keeps its scale, as in GPT-2.
        for name, parameter in self.named_parameters():
            if name.endswith(("out.weight", "down.weight")):
                nn.init.normal_(parameter, std=0.02 / (2 * config.layers) ** 0.5)

    @staticmethod
    def _initialise(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(self.norm(x))
        return logits
