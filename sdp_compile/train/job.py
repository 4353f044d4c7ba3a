"""One rank of ``train``: compiles the GPT, trains this worker's subnetwork, evaluates the assembled full model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save
from torch import Tensor, nn

from sdp_compile.compiler import checked_reduction, sdp_compile
from sdp_compile.models.gpt import GPT, GPTConfig
from sdp_compile.progress import Progress
from sdp_compile.runtime.module.sdp_module import SDPModule
from sdp_compile.runtime.optimizer.sharded import ShardedOptimizer
from sdp_compile.train.baselines import WEIGHT_DECAY, Baselines
from sdp_compile.train.checkpoints import Checkpoints
from sdp_compile.train.corpus import load_corpus
from sdp_compile.train.loop import Windows, train_loop, validation_loss
from sdp_compile.train.memory import measure_dense
from sdp_compile.train.phases import Phases
from sdp_compile.train.policy import check_plans, choose_schedule
from sdp_compile.train.recovery import Recovery
from sdp_compile.train.settings import TrainSettings


def run(settings: TrainSettings, device: str) -> None:
    """Runs the whole job on this rank; rank 0 writes the model and the report."""
    rank, workers = dist.get_rank(), dist.get_world_size()
    schedule = choose_schedule(settings)
    config = GPTConfig()
    corpus = load_corpus()
    validation = Windows(corpus.validation, config.sequence, device, seed=0)
    torch.manual_seed(settings.seed)
    model = GPT(config).to(device)

    with Progress(rank == 0) as progress:
        progress.stage("compiling")
        worker = sdp_compile(
            model,
            schedule,
            example_inputs=(validation.draw(2)[0],),
            passes=settings.passes,
            reduction=checked_reduction(settings.reduction),
        )
        for fewer in settings.fewer_workers():
            check_plans(worker.analysis, schedule, fewer)

        optimizer: torch.optim.Optimizer
        if settings.sharded:
            optimizer = ShardedOptimizer(worker, torch.optim.AdamW, weight_decay=WEIGHT_DECAY)
        else:
            optimizer = torch.optim.AdamW(worker.parameters(), weight_decay=WEIGHT_DECAY)
        windows = _training_windows(corpus.training, config, device, settings)
        checkpoints = Checkpoints(settings, worker, optimizer, windows, progress.note)
        recovery = Recovery(settings, worker, optimizer)
        phases = Phases(schedule, worker, optimizer)
        if not checkpoints.resume():
            progress.stage("validating")
            checkpoints.before = validation_loss(worker.full_model(), validation)

        progress.stage("training subnetworks", settings.steps)
        training = train_loop(
            worker,
            optimizer,
            recovery.clip,
            windows,
            settings,
            schedule.rate,
            progress.step,
            _backward(worker, settings.reduction),
            checkpoints.step,
            phases.before_step,
            checkpoints.after_step,
            recovery,
        )
        phases.note()
        dense = measure_dense(model, torch.optim.AdamW)

        progress.stage("validating")
        full_model = recovery(settings.steps, worker.full_model)
        after = validation_loss(full_model, validation)
        baseline = same_time = None
        if settings.baseline:
            baselines = Baselines(model, config, corpus.training, validation, settings, schedule, progress)
            baseline = baselines.as_many_steps()
            # A run that went on from a checkpoint timed only its own steps.
            share = max(settings.steps - checkpoints.step, 0) / settings.steps
            if share:
                same_time = baselines.as_much_time(training.seconds / share, worker.analysis)

    state = phases.largest
    mine = {
        "rank": rank,
        **asdict(state),
        "state_bytes": state.state_bytes,
        "dense_parameters": dense.parameters,
        "dense_gradient_bytes": dense.gradient_bytes,
        "dense_optimizer_bytes": dense.optimizer_bytes,
        "dense_state_bytes": dense.state_bytes,
        "state_share": state.state_bytes / dense.state_bytes,
    }
    gathered: list[dict[str, Any]] = [{}] * workers
    dist.all_gather_object(gathered, mine)
    held = phases.report(dense.state_bytes)
    if rank == 0:
        steps = settings.steps - checkpoints.step
        tokens = max(steps, 0) * settings.batch * config.sequence * workers
        report = {
            "validation_loss": {"before": checkpoints.before, "after": after},
            "train_loss": [*checkpoints.losses, *training.losses],
            "baseline": baseline,
            "same_time": same_time,
            "workers": gathered,
            "tokens_per_second": tokens / training.seconds,
            "policy": schedule.phases[0].policy.describe(),
            "phases": held,
            "learning_rate": schedule.learning_rate.model_dump(),
            "rate_by_owners": schedule.rate_by_owners,
            "plan_digest": worker.plan.digest,
            "repairs": recovery.repairs,
            "run": {
                "model": asdict(config),
                "steps": settings.steps,
                "resumed_from_step": checkpoints.step,
                "tokens": tokens,
                "seed": settings.seed,
                "schedule": settings.schedule,
                "device": device,
                "reduction": settings.reduction,
                "sharded": settings.sharded,
                "seconds": training.seconds,
            },
        }
        _write(report, full_model, config, settings)
    dist.barrier()


def _backward(worker: SDPModule, reduction: str) -> Callable[[Tensor, int], None]:
    """Returns what runs backward from a mean over a worker's own tokens, as the reduction expects it."""

    def backward(loss: Tensor, tokens: int) -> None:
        with worker.weighted(tokens) if reduction == "tokens" else nullcontext():
            # A sum is over losses that are divided by the tokens of all workers.
            (loss / dist.get_world_size() if reduction == "sum" else loss).backward()

    return backward


def _training_windows(text: bytes, config: GPTConfig, device: str, settings: TrainSettings) -> Windows:
    return Windows(text, config.sequence, device, settings.seed, dist.get_rank(), dist.get_world_size())


def _write(report: Mapping[str, Any], full_model: nn.Module, config: GPTConfig, settings: TrainSettings) -> None:
    state = {name: value.detach().cpu().contiguous() for name, value in full_model.state_dict().items()}
    metadata = {"format": "pt", "config": json.dumps(asdict(config))}
    settings.model_path.write_bytes(save(state, metadata=metadata))  # save_file restricts reading to its owner
    settings.report_path.write_text(json.dumps(report, indent=2) + "\n")
