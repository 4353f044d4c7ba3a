"""``check(model, policy, example_inputs)`` captures, partitions and verifies a model on one machine."""

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
from sdp_compile.checking.oracle import disable_randomness
from sdp_compile.checking.precision import as_float64
from sdp_compile.checking.stages import Stages
from sdp_compile.checking.verdict import CheckResult, Comparison, Verdict
from sdp_compile.checking.verification import NotComparable, Verification, comparable_call, reference
from sdp_compile.compiler import assemble, checked_rank, checked_workers
from sdp_compile.errors import PlanError, SDPError
from sdp_compile.lowering import lower
from sdp_compile.passes import Passes, bucket_bytes_of, resolve_pipeline
from sdp_compile.planning.making import make_plan
from sdp_compile.policies import Policy, resolve_policy
from sdp_compile.structure.analysis import analyse

MOST_PARAMETERS = 200_000_000
"""The comparison holds weights, slices and gradients in float64: about 6 GiB for 200 M parameters."""


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
    """Captures, partitions and verifies a model on this machine, without a process group.

    Compares each worker's outputs, gradients and running statistics with those of the original model run with the
    parameters ``mask * theta``, in both modes. Both run in float64 on the CPU, with random weights and without dropout.
    The first worker is also called a second time, and with other sizes where the model runs with them.

    Args:
        model: The model, which is not changed.
        policy: A policy, its name or fields, or the path of a TOML file.
        example_inputs: A tuple of positional or a mapping of keyword inputs.
        workers: Number of workers to plan for.
        ranks: The workers to verify; default: all.
        seed: Random seed for the weights.
        passes: The passes that rewrite the graphs; see `sdp_compile.passes.resolve_pipeline`.

    Returns:
        The result. Errors do not raise: an `SDPError` gives the verdict "refused" with the reason, any other error
        "failed" with the stage in which it occurred.
    """
    stages = Stages()
    fields: dict[str, Any] = {
        "model": type(model).__name__,
        "workers": workers,
        "ranks": (),
        "policy": {"policy": str(policy)},
    }
    verdict: Verdict
    try:
        with torch.random.fork_rng(devices=[]):
            verdict, reason = _run(stages, fields, model, policy, example_inputs, ranks, seed, passes)
    except SDPError as error:
        verdict, reason = "refused", str(error)
    except NotComparable as error:
        verdict, reason = "unverified", str(error)
    except Exception as error:
        where = user_line(error.__traceback__)
        reason = f"{stages.current}: {first_line(error)}" + (f" (at {where})" if where else "")
        verdict, fields["details"] = "failed", "".join(traceback.format_exception(error))
    return CheckResult(**fields, verdict=verdict, reason=reason, stage=stages.current, seconds=stages.seconds)


def _run(
    stages: Stages,
    fields: dict[str, Any],
    model: nn.Module,
    policy: str | Path | Mapping[str, Any] | Policy,
    example_inputs: Any,
    ranks: Sequence[int] | None,
    seed: int,
    passes: Passes,
) -> tuple[Verdict, str]:
    """Returns the verdict and its reason, and adds the results of each stage to the ``fields`` of the `CheckResult`."""
    with stages.stage("arguments"):
        if not isinstance(model, nn.Module):
            raise PlanError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
        workers = fields["workers"]
        fields["ranks"] = checked = _ranks(workers, ranks)
        chosen = resolve_policy(policy)
        fields["policy"] = chosen.describe()
        pipeline = resolve_pipeline(passes, masking=chosen.masking)
        call = example_call(model, example_inputs)
    with stages.stage("capture"):
        captured = capture(model, example_inputs)
        fields |= facts.of_capture(captured)
    with stages.stage("analyse"):
        analysis = analyse(captured)
        fields |= facts.of_structure(analysis.structure)
    with stages.stage("plan"):
        plan = make_plan(analysis, chosen, workers)
        plan.check_order(bucket_bytes_of(pipeline))
        fields |= facts.of_plan(plan, checked)
    obstacle = _obstacle(model, fields["parameters"])
    if obstacle:
        return "unverified", obstacle
    with stages.stage("capture without dropout"):
        quiet = clone(model)
        if disable_randomness(quiet):
            analysis = analyse(capture(quiet, example_inputs))
            quiet_plan = make_plan(analysis, chosen, workers)
            if quiet_plan.digest != plan.digest:
                fields["notes"] += ("Without dropout the plan differs; the plan without dropout is the one verified.",)
            plan = quiet_plan
    with stages.stage("original"):
        inputs = tuple(analysis.capture.programs["train"].inputs.values())
        verification = Verification(reference(quiet, seed), comparable_call(call), plan, inputs, seed)
    comparisons: list[Comparison] = []
    for rank in checked:
        with stages.stage("compile"):
            module = assemble(lower(analysis, plan, rank, pipeline), verification.model)
        with stages.stage("compare"):
            comparisons += verification.compare(as_float64(module), rank, only_example=rank != checked[0])
            fields["comparisons"] = tuple(comparisons)
            fields["compared"] = facts.of_comparisons(comparisons, seed)
    return _verdict(comparisons)


def _verdict(comparisons: Sequence[Comparison]) -> tuple[Verdict, str]:
    by_status = {comparison.status: comparison for comparison in reversed(comparisons)}
    if "not exact" in by_status:
        worst = by_status["not exact"]
        return "not exact", (
            f"worker {worst.rank} in {worst.mode} mode, {worst.trial}: {worst.worst}. The capture of the model or the "
            "rule of one of its operators is wrong. Please report it, and do not train with this plan."
        )
    if "not finite" in by_status:
        mode = by_status["not finite"].mode
        return "unverified", f"the original model returns NaN in {mode} mode with random weights."
    if "random" in by_status:
        mode = by_status["random"].mode
        return "unverified", (
            f"the original model draws random numbers in {mode} mode even without dropout, so two runs of it differ. "
            "Only what does not depend on them was compared."
        )
    if "rounding" in by_status:
        return "exact", "up to rounding errors to which the original model is equally sensitive."
    return "exact", ""


def _ranks(workers: Any, ranks: Any) -> tuple[int, ...]:
    """The workers to compare, each once."""
    count = checked_workers(workers)
    checked = tuple(range(count)) if ranks is None else tuple(dict.fromkeys(ranks))
    if not checked:
        raise PlanError("ranks must name at least one worker, got (). Leave it out to check all of them.")
    return tuple(checked_rank(rank, count) for rank in checked)


def _obstacle(model: nn.Module, parameters: int) -> str:
    """Returns why exactness cannot be checked; empty if it can."""
    if parameters > MOST_PARAMETERS:
        return (
            f"{parameters / 1e6:,.0f} M parameters are too many to compare in float64 (at most "
            f"{MOST_PARAMETERS / 1e6:.0f} M). The model was only captured and partitioned; check it with fewer layers."
        )
    for name, buffer in model.named_buffers():
        if buffer.is_meta and not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            return (
                f"the buffer '{name}' is on the meta device, so the original cannot run. The model was only "
                "captured and partitioned; check one with real buffers."
            )
    return ""
