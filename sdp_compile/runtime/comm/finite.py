"""The check for gradients that are infinite or NaN on any worker."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from sdp_compile.errors import SDPError
from sdp_compile.runtime.comm.agreement import maxima
from sdp_compile.runtime.comm.groups import Groups


def first_not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Returns the name of the first tensor with an infinite or NaN element; None if all are finite."""
    named = [(name, tensor) for name, tensor in tensors if tensor.numel()]
    if not named:
        return None
    # The largest absolute value is NaN where any element is.
    with torch._C.DisableTorchFunctionSubclass():  # of these tensors, not of the full model's
        norms = torch._foreach_norm([tensor for _, tensor in named], torch.inf)
    finite = torch.stack([norm.isfinite().to(norms[0].device) for norm in norms]).tolist()
    return next((name for (name, _), good in zip(named, finite, strict=True) if not good), None)


def require_finite(local: str | None, average: str | None, groups: Groups) -> None:
    """Raises the same error on all workers if any of them reports a tensor. Collective.

    Args:
        local: The name of a parameter whose gradient is not finite on this worker.
        average: The name of a parameter whose averaged gradient is not finite.
        groups: The workers' process groups.

    Raises:
        SDPError: If any worker reports a tensor.
    """
    (found,) = maxima([float(local is not None or average is not None)], "the check for finite gradients", groups)
    if not found:
        return
    reports = groups.gather_json([local, average])
    own = [f"worker {rank} ({name!r})" for rank, (name, _) in enumerate(reports) if name is not None]
    if own:
        what = f"Gradients are not finite (infinite or NaN) on {', '.join(own)}"
    else:
        rank, name = next((rank, name) for rank, (_, name) in enumerate(reports) if name is not None)
        what = (
            f"All workers' gradients are finite, but the average of {name!r} is not (on worker {rank}): the sum over "
            "its owners overflows. Use comm_dtype=torch.bfloat16 or torch.float32, which have the range for it"
        )
    raise SDPError(
        f"{what}. Nothing was averaged, so the optimizer must not step. Check the batches there and the learning "
        "rate. To train in float16, use sdp.GradScaler without check_finite=True."
    )
