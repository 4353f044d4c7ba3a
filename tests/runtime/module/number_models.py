"""Models that read numbers which a training loop changes."""

from __future__ import annotations

import math
from math import exp
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.capture.python_models import Small

BETA = 0.5


class Reading(Small):
    """Reads a number."""

    level = 0.5


class Temperature(Reading):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        return (h / self.level).softmax(-1)


class Weight(Small):
    """Adds a term to its loss, weighted by a number of a child."""

    def __init__(self) -> None:
        super().__init__()
        self.last.level = 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        out: torch.Tensor = self.last(h).sum() + self.last.level * h.pow(2).mean()
        return out


class Slope(Reading):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        return F.leaky_relu(h, self.level)


class Alpha(Reading):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        return torch.add(h, h.tanh(), alpha=self.level)


class Epsilon(Reading):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(h, (16,), self.first.bias, None, self.level)


class Dropout(Small):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def between(self, h: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.drop(h)
        return out


class Arithmetic(Reading):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        keep = 1 - self.level
        scale = 2 * keep**2 + max(self.level, 0.01) / 3
        return h.clamp(min=-scale, max=self.level * 2 + 1) ** 3 * keep - self.level


class Power(Reading):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        return h.abs() ** self.level + self.level**h


class Exponential(Reading):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        return h * math.exp(self.level) + exp(-self.level) * math.sqrt(h.shape[-1])


class Branch(Reading):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        if isinstance(self.level, float) and self.level > 0.4:
            h = h * 2
        return h.relu() * self.level


class Filled(Reading):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        mask = torch.full_like(h, self.level)
        return h.masked_fill(h < 0, self.level) * mask + torch.where(h > 0, self.level, h)


class Attention(Reading):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        h = h.view(-1, 4, 4)
        return F.scaled_dot_product_attention(h, h, h, scale=self.level).reshape(-1, 16)


class Property(Small):
    def __init__(self) -> None:
        super().__init__()
        self.level = 0.5

    @property
    def doubled(self) -> float:
        return self.level * 2

    def between(self, h: torch.Tensor) -> torch.Tensor:
        return h * self.doubled


class Configured(Small):
    """Two modules share a configuration."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(scale=0.5, rates={"low": 0.25}, weights=[0.75], layers=2)
        self.last.config = self.config

    def between(self, h: torch.Tensor) -> torch.Tensor:
        config = self.config
        return h * config.scale + config.rates["low"] * self.last.config.weights[0] * self.last.config.scale


class Global(Small):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        return h.relu() * BETA


class Several(Small):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = 0.5, 0.5

    def between(self, h: torch.Tensor) -> torch.Tensor:
        return h.relu() * self.one + h.tanh() * self.other * 0.5


class Momentum(Small):
    """Statistics that follow at a rate."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(16, momentum=0.5)

    def between(self, h: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.norm(h)
        return out


class Checkpointed(Reading):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = checkpoint(lambda h: (h * self.level).tanh(), h, use_reentrant=False)
        return out


class Asked(Reading):
    """Only asks for the number."""

    def between(self, h: torch.Tensor) -> torch.Tensor:
        return h * 2 if self.level > 0.4 else h


class Summed(Small):
    def __init__(self) -> None:
        super().__init__()
        self.weights = [0.5, 0.25]

    def between(self, h: torch.Tensor) -> torch.Tensor:
        return h * sum(self.weights)


class Drawn(Reading):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        return torch.lerp(h, F.gumbel_softmax(h, tau=self.level), self.level)


class Sized(Reading):
    """Keeps a part of the units."""

    def between(self, h: torch.Tensor) -> torch.Tensor:
        mask = torch.arange(16, device=h.device) < int(16 * self.level)
        return h * mask


# -- what cannot be free ----------------------------------------------------------------------------------------------


class Steps(Reading):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        steps = torch.arange(0.0, 1.0, self.level, dtype=h.dtype, device=h.device)
        return h * steps.sum() / steps.shape[0]


class Typed(Reading):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        return h * 2 if type(self.level) is float and self.level > 0.4 else h


class Formatted(Reading):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        return h * len(f"{self.level}")


class Converted(Reading):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        return h * 2 if float(self.level) > 0.4 else h * 3


class Tensor(Reading):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        return h * torch.tensor(self.level, dtype=h.dtype)


class Rounded(Reading):
    """Makes a tensor that is the same for numbers next to each other."""

    def between(self, h: torch.Tensor) -> torch.Tensor:
        return h * torch.tensor([self.level * 10], dtype=torch.long, device=h.device)


class Compared(Small):
    def __init__(self) -> None:
        super().__init__()
        self.level = 0.5
        self.asks = (math.exp,)

    def between(self, h: torch.Tensor) -> torch.Tensor:
        return h * 2 if self.asks[0](self.level) > 1.5 else h * 3


class Percent(Reading):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        return h * 2 if "%.3f" % self.level > "0.500" else h  # noqa: UP031


class Vanishing(Reading):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        return h * (self.level * 0 + 1) + self.level // 1
