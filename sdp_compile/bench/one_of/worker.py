"""The process of one variant: trains one worker among fake peers and writes what it measures.

Run as ``python -m sdp_compile.bench.one_of.worker SETTINGS VARIANT COVERAGE FILE``.
"""

from __future__ import annotations

import json
import math
import sys
import time
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore

from sdp_compile.bench.contestant import Contestant, make_contestant
from sdp_compile.bench.memory import PeakMeter, measure
from sdp_compile.bench.one_of.calls import count_calls
from sdp_compile.bench.one_of.delay import Wire, use
from sdp_compile.bench.one_of.models import make_one_of_work
from sdp_compile.bench.one_of.peaks import PHASES, peaks, phases
from sdp_compile.bench.one_of.predicted import LINKS
from sdp_compile.bench.one_of.settings import OneOfSettings
from sdp_compile.bench.one_of.variants import VARIANTS
from sdp_compile.bench.profiling import profiled
from sdp_compile.bench.settings import BenchSettings
from sdp_compile.bench.variants import Variant
from sdp_compile.errors import SDPError
from sdp_compile.simulator.cluster import Link

RANK = 1
"""The worker that runs. All own equally many units where the policy can deal them so."""


def main(settings: str, variant: str, coverage: str, path: str) -> int:
    """Measures one variant and writes its figures, or why there are none, to ``path``. Returns the exit code."""
    chosen = OneOfSettings.loads(settings)
    try:
        found = measured(chosen, VARIANTS[variant], None if coverage == "-" else float(coverage))
    except Exception as error:
        text = str(error) if isinstance(error, SDPError) else f"{type(error).__name__}: {error}"
        found = {"status": "failed", "reason": text, "details": traceback.format_exc()}
    Path(path).write_text(json.dumps(found), encoding="utf-8")
    return 0 if found["status"] == "ok" else 1


def measured(settings: OneOfSettings, variant: Variant, coverage: float | None) -> dict[str, Any]:
    """Returns the figures of a variant; the last ones of a process, which joins a fake process group for good."""
    started = time.perf_counter()
    device = device_of(settings)
    wire = _join(settings.one_of, settings.delay)
    if wire is not None and device.type != "cpu":
        raise SDPError(f"--delay holds up collectives on the CPU only, not on {device.type}. Add --device cpu.")
    fields = BenchSettings(workers=settings.one_of, coverage=coverage, bucket_bytes=settings.bucket_bytes)
    contestant = make_contestant(variant, make_one_of_work(settings, device), fields)
    if isinstance(contestant.module, DistributedDataParallel):
        contestant.module.register_comm_hook(None, lambda _, bucket: _left_out(bucket, wire))
    losses = [float(contestant.step()) for _ in range(settings.warmup)]
    ready = time.perf_counter() - started
    facts = {
        "device": _name(device),
        "parameters": sum(parameter.numel() for parameter in contestant.module.parameters()),
        "samples": contestant.work.samples,
        "tokens": contestant.work.tokens,
        "ready_seconds": ready,
        "losses": [loss if math.isfinite(loss) else None for loss in losses],
    }
    # Compiled code allocates where the CPU's count of storages does not see it.
    seen = device.type != "cpu" or not variant.compiled
    memory = _memory(contestant, device) if seen else None
    seconds = [_timed(contestant.step, settings.steps, device) for _ in range(settings.rounds)]
    return {
        "status": "ok",
        **facts,
        "memory": memory,
        "phase_calls": None if variant.compiled else count_calls(contestant),
        "step_seconds": seconds,
        "phase_seconds": _phases(contestant, settings.rounds, device),
        "profile": _profile(contestant, device, settings.trace_path(variant, coverage), wire),
    }


@cache
def _join(workers: int, delay: str | None) -> Wire | None:
    """Joins a fake process group. Returns the wire that delays its collectives, if any."""
    wire = None if delay is None else Wire(LINKS[delay] if delay in LINKS else Link(0.0, float(delay) / 1e3 / 2**20))
    if not dist.is_initialized():
        backend = "fake" if wire is None else use(wire)
        dist.init_process_group(backend, store=FakeStore(), rank=RANK, world_size=workers)
    return wire


def _profile(
    contestant: Contestant, device: torch.device, path: Path | None, wire: Wire | None
) -> dict[str, Any] | None:
    if path is None:
        return None
    found = profiled(contestant.step, device, path, () if wire is None else wire.carried)
    return {**found.to_dict(), "trace": str(path)}


def device_of(settings: OneOfSettings) -> torch.device:
    """Returns the device that the settings ask for. Raises `SDPError` where there is none."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    wanted = settings.device or ("cpu" if found is None else found.type)
    if wanted != "cpu" and (found is None or found.type != wanted):
        raise SDPError(f"--device {wanted}: torch finds no such device here. Leave it out, or name cpu.")
    return torch.device(wanted) if found is None or wanted == "cpu" else torch.device(wanted, 0)


def _left_out(bucket: Any, wire: Wire | None) -> torch.futures.Future[torch.Tensor]:
    """DDP's own hook without the all-reduce: it averages what is here."""
    workers, buffer = dist.get_world_size(), bucket.buffer()
    average = buffer.div_(workers)
    if wire is not None:
        arrived = wire.start("all_reduce", float(buffer.nbytes), workers, [average]).get_future()
        return arrived.then(lambda one: one.value()[0])
    done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    done.set_result(average)
    return done


def _memory(contestant: Contestant, device: torch.device) -> dict[str, Any]:
    """The peak of a step, that of each phase, and what is held by kind."""
    of_phases = peaks(contestant, device)
    # In front of its own step; hooks on saved tensors would change what compiled code saves.
    kinds = measure(contestant, PeakMeter(device)).to_dict()
    kinds["held_peak"] = kinds.pop("peak")
    return {"peak": max(of_phases.values()), "phases": of_phases, **kinds}


def _phases(contestant: Contestant, rounds: int, device: torch.device) -> dict[str, float]:
    """The median seconds of each phase, each until the device has finished it."""
    every: dict[str, list[float]] = {name: [] for name in PHASES}
    for _ in range(rounds):
        for name, run in phases(contestant).items():
            every[name].append(_timed(run, 1, device))
    return {name: sorted(seconds)[len(seconds) // 2] for name, seconds in every.items()}


def _timed(run: Callable[[], Any], times: int, device: torch.device) -> float:
    """Returns the seconds of each of some calls."""
    _synchronize(device)
    began = time.perf_counter()
    for _ in range(times):
        run()
    _synchronize(device)
    return (time.perf_counter() - began) / times


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return device.type


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
