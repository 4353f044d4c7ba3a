"""Loads a checkpoint into any number of workers, each of which reads its part."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from sdp_compile.checkpoint import background
from sdp_compile.checkpoint.coverage import check_model, check_states, shortened
from sdp_compile.checkpoint.extra import KEY, check_extra_states, load_extra_states, states_in
from sdp_compile.checkpoint.folder import resolve
from sdp_compile.checkpoint.foreign import load_foreign
from sdp_compile.checkpoint.gathering import gather_checkpoint
from sdp_compile.checkpoint.manifest import FILE, Manifest, OptimizerEntry, shared_of
from sdp_compile.checkpoint.model import CompiledModel, Model, model_of
from sdp_compile.checkpoint.nodes import check_storage
from sdp_compile.checkpoint.plain import decode
from sdp_compile.checkpoint.random_states import set_random_states
from sdp_compile.checkpoint.reading import Checkpoint
from sdp_compile.checkpoint.states import groups_of, kind_of
from sdp_compile.checkpoint.taking import load_optimizer, taking
from sdp_compile.checkpoint.team import Team
from sdp_compile.errors import SDPError
from sdp_compile.runtime.module.sdp_module import SDPModule
from sdp_compile.runtime.optimizer.full_state import fitted_groups

WHAT = "sdp.load_checkpoint()"

Storage = Literal["shared", "local"]

RESET = (
    "begin without the state of these parameters by reset_lost_optimizer_state=True, on the command line by "
    "--reset-lost-optimizer-state"
)


@dataclass(frozen=True)
class Restored:
    """What `load_checkpoint` found.

    Attributes:
        path: The checkpoint.
        step: The number of steps done.
        samples: The number of samples that all workers together have trained on, if it was saved.
        extra: The values that were saved as ``extra``.
        workers: The number of workers that saved it.
        same_workers: Whether as many workers loaded it, so that each has its random states and data position again.
        reset: The parameters that begin without optimizer state, because a part of it is lost.
    """

    path: Path
    step: int
    samples: int | None
    extra: Mapping[str, Any]
    workers: int
    same_workers: bool
    reset: tuple[str, ...] = ()


@torch.no_grad()
def load_checkpoint(
    path: str | os.PathLike[str],
    model: nn.Module,
    optimizer: Optimizer | None = None,
    *,
    scheduler: Any = None,
    scaler: Any = None,
    loader: Any = None,
    reset_lost_optimizer_state: bool = False,
    storage: Storage = "shared",
    trusted: bool = False,
) -> Restored:
    """Loads what `save_checkpoint` saved, with any number of workers, policy, masking and lowering. Collective.

    With as many workers each gets its random states back, and with the same plan its own running statistics: training
    goes on bit by bit as if it had never stopped. If an optimizer is loaded too, a model with a `Schedule` first gets
    the plan of the checkpoint's step.

    Args:
        path: A checkpoint, or a folder of checkpoints, of which the newest is loaded.
        model: A compiled module, or the original model on one process.
        optimizer: An optimizer of its parameters, with the groups of the saved one; perhaps a `ShardedOptimizer`.
        scheduler: The learning rate scheduler, or several in a list, as they were saved.
        scaler: The gradient scaler.
        loader: This worker's source of data, with ``load_state_dict()``; only for as many workers.
        reset_lost_optimizer_state: Whether parameters begin without optimizer state of which a part is lost, and
            workers go on with their random states whose files are lost. By default both are errors.
        storage: ``"local"`` if the checkpoints were saved so: the newest that is covered by the disks of all workers is
            completed on each of them, and loaded from there. ``path`` is then this worker's folder of checkpoints,
            which may be empty.
        trusted: Whether a checkpoint without a manifest, which ``torch.distributed.checkpoint`` wrote, may run code on
            this machine: its description is a pickle. It is loaded with PyTorch's own reader: the original model, and
            the optimizer under the names of ``get_state_dict``.

    Returns:
        What the checkpoint says of the run. One that ``torch.distributed.checkpoint`` wrote says nothing, so the step
        is 0.

    Raises:
        SDPError: If the checkpoint is damaged, or does not fit the model, the optimizer or the other arguments.
        DistributedError: If the workers load different checkpoints, or one of them fails.
    """
    found = model_of(model, WHAT)
    team = Team(found.peers, WHAT)
    check_storage(storage, WHAT)
    if storage == "local":
        place = gather_checkpoint(Path(path), found, team, reset_lost_optimizer_state, RESET)
        if place is None:
            raise SDPError(f"There is no checkpoint in {path}, nor on the disk of any other worker.")
        path = place
    if trusted and (foreign := _foreign(team, path)):
        for name, value in (("scheduler", scheduler), ("scaler", scaler), ("loader", loader)):
            if value is not None:
                raise SDPError(f"{foreign} was not written by sdp.save_checkpoint(): leave out {name}=.")
        load_foreign(foreign, model, optimizer, WHAT)
        team.gather(None)
        return Restored(foreign, 0, None, {}, 1, found.workers == 1)
    checkpoint: Checkpoint | None = None
    with team.together(lambda: "" if checkpoint is None else checkpoint.digest, what="checkpoint"):
        background.settle(raises=False)  # the newest may still be being written
        checkpoint = Checkpoint(path)
        manifest = checkpoint.manifest
        _check_names(found, manifest)
        check_model(checkpoint)
        groups = None if optimizer is None else _fitted(found, optimizer, manifest)
        lost = () if optimizer is None else check_states(checkpoint, reset_lost_optimizer_state, RESET)
        _check_others(found, manifest, scheduler, scaler, loader)
        check_extra_states(found, states_in(shared_of(manifest)))
    if optimizer is not None and _advanced(found, optimizer, manifest.step):
        found = model_of(model, WHAT)
        with team.together():
            groups = _fitted(found, optimizer, manifest)
    with team.together():
        private = _Private(checkpoint, found, reset_lost_optimizer_state)
        _load_model(found, checkpoint, private.tensors)
        if optimizer is not None and groups is not None and manifest.optimizer is not None:
            states = _States(found, checkpoint, manifest.optimizer, lost)
            load_optimizer(optimizer, groups, states, _has_dtypes(found, manifest))
        _load_shared(shared_of(manifest), scheduler, scaler)
        load_extra_states(found, private.modules)
        private.load(loader)
    team.gather(None)  # worker 0, which serves the store, may end the process next
    extra = decode(shared_of(manifest).get("extra", {}))
    same = manifest.workers == found.workers
    return Restored(checkpoint.path, manifest.step, manifest.samples, extra, manifest.workers, same, lost)


def _advanced(model: Model, optimizer: Optimizer, step: int) -> bool:
    """Gives a model with a schedule the plan that it was saved with. Collective. Returns whether it has changed."""
    module = model.module
    if not isinstance(module, SDPModule) or module.schedule is None:
        return False
    return module.advance(max(step - 1, 0), optimizer) is not None


def _foreign(team: Team, path: str | os.PathLike[str]) -> Path | None:
    """Returns the checkpoint at a path if it has no manifest. Collective."""
    found: Path | None = None
    with team.together(lambda: str(found), what="checkpoint"):
        background.settle(raises=False)
        place = resolve(Path(path))
        found = None if (place / FILE).is_file() else place
    return found


class _Private:
    """What only this worker had.

    Attributes:
        tensors: Its own values of running statistics, if it held the same slices.
        modules: The extra states of its modules; those of worker 0 for another number of workers.
    """

    def __init__(self, checkpoint: Checkpoint, model: Model, may_be_lost: bool) -> None:
        manifest = checkpoint.manifest
        same = manifest.workers == model.workers
        self._content: Mapping[str, Any] = {}
        if same and not (may_be_lost and manifest.private_file(model.rank) not in checkpoint.intact_files):
            self._content = checkpoint.private(model.rank) or {}
        if not isinstance(self._content, dict):
            raise SDPError(
                f"What only worker {model.rank} has is damaged in {checkpoint.path}. Load another checkpoint."
            )
        self.modules = states_in(self._content if KEY in self._content else shared_of(manifest))
        check_extra_states(model, self.modules)
        self.tensors: Mapping[str, Tensor] = {}
        slices = manifest.plan.slices[model.rank :] if same and manifest.plan is not None else ()
        if isinstance(model, CompiledModel) and slices[:1] == (model.module.holdings.digest,):
            self.tensors = decode(self._content.get("tensors", {"dict": []}))

    def load(self, loader: Any) -> None:
        """Gives this process its random states back, and the loader its position."""
        if loader is not None:
            if self._content.get("loader") is None:
                raise SDPError("The checkpoint has no data position of this worker. Leave out loader=.")
            with taking(loader):
                loader.load_state_dict(decode(self._content["loader"]))
        if "random" in self._content:
            set_random_states(decode(self._content["random"]))


class _States(Mapping[str, Mapping[str, Any]]):
    """A worker's slices of an optimizer's states by parameter, read when they are asked for."""

    def __init__(self, model: Model, checkpoint: Checkpoint, optimizer: OptimizerEntry, lost: Container[str]) -> None:
        self._model, self._checkpoint, self._optimizer = model, checkpoint, optimizer
        held = set(model.parameters.values())
        self._names = [name for name in optimizer.scalars if name in held and name not in lost]
        self._last: tuple[str, dict[str, Any]] = ("", {})

    def __getitem__(self, name: str) -> Mapping[str, Any]:
        if name not in self._names:
            raise KeyError(name)
        if self._last[0] != name:  # the shards of a parameter come one after the other
            self._last = (name, self._read(name))
        return self._last[1]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def _read(self, name: str) -> dict[str, Any]:
        region = self._model.region_of(name)
        assert region is not None
        state = {key: decode(value) for key, value in self._optimizer.scalars[name].items()}
        for key, entry in self._optimizer.tensors.get(name, {}).items():
            state[key] = self._checkpoint.read(entry, region, f"{key} of {name}")
        return state


def _load_model(model: Model, checkpoint: Checkpoint, own: Mapping[str, Tensor]) -> None:
    tensors = model.tensors()
    for name, source, region in model.held():
        if name in tensors and region.numel:
            values = checkpoint.read(checkpoint.manifest.model[source], region, source)
            tensors[name].copy_(values.reshape(tensors[name].shape))
    for name, value in own.items():
        if name in tensors and tensors[name].shape == value.shape:
            tensors[name].copy_(value)
    if isinstance(model, CompiledModel):
        model.module.holdings.clear_unowned(tensors)


def _has_dtypes(model: Model, manifest: Manifest) -> bool:
    """Whether the model has the dtypes of the saved one."""
    tensors = model.tensors()
    return all(
        tensors[name].dtype == manifest.model[source].torch_dtype for name, source, _ in model.held() if name in tensors
    )


def _load_shared(shared: Mapping[str, Any], scheduler: Any, scaler: Any) -> None:
    for one, state in zip(_schedulers(scheduler), shared.get("schedulers", []), strict=False):
        with taking(one):
            one.load_state_dict(decode(state))
    if scaler is not None:
        with taking(scaler):
            scaler.load_state_dict(decode(shared["scaler"]))


def _schedulers(scheduler: Any) -> list[Any]:
    return list(scheduler) if isinstance(scheduler, (list, tuple)) else [] if scheduler is None else [scheduler]


def _check_names(model: Model, manifest: Manifest) -> None:
    missing = [name for name in model.shapes if name not in manifest.model]
    unexpected = [name for name in manifest.model if name not in model.shapes]
    wrong = [
        f"{name} is {list(manifest.model[name].shape)} instead of {list(shape)}"
        for name, shape in model.shapes.items()
        if name in manifest.model and manifest.model[name].shape != tuple(shape)
    ]
    for words, names in (("lacks", missing), ("has besides", unexpected), ("has other shapes:", wrong)):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise SDPError(
                f"The checkpoint is that of another model: it {words} {', '.join(names[:5])}{more}. Load one of the "
                "same model."
            )


def _fitted(model: Model, optimizer: Optimizer, manifest: Manifest) -> list[dict[str, Any]]:
    """Returns the optimizer's groups with the saved options."""
    saved = manifest.optimizer
    if saved is None:
        raise SDPError("The checkpoint has no optimizer state. Leave out the optimizer to load the model alone.")
    if saved.kind != (kind := kind_of(optimizer)):
        raise SDPError(f"The checkpoint has the state of {saved.kind}, but this is {kind}. Build the saved one.")
    for name, entries in saved.tensors.items():
        for key, entry in entries.items():
            if entry.shape != model.shapes.get(name):
                raise SDPError(
                    f"The optimizer state {key!r} of {name!r} has the shape {list(entry.shape)} in the checkpoint."
                )
    groups = fitted_groups(optimizer, model.parameters, groups_of(saved))
    held = {name for group in groups for name in group["params"]}
    more = [name for name in saved.scalars if name in set(model.parameters.values()) - held]
    if more:
        raise SDPError(
            f"The checkpoint has optimizer states of parameters that the optimizer does not have: {shortened(more)}. "
            "Build it with the parameters of the saved one, or leave the optimizer out to load the model alone."
        )
    return groups


def _check_others(model: Model, manifest: Manifest, scheduler: Any, scaler: Any, loader: Any) -> None:
    shared = shared_of(manifest)
    schedulers, saved = _schedulers(scheduler), shared.get("schedulers")
    if not isinstance(saved, list):
        raise SDPError("The checkpoint's schedulers are damaged: they are no list. Load another checkpoint.")
    if schedulers and len(schedulers) != len(saved):
        raise SDPError(f"The checkpoint has {len(saved)} schedulers, and {len(schedulers)} are to be loaded.")
    if scaler is not None and shared.get("scaler") is None:
        raise SDPError("The checkpoint has no gradient scaler. Leave out scaler=.")
    if loader is not None and manifest.workers != model.workers:
        position = "" if manifest.samples is None else f", which is {manifest.samples}"
        raise SDPError(
            f"The checkpoint has the data positions of {manifest.workers} workers, and now there are {model.workers}. "
            f"Leave out loader=, and go on after the first `samples` samples of the result{position}."
        )
