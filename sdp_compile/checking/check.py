"""``check(model, policy, example_inputs)``: what would compiling this model give, and is it exact?"""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sdp_compile.capture import capture
from sdp_compile.capture.clone import clone
from sdp_compile.capture.diagnosis import first_line, user_line
from sdp_compile.capture.inputs import example_call
from sdp_compile.checking import facts
from sdp_compile.checking.oracle import silence
from sdp_compile.checking.precision import declared_wide
from sdp_compile.checking.stages import Stages
from sdp_compile.checking.verdict import CheckResult, Comparison, Verdict
from sdp_compile.checking.verification import NotComparable, Verification, comparable_call, reference
from sdp_compile.compiler import assemble, checked_rank, checked_workers
from sdp_compile.errors import PlanError, SDPError
from sdp_compile.lowering import lower
from sdp_compile.passes import Passes, resolve_pipeline
from sdp_compile.planning.making import make_plan
from sdp_compile.policies import Policy, resolve_policy
from sdp_compile.structure.analysis import analyse

MOST_PARAMETERS = 200_000_000
"""Exactness needs the weights, a worker's slices and both gradients in float64: 200 M parameters are about 6 GiB."""


def check(
    model: nn.Module,
    policy: str | Path | Mapping[str, Any] | Policy = "auto",
    example_inputs: Any = None,
    *,
    workers: int = 4,
    ranks: Sequence[int] | None = None,
    seed: int = 0,
    passes: Passes = None,
) -> CheckResult:
    """Captures, partitions and verifies a model on this machine, without a process group; the model stays as it is.

    For each of ``ranks`` (default: all) and both modes the worker's outputs, the gradients of what it owns and its
    running statistics are compared with those of the original model run with the parameters ``mask * theta``, in
    float64 on the CPU, with weights drawn at random and without dropout. ``passes`` is what rewrites the graphs, as
    `sdp_compile.passes.resolve_pipeline` takes it. Never raises for the model's sake: an error is the verdict
    "refused" with what to do, an unexpected one "failed" with the stage that it came from.
    """
    stages = Stages()
    found: dict[str, Any] = {
        "model": type(model).__name__,
        "workers": workers,
        "ranks": (),
        "policy": {"policy": str(policy)},
    }
    verdict: Verdict
    try:
        with torch.random.fork_rng(devices=[]):
            verdict, reason = _run(stages, found, model, policy, example_inputs, ranks, seed, passes)
    except SDPError as error:
        verdict, reason = "refused", str(error)
    except NotComparable as error:
        verdict, reason = "unverified", str(error)
    except Exception as error:
        where = user_line(error.__traceback__)
        reason = f"{stages.current}: {first_line(error)}" + (f" (at {where})" if where else "")
        verdict, found["details"] = "failed", "".join(traceback.format_exception(error))
    return CheckResult(**found, verdict=verdict, reason=reason, stage=stages.current, seconds=stages.seconds)


def _run(
    stages: Stages,
    found: dict[str, Any],
    model: nn.Module,
    policy: str | Path | Mapping[str, Any] | Policy,
    example_inputs: Any,
    ranks: Sequence[int] | None,
    seed: int,
    passes: Passes,
) -> tuple[Verdict, str]:
    """The verdict and its reason; ``found`` receives what each stage finds."""
    with stages.stage("arguments"):
        if not isinstance(model, nn.Module):
            raise PlanError(f"check() takes a torch.nn.Module as its model, not {type(model).__name__}.")
        workers = found["workers"]
        found["ranks"] = asked = _ranks(workers, ranks)
        chosen = resolve_policy(policy)
        found["policy"] = chosen.describe()
        pipeline = resolve_pipeline(passes, masking=chosen.masking)
        call = example_call(model, example_inputs)
    with stages.stage("capture"):
        captured = capture(model, example_inputs)
        found |= facts.of_capture(captured)
    with stages.stage("analyse"):
        analysis = analyse(captured)
        found |= facts.of_structure(analysis.structure)
    with stages.stage("plan"):
        plan = make_plan(analysis, chosen, workers)
        found |= facts.of_plan(plan, asked)
    obstacle = _obstacle(model, found["parameters"])
    if obstacle:
        return "unverified", obstacle
    with stages.stage("capture without dropout"):
        quiet = clone(model)
        if silence(quiet):
            analysis = analyse(capture(quiet, example_inputs))
            quiet_plan = make_plan(analysis, chosen, workers)
            if quiet_plan.digest != plan.digest:
                found["notes"] += ("The plan differs where dropout is off; exactness is that of the plan without it.",)
            plan = quiet_plan
    with stages.stage("original"):
        verification = Verification(reference(quiet, seed), comparable_call(call), plan, seed)
    comparisons: list[Comparison] = []
    for rank in asked:
        with stages.stage("compile"):
            module = assemble(lower(analysis, plan, rank, pipeline), verification.model)
        with stages.stage("compare"):
            comparisons += verification.compare(declared_wide(module), rank)
            found["comparisons"] = tuple(comparisons)
    return _verdict(comparisons)


def _verdict(comparisons: Sequence[Comparison]) -> tuple[Verdict, str]:
    by_status = {comparison.status: comparison for comparison in reversed(comparisons)}
    if "not exact" in by_status:
        worst = by_status["not exact"]
        return "not exact", (
            f"worker {worst.rank} in {worst.mode} mode: {worst.worst}. The model is captured wrongly, or a rule of one "
            "of its operators is wrong: do not train with this plan, and please report it."
        )
    if "not finite" in by_status:
        mode = by_status["not finite"].mode
        return "unverified", f"the original model itself yields NaN in {mode} mode with weights drawn at random."
    if "random" in by_status:
        mode = by_status["random"].mode
        return "unverified", (
            f"the original model draws random numbers in {mode} mode although dropout is off, so that two runs of it "
            "differ; what does not depend on them could be compared."
        )
    if "rounding" in by_status:
        return "exact", "up to rounding, to which the original model is as sensitive itself."
    return "exact", ""


def _ranks(workers: Any, ranks: Any) -> tuple[int, ...]:
    """The workers to compare, each once."""
    count = checked_workers(workers)
    asked = tuple(range(count)) if ranks is None else tuple(dict.fromkeys(ranks))
    if not asked:
        raise PlanError("ranks must name at least one worker, got (). Leave it out to check all of them.")
    return tuple(checked_rank(rank, count) for rank in asked)


def _obstacle(model: nn.Module, parameters: int) -> str:
    """Why exactness cannot be checked here; empty if it can."""
    if parameters > MOST_PARAMETERS:
        return (
            f"{parameters / 1e6:,.0f} M parameters are too many to compare in float64 on this machine (at most "
            f"{MOST_PARAMETERS / 1e6:.0f} M): captured and partitioned only. Check the same model with fewer layers."
        )
    for name, buffer in model.named_buffers():
        if buffer.is_meta and not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            return (
                f"the buffer '{name}' is on the meta device, so that the original cannot run: captured and partitioned "
                "only. Check a model with real buffers."
            )
    return ""
