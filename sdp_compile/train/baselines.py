"""What ``train --baseline`` compares with: dense data parallelism, and a dense model of the subnetworks' size."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sdp_compile.models.gpt import GPT, GPTConfig
from sdp_compile.planning.making import make_plan
from sdp_compile.policies import Schedule
from sdp_compile.progress import Progress
from sdp_compile.structure.analysis import Analysis
from sdp_compile.train.loop import Training, Windows, train_loop, validation_loss
from sdp_compile.train.memory import measure
from sdp_compile.train.settings import TrainSettings

_TIMED_STEPS = 8  # and at most half of the run's
_FIRST_STEPS = 2  # not timed: they allocate


@dataclass(frozen=True)
class Baselines:
    """Trains dense models with DDP on the batches, and with the learning rate, of the run that they are compared with.

    Args:
        model: The initial model of the run.
        config: Its sizes.
        text: What is trained on.
        validation: What is evaluated on.
        settings: The settings of the run.
        schedule: Its schedule.
        progress: Shows what is trained.
    """

    model: GPT
    config: GPTConfig
    text: bytes
    validation: Windows
    settings: TrainSettings
    schedule: Schedule
    progress: Progress

    def as_many_steps(self) -> dict[str, Any]:
        """Trains the full model for as many steps. Collective.

        Returns:
            The part ``baseline`` of the report.
        """
        dense = copy.deepcopy(self.model)
        before = validation_loss(dense, self.validation)
        training, result = self._trained(dense, self.settings.steps, "training dense (DDP)")
        result["validation_loss"] = {"before": before, **result["validation_loss"]}
        return {**result, "train_loss": training.losses}

    def as_much_time(self, seconds: float, analysis: Analysis) -> dict[str, Any]:
        """Trains the full model, and a model of the subnetworks' size, for as much time as the run took. Collective.

        How many steps that is follows from a few that are timed before.

        Args:
            seconds: The time of all steps of the run, in seconds.
            analysis: The analysis of the model, for the size of the subnetworks.

        Returns:
            The part ``same_time`` of the report.
        """
        torch.manual_seed(self.settings.seed)
        small = GPT(self.config.smaller(smallest_share(self.schedule, analysis))).to(self.validation.device)
        contestants = {"dense": copy.deepcopy(self.model), "small": small}
        result: dict[str, Any] = {"seconds": seconds}
        for name, model in contestants.items():
            steps = max(1, round(seconds / self._step_seconds(model)))
            result[name] = self._trained(model, steps, f"training {name} (DDP), as much time")[1]
        return result

    def _trained(self, model: GPT, steps: int, words: str) -> tuple[Training, dict[str, Any]]:
        self.progress.stage(words, steps)
        optimizer, training = self._train(model, steps, steps)
        workers, settings = dist.get_world_size(), self.settings
        tokens = steps * settings.batch * self.config.sequence * workers
        return training, {
            "steps": steps,
            "seconds": training.seconds,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "state_bytes": measure(model, optimizer).state_bytes,
            "tokens_per_second": tokens / training.seconds,
            "validation_loss": {"after": validation_loss(model, self.validation)},
        }

    def _step_seconds(self, model: GPT) -> float:
        """Returns the time of a step, in seconds, the same on all ranks, without training the model."""
        model = copy.deepcopy(model)
        steps = max(1, min(_TIMED_STEPS, self.settings.steps // 2))
        self._train(model, _FIRST_STEPS)
        seconds = torch.tensor(self._train(model, steps)[1].seconds / steps, dtype=torch.float64)
        seconds = seconds.to(self.validation.device)
        dist.all_reduce(seconds)
        return float(seconds) / dist.get_world_size()

    def _train(self, model: GPT, steps: int, shown: int = 0) -> tuple[torch.optim.Optimizer, Training]:
        parallel = DistributedDataParallel(model)
        optimizer = torch.optim.AdamW(parallel.parameters(), weight_decay=WEIGHT_DECAY)
        settings, rank, workers = replace(self.settings, steps=steps), dist.get_rank(), dist.get_world_size()
        windows = Windows(self.text, self.config.sequence, self.validation.device, settings.seed, rank, workers)
        rate = self.schedule.learning_rate
        on_step = self.progress.step if shown else lambda step, loss: None
        training = train_loop(parallel, optimizer, _clip, windows, settings, lambda step: rate.at(step, steps), on_step)
        return optimizer, training


WEIGHT_DECAY = 0.1
"""AdamW's, for all who are compared."""


def smallest_share(schedule: Schedule, analysis: Analysis) -> float:
    """Returns the share of the cut units that a worker owns, on average, in the phase in which that is least."""
    workers = dist.get_world_size()
    coverages = [make_plan(analysis, policy, workers).coverage().cut for policy in schedule.policies()]
    return min(1.0 if coverage is None else coverage.mean / workers for coverage in coverages)


def _clip(model: nn.Module, max_norm: float) -> object:
    return torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
