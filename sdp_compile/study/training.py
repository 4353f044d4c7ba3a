"""How a run of a study trains: in step, as a process group would, or with local steps; and what else it varies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sdp_compile.emulation.emulate import Emulation
from sdp_compile.planning.plan import Plan
from sdp_compile.planning.regions import Region
from sdp_compile.study.spec import Contestant, Study
from sdp_compile.study.tasks import Batch

Loss = Callable[[nn.Module, Any], Tensor]

_OUTER_RATE, _OUTER_MOMENTUM = 0.7, 0.9  # of DiLoCo, arXiv 2311.08105, section 3.1


class InStep:
    """Trains all workers in step, with one AdamW of the full parameters.

    Args:
        emulation: What is trained.
        loss: The loss of a subnetwork on a batch.
        study: Weight decay and clipping.
        contestant: What happens to moments where the plan changes.
    """

    def __init__(self, emulation: Emulation, loss: Loss, study: Study, contestant: Contestant) -> None:
        self._emulation, self._loss, self._clip, self._contestant = emulation, loss, study.clip, contestant
        self._optimizer = torch.optim.AdamW(emulation.parameters(), weight_decay=study.weight_decay)

    def step(self, batches: Sequence[Batch], rate: float, is_changed: bool) -> Tensor:
        """Trains one step.

        Args:
            batches: One batch for each worker.
            rate: The learning rate.
            is_changed: Whether the plan has changed before it.

        Returns:
            The losses of all workers, shape (workers,).
        """
        if is_changed and self._contestant.moments == "clear":
            self._optimizer.state.clear()
        self._optimizer.param_groups[0]["lr"] = rate
        return self._emulation.step(batches, self._loss, self._optimizer, max_norm=self._clip)

    def close(self) -> None:
        """Ends training; there is nothing left to do."""


class LocalSteps:
    """Trains each worker alone for some steps; then the owners of each element take an outer step by their mean change.

    Each worker has an AdamW of its own, and the outer optimizer is SGD with Nesterov's momentum. A change of plan ends
    a round early: the workers of the new plan begin with the full model's values and with moments of zero.

    Args:
        emulation: What is trained, with ``reduction="tokens"``, so that one worker's gradient can be asked for.
        loss: The loss of a subnetwork on a batch.
        study: Weight decay and clipping.
        contestant: How many steps a round has.

    Source: DiLoCo, arXiv 2311.08105, for the owners of each element instead of all workers.
    """

    def __init__(self, emulation: Emulation, loss: Loss, study: Study, contestant: Contestant) -> None:
        self._emulation, self._loss, self._study, self._steps = emulation, loss, study, contestant.local_steps
        self._full, self._done = dict(emulation.named_parameters()), 0
        self._outer = torch.optim.SGD(self._full.values(), lr=_OUTER_RATE, momentum=_OUTER_MOMENTUM, nesterov=True)
        self._begin()

    def step(self, batches: Sequence[Batch], rate: float, is_changed: bool) -> Tensor:
        """Trains one step of each worker, and takes the outer step after the last one of a round; see `InStep.step`."""
        if is_changed:
            self.close()
            self._begin()
        start = {name: one.detach().clone() for name, one in self._full.items()}
        losses = [self._local_step(worker, batch, rate, start) for worker, batch in enumerate(batches)]
        self._put(start)
        self._done += 1
        if self._done == self._steps:
            self.close()
        return torch.stack(losses)

    @torch.no_grad()
    def close(self) -> None:
        """Takes the outer step of a round, if any step of it was done."""
        if not self._done:
            return
        for name, full in self._full.items():
            full.grad = torch.zeros_like(full)
            for own, owned in zip(self._own, self._owned, strict=True):
                full.grad += torch.where(owned[name], full - own[name], 0) / self._owners[name].clamp(min=1)
        self._outer.step()
        self._emulation.zero_grad()
        self._done = 0

    def _begin(self) -> None:
        values, plan = self._full.items(), self._emulation.plan
        self._own = [{name: nn.Parameter(one.detach().clone()) for name, one in values} for _ in self._workers()]
        self._owned = [
            {name: owned_mask(plan, name, one, worker) for name, one in values} for worker in self._workers()
        ]
        self._owners = {name: torch.stack([owned[name] for owned in self._owned]).sum(0) for name, _ in values}
        self._optimizers = [torch.optim.AdamW(own.values(), weight_decay=self._study.weight_decay) for own in self._own]
        self._done = 0

    def _local_step(self, worker: int, batch: Batch, rate: float, start: dict[str, Tensor]) -> Tensor:
        own, optimizer = self._own[worker], self._optimizers[worker]
        with torch.no_grad():
            for name, value in start.items():
                # What others own stays as it was: weight decay must not touch it.
                own[name].copy_(torch.where(self._owned[worker][name], own[name], value) if self._done else value)
        self._put(own)
        self._emulation.zero_grad()
        mine = [1.0 if one == worker else 0.0 for one in self._workers()]
        batches = [batch if one == worker else None for one in self._workers()]
        losses = self._emulation.backward(batches, self._loss_of_one, tokens=mine)
        for name, full in self._full.items():
            own[name].grad = full.grad
        if self._study.clip is not None:
            nn.utils.clip_grad_norm_(own.values(), self._study.clip)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        return losses[worker]

    def _loss_of_one(self, model: nn.Module, batch: Batch | None) -> Tensor:
        if batch is not None:
            return self._loss(model, batch)
        return torch.stack([0 * one.sum() for one in model.parameters()]).sum()

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, full in self._full.items():
            full.copy_(values[name])

    def _workers(self) -> range:
        return range(self._emulation.workers)


class TailMean:
    """The mean of the full parameters over the last steps of a run.

    Args:
        emulation: What is trained.
        first: The first step that counts.
    """

    def __init__(self, emulation: Emulation, first: int) -> None:
        self._emulation, self._first, self._count = emulation, first, 0
        self._means: list[Tensor] = []

    @torch.no_grad()
    def add(self, step: int) -> None:
        """Counts the values after a step, if it is one of the last."""
        if step < self._first:
            return
        self._count += 1
        values = [one.detach() for one in self._emulation.parameters()]
        if not self._means:
            self._means = [one.clone() for one in values]
        torch._foreach_lerp_(self._means, values, 1 / self._count)

    @torch.no_grad()
    def full_model(self) -> nn.Module:
        """Returns the full model, with the mean of what was counted if anything was."""
        model = self._emulation.full_model()
        for one, mean in zip(model.parameters(), self._means, strict=False):
            one.copy_(mean)
        return model


def owned_mask(plan: Plan, name: str, like: Tensor, worker: int) -> Tensor:
    """Returns which elements of a parameter a worker owns, bool of the parameter's shape."""
    mask = torch.zeros_like(like, dtype=torch.float32)
    for piece in plan.pieces(name):
        if worker in piece.owners and piece.numel:
            region = Region(piece.index)
            region.add(mask, torch.ones(region.shape, device=mask.device), 1.0)
    return mask > 0
