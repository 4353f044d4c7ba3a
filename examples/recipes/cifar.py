"""CIFAR-10 and CIFAR-100: torchrun --nproc-per-node 4 cifar.py DATA RUN [--model wrn28] [--schedule growing]

DATA holds the "python version" of https://www.cs.toronto.edu/~kriz/cifar.html: cifar-10-batches-py or cifar-100-python.
SGD, the learning rate, weight decay and augmentation are those that are usual for CIFAR since "Wide Residual Networks"
(arXiv 1605.07146); they are not taken from the SDP paper. A second call with the same RUN goes on where the first one
stopped. RUN/model.pt has the newest full model.
"""

from __future__ import annotations

import pickle
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet18
from training import Run, parser, set_rate, start

import sdp_compile as sdp

MEAN, DEVIATION = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])


class ArraysOnly(pickle.Unpickler):
    """Reads the pickles of the data set, and refuses everything in them that could run code."""

    _ALLOWED = (("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"))

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._ALLOWED or (module.endswith("multiarray") and name == "_reconstruct"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} does not belong into CIFAR's files.")


def read(folder: Path, train: bool) -> tuple[Tensor, Tensor]:
    """Returns images, uint8 of shape (count, 3, 32, 32), and labels."""
    names = {
        "cifar-10-batches-py": [f"data_batch_{number}" for number in range(1, 6)] if train else ["test_batch"],
        "cifar-100-python": ["train"] if train else ["test"],
    }
    found = next((name for name in names if (folder / name).is_dir()), None)
    if found is None:
        raise SystemExit(f"{folder} holds neither {' nor '.join(names)}. Unpack the python version of CIFAR there.")
    images, labels = [], []
    for name in names[found]:
        with (folder / found / name).open("rb") as file:
            content = ArraysOnly(file, encoding="bytes").load()
        images.append(torch.from_numpy(content[b"data"]).view(-1, 3, 32, 32))
        labels += content.get(b"labels") or content[b"fine_labels"]
    return torch.cat(images), torch.tensor(labels)


def normalised(images: Tensor) -> Tensor:
    scale = DEVIATION.to(images.device)[:, None, None]
    return (images.float() / 255 - MEAN.to(images.device)[:, None, None]) / scale


def augmented(images: Tensor) -> Tensor:
    """Returns images that were moved by up to four pixels and mirrored, each at random."""
    padded = F.pad(images, (4, 4, 4, 4))
    rows, columns = torch.randint(9, (2, len(images)), device=images.device)
    grid = torch.arange(32, device=images.device)
    each = torch.arange(len(images), device=images.device)[:, None, None]
    moved = padded[each, :, (rows[:, None] + grid)[:, :, None], (columns[:, None] + grid)[:, None, :]].movedim(3, 1)
    return torch.where(torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5, moved.flip(3), moved)


class Wide(nn.Module):
    """A block of a wide residual network, with normalisation first."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(outputs), nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(torch.relu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(torch.relu(self.norm2(out)))


def build(name: str, classes: int) -> nn.Module:
    """Returns ResNet-18 for small images, or WideResNet-28-10 ("wrn28"; "wrn10" is a short and narrow one)."""
    if name == "resnet18":
        model = resnet18(num_classes=classes)
        model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
        return model
    depth, width = {"wrn28": (4, 160), "wrn10": (1, 16)}[name]
    widths = [16, width, 2 * width, 4 * width]
    blocks = [
        Wide(widths[stage] if number == 0 else widths[stage + 1], widths[stage + 1], 2 if stage and not number else 1)
        for stage in range(3)
        for number in range(depth)
    ]
    head = [
        nn.BatchNorm2d(widths[-1]),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(widths[-1], classes),
    ]
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), *blocks, *head)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    right = sum(
        int((model(normalised(some)).argmax(1) == some_labels).sum())
        for some, some_labels in zip(images.split(500), labels.split(500), strict=True)
    )
    return right / len(labels)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--model", default="resnet18", choices=("resnet18", "wrn28", "wrn10"))
    arguments.add_argument("--epochs", type=int, default=200)
    arguments.set_defaults(batch=128, rate=0.1)
    options = arguments.parse_args()

    worker = start()
    images, labels = (one.to(worker.device) for one in read(Path(options.data), train=True))
    test = tuple(one.to(worker.device) for one in read(Path(options.data), train=False))
    run = Run(options.run, options.logger, worker)

    per_epoch = len(images) // options.batch
    schedule = sdp.resolve_schedule(options.schedule, steps=options.epochs * per_epoch)
    torch.manual_seed(0)
    model = sdp.compile(
        build(options.model, 100 if labels.max() > 9 else 10).to(worker.device), schedule, (normalised(images[:2]),)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=options.rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    torch.manual_seed(worker.rank + 1)  # each worker augments in its own way
    restored = run.restore(model, optimizer)
    done, samples = (restored.step, restored.samples or 0) if restored else (0, 0)

    order = sdp.SampleOrder(len(images), worker.share(options.batch), worker.rank, worker.workers, seed=0, done=samples)
    began = time.monotonic()
    for number, step in enumerate(range(done, schedule.steps)):
        model.advance(step, optimizer)
        set_rate(optimizer, options.rate * schedule.rate(step))
        chosen = torch.from_numpy(order.batch(number)).to(worker.device)
        loss = F.cross_entropy(model(normalised(augmented(images[chosen]))), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % per_epoch == 0:
            full = model.full_model().eval()
            sdp.calibrate(full, [normalised(some) for some in images[:5000].split(500)])
            if worker.rank == 0:
                figures = {"accuracy": accuracy(full, *test), "loss": loss.item(), "seconds": time.monotonic() - began}
                run.log(step + 1, figures)
                run.say(f"epoch {(step + 1) // per_epoch}: accuracy of the full model {figures['accuracy']:.4f}")
                torch.save(full.state_dict(), run.folder / "model.pt")
            run.save(model, optimizer, step + 1, samples=order.after(number + 1))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
