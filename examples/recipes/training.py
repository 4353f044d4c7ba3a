"""What all recipes do alike: options, the worker's device, and a folder with checkpoints and logs."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from logs import open_logs
from torch import nn
from torch.optim import Optimizer

import sdp_compile as sdp

UNDECAYED = ("class_token", "pos_embedding", "relative_position_bias_table")


def parser(description: str | None) -> argparse.ArgumentParser:
    """Returns a parser of the options that all recipes have; a recipe adds its own, and defaults for these."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("data")
    result.add_argument("run", type=Path, help="Folder for checkpoints, the log and the model")
    result.add_argument("--schedule", default="growing", help="A schedule or policy by name or TOML file")
    result.add_argument("--batch", type=int, help="Samples of all workers together")
    result.add_argument("--rate", type=float, help="Highest learning rate")
    # Not --log: torchrun refuses it as ambiguous, also behind the script's name.
    result.add_argument("--logger", action="append", default=[], help="tensorboard, wandb or trackio; repeatable")
    return result


@dataclass(frozen=True)
class Worker:
    """This process: its number, how many there are, and where it computes."""

    rank: int
    workers: int
    device: torch.device

    def share(self, batch: int) -> int:
        """Returns how many samples of a batch of all workers are this one's."""
        if batch % self.workers:
            raise SystemExit(f"--batch {batch} cannot be shared by {self.workers} workers: pass a multiple of it.")
        return batch // self.workers

    def autocast(self) -> torch.autocast:
        """Computes in bfloat16 on an accelerator; a CPU stays in float32, which most of them compute faster."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type != "cpu")

    def total(self, *values: float) -> list[float]:
        """Returns each value's sum over all workers. Collective."""
        sums = torch.tensor(values, dtype=torch.float64).to(self.device)
        dist.all_reduce(sums)
        return sums.tolist()


def start() -> Worker:
    """Joins torchrun's process group, or makes one of this process alone."""
    local_rank, device = int(os.environ.get("LOCAL_RANK", "0")), torch.device("cpu")
    accelerator = torch.accelerator.current_accelerator()
    if accelerator and torch.accelerator.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", "1")):
        device = torch.device(accelerator.type, local_rank)
        torch.accelerator.set_device_index(local_rank)
    if "RANK" in os.environ:
        dist.init_process_group()
    else:
        dist.init_process_group(store=dist.HashStore(), rank=0, world_size=1)
    return Worker(dist.get_rank(), dist.get_world_size(), device)


def decayed(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Returns groups for an optimizer: no weight decay of norms, biases and learned positions."""
    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": weight_decay}, {"params": [], "weight_decay": 0.0}]
    for name, parameter in model.named_parameters():
        groups[parameter.ndim < 2 or name.endswith(UNDECAYED)]["params"].append(parameter)
    return groups


def set_rate(optimizer: Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


class Run:
    """A folder that a second call with the same options goes on from."""

    def __init__(self, folder: Path, logs: list[str], worker: Worker) -> None:
        self.folder, self._checkpoints, self._worker = folder, folder / "checkpoints", worker
        folder.mkdir(parents=True, exist_ok=True)
        self._logs = open_logs(folder, logs) if worker.rank == 0 else []

    def restore(self, model: nn.Module, optimizer: Optimizer) -> sdp.Restored | None:
        """Loads the newest checkpoint, if there is one. Collective."""
        if any(self._checkpoints.glob("step-*/manifest.json")):
            return sdp.load_checkpoint(self._checkpoints, model, optimizer)
        return None

    def save(self, model: nn.Module, optimizer: Optimizer, step: int, **values: Any) -> None:
        """Saves a checkpoint, and keeps the one before. Collective."""
        sdp.save_checkpoint(self._checkpoints, model, optimizer, step=step, keep=2, **values)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Logs figures on worker 0."""
        for log in self._logs:
            log.log(figures, step=step)

    def say(self, text: str) -> None:
        """Prints on worker 0."""
        if self._worker.rank == 0:
            print(text, flush=True)
