"""Saves a checkpoint: every worker writes its part, worker 0 puts them together."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.optimizer import Optimizer

from sdp_compile.checkpoint import folder as folders
from sdp_compile.checkpoint.buffers import own_tensors, saved_tensors
from sdp_compile.checkpoint.items import Item, model_items, optimizer_items
from sdp_compile.checkpoint.merging import manifest_of
from sdp_compile.checkpoint.metadata import FILE as METADATA
from sdp_compile.checkpoint.metadata import flat, metadata, objects_of
from sdp_compile.checkpoint.model import CompiledModel, Model, model_of
from sdp_compile.checkpoint.plain import encode
from sdp_compile.checkpoint.random_states import random_states
from sdp_compile.checkpoint.states import OptimizerStates, optimizer_states
from sdp_compile.checkpoint.team import Team
from sdp_compile.checkpoint.writing import read_written, write_bytes, write_manifest, write_worker
from sdp_compile.errors import SDPError
from sdp_compile.runtime.owners.comparison import check_values

WHAT = "sdp.save_checkpoint()"

Redundancy = Literal["none", "owners"]


@torch.no_grad()
def save_checkpoint(
    folder: str | os.PathLike[str],
    model: nn.Module,
    optimizer: Optimizer | None = None,
    *,
    step: int,
    scheduler: Any = None,
    scaler: Any = None,
    loader: Any = None,
    samples: int | None = None,
    extra: Mapping[str, Any] | None = None,
    keep: int | None = None,
    redundancy: Redundancy = "none",
) -> Path:
    """Saves the full model and its training state, each worker its part. Collective.

    The checkpoint appears in ``folder`` under the name ``step-00000100`` when it is whole. `load_checkpoint` reads it
    with any number of workers and any policy, ``torch.distributed.checkpoint`` into the original model.

    Args:
        folder: A folder of checkpoints that all workers share, and this job alone writes to.
        model: A compiled module, or any other model on one process.
        optimizer: An optimizer of its parameters, also a `ShardedOptimizer`.
        step: The number of steps done; names the checkpoint. One of the same step is replaced.
        scheduler: A learning rate scheduler, or several in a list; the same on all workers.
        scaler: A gradient scaler.
        loader: This worker's source of data, with ``state_dict()`` and ``load_state_dict()``.
        samples: The number of samples that all workers together have trained on, for another number of workers.
        extra: Other values to get back, the same on all workers: numbers, texts, small tensors, and containers of such.
        keep: How many checkpoints stay in the folder; by default all.
        redundancy: ``"owners"`` writes a copy from every owner of a unit, so that the files of some workers may get
            lost; ``"none"`` writes each unit once.

    Returns:
        The checkpoint.

    Raises:
        SDPError: If something cannot be saved, or there is no space for it.
        DistributedError: If the workers call different things, one of them fails, or owners hold different values.
    """
    place = Path(folder)
    found = model_of(model, WHAT)
    team = Team(found.peers, WHAT)
    shared = private = mine = None
    options = f"folder={str(folder)!r}, step={step}, samples={samples}, keep={keep}, redundancy={redundancy!r}"
    with team.together(lambda: f"{options}, shared state {_short_digest(shared)}"):
        _check_arguments(step, samples, keep, redundancy)
        shared = _shared(scheduler, scaler, extra)
        private = _private(found, loader)
        mine = None if optimizer is None else optimizer_states(found, optimizer)
    if found.peers is not None:
        check_values(found.peers.engine, f"in {WHAT}")
    states = OptimizerStates.merged(team.gather(mine), found)
    items = list(_items(found, optimizer, states, redundancy == "owners"))
    size = sum(team.gather(sum(item.nbytes for item in items)))
    job = _Job(found, team, place, step, size)
    with job.staged() as staged:
        objects = {} if found.rank else objects_of(None if states is None else states.plain)
        with team.together():
            write_worker(staged, found.rank, items, {flat(path): value for path, value in objects.items()}, private)
        slices = team.gather(found.module.holdings.digest if isinstance(found, CompiledModel) else "")
        with team.together():
            if found.rank == 0:
                written = read_written(staged, found.workers)
                facts = {
                    "byteorder": sys.byteorder,
                    "torch": torch.__version__,
                    "step": step,
                    "samples": samples,
                    "redundancy": redundancy,
                    "shared": shared,
                }
                manifest = manifest_of(found, facts, written, states, slices)
                write_bytes(staged / METADATA, metadata(manifest, objects, written[0].objects))
                write_manifest(staged, manifest)
                folders.finish(staged)
                folders.prune(place, keep)
    team.gather(None)  # worker 0, which serves the store, may end the process next
    return place / folders.name_of(step)


@dataclass(frozen=True)
class _Job:
    """One checkpoint being written."""

    model: Model
    team: Team
    folder: Path
    step: int
    nbytes: int

    @contextmanager
    def staged(self) -> Iterator[Path]:
        """Makes the folder to write into, and removes it after a failure."""
        staged = self.folder / f".{folders.name_of(self.step)}.new"
        try:
            with self.team.together():
                if self.model.rank == 0:
                    folders.claim(self.folder)
                    folders.begin(self.folder, self.step, self.nbytes)
            yield staged
        except BaseException:
            if self.model.rank == 0:
                folders.discard(staged)
            raise


def _items(
    model: Model, optimizer: Optimizer | None, states: OptimizerStates | None, every_owner: bool
) -> Iterator[Item]:
    yield from model_items(model, saved_tensors(model), every_owner)
    if optimizer is not None and states is not None:
        yield from optimizer_items(model, optimizer, states.dtypes, every_owner)


def _shared(scheduler: Any, scaler: Any, extra: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the states that all workers have alike, encoded."""
    schedulers = scheduler if isinstance(scheduler, (list, tuple)) else [] if scheduler is None else [scheduler]
    return {
        "schedulers": [encode(one.state_dict(), f"the state of {type(one).__name__}") for one in schedulers],
        "scaler": None if scaler is None else encode(scaler.state_dict(), f"the state of {type(scaler).__name__}"),
        "extra": encode(dict(extra or {}), "extra"),
    }


def _private(model: Model, loader: Any) -> dict[str, Any]:
    """Returns what only this worker has, encoded."""
    what = f"the state of {type(loader).__name__}"
    return {
        "random": encode(random_states(), "the random states"),
        "loader": None if loader is None else encode(loader.state_dict(), what),
        "tensors": encode(own_tensors(model), "the running statistics"),
    }


def _check_arguments(step: object, samples: object, keep: object, redundancy: object) -> None:
    limits = (("step", step, 0, False), ("samples", samples, 0, True), ("keep", keep, 1, True))
    for name, value, least, optional in limits:
        if (value is None and optional) or (isinstance(value, int) and value >= least):
            continue
        raise SDPError(f"{name} of {WHAT} must be an integer of at least {least}, got {value!r}.")
    if redundancy not in ("none", "owners"):
        raise SDPError(f"redundancy of {WHAT} must be 'none' or 'owners', got {redundancy!r}.")


def _short_digest(value: Any) -> str:
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
