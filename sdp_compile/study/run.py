"""One run of a study: trains by emulation, evaluates the full model, and returns what is reported."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import nn

import sdp_compile
from sdp_compile.capture import capture
from sdp_compile.compiler import check_phases
from sdp_compile.compiler import plan as plan_of
from sdp_compile.emulation.emulate import Emulation, emulate
from sdp_compile.errors import SDPError
from sdp_compile.policies import NeuronPolicy
from sdp_compile.runtime.state.statistics import calibrate
from sdp_compile.structure.analysis import Analysis, analyse
from sdp_compile.study.costs import EXAMPLES, Costs
from sdp_compile.study.noise import noise_scale
from sdp_compile.study.spec import Run, Study
from sdp_compile.study.tasks import Part, Shape, Task, make_task
from sdp_compile.study.training import InStep, LocalSteps, TailMean


def check(study: Study) -> None:
    """Captures the models of a study and plans every phase of every contestant, before hours of runs are spent.

    Args:
        study: The study.

    Raises:
        SDPError: If a policy or a schedule does not fit the model. The error names the contestant.
    """
    task, analyses = make_task(study.task, study.options), dict[Shape, Analysis]()
    example = task.draw(EXAMPLES, torch.Generator().manual_seed(0))[0]
    for contestant in study.contestants:
        shape = contestant.shape
        try:
            if shape not in analyses:
                analyses[shape] = analyse(capture(task.build(shape), (example,)))
            check_phases(analyses[shape], contestant.schedule, study.workers)
        except SDPError as error:
            raise SDPError(f"The contestant {contestant.name!r} cannot run. {error}") from None


def run(study: Study, one: Run) -> dict[str, Any]:
    """Runs one contestant once.

    The seed decides initial weights and batches: all contestants with as many samples per worker get the same batches
    in the same order.

    Args:
        study: The study.
        one: Which run.

    Returns:
        Plain data: the run, its costs over dense data parallelism's, and the curve of its full model.
    """
    begin = time.monotonic()
    contestant, task = study.contestant(one.contestant), make_task(study.task, study.options)
    batch = contestant.batch or study.batch
    example = task.draw(EXAMPLES, torch.Generator().manual_seed(0))[0]
    torch.manual_seed(one.seed)
    model = task.build(contestant.shape)
    dense = plan_of(task.build(Shape()), NeuronPolicy(coverage=1.0), (example,), workers=study.workers)
    is_local = contestant.local_steps > 1
    emulation = emulate(
        model,
        contestant.schedule.phases[0].policy,
        (example,),
        workers=study.workers,
        reduction="tokens" if is_local else "mean",  # one worker's tokens at a time are one worker's gradient
        seed=one.seed,
    )
    costs = Costs(study, contestant, emulation, dense)
    steps = costs.steps(contestant.schedule, one.match)
    schedule = emulation.schedule = study.schedule_of(contestant, steps)
    training = (LocalSteps if is_local else InStep)(emulation, task.loss, study, contestant)
    tail = TailMean(emulation, steps - math.ceil(steps * contestant.mean_of_last))
    generators = [torch.Generator().manual_seed(10_000 * (one.seed + 1) + worker) for worker in range(study.workers)]
    marks = {round(steps * (number + 1) / study.evaluations) for number in range(study.evaluations)}
    part: Part = "tuning" if one.tunes else "final"
    curve, recent, time_spent, flops_spent = list[dict[str, float | None]](), list[float](), 0.0, 0.0
    emulation.train()
    for step in range(steps):
        is_changed = emulation.advance(step)
        batches = [task.draw(batch, generator) for generator in generators]
        losses = training.step(batches, one.peak * schedule.rate(step), is_changed)
        if step + 1 == steps:
            training.close()
        tail.add(step)
        cost, samples = costs.policy_at(schedule, step), batch / study.batch
        time_spent, flops_spent = time_spent + cost.time * samples, flops_spent + cost.flops * samples
        recent.append(float(losses.mean()))
        if step + 1 in marks:
            point: dict[str, float | None] = {"step": step + 1, "time": time_spent, "flops": flops_spent}
            point |= {"training_loss": sum(recent) / len(recent), **evaluated(task, tail.full_model(), part)}
            if contestant.is_dense:
                point["noise_scale"] = _noise_scale(task, emulation, batch, one.seed)
            curve.append(point)
            recent = []
    mean = costs.run(schedule)
    return {
        "contestant": one.contestant,
        "match": one.match,
        "seed": one.seed,
        "peak": one.peak,
        "tunes": one.tunes,
        "task": study.task,
        "steps": steps,
        "time": time_spent / study.steps,
        "flops": mean.flops * steps * batch / (study.steps * study.batch),
        "state": mean.state,
        "phases": [
            {"share": phase.share, "state": costs.phase(phase).state, "policy": phase.policy.describe()}
            for phase in schedule.phases
        ],
        "result": {key: value for key, value in curve[-1].items() if key not in ("step", "time", "flops")},
        "curve": curve,
        "seconds": round(time.monotonic() - begin, 1),
        "versions": f"sdp-compile {sdp_compile.__version__}, torch {torch.__version__}",
    }


@torch.no_grad()
def evaluated(task: Task, model: nn.Module, part: Part) -> dict[str, float]:
    """Returns the figures of a full model, with running statistics of its own."""
    model.eval()
    inputs = task.calibration()
    if inputs:
        calibrate(model, inputs)
    return task.evaluate(model, part)


def _noise_scale(task: Task, emulation: Emulation, batch: int, seed: int) -> float | None:
    """Returns the noise scale of the full model in training, on samples that nobody trains on in this order.

    None stands for one that is too large to be measured: JSON has no infinity.
    """
    generator = torch.Generator().manual_seed(seed)
    small = max(1, batch // 4)
    scale = noise_scale(task, emulation.full_model(), [task.draw(small, generator) for _ in range(_NOISE_BATCHES)])
    return scale if math.isfinite(scale) else None


_NOISE_BATCHES = 16
