"""Saves a checkpoint: every worker writes its part, worker 0 puts them together."""

from __future__ import annotations

import json
import os
import sys
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from secrets import token_hex
from typing import Any, Literal, overload

import torch
from torch import nn
from torch.optim.optimizer import Optimizer

from sdp_compile.checkpoint import background
from sdp_compile.checkpoint import folder as folders
from sdp_compile.checkpoint.background import Saving
from sdp_compile.checkpoint.buffers import own_tensors, saved_tensors
from sdp_compile.checkpoint.clean import check_clean
from sdp_compile.checkpoint.extra import KEY, extra_states
from sdp_compile.checkpoint.items import Item, model_items, optimizer_items
from sdp_compile.checkpoint.local import save_local
from sdp_compile.checkpoint.manifest import FILE as MANIFEST
from sdp_compile.checkpoint.manifest import METADATA
from sdp_compile.checkpoint.merging import manifest_of, plan_entry
from sdp_compile.checkpoint.metadata import flat, metadata, objects_of
from sdp_compile.checkpoint.model import CompiledModel, Model, model_of
from sdp_compile.checkpoint.nodes import check_storage, node_of
from sdp_compile.checkpoint.plain import encode
from sdp_compile.checkpoint.random_states import random_states
from sdp_compile.checkpoint.states import OptimizerStates, check_alike, optimizer_states
from sdp_compile.checkpoint.team import Team
from sdp_compile.checkpoint.writing import ITEM_BYTES, Written, described, read_written, write_bytes, write_worker
from sdp_compile.errors import SDPError

WHAT = "sdp.save_checkpoint()"

Redundancy = Literal["none", "owners"]
Storage = Literal["shared", "local"]

OnProgress = Callable[[int, int], None]
"""Takes the bytes that are written, and all bytes."""


@overload
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
    storage: Storage = "shared",
    verify: bool = True,
    on_progress: OnProgress | None = None,
    asynchronous: Literal[False] = False,
) -> Path: ...


@overload
def save_checkpoint(
    folder: str | os.PathLike[str],
    model: nn.Module,
    optimizer: Optimizer | None = None,
    *,
    step: int,
    asynchronous: Literal[True],
    scheduler: Any = None,
    scaler: Any = None,
    loader: Any = None,
    samples: int | None = None,
    extra: Mapping[str, Any] | None = None,
    keep: int | None = None,
    redundancy: Redundancy = "none",
    storage: Storage = "shared",
    verify: bool = True,
    on_progress: OnProgress | None = None,
) -> Saving: ...


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
    storage: Storage = "shared",
    verify: bool = True,
    on_progress: OnProgress | None = None,
    asynchronous: bool = False,
) -> Path | Saving:
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
        storage: ``"local"`` if the folder is on a disk of each node's own; ``redundancy`` is then ``"owners"``. Each
            node has the files of its workers, and `load_checkpoint` with the same option brings together what the
            nodes that are left have. ``"shared"`` if all workers see the same folder.
        verify: Whether to compare all owners' values and optimizer states first, and to refuse what differs or is
            infinite or NaN, so that every checkpoint is one to go on from.
        on_progress: Called with the bytes that this worker has written so far and those that it writes in all, for a
            progress bar; with ``asynchronous`` in another thread.
        asynchronous: Whether to return as soon as the values are in memory of the host, and to write in the background.
            The next save waits for this one and raises its error, if ``wait()`` has not.

    Returns:
        The checkpoint; with ``asynchronous``, what waits for it.

    Raises:
        SDPError: If something cannot be saved, there is no space for it, or the asynchronous save before failed.
        DistributedError: If the workers call different things, or one of them fails.
        DamagedState: If owners hold different values or optimizer states, or some are not finite. Nothing is saved.
    """
    place = Path(folder)
    found = model_of(model, WHAT)
    team = Team(found.peers, WHAT)
    shared = private = mine = None
    newest = ""
    is_local = storage == "local"
    redundancy = "owners" if is_local else redundancy
    options = (
        f"folder={'of each node' if is_local else repr(str(folder))}, step={step}, samples={samples}, keep={keep}, "
        f"redundancy={redundancy!r}, storage={storage!r}, verify={verify}, asynchronous={asynchronous}"
    )
    with team.together(lambda: f"{options}, shared state {_short_digest(shared)}"):
        background.settle()
        _check_arguments(step, samples, keep, redundancy)
        _check_storage(storage, asynchronous)
        shared = _shared(scheduler, scaler, extra)
        private = _private(found, loader)
        mine = None if optimizer is None else optimizer_states(found, optimizer)
        newest = folders.described_newest(place)
    everyone = team.gather([mine, newest])
    states = OptimizerStates.merged([one[0] for one in everyone], found)
    if verify:
        advice = f"Nothing was saved. {everyone[0][1]} verify=False saves nevertheless."
        check_clean(found, optimizer, states, WHAT, advice)
        check_alike([one[0] for one in everyone], found)
    with team.together():
        items = list(_items(found, optimizer, states, redundancy == "owners"))
        size = sum(item.nbytes + ITEM_BYTES for item in items)
        told = items if on_progress is None else _told(items, on_progress)
    digest = found.module.holdings.digest if isinstance(found, CompiledModel) else ""
    sizes, slices, attempts = zip(*team.gather([size, digest, token_hex(4)]), strict=True)
    facts: dict[str, Any] = {
        "byteorder": sys.byteorder,
        "torch": torch.__version__,
        "step": step,
        "samples": samples,
        "workers": found.workers,
        "redundancy": redundancy,
        "shared": shared,
    }
    if found.rank == 0:
        with_modules = {**shared, KEY: private[KEY]}
        facts |= {"plan": plan_entry(found, slices), "keys": dict(found.keys), "shared": with_modules}
    job = _Job(found, place, step, keep, facts, states, attempts[0])
    if is_local:
        node = node_of(place, team, found.rank, found.workers)
        save_local(job, step, keep, node, team, sizes, told, private)
        return job.place
    with job.staged(team, sum(sizes)):
        if asynchronous:
            with team.together():
                held = background.snapshot(items)
                held = held if on_progress is None else _told(held, on_progress, sum(item.nbytes for item in items))
                meeting = background.Meeting(team.group, team.limit, WHAT, job.commit, job.discard)
            return background.begin(
                background.Saving(job.place, WHAT, lambda advance: job.write(held, private, advance), meeting)
            )
        with team.together():
            job.write(told, private)
        with team.together():
            if found.rank == 0:
                job.commit()
    team.gather(None)  # worker 0, which serves the store, may end the process next
    return job.place


def _told(items: Iterable[Item], on_progress: OnProgress, total: int | None = None) -> Iterator[Item]:
    """Yields items, and tells how many bytes of them have been written."""
    if total is None:
        items = list(items)
        total = sum(item.nbytes for item in items)
    done = 0
    for item in items:
        yield item
        done += item.nbytes
        on_progress(done, total)


class _Job:
    """One checkpoint being written."""

    def __init__(
        self,
        model: Model,
        folder: Path,
        step: int,
        keep: int | None,
        facts: Mapping[str, Any],
        states: OptimizerStates | None,
        attempt: str,
    ) -> None:
        self._rank, self._workers, self._shapes = model.rank, model.workers, model.shapes
        self._dtypes = {name: tensor.dtype for name, tensor in model.tensors().items()}
        self._folder, self._step, self._keep, self._facts, self._states = folder, step, keep, facts, states
        modules = {} if self._rank else extra_states(model)
        self._objects = {} if self._rank else objects_of(None if states is None else states.plain, modules)
        self.attempt, self.staging = attempt, folder / folders.staged_name(step, attempt)
        self.place = folder / folders.name_of(step)

    @contextmanager
    def staged(self, team: Team, nbytes: int) -> Iterator[None]:
        """Makes the folder to write into, and removes it after a failure. Collective."""
        try:
            with team.together():
                if self._rank == 0:
                    folders.claim(self._folder)
                    folders.begin(self._folder, self._step, nbytes, self.attempt)
            yield
        except BaseException:
            if self._rank == 0:
                self.discard()
            raise

    def write(self, items: Iterable[Item], private: Any, on_item: Callable[[], None] = lambda: None) -> None:
        """Writes what this worker writes."""
        objects = {flat(path): value for path, value in self._objects.items()}
        write_worker(self.staging, self._rank, items, objects, private, on_item)

    def commit(self) -> None:
        """Puts together what all workers have written, and gives it its name. On worker 0."""
        manifest, description = self.described(read_written(self.staging, self._workers))
        write_bytes(self.staging / METADATA, b64decode(description))
        write_bytes(self.staging / MANIFEST, manifest.encode())
        folders.prune(self._folder, self._keep, folders.finish(self.staging))

    def described(self, written: list[Written]) -> tuple[str, str]:
        """Returns the manifest's text, and torch's own description in Base64. On worker 0."""
        manifest = manifest_of(self._facts, self._shapes, self._dtypes, written, self._states)
        return described(manifest), b64encode(metadata(manifest, self._objects, written[0].objects)).decode()

    def discard(self) -> None:
        """Removes what was written. On worker 0."""
        folders.discard(self.staging)


def _items(
    model: Model, optimizer: Optimizer | None, states: OptimizerStates | None, every_owner: bool
) -> Iterator[Item]:
    yield from model_items(model, saved_tensors(model, every_owner), every_owner)
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
        KEY: encode(extra_states(model), "get_extra_state() of the model"),
    }


def _check_arguments(step: object, samples: object, keep: object, redundancy: object) -> None:
    limits = (("step", step, 0, False), ("samples", samples, 0, True), ("keep", keep, 1, True))
    for name, value, least, optional in limits:
        if (value is None and optional) or (isinstance(value, int) and value >= least):
            continue
        raise SDPError(f"{name} of {WHAT} must be an integer of at least {least}, got {value!r}.")
    if redundancy not in ("none", "owners"):
        raise SDPError(f"redundancy of {WHAT} must be 'none' or 'owners', got {redundancy!r}.")


def _check_storage(storage: object, asynchronous: bool) -> None:
    check_storage(storage, WHAT)
    if storage == "local" and asynchronous:
        raise SDPError(f"{WHAT} cannot write in the background to local disks. Leave out asynchronous=True.")


def _short_digest(value: Any) -> str:
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
