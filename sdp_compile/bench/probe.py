"""Measures how long computing, updating and each collective take when all workers do them at the same time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from sdp_compile.bench.contestant import Contestant
from sdp_compile.runtime.comm.traffic import CollectiveKind
from sdp_compile.simulator.measured import COPIED

SIZES = (2**14, 2**20, 2**24)
"""Payloads in bytes, from bound by latency to bound by bandwidth."""

_REPEATS = 3


def probe(contestant: Contestant, steps: int, device: torch.device) -> dict[str, Any]:
    """Measures steps without communication, and collectives among all workers. Collective.

    Args:
        contestant: The model that trains alone.
        steps: How many steps to take the mean of, as in a turn of the other variants.
        device: This worker's device.

    Returns:
        In seconds, ``compute`` (forward and backward), ``update`` (the optimizer), ``seconds`` (their sum) and
        ``copy`` (of `COPIED` bytes), and ``collectives``, a list with ``kind``, ``payload`` (bytes, as `sent_bytes`
        counts them) and ``seconds``.
    """
    times = [(seconds(contestant.backward, device), seconds(contestant.optimizer.step, device)) for _ in range(steps)]
    compute, update = (sum(which) / steps for which in zip(*times, strict=True))
    source = torch.zeros(COPIED // 4, device=device)
    return {
        "seconds": compute + update,
        "compute": compute,
        "update": update,
        "copy": min(seconds(source.clone, device) for _ in range(_REPEATS)),
        "collectives": [
            {"kind": kind, "payload": size, "seconds": min(seconds(call, device) for _ in range(_REPEATS))}
            for size in SIZES
            for kind, call in _collectives(size, device).items()
        ],
    }


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Returns how long ``call`` takes on this worker when all workers start it together."""
    meet(device)
    started = time.perf_counter()
    call()
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - started


def meet(device: torch.device) -> None:
    """Waits until all workers have reached this point and their devices are idle."""
    if device.type != "cpu":
        torch.accelerator.synchronize()
    dist.barrier()


def _collectives(size: int, device: torch.device) -> dict[CollectiveKind, Callable[[], Any]]:
    workers = dist.get_world_size()
    part = torch.zeros(-(-size // (4 * workers)), device=device)
    whole, other = (torch.zeros(len(part) * workers, device=device) for _ in range(2))
    return {
        "all_reduce": lambda: dist.all_reduce(whole),
        "all_gather": lambda: dist.all_gather_into_tensor(whole, part),
        "reduce_scatter": lambda: dist.reduce_scatter_tensor(part, whole),
        "all_to_all": lambda: dist.all_to_all_single(other, whole),
    }
