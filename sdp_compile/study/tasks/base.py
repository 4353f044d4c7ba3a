"""What a task of a study is: a model, its data and its loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]
"""Inputs and targets."""

Part = Literal["tuning", "final"]
"""Held-out data to choose by, and other held-out data to report."""

Made = TypeVar("Made", bound="Task")


@dataclass(frozen=True)
class Shape:
    """A model of a task: the full one, or one that is smaller or regularised.

    Attributes:
        share: The share of heads, hidden units or channels that it has.
        dropout: The share of hidden units that are dropped in training.
        drop_branch: The share of residual branches that are dropped in training.
    """

    share: float = 1.0
    dropout: float = 0.0
    drop_branch: float = 0.0


class Task(ABC):
    """A model, its data and its loss. Fields of the dataclass are its options."""

    name: ClassVar[str]
    goal: ClassVar[str] = "loss"
    """What `evaluate` returns that contestants are ranked by; lower is better for "loss" only."""

    @abstractmethod
    def build(self, shape: Shape) -> nn.Module:
        """Returns a model with random values, drawn from torch's generator."""

    @abstractmethod
    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """Returns training samples."""

    @abstractmethod
    def evaluate(self, model: nn.Module, part: Part) -> dict[str, float]:
        """Returns figures of a model in evaluation mode, on held-out data."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Returns the training loss: the mean cross entropy."""
        output = model(batch[0])
        return F.cross_entropy(output.flatten(0, -2), batch[1].flatten())

    def calibration(self) -> list[Tensor]:
        """Returns inputs from which running statistics are re-estimated; none for models without any."""
        return []

    def options(self) -> dict[str, Any]:
        """Returns the options of the task."""
        return asdict(self)  # type: ignore[call-overload,no-any-return]  # all tasks are dataclasses
