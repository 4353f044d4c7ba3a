"""Fills the slices that a worker holds, from full values or by initialisation."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sdp_compile.errors import SDPError
from sdp_compile.ir.program import Capture
from sdp_compile.planning.holdings import Held, Holdings
from sdp_compile.planning.plan import Plan
from sdp_compile.runtime.state.initialisers import Initialisers
from sdp_compile.runtime.state.weights import Weights, open_weights
from sdp_compile.runtime.subnetwork import Subnetwork
from sdp_compile.runtime.tensors import local_tensors, replace_tensors

PathLike = str | os.PathLike[str]


@torch.no_grad()
def slice_tensors(
    holdings: Holdings,
    capture: Capture,
    values: Mapping[str, Tensor],
    device: torch.device | str | None = None,
) -> dict[str, Tensor]:
    """Returns what a worker holds of each tensor, by canonical name; other tensors are left out.

    Args:
        holdings: What the worker holds.
        capture: Describes the full tensors; only those in ``capture.state`` are sliced.
        values: The full tensors by canonical name, meta tensors included; lifted constants may be missing.
        device: Where the slices go; by default they stay on their tensor's device.

    Returns:
        Copies; parameters are ``nn.Parameter``.
    """
    result: dict[str, Tensor] = {}
    for held in holdings.held():
        if held.source not in capture.state:
            continue
        description = capture.state[held.source]
        value = values[held.source] if held.source in values else capture.constants[held.source]
        piece = held.region.copy(value.detach())
        piece = piece if device is None else piece.to(device)
        is_parameter = description.kind == "parameter" and held.name == held.source
        result[held.name] = nn.Parameter(piece, description.requires_grad) if is_parameter else piece
    return result


@torch.no_grad()
def materialize(
    module: Subnetwork,
    weights: PathLike | Mapping[str, Tensor] | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
) -> Subnetwork:
    """Fills a module on the meta device with its slices of the full values. Collective if there are peers.

    One full tensor exists at a time. Create optimizers afterwards, because the parameters are new objects.

    Args:
        module: The compiled module.
        weights: Full tensors by the original names, or the path of a safetensors file, of an index, or of a folder with
            either, of which only the slices are read. By default the original's own modules initialise each tensor on
            the CPU (``reset_parameters``, or transformers' ``_init_weights``). Buffers outside ``state_dict()`` that
            weights lack are initialised too.
        device: Where the values go; by default the CPU.
        seed: Random seed of the initialisation. Random numbers depend only on it and on the tensor's name, so all
            owners of an element agree.

    Returns:
        The module.

    Raises:
        SDPError: If the weights lack a tensor or have another shape, or no module initialises it.
    """
    tensors, skeleton, state = local_tensors(module), module.capture.skeleton, module.plan.state
    held = [one for one in module.holdings.held() if one.name in tensors]
    if weights is None:
        empty = [one for one in held if tensors[one.name].is_meta]
        new = _slices(module, Initialisers(skeleton, seed), empty, tensors, device)
    else:
        source = open_weights(weights)
        outside = [
            one
            for one in held
            if tensors[one.name].is_meta and not state[one.source].persistent and one.source not in source
        ]
        new = _slices(module, source, [one for one in held if one not in outside], tensors, device)
        if outside:
            new |= _slices(module, Initialisers(skeleton, seed), outside, tensors, device)
    replace_tensors(module, new)
    if device is not None:
        module.to(device)
    if module.peers is not None:
        module.peers.equalise(module)
        module.peers.rehook()
    return module


def _slices(
    module: Subnetwork,
    source: Weights,
    held: Sequence[Held],
    tensors: Mapping[str, Tensor],
    device: torch.device | str | None,
) -> dict[str, Tensor]:
    """Returns new values for the tensors that the module holds.

    A tensor that has a value already may be missing in the source.

    Raises:
        SDPError: If the source lacks a tensor that is on the meta device.
    """
    aliases = _aliases(module.plan)
    keys = {one.source: next((alias for alias in aliases[one.source] if alias in source), None) for one in held}
    absent = [one.source for one in held if keys[one.source] is None and tensors[one.name].is_meta]
    if absent:
        raise SDPError(source.explain(list(dict.fromkeys(absent))))
    result: dict[str, Tensor] = {}
    for one in held:
        key, old = keys[one.source], tensors[one.name]
        if key is None:
            continue
        value = source.read(key, module.plan.state[one.source].shape, one.region).to(_target(old, device), old.dtype)
        result[one.name] = nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value
    return result


def _aliases(plan: Plan) -> dict[str, list[str]]:
    """Returns all names of each tensor, the canonical one first."""
    result = {name: [name] for name in plan.state}
    for alias, name in plan.aliases.items():
        if alias != name:
            result[name].append(alias)
    return result


def _target(old: Tensor, device: torch.device | str | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    return old.device if not old.is_meta else torch.device("cpu")
