"""Gradient clipping by the norm of the full model's gradient."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sdp_compile.errors import SDPError
from sdp_compile.runtime.full_results.gradient import PartialGradient
from sdp_compile.runtime.full_results.norms import (
    check_averaged,
    check_order,
    first_owned,
    gather_norm,
    norm_of_norms,
    norms_of,
)
from sdp_compile.runtime.sharding.gradient import held_gradients
from sdp_compile.runtime.subnetwork import Subnetwork, require_peers, unwrapped


@torch.no_grad()
def clip_grad_norm_(
    model: nn.Module, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> Tensor:
    """Scales the gradients so that the full model's gradient has at most norm ``max_norm``. Collective.

    Every element counts once, even if it has several owners. `torch.nn.utils.clip_grad_norm_` does the same on
    ``model.parameters()``; this function also clips where some worker has no gradient at all, or gradients that the
    user has replaced by other tensors.

    Args:
        model: An `SDPModule`, or the wrapper of one that ``torch.compile`` returns.
        max_norm: Upper bound of the norm.
        norm_type: The order p of the norm, positive; ``inf`` gives the largest absolute value.
        error_if_nonfinite: Whether a norm that is infinite or NaN is an error, before any gradient changes.

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
    check_order(norm_type, "sdp.clip_grad_norm_()")
    if peers is not None:
        check_averaged(peers.engine, "sdp.clip_grad_norm_()")
    with torch._C.DisableTorchFunctionSubclass():
        norm = norm_of_norms(norms_of(_counted(module), norm_type), norm_type)
        if peers is not None:
            norm = gather_norm(norm, None, norm_type, tuple(range(module.workers)), peers.groups)
        if error_if_nonfinite and not torch.isfinite(norm):
            raise SDPError(
                f"The norm of the gradient in sdp.clip_grad_norm_() is {norm.item()}, which is not finite. Check the "
                "batches and the learning rate."
            )
        gradients = [gradient for parameter in module.parameters() for gradient in held_gradients(parameter)]
        coefficient = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
        for gradient in gradients:
            gradient.mul_(coefficient.to(gradient.device))
    double = any(gradient.dtype in (torch.float64, torch.complex128) for gradient in gradients)
    device = gradients[0].device if gradients else norm.device
    return norm.to(device, torch.float64 if double else torch.float32)


def _counted(module: Subnetwork) -> list[Tensor]:
    """Returns the elements of all gradients that this worker counts."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    result: list[Tensor] = []
    for name, tensor in module.plan.state.items():
        gradient = parameters[name].grad if tensor.kind == "parameter" and name in parameters else None
        if isinstance(gradient, PartialGradient):
            result += gradient.counted()
        elif gradient is not None:  # set by the user, or there are no other workers
            result += first_owned(gradient, name, module.holdings)
    return result
