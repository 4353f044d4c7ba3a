"""One run through a schedule on one rank: compiling, the steps of each phase, and each change of plan."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch

from sdp_compile.bench import memory
from sdp_compile.bench.contestant import make_contestant
from sdp_compile.bench.probe import seconds
from sdp_compile.bench.settings import BenchSettings
from sdp_compile.bench.variants import Variant
from sdp_compile.bench.work import make_work
from sdp_compile.inspector.phases import words
from sdp_compile.planning.moves import Traffic
from sdp_compile.policies.parts import Part, parts_of, with_steps
from sdp_compile.policies.schedules import resolve_schedule
from sdp_compile.runtime.module.sdp_module import SDPModule


def run_through(variant: Variant, rank: int, device: torch.device, settings: BenchSettings) -> dict[str, Any]:
    """Compiles the model and takes some steps of each part of the schedule. Collective.

    Each run compiles anew, so that each of its changes of plan is as the first one of a training run. Steps that follow
    compiling or a change are not timed with the others.

    Args:
        variant: The variant, which says whether torch.compile is used.
        rank: This worker.
        device: Its device.
        settings: The settings; they name the schedule.

    Returns:
        In seconds of this worker, with all workers starting together: ``compile`` (`sdp_compile`, with capture),
        ``first_step``, ``step`` (the median over all parts), ``seconds`` (the mean step, each part by its share), and
        ``parts`` with ``step``, ``state`` (bytes held) and ``change``, whose ``seconds`` are those of
        `SDPModule.advance`, and ``next_step`` the step after it.
    """
    assert settings.schedule is not None
    schedule, work = with_steps(resolve_schedule(settings.schedule)), make_work(settings, rank, device)
    made: list[Any] = []
    compiling = seconds(lambda: made.append(make_contestant(variant, work, settings)), device)
    contestant = made.pop()
    module, optimizer = contestant.module, contestant.optimizer
    assert isinstance(module, SDPModule)
    first_step = seconds(contestant.step, device)
    parts: list[dict[str, Any]] = []
    steps: list[float] = []
    for number, part in enumerate(parts_of(schedule)):
        change = None
        if number:
            change = _changed(partial(module.advance, part.step, optimizer), device)
            change["next_step"] = seconds(contestant.step, device)
        for _ in range(settings.warmup - 1):
            contestant.step()
        own = [seconds(contestant.step, device) for _ in range(settings.steps)]
        steps += own
        held = sum(memory.held_by(contestant).values())
        parts.append({**_described(part, words(schedule, part)), "step": median(own), "state": held, "change": change})
    return {
        "compile": compiling,
        "first_step": first_step,
        "step": median(steps),
        "seconds": sum(part["share"] * part["step"] for part in parts),
        "parts": parts,
    }


def _changed(advance: Callable[[], Traffic | None], device: torch.device) -> dict[str, Any]:
    found: list[Traffic | None] = []
    took = seconds(lambda: found.append(advance()), device)
    traffic = found[0]
    sent = 0 if traffic is None else int(traffic.nbytes.sum(1).max())
    return {"seconds": took, "sent": sent, "total": 0 if traffic is None else traffic.total}


def _described(part: Part, text: str) -> dict[str, Any]:
    return {
        "phase": part.phase,
        "kind": part.kind,
        "words": text,
        "policy": part.policy.describe(),
        "share": part.share,
        "rate": part.rate,
    }
