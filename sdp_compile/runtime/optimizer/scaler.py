"""Loss scaling for float16 in which all workers skip a step together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sdp_compile.runtime.full_results.overflow import agree
from sdp_compile.runtime.optimizer.guard import engines_of


class GradScaler(torch.amp.GradScaler):
    """Scales losses like `torch.amp.GradScaler`; a gradient that is not finite on one worker skips the step on all.

    `torch.amp.GradScaler` does so too for the gradients of a compiled model, where every worker has some. This class
    also takes optimizers without a gradient on some worker. ``unscale_`` and ``step`` are collective.

    Args:
        device: The device type of the gradients; by default this machine's accelerator, or the CPU.
        options: The other arguments of `torch.amp.GradScaler`.

    Source: https://docs.pytorch.org/docs/stable/amp.html#gradient-scaling.
    """

    def __init__(self, device: str | None = None, **options: Any) -> None:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        super().__init__(device or (accelerator.type if accelerator is not None else "cpu"), **options)

    def _unscale_grads_(
        self, optimizer: torch.optim.Optimizer, inv_scale: Tensor, found_inf: Tensor, allow_fp16: bool
    ) -> dict[torch.device, Tensor]:
        found = super()._unscale_grads_(optimizer, inv_scale, found_inf, allow_fp16)
        found = found or {found_inf.device: found_inf}  # this worker has no gradient
        for engine in engines_of(optimizer):
            agree(list(found.values()), engine.groups)
        return found
