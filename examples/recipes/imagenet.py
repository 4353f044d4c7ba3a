"""ImageNet: torchrun --nproc-per-node 8 imagenet.py DATA RUN [--model swin_t] [--schedule growing]

DATA has a folder per class with its images in train/ and in val/. A second call with the same RUN goes on where the
first one stopped, in the middle of an epoch too. RUN/model.pt has the newest full model.

The hyperparameters are those of torchvision's references (references/classification in its repository), not of the SDP
paper: this recipe claims no figure of the paper. Of the references it leaves out repeated augmentation and the moving
average of the weights. The learning rate rises and falls as the schedule says.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler, Subset
from torchvision.datasets import ImageFolder
from torchvision.models import ResNet, SwinTransformer, VisionTransformer
from torchvision.models.resnet import Bottleneck
from torchvision.transforms import v2
from training import Run, Worker, decayed, parser, set_rate, start

import sdp_compile as sdp

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Settings:
    """What a model is trained with; the batch is that of all workers, and the rate belongs to it."""

    epochs: int
    batch: int
    rate: float
    weight_decay: float
    mixup: float
    smoothing: float
    erase: float
    clip: float | None
    augment: v2.Transform


SETTINGS = {
    "swin_t": Settings(300, 1024, 1e-3, 0.05, 0.8, 0.1, 0.25, 5.0, v2.TrivialAugmentWide()),
    "vit_s": Settings(300, 4096, 3e-3, 0.3, 0.2, 0.11, 0.0, 1.0, v2.RandAugment()),  # those of ViT-B/16
    "resnet50": Settings(600, 1024, 0.5, 2e-5, 0.2, 0.1, 0.1, None, v2.TrivialAugmentWide()),
}


def build(name: str, classes: int, is_tiny: bool) -> nn.Module:
    """Returns a model of torchvision; ViT-S is its VisionTransformer with the sizes of DeiT-S (arXiv 2012.12877)."""
    if name == "swin_t":
        width, depths, heads = (16, [1, 1, 2], [2, 4, 8]) if is_tiny else (96, [2, 2, 6, 2], [3, 6, 12, 24])
        return SwinTransformer([4, 4], width, depths, heads, [7, 7], stochastic_depth_prob=0.2, num_classes=classes)
    if name == "vit_s":
        layers, heads, width = (2, 4, 32) if is_tiny else (12, 6, 384)
        return VisionTransformer(side(is_tiny), 16, layers, heads, width, 4 * width, num_classes=classes)
    layers, group = ([1, 1, 1, 1], 8) if is_tiny else ([3, 4, 6, 3], 64)
    return ResNet(Bottleneck, layers, num_classes=classes, width_per_group=group)


def side(is_tiny: bool) -> int:
    """Returns the width and height of images."""
    return 112 if is_tiny else 224


def transforms(size: int, settings: Settings | None) -> v2.Compose:
    """Returns what makes tensors of images: for training with settings, for evaluation without."""
    bicubic = v2.InterpolationMode.BICUBIC
    if settings:
        geometry = [v2.RandomResizedCrop(size, interpolation=bicubic), v2.RandomHorizontalFlip(), settings.augment]
    else:
        geometry = [v2.Resize(size * 8 // 7, interpolation=bicubic), v2.CenterCrop(size)]
    values = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, DEVIATION)]
    return v2.Compose([*geometry, *values, *([v2.RandomErasing(settings.erase)] if settings else [])])


class Numbered(Sampler[list[tuple[int, int]]]):
    """This worker's batches of images, each with its number among all samples of the run."""

    def __init__(self, order: sdp.SampleOrder, worker: Worker, batch: int) -> None:
        self._order, self._first, self._batch = order, worker.rank * batch, batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in count():
            first = self._order.after(step) + self._first
            yield list(zip(self._order.batch(step).tolist(), range(first, first + self._batch), strict=True))


class Augmented(Dataset[tuple[Tensor, int]]):
    """Images that are augmented by their number in the run, so that a run that goes on sees what it would have seen.

    It does not matter then how many processes load them.
    """

    def __init__(self, images: ImageFolder) -> None:
        self._images = images

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        index, number = key
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(number)
            return self._images[index]


def loader(data: Dataset[Any], worker: Worker, processes: int, **options: Any) -> DataLoader[Any]:
    # A generator of its own: otherwise each loop over a loader draws from the random numbers that a checkpoint holds.
    pinned = worker.device.type != "cpu"
    return DataLoader(data, num_workers=processes, pin_memory=pinned, generator=torch.Generator(), **options)


def read(data: Path, size: int, settings: Settings) -> tuple[ImageFolder, ImageFolder, ImageFolder]:
    """Returns the images for training, augmented and plain, and those for evaluation."""
    for name in ("train", "val"):
        if not (data / name).is_dir():
            raise SystemExit(f"{data} has no folder {name}. Expected are train/CLASS/*.JPEG and val/CLASS/*.JPEG.")
    train = ImageFolder(str(data / "train"), transforms(size, settings))
    plain, val = (ImageFolder(str(data / name), transforms(size, None)) for name in ("train", "val"))
    if train.classes != val.classes:
        differing = sorted({*train.classes} ^ {*val.classes})
        raise SystemExit(f"train and val in {data} must have the same classes; one of them lacks {differing[:5]}.")
    return train, plain, val


@torch.no_grad()
def evaluate(full: nn.Module, images: ImageFolder, worker: Worker, batch: int, processes: int) -> tuple[float, float]:
    """Returns the top-1 and top-5 accuracy of all images, of which each worker evaluates a part."""
    part = Subset(images, range(worker.rank, len(images), worker.workers))
    first = five = 0
    for inputs, labels in loader(part, worker, processes, batch_size=batch):
        with worker.autocast():
            outputs = full(inputs.to(worker.device, non_blocking=True))
        best = outputs.topk(min(5, outputs.shape[1])).indices == labels.to(worker.device)[:, None]
        first, five = first + best[:, 0].sum().item(), five + best.sum().item()
    right, among = worker.total(first, five)
    return right / len(images), among / len(images)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--model", default="swin_t", choices=SETTINGS)
    arguments.add_argument("--tiny", action="store_true", help="A model of few layers and small images, to try it out")
    arguments.add_argument("--epochs", type=int)
    arguments.add_argument("--every", type=int, help="Steps from one evaluation and checkpoint to the next; an epoch")
    arguments.add_argument("--processes", type=int, default=8, help="Processes of each worker that load images")
    options = arguments.parse_args()
    settings = SETTINGS[options.model]

    worker = start()
    size = side(options.tiny)
    train, plain, val = read(Path(options.data), size, settings)
    batch = options.batch or settings.batch
    share, per_epoch = worker.share(batch), len(train) // batch
    if per_epoch == 0:
        raise SystemExit(f"--batch {batch} is more than the {len(train)} images in {options.data}/train.")
    rate = options.rate or settings.rate * batch / settings.batch
    run = Run(options.run, options.logger, worker)

    schedule = sdp.resolve_schedule(options.schedule, steps=(options.epochs or settings.epochs) * per_epoch)
    torch.manual_seed(0)
    original = build(options.model, len(train.classes), options.tiny).to(worker.device)
    model = sdp.compile(original, schedule, (torch.zeros(2, 3, size, size, device=worker.device),))
    groups = decayed(model, settings.weight_decay)
    is_resnet = options.model == "resnet50"
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=0.9) if is_resnet else torch.optim.AdamW(groups, lr=rate)
    torch.manual_seed(worker.rank + 1)  # each worker mixes images in its own way
    restored = run.restore(model, optimizer)
    done, samples = (restored.step, restored.samples or 0) if restored else (0, 0)

    order = sdp.SampleOrder(len(train), share, worker.rank, worker.workers, seed=0, done=samples)
    batches = loader(Augmented(train), worker, options.processes, batch_sampler=Numbered(order, worker, share))
    classes = len(train.classes)
    mix = v2.RandomChoice([v2.MixUp(alpha=settings.mixup, num_classes=classes), v2.CutMix(num_classes=classes)])
    every, began = options.every or per_epoch, time.monotonic()
    for step, (images, labels) in zip(range(done, schedule.steps), batches, strict=False):
        model.advance(step, optimizer)
        set_rate(optimizer, rate * schedule.rate(step))
        images, targets = mix(images.to(worker.device, non_blocking=True), labels.to(worker.device))
        with worker.autocast():
            outputs = model(images)
        loss = F.cross_entropy(outputs.float(), targets, label_smoothing=settings.smoothing)
        optimizer.zero_grad()
        loss.backward()
        if settings.clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        if (step + 1) % every == 0 or step + 1 == schedule.steps:
            full = model.full_model().eval()
            if is_resnet:  # the same images on all workers, so that all have the same statistics
                some = Subset(plain, range(0, len(plain), max(1, len(plain) // 2048)))
                sdp.calibrate(full, islice(loader(some, worker, options.processes, batch_size=128), 16))
            top1, top5 = evaluate(full, val, worker, share, options.processes)
            mean = worker.total(loss.item())[0] / worker.workers
            figures = {"top1": top1, "top5": top5, "loss": mean, "rate": optimizer.param_groups[0]["lr"]}
            run.log(step + 1, {**figures, "seconds": time.monotonic() - began})
            run.say(f"step {step + 1}: the full model has top-1 {top1:.4f} and top-5 {top5:.4f}")
            if worker.rank == 0:
                torch.save(full.state_dict(), run.folder / "model.pt")
            run.save(model, optimizer, step + 1, samples=order.after(step + 1 - done))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
