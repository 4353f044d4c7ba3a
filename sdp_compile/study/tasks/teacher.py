"""Regression of a synthetic teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdp_compile.study.tasks.base import Batch, Part, Shape, Task


@dataclass(frozen=True)
class Teacher(Task):
    """Regression of a random network, the teacher, on inputs that never repeat.

    Args:
        inputs, outputs: Sizes of inputs and outputs.
        hidden: Hidden units of the student.
        teacher: Hidden units of the teacher.
        noise: Standard deviation of noise on the targets.
    """

    name: ClassVar[str] = "teacher"
    inputs: int = 32
    outputs: int = 8
    hidden: int = 256
    teacher: int = 128
    noise: float = 0.1

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        first = torch.randn(self.inputs, self.teacher, generator=generator) / self.inputs**0.5
        second = torch.randn(self.teacher, self.outputs, generator=generator) / self.teacher**0.5
        object.__setattr__(self, "_weights", (first, second))

    def build(self, shape: Shape) -> nn.Module:
        hidden = max(1, round(self.hidden * shape.share))
        drop = [nn.Dropout(shape.dropout)] if shape.dropout else []
        return nn.Sequential(nn.Linear(self.inputs, hidden), nn.GELU(), *drop, nn.Linear(hidden, self.outputs))

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        x = torch.randn(count, self.inputs, generator=generator)
        y = self._targets(x)
        return x, y + self.noise * torch.randn(y.shape, generator=generator)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return F.mse_loss(model(batch[0]), batch[1])

    @torch.no_grad()
    def evaluate(self, model: nn.Module, part: Part) -> dict[str, float]:
        x = torch.randn(2048, self.inputs, generator=torch.Generator().manual_seed(1 if part == "tuning" else 2))
        return {"loss": float(F.mse_loss(model(x), self._targets(x)))}

    def _targets(self, x: Tensor) -> Tensor:
        first, second = vars(self)["_weights"]
        targets: Tensor = torch.tanh(2 * x @ first) @ second
        return targets
