"""Tasks for studies, from data that every machine has: text of the standard library, digits, a synthetic teacher."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdp_compile.errors import SDPError, did_you_mean
from sdp_compile.models.gpt import GPT, GPTConfig
from sdp_compile.train.corpus import load_corpus

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


@dataclass(frozen=True)
class Text(Task):
    """Bytes of the standard library's source, and a GPT.

    Args:
        layers, width, heads, hidden, sequence: Sizes of the GPT.
        bytes: How much text is read; less makes training repeat it.
        windows: How many windows of each held-out part are evaluated.
    """

    name: ClassVar[str] = "text"
    layers: int = 3
    width: int = 48
    heads: int = 4
    hidden: int = 192
    sequence: int = 48
    bytes: int = 8_000_000
    windows: int = 256

    def __post_init__(self) -> None:
        corpus = load_corpus(self.bytes)
        object.__setattr__(self, "_training", _as_tensor(corpus.training))
        object.__setattr__(self, "_held_out", _as_tensor(corpus.validation))

    def build(self, shape: Shape) -> nn.Module:
        return GPT(
            GPTConfig(
                layers=self.layers,
                width=self.width,
                heads=max(1, round(self.heads * shape.share)),
                hidden=max(1, round(self.hidden * shape.share)),
                sequence=self.sequence,
                head_width=self.width // self.heads,
                dropout=shape.dropout,
                drop_branch=shape.drop_branch,
            )
        )

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        text: Tensor = vars(self)["_training"]
        return self._windows(text, torch.randint(len(text) - self.sequence, (count,), generator=generator))

    @torch.no_grad()
    def evaluate(self, model: nn.Module, part: Part) -> dict[str, float]:
        text: Tensor = vars(self)["_held_out"]
        starts = torch.linspace(0, len(text) - self.sequence - 1, 2 * self.windows).long()
        mine = starts[0 if part == "tuning" else 1 :: 2]
        total = sum(float(self.loss(model, self._windows(text, some))) * len(some) for some in mine.split(64))
        return {"loss": total / len(mine)}

    def _windows(self, text: Tensor, starts: Tensor) -> Batch:
        windows = text[starts[:, None] + torch.arange(self.sequence + 1)].long()
        return windows[:, :-1], windows[:, 1:]


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
        self.keep = 1 - shape.drop_branch

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_norm(self.down(self.drop(torch.relu(self.up_norm(self.up(x))))))
        if self.keep < 1 and self.training:
            out = out * torch.empty_like(out[:, :1, :1, :1]).bernoulli_(self.keep) / self.keep
        return out


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


TASKS: Mapping[str, type[Task]] = {task.name: task for task in (Text, Digits, Teacher)}
"""The tasks by name."""


def make_task(name: str, options: Mapping[str, Any]) -> Task:
    """Returns a task.

    Raises:
        SDPError: If there is no such task or option.
    """
    if name not in TASKS:
        raise SDPError(f"There is no task {name!r}.{did_you_mean(name, TASKS)} The tasks are {', '.join(TASKS)}.")
    try:
        return TASKS[name](**options)
    except TypeError as error:
        raise SDPError(f"The task {name!r} does not take these options: {error}.") from None


def _as_tensor(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)
