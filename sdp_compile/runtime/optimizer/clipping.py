"""Gradient clipping by the norm of the full model's gradient."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sdp_compile.errors import DistributedError, SDPError
from sdp_compile.runtime.comm.groups import explained
from sdp_compile.runtime.sharding.gradient import ShardedGradient, held_gradients
from sdp_compile.runtime.subnetwork import Subnetwork, require_peers, unwrapped


@torch.no_grad()
def clip_grad_norm_(
    model: nn.Module, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> Tensor:
    """Scales the gradients so that the full model's gradient has at most norm ``max_norm``. Collective.

    Every element counts once, even if it has several owners.

    Args:
        model: An `SDPModule`, or the wrapper of one that ``torch.compile`` returns.
        max_norm: Upper bound of the norm.
        norm_type: The order p of the norm, positive; ``inf`` gives the largest absolute value.
        error_if_nonfinite: Whether a norm that is infinite or NaN is an error.

    Returns:
        The norm of the full gradient before scaling, a scalar tensor that is equal on all ranks.

    Raises:
        SDPError: If ``model`` is not compiled, ``norm_type`` is not positive, or the norm is not finite and
            ``error_if_nonfinite`` is set.
        DistributedError: If gradients were accumulated under ``no_sync()`` and not synchronised, or a worker is
            missing.

    Source: `torch.nn.utils.clip_grad_norm_`, for the full model.
    """
    module = unwrapped(model)
    peers = require_peers(module, "sdp.clip_grad_norm_()")
    norm_type, max_norm = float(norm_type), float(max_norm)
    if not norm_type > 0:
        raise SDPError(f"norm_type of sdp.clip_grad_norm_() must be positive, got {norm_type}. It may be infinite.")
    if peers is not None and peers.engine.pending:
        raise DistributedError(
            "sdp.clip_grad_norm_() got gradients that were accumulated under no_sync() and differ between workers. "
            "Run the last backward of a step outside no_sync(), or call sync_gradients() first."
        )
    gradients = [gradient for parameter in module.parameters() for gradient in held_gradients(parameter)]
    total = _power_sum(module, norm_type)
    if peers is not None:
        total = total.to(peers.groups.device)
        with explained(tuple(range(module.workers)), "the gradient norm", module.rank):
            operation = dist.ReduceOp.MAX if math.isinf(norm_type) else dist.ReduceOp.SUM
            dist.all_reduce(total, op=operation, group=peers.group)
        peers.groups.traffic.add("control", "all_reduce", total.nbytes, module.workers)
    norm = total if math.isinf(norm_type) else total ** (1.0 / norm_type)
    if error_if_nonfinite and not torch.isfinite(norm):
        raise SDPError(
            f"The norm of the gradient in sdp.clip_grad_norm_() is {norm.item()}, which is not finite. Check the "
            "batches and the learning rate."
        )
    coefficient = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    for gradient in gradients:
        gradient.mul_(coefficient.to(gradient.device))
    double = any(gradient.dtype in (torch.float64, torch.complex128) for gradient in gradients)
    device = gradients[0].device if gradients else norm.device
    return norm.to(device, torch.float64 if double else torch.float32)


def _power_sum(module: Subnetwork, norm_type: float) -> Tensor:
    """Returns the sum of |g|^p (the maximum for inf) over the elements whose first owner is this worker, in float64."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    parts: list[Tensor] = []
    for name, tensor in module.plan.state.items():
        gradient = parameters[name].grad if tensor.kind == "parameter" and name in parameters else None
        if gradient is None:
            continue
        if isinstance(gradient, ShardedGradient):  # no two workers hold the same element
            parts += [_powers(part, norm_type) for part in gradient.parts.values()]
            continue
        for piece in module.plan.pieces(name):
            if piece.numel and piece.owners and piece.owners[0] == module.rank:
                parts.append(_powers(module.holdings.region(piece).read(gradient), norm_type))
    if not parts:
        return torch.zeros((), dtype=torch.float64)
    stacked = torch.stack([part.to(parts[0].device) for part in parts])
    return stacked.max() if math.isinf(norm_type) else stacked.sum()


def _powers(values: Tensor, norm_type: float) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(values, norm_type, dtype=_wide(values)).double()
    return norm if math.isinf(norm_type) else torch.pow(norm, norm_type)


def _wide(gradient: Tensor) -> torch.dtype:
    """Returns the dtype in which to accumulate: more precise than half precision."""
    if gradient.dtype in (torch.float16, torch.bfloat16):
        return torch.float32
    return gradient.dtype
