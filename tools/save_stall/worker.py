"""One worker of the measurement."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

import sdp_compile as sdp
from sdp_compile.models.gpt import GPT, GPTConfig
from sdp_compile.train.worker import process_group

_STEPS = 8
"""Steps without a save between two of them."""


class Measurement:
    """Trains a GPT, and times steps and saves.

    Args:
        settings: What the command was given.
        device: This worker's device.
    """

    def __init__(self, settings: dict[str, Any], device: str) -> None:
        torch.manual_seed(0)
        config = GPTConfig(width=settings["width"])
        self._settings = settings
        self._tokens = torch.randint(250, (settings["batch"], config.sequence), device=device)
        self._model = sdp.compile(GPT(config).to(device), "neuron", (self._tokens[:2],))
        self._optimizer = torch.optim.AdamW(self._model.parameters())
        self._step = 0

    def steps(self, count: int) -> list[float]:
        """Trains, and returns the seconds of each step."""
        return [self._timed_step(False)[0] for _ in range(count)]

    def _timed_step(self, is_busy: bool) -> tuple[float, bool]:
        """Returns the seconds of a step, and whether any worker is busy."""
        start = _now()
        loss = F.cross_entropy(self._model(self._tokens).flatten(0, 1), self._tokens.flatten())
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        flag = torch.tensor(float(is_busy))
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return _now() - start, bool(flag)

    def save(self, asynchronous: bool) -> tuple[float, Any]:
        """Saves, and returns the seconds that the call takes."""
        self._step += 1
        dist.barrier()
        start = _now()
        saved = sdp.save_checkpoint(
            self._settings["folder"],
            self._model,
            self._optimizer,
            step=self._step,
            keep=1,
            redundancy=self._settings["redundancy"],
            asynchronous=asynchronous,  # type: ignore[call-overload]
        )
        return _now() - start, saved

    def in_background(self, step: float) -> tuple[float, float, float]:
        """Saves while it trains. Returns the seconds of the call, of the whole save, and by which training is late."""
        call, saving = self.save(True)
        late, duration, is_busy = call, call, True
        while is_busy:
            seconds, is_busy = self._timed_step(not saving.done())
            duration += seconds
            late += seconds - step
        saving.wait()
        return call, duration, late


def main() -> None:
    """Measures, and worker 0 writes the results."""
    settings = json.loads(sys.argv[1])
    with process_group() as device:
        found = Measurement(settings, device)
        found.steps(5)
        found.save(False)
        plain, at_once, background = list[float](), list[float](), list[tuple[float, float, float]]()
        for _ in range(settings["saves"]):
            plain += found.steps(_STEPS)
            at_once.append(found.save(False)[0])
            plain += found.steps(_STEPS)
            background.append(found.in_background(median(plain)))
        saved = median(at_once)
        call, duration, late = (median(column) for column in zip(*background, strict=True))
        results = {
            "device": device,
            "bytes": sum(path.stat().st_size for path in Path(settings["folder"]).glob("step-*/*")),
            "step_seconds": median(plain),
            "save_seconds": saved,
            "background_save_seconds": duration,
            "call_seconds": call,
            "late_seconds": late,
            "call_share": call / duration,
            "stall_share": late / duration,
        }
        if dist.get_rank() == 0:
            Path(settings["results"]).write_text(json.dumps(results))
        dist.barrier()


def _now() -> float:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
