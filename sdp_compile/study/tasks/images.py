"""Data sets of images that are present: CIFAR-10, CIFAR-100, and folders with a folder per class, as ImageNet has."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdp_compile.errors import SDPError
from sdp_compile.models.gpt import kept_branches
from sdp_compile.study.tasks.base import Batch, Part, Shape, Task

Labelled = Sequence[tuple[Any, int]]
"""Images of PIL and their classes, as torchvision's data sets give them."""

_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class _Pictures(Task):
    """Classification by a residual network of three stages with BatchNorm.

    Args:
        folder: The folder of the data set.
        width: Channels of the residual stream in the first stage; each further stage has twice as many.
        hidden: Channels inside the blocks of the first stage.
        blocks: Number of blocks in each stage.
        evaluated: How many images of each held-out part are evaluated.
    """

    goal: ClassVar[str] = "accuracy"
    folder: str = ""
    width: int = 16
    hidden: int = 32
    blocks: int = 2
    evaluated: int = 1000

    def __post_init__(self) -> None:
        try:
            import torchvision
        except ImportError:
            raise SDPError(
                f"The task {self.name!r} needs torchvision, which is not installed: pip install 'sdp-compile[zoo]'."
            ) from None
        assert torchvision
        try:
            training, held_out, classes = self._read(Path(self.folder).expanduser())
        except (OSError, RuntimeError):  # torchvision's own words speak of a download
            raise SDPError(
                f"The task {self.name!r} finds no data in folder={self.folder!r}. {self._expected()}"
            ) from None
        if min(len(training), len(held_out) - 1) < 1:
            raise SDPError(
                f"The task {self.name!r} needs an image to train on and two held-out ones in {self.folder!r}."
            )
        object.__setattr__(self, "_training", training)
        object.__setattr__(self, "_held_out", held_out)
        object.__setattr__(self, "_classes", classes)

    @abstractmethod
    def _read(self, folder: Path) -> tuple[Labelled, Labelled, int]:
        """Returns the images for training, those that are held out, and the number of classes."""

    @abstractmethod
    def _expected(self) -> str:
        """Returns a sentence that says what the folder has to hold."""

    @abstractmethod
    def _transform(self, augments: bool) -> Any:
        """Returns what makes a tensor of an image."""

    def build(self, shape: Shape) -> nn.Module:
        return _Stages(self.width, max(1, round(self.hidden * shape.share)), self.blocks, vars(self)["_classes"], shape)

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        images: Labelled = vars(self)["_training"]
        chosen = torch.randint(len(images), (count,), generator=generator).tolist()
        seed = int(torch.randint(2**62, (1,), generator=generator))
        with torch.random.fork_rng(devices=[]):  # torchvision's transforms draw from torch's own generator
            torch.manual_seed(seed)
            return self._batch(images, chosen, augments=True)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, part: Part) -> dict[str, float]:
        images: Labelled = vars(self)["_held_out"]
        # Spread over all: files are in the order of their classes.
        spread = torch.linspace(0, len(images) - 1, min(2 * self.evaluated, len(images))).long()
        mine = spread[0 if part == "tuning" else 1 :: 2].tolist()
        total = torch.zeros(2, dtype=torch.float64)
        for first in range(0, len(mine), 100):
            inputs, labels = self._batch(images, mine[first : first + 100], augments=False)
            output = model(inputs)
            right = (output.argmax(1) == labels).sum()
            total += torch.stack([F.cross_entropy(output, labels, reduction="sum").double(), right.double()])
        loss, accuracy = (total / len(mine)).tolist()
        return {"loss": loss, "accuracy": accuracy}

    def calibration(self) -> list[Tensor]:
        images: Labelled = vars(self)["_training"]
        chosen = torch.linspace(0, len(images) - 1, min(1000, len(images))).long()
        order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))
        return [self._batch(images, some.tolist(), augments=False)[0] for some in chosen[order].split(200)]

    def _batch(self, images: Labelled, chosen: Sequence[int], augments: bool) -> Batch:
        transform = self._transform(augments)
        pairs = [images[index] for index in chosen]
        return torch.stack([transform(image) for image, _ in pairs]), torch.tensor([label for _, label in pairs])


@dataclass(frozen=True)
class Cifar10(_Pictures):
    """CIFAR-10, moved by up to four pixels and mirrored; see `_Pictures`. ``folder`` holds ``cifar-10-batches-py``."""

    name: ClassVar[str] = "cifar10"

    def _read(self, folder: Path) -> tuple[Labelled, Labelled, int]:
        from torchvision import datasets

        kind = getattr(datasets, self.name.upper())
        training, held_out = (kind(str(folder), train=train) for train in (True, False))
        return training, held_out, len(training.classes)

    def _expected(self) -> str:
        place = "cifar-100-python" if self.name == "cifar100" else "cifar-10-batches-py"
        return (
            f"It must have {place} in it, unpacked from the python version of {self.name.upper()}, with all its files."
        )

    def _transform(self, augments: bool) -> Any:
        from torchvision.transforms import v2

        moved = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()] if augments else []
        return v2.Compose([*moved, *_values(v2)])


@dataclass(frozen=True)
class Cifar100(Cifar10):
    """CIFAR-100, as `Cifar10`. ``folder`` holds ``cifar-100-python``."""

    name: ClassVar[str] = "cifar100"


@dataclass(frozen=True)
class Images(_Pictures):
    """Images in ``train/CLASS`` and ``val/CLASS``, as ImageNet's; cropped at random and mirrored; see `_Pictures`.

    Args:
        size: Width and height to which images are brought.
    """

    name: ClassVar[str] = "images"
    size: int = 64

    def _read(self, folder: Path) -> tuple[Labelled, Labelled, int]:
        from torchvision.datasets import ImageFolder

        training, held_out = (ImageFolder(str(folder / part)) for part in ("train", "val"))
        if training.classes != held_out.classes:
            raise SDPError(f"train and val in {folder} must have folders of the same classes.")
        return training, held_out, len(training.classes)

    def _expected(self) -> str:
        return "It must have train/CLASS/*.JPEG and val/CLASS/*.JPEG in it."

    def _transform(self, augments: bool) -> Any:
        from torchvision.transforms import v2

        if augments:
            geometry = [v2.RandomResizedCrop(self.size, (0.35, 1.0)), v2.RandomHorizontalFlip()]
        else:
            geometry = [v2.Resize(self.size * 8 // 7), v2.CenterCrop(self.size)]
        return v2.Compose([*geometry, *_values(v2)])


def _values(v2: Any) -> list[Any]:
    return [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(_MEAN, _DEVIATION)]


class _Branch(nn.Module):
    def __init__(self, inputs: int, hidden: int, outputs: int, stride: int, shape: Shape) -> None:
        super().__init__()
        self.up_norm, self.up = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, hidden, 3, stride, 1, bias=False)
        self.down_norm, self.down = nn.BatchNorm2d(hidden), nn.Conv2d(hidden, outputs, 3, padding=1, bias=False)
        self.drop = nn.Dropout2d(shape.dropout) if shape.dropout else nn.Identity()
        is_same = inputs == outputs and stride == 1
        self.skip = nn.Identity() if is_same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.drop_branch = shape.drop_branch

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.down(self.drop(torch.relu(self.down_norm(self.up(torch.relu(self.up_norm(x)))))))
        result: Tensor = self.skip(x) + kept_branches(branch, self.drop_branch, self.training)
        return result


class _Stages(nn.Module):
    """A residual network with normalisation first, as in "Wide Residual Networks" (arXiv 1605.07146)."""

    def __init__(self, width: int, hidden: int, blocks: int, classes: int, shape: Shape) -> None:
        super().__init__()
        self.stem, inputs, branches = nn.Conv2d(3, width, 3, padding=1, bias=False), width, list[nn.Module]()
        for stage in range(3):
            for number in range(blocks):
                stride, outputs = 2 if stage and not number else 1, width << stage
                branches.append(_Branch(inputs, hidden << stage, outputs, stride, shape))
                inputs = outputs
        self.branches = nn.Sequential(*branches)
        self.norm, self.head = nn.BatchNorm2d(inputs), nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.norm(self.branches(self.stem(x)))).mean((2, 3)))
        return logits
