"""An ordinary training loop, the same for subnetworks and for the dense model."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from sdp_compile.checkpoint.samples import SampleOrder
from sdp_compile.train.settings import TrainSettings

_VALIDATION_WINDOWS = 128
_CLIP = 1.0


Result = TypeVar("Result")


class Guard(Protocol):
    """Runs a part of a step, given the number of the step."""

    def __call__(self, step: int, run: Callable[[], Result]) -> Result:
        """Returns what ``run`` returns; it may run it twice."""
        ...


def unguarded(step: int, run: Callable[[], Result]) -> Result:
    """Runs it once."""
    return run()


class Windows:
    """Windows of a text as ``(tokens, next tokens)``, each ``(batch, sequence)``.

    Args:
        text: The text.
        sequence: The length of a window.
        device: Where windows are.
        seed: Decides their order, the same for all workers.
        rank: This worker, which draws its part of the order.
        workers: The number of workers.

    Attributes:
        done: The number of windows that all workers together have drawn.
    """

    def __init__(
        self, text: bytes, sequence: int, device: str, seed: int, rank: int = 0, workers: int = 1, done: int = 0
    ) -> None:
        self.text = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        self.sequence = sequence
        self.device = device
        self.seed, self.rank, self.workers, self.done = seed, rank, workers, done

    def draw(self, batch: int) -> tuple[Tensor, Tensor]:
        """Returns this worker's next ``batch`` windows, while the others draw theirs."""
        count = len(self.text) - self.sequence
        order = SampleOrder(count, batch, self.rank, self.workers, self.seed, self.done)
        self.done = order.after(1)
        return self.at(torch.from_numpy(order.batch(0)))

    def spread(self, count: int) -> Tensor:
        """Returns the starts of ``count`` windows, evenly spaced over the text."""
        return torch.linspace(0, len(self.text) - self.sequence - 1, count).long()

    def at(self, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the windows that begin at ``starts``."""
        windows = self.text[starts[:, None] + torch.arange(self.sequence + 1)].long().to(self.device)
        return windows[:, :-1], windows[:, 1:]


@dataclass(frozen=True)
class Training:
    """What training yields: ``losses``, the mean over the workers of each step, and ``seconds`` for all steps."""

    losses: list[float]
    seconds: float


def train_loop(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    clip: Callable[[nn.Module, float], object],
    windows: Windows,
    settings: TrainSettings,
    rate: Callable[[int], float],
    on_step: Callable[[int, Tensor], None],
    backward: Callable[[Tensor, int], None] = lambda loss, tokens: loss.backward(),
    start: int = 0,
    before_step: Callable[[int], None] = lambda step: None,
    after_step: Callable[[int, Callable[[], list[float]]], None] = lambda step, losses: None,
    guard: Guard = unguarded,
) -> Training:
    """Trains until ``settings.steps`` steps are done; the model synchronises gradients itself, in backward.

    Args:
        clip: clips the gradient's norm, as ``clip(model, max_norm)``.
        windows: this rank's batches.
        rate: returns the share of the peak learning rate, given the number of steps done.
        on_step: called after each step with the number of steps done and this rank's loss.
        backward: runs backward, given the loss and the number of tokens that it is the mean over.
        start: the number of steps that are done already.
        before_step: called before each step with the number of steps done.
        after_step: called after each step with the number of steps done, and a function that returns the losses.
        guard: runs what precedes a step, each step up to the change of the values, and what follows it.
    """
    model.train()
    losses: list[Tensor] = []

    def means() -> list[float]:
        if not losses:
            return []
        # In float64 the sum is exact, so it does not depend on where in the tensor a loss lies: a run that was resumed
        # reports the same.
        total = torch.stack(losses).double()
        dist.all_reduce(total)
        result: list[float] = (total / dist.get_world_size()).tolist()
        return result

    started = _now(windows.device)
    for step in range(start, settings.steps):
        guard(step + 1, partial(before_step, step))
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * rate(step)
        batch = windows.draw(settings.batch)

        def one_step(tokens: Tensor = batch[0], targets: Tensor = batch[1]) -> Tensor:
            loss = cross_entropy(model(tokens), targets)
            optimizer.zero_grad()
            backward(loss, targets.numel())
            clip(model, _CLIP)
            optimizer.step()
            return loss.detach()

        losses.append(guard(step + 1, one_step))
        on_step(step + 1, losses[-1])
        guard(step + 1, partial(after_step, step + 1, means))
    seconds = _now(windows.device) - started
    return Training(means(), seconds)


@torch.no_grad()
def validation_loss(model: nn.Module, windows: Windows) -> float:
    """Returns the mean loss in nats per byte, equal on all ranks; each rank evaluates its share of the windows."""
    model.eval()
    total = torch.zeros(2, dtype=torch.float64)
    starts = windows.spread(_VALIDATION_WINDOWS)[dist.get_rank() :: dist.get_world_size()]
    for some in starts.split(16):
        tokens, targets = windows.at(some)
        total += torch.tensor([cross_entropy(model(tokens), targets).item() * len(some), len(some)])
    total = total.to(windows.device)
    dist.all_reduce(total)
    return (total[0] / total[1]).item()


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean cross entropy over all positions of ``(batch, sequence, vocabulary)`` logits."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def _now(device: str) -> float:
    """Returns the time at which all ranks have arrived here."""
    if device != "cpu":
        torch.accelerator.synchronize()
    dist.barrier()
    return time.perf_counter()
