"""Full state dictionaries: assembled from the workers' slices, and cut into slices again."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys

from sdp_compile.capture.clone import canonical_names, clone
from sdp_compile.capture.originals import ORIGINALS
from sdp_compile.errors import SDPError
from sdp_compile.runtime.comm.handshake import Handshake
from sdp_compile.runtime.comm.meeting import meet
from sdp_compile.runtime.comm.transfer import Request, assemble
from sdp_compile.runtime.owners.comparison import check_values
from sdp_compile.runtime.peers import Peers
from sdp_compile.runtime.state.spectral import with_spectral_norms
from sdp_compile.runtime.state.statistics import merge_running_statistics, running_statistics
from sdp_compile.runtime.subnetwork import Subnetwork, require_peers, skeleton_of
from sdp_compile.runtime.tensors import local_tensors, replace_tensors

Prepared = TypeVar("Prepared")

_warned: weakref.WeakSet[Subnetwork] = weakref.WeakSet()


def full_state_dict(module: Subnetwork, rank0_only: bool = False, cpu_offload: bool = False) -> dict[str, Any]:
    """Returns the original model's ``state_dict()`` with the values of all workers. Collective.

    Running statistics are merged over their owners, and spectral norms estimated for the whole weights; the module's
    own stay as they are.

    Args:
        module: The compiled module.
        rank0_only: Whether the other ranks get an empty dictionary.
        cpu_offload: Whether the tensors are moved to the CPU.

    Returns:
        Every key of the original ``state_dict()`` in its order, with full tensors; tied keys share a tensor. It loads
        into the original model with ``strict=True``.

    Raises:
        SDPError: If the module is on the meta device.
        DistributedError: If there is no process group, the ranks call different things, or the owners of an element
            hold different values.
    """
    full = _by_name(module, rank0_only, cpu_offload)
    if rank0_only and module.rank != 0:
        return {}
    aliases, skeleton = module.plan.aliases, skeleton_of(module)
    if _changes_its_state(skeleton):
        return dict(_filled(module, full).state_dict())
    return {key: full[aliases[key]] if key in aliases else extra for key, extra in skeleton.state_dict().items()}


def _by_name(
    module: Subnetwork, rank0_only: bool = False, cpu_offload: bool = False, whole_model: bool = False
) -> dict[str, Tensor]:
    """Returns the full tensors of a state by canonical name, none on ranks that want none. Collective.

    For the whole model, those outside ``state_dict()`` that are cut belong to it too.
    """
    plan, call = module.plan, "full_model()" if whole_model else "full_state_dict()"
    peers, _ = enter(module, call, f"rank0_only={rank0_only}", lambda: None)
    if peers is not None:
        check_values(peers.engine, f"in {call}")
    varying = [name for name, tensor in plan.state.items() if tensor.kind != "constant"]
    names = [name for name in varying if plan.state[name].persistent or (whole_model and plan.is_cut(name))]
    tensors = {**local_tensors(module), **merge_running_statistics(module)}
    dtypes = _dtypes(module, names, tensors, peers)
    full = assemble(
        [Request(name, name, dtypes[name]) for name in names],
        tensors,
        module.holdings,
        None if peers is None else peers.groups,
        wanted=(0,) if rank0_only else None,
        device=torch.device("cpu") if cpu_offload else device_of(module),
    )
    if not full:
        return {}
    _warn_of_statistics(module)
    return dict(with_spectral_norms(module.capture.skeleton, module.plan, full))


def _filled(module: Subnetwork, full: Mapping[str, Tensor]) -> nn.Module:
    """Returns a copy of the original with full tensors; others are this worker's, if they are not cut, or empty."""
    device, model = device_of(module), clone(skeleton_of(module))
    del vars(model)[ORIGINALS]  # the user's from now on
    own, held = local_tensors(module), local_tensors(model)
    aliases = {**canonical_names(model), **module.plan.aliases}
    new: dict[str, Tensor] = {}
    for name, tensor in held.items():
        if (value := full.get(aliases[name])) is None:
            if name in own and own[name].shape == tensor.shape:
                value = own[name].detach().clone()  # a buffer outside state_dict() that is not cut
            else:
                value = tensor.detach().to(device)
        new[name] = nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
    replace_tensors(model, new)
    return model


@torch.no_grad()
def load_full_state_dict(module: Subnetwork, state: Mapping[str, Any], strict: bool = True) -> _IncompatibleKeys:
    """Copies this worker's slices of a full ``state_dict()`` into the module. Not collective.

    The module keeps its dtypes and devices.

    Args:
        module: The compiled module.
        state: The full tensors by name, the same on all ranks. One name of a tied parameter is enough.
        strict: Whether missing and unexpected keys are an error; a wrong shape always is.

    Returns:
        The missing and the unexpected keys, as ``torch.nn.Module.load_state_dict`` does.

    Raises:
        SDPError: If the state does not fit, or the module is on the meta device.
    """
    plan, tensors = module.plan, local_tensors(module)
    if any(tensor.device.type == "meta" for tensor in tensors.values()):
        raise SDPError(
            "The module is on the meta device and has no values yet. Call materialize(weights=state) instead."
        )
    expected = module.capture.skeleton.state_dict().keys()
    aliases, keys = plan.aliases, None
    if _changes_its_state(module.capture.skeleton):
        state, keys = _as_held(module, state, strict)
        expected, aliases = state.keys(), {name: name for name in state}
    found = {aliases[key]: key for key in state if key in aliases}
    missing = [key for key in expected if key in aliases and aliases[key] not in found]
    unexpected = [key for key in state if key not in expected]
    wrong = [
        f"{key}: {list(torch.as_tensor(state[key]).shape)} instead of {list(plan.state[name].shape)}"
        for name, key in found.items()
        if tuple(torch.as_tensor(state[key]).shape) != plan.state[name].shape
    ]
    problems = [f"shapes do not fit: {_shortened(wrong)}"] if wrong else []
    if strict:
        problems += [f"missing keys: {_shortened(missing)}"] if missing else []
        problems += [f"unexpected keys: {_shortened(unexpected)}"] if unexpected else []
    if problems:
        raise SDPError(
            "The state does not fit the original model: "
            + "; ".join(problems)
            + ". Load what full_state_dict() or the original model's state_dict() returned."
        )
    for held in module.holdings.held():
        if held.source in found and held.name in tensors:
            tensors[held.name].copy_(held.region.read(torch.as_tensor(state[found[held.source]])))
    module.holdings.clear_unowned(tensors)
    return keys or _IncompatibleKeys(missing, unexpected)


def _changes_its_state(model: nn.Module) -> bool:
    """Whether the model's ``state_dict()`` may hold other keys or values than its tensors."""
    base: Any = nn.Module
    for part in model.modules():
        kind: Any = type(part)
        if part._state_dict_hooks or part._state_dict_pre_hooks or part._load_state_dict_pre_hooks:
            return True
        methods = ["state_dict", "load_state_dict", "_save_to_state_dict"]
        if not kind.__module__.startswith("torch.nn."):  # whose layers read older versions of their state
            methods.append("_load_from_state_dict")
        if any(getattr(kind, method) is not getattr(base, method) for method in methods):
            return True
    return False


def _as_held(module: Subnetwork, state: Mapping[str, Any], strict: bool) -> tuple[dict[str, Tensor], _IncompatibleKeys]:
    """Returns the tensors that the original would hold after it has loaded a state, and what loading returns."""
    model = clone(skeleton_of(module))
    try:
        keys = model.load_state_dict(state, strict=strict, assign=True)
    except (RuntimeError, TypeError) as error:
        raise SDPError(f"The state does not fit the original model, whose load_state_dict() raises: {error}") from error
    names = {name: first for name, first in canonical_names(model).items() if first in module.plan.state}
    held = local_tensors(model)
    return {first: held[name] for name, first in names.items() if not held[name].is_meta}, keys


def full_model(module: Subnetwork) -> nn.Module:
    """Returns a new copy of the original model with the values of all workers. Collective.

    Args:
        module: The compiled module.

    Returns:
        The model on the module's device and in its mode.

    Raises:
        SDPError: If the module is on the meta device.
        DistributedError: If there is no process group, or the ranks call different things.
    """
    return _filled(module, _by_name(module, whole_model=True)).train(module.training)


def enter(
    module: Subnetwork, what: str, statement: str, prepare: Callable[[], Prepared]
) -> tuple[Peers | None, Prepared]:
    """Starts a collective on the module's state, after all ranks have agreed on it.

    The time limit is the process group's and not that of the start: during training a rank may come late.

    Args:
        module: The compiled module.
        what: The call that all ranks must make.
        statement: The arguments that must be the same on all ranks, as text.
        prepare: What each rank does first; its failure on one rank is an error on all.

    Returns:
        The connection to the other workers, and what ``prepare`` returned.

    Raises:
        SDPError: If the module is on the meta device, or ``prepare`` fails on this rank.
        DistributedError: If the ranks do not agree, or there is no process group.
    """
    peers = require_peers(module, what)
    if peers is not None:  # others may still step what only they hold, or be somewhere else for good
        meet(f"in {what}", peers.groups)
    group = None if peers is None else peers.group
    limit = 0.0 if peers is None else max(peers.groups.timeout.total_seconds(), 1.0)
    with Handshake(group, what, limit) as handshake:
        if any(tensor.device.type == "meta" for tensor in module.parameters()):
            raise SDPError(f"The module is on the meta device and has no values yet. Call materialize() before {what}.")
        prepared = prepare()
        handshake.agree(statement, what="argument")
    return peers, prepared


def device_of(module: nn.Module) -> torch.device:
    """Returns the device of the module's first tensor."""
    return next((tensor.device for tensor in chain(module.parameters(), module.buffers())), torch.device("cpu"))


def responsible(module: Subnetwork, name: str) -> int:
    """Returns the worker that is responsible for a tensor: the first owner of its first owned piece."""
    return next((piece.owners[0] for piece in module.plan.pieces(name) if piece.owners and piece.numel), 0)


def _dtypes(
    module: Subnetwork, names: list[str], tensors: Mapping[str, Tensor], peers: Peers | None
) -> dict[str, torch.dtype]:
    """Returns the current dtype of each tensor, also of those of which this worker holds nothing."""
    mine = {
        name: str(tensors[name].dtype).removeprefix("torch.")
        for name in names
        if responsible(module, name) == module.rank and name in tensors
    }
    gathered = [mine] if peers is None else peers.groups.gather_json(mine)
    known: dict[str, str] = {name: dtype for part in gathered for name, dtype in part.items()}
    return {name: getattr(torch, known[name]) if name in known else module.plan.state[name].dtype for name in names}


def _warn_of_statistics(module: Subnetwork) -> None:
    plan = module.plan
    if plan.masking == "backward":  # each worker sees the activations of the full model
        return
    cut = plan.workers > 1 and any(plan.is_cut(name) for name in plan.state)
    if module in _warned or module.rank != 0 or not cut or not running_statistics(module.capture):
        return
    _warned.add(module)
    warnings.warn(
        "The model has running statistics (BatchNorm). They were merged over their owners, but each worker saw only "
        "the activations of its own subnetwork. Before evaluating the full model, re-estimate them with "
        "sdp.calibrate(full_model, batches).",
        stacklevel=4,
    )


def _shortened(items: list[str], shown: int = 10) -> str:
    return ", ".join(items[:shown]) + (f" and {len(items) - shown} more" if len(items) > shown else "")
