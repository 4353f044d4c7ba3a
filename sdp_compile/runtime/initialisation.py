"""From full values, or from none, to the slices that a worker holds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sdp_compile.errors import SDPError
from sdp_compile.plan import Plan
from sdp_compile.program import Capture
from sdp_compile.runtime.initialisers import Initialisers
from sdp_compile.runtime.pieces import Local, local_tensors, replace_tensors
from sdp_compile.runtime.weights import Weights, open_weights

if TYPE_CHECKING:
    from sdp_compile.runtime.module import SDPModule

PathLike = str | os.PathLike[str]


@torch.no_grad()
def slice_tensors(
    capture: Capture, plan: Plan, rank: int, values: Mapping[str, Tensor], device: torch.device | str | None = None,
    lowering: str = "sliced",
) -> dict[str, Tensor]:  # fmt: skip
    """What worker ``rank`` holds of each tensor, by canonical name; tensors of which it holds nothing are left out.

    ``values`` are the full tensors by canonical name (lifted constants may be missing), meta tensors included. The
    results are copies, parameters are ``nn.Parameter``; they stay on their tensor's device where ``device`` is None.
    """
    local = Local(plan, rank, lowering)
    result: dict[str, Tensor] = {}
    for name, description in capture.state.items():
        region = local.own(name)
        if region is None:
            continue
        value = values[name] if name in values else capture.constants[name]
        piece = region.copy(value.detach())
        piece = piece if device is None else piece.to(device)
        is_parameter = description.kind == "parameter"
        result[name] = nn.Parameter(piece, description.requires_grad) if is_parameter else piece
    return result


@torch.no_grad()
def materialize(
    module: SDPModule, weights: PathLike | Mapping[str, Tensor] | None = None,
    device: torch.device | str | None = None, seed: int = 0,
) -> SDPModule:  # fmt: skip
    """Fills a module on the meta device with its slices of the full values, one tensor at a time; returns the module.

    ``weights`` is a mapping by the original model's names, or the path of a safetensors file, of an index of several,
    or of a folder with either, of which only the slices are read. Without weights every tensor is initialised by the
    original's own modules (``reset_parameters``, or transformers' ``_init_weights``) on the CPU, with random numbers
    that depend on its name and ``seed`` alone: the owners of an element agree. Buffers that weights lack because they
    are outside of ``state_dict()`` are initialised so too. The full tensors never exist together.

    Collective where there are peers: values are made equal at the end. Create optimizers afterwards, the parameters
    are new ones.
    """
    tensors, skeleton = local_tensors(module), module.capture.skeleton
    held = {name: tensors[name] for name in module.plan.state if name in tensors}
    empty = [name for name, tensor in held.items() if tensor.is_meta]
    if weights is None:
        new = _slices(module, Initialisers(skeleton, seed), {name: held[name] for name in empty}, device)
    else:
        source = open_weights(weights)
        outside = [name for name in empty if not module.plan.state[name].persistent and name not in source]
        new = _slices(module, source, {name: held[name] for name in held if name not in outside}, device)
        if outside:
            new |= _slices(module, Initialisers(skeleton, seed), {name: held[name] for name in outside}, device)
    replace_tensors(module, new)
    if device is not None:
        module.to(device)
    if module.runtime is not None:
        module.runtime.equalise(module)
        module.runtime.refresh()
    return module


def _slices(
    module: SDPModule, source: Weights, held: Mapping[str, Tensor], device: torch.device | str | None
) -> dict[str, Tensor]:
    """What is to stand for the tensors that the module holds; SDPError where the source lacks one on the meta device.

    What has a value already may stay as it is.
    """
    local, aliases = Local(module.plan, module.rank, module.lowering), _aliases(module.plan)
    keys = {name: next((alias for alias in aliases[name] if alias in source), None) for name in held}
    absent = [name for name, tensor in held.items() if keys[name] is None and tensor.is_meta]
    if absent:
        raise SDPError(source.explain(absent))
    result: dict[str, Tensor] = {}
    for name, old in held.items():
        key, region = keys[name], local.own(name)
        if key is None or region is None:
            continue
        value = source.read(key, module.plan.state[name].shape, region).to(_target(old, device), old.dtype)
        result[name] = nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value
    return result


def _aliases(plan: Plan) -> dict[str, list[str]]:
    """All names of each tensor, the canonical one first."""
    result = {name: [name] for name in plan.state}
    for alias, name in plan.aliases.items():
        if alias != name:
            result[name].append(alias)
    return result


def _target(old: Tensor, device: torch.device | str | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    return old.device if not old.is_meta else torch.device("cpu")
