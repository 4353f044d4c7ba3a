"""Loss scaling for float16 in which all workers skip a step together."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sdp_compile.runtime.comm.groups import Groups, explained
from sdp_compile.runtime.optimizer.guard import engines_of
from sdp_compile.runtime.optimizer.sharded import ShardedOptimizer


class GradScaler(torch.amp.GradScaler):
    """Scales losses like `torch.amp.GradScaler`; a gradient that is not finite on one worker skips the step on all.

    Without it, workers that do not share the unit whose float16 gradient overflowed would still step, and the values
    and scales of the workers would differ from then on. ``unscale_`` and ``step`` are collective.

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
        if isinstance(optimizer, ShardedOptimizer):
            with optimizer.gradients() as shards:
                found = super()._unscale_grads_(shards, inv_scale, found_inf, allow_fp16)
            found = found or {found_inf.device: found_inf}  # this worker holds no shard
        else:
            found = super()._unscale_grads_(optimizer, inv_scale, found_inf, allow_fp16)
        for engine in engines_of(optimizer):
            _agree(list(found.values()), engine.groups)
        return found


def _agree(found: list[Tensor], groups: Groups) -> None:
    """Sets every flag to the maximum over all workers."""
    largest = torch.stack([flag.to(groups.device) for flag in found]).amax()
    with explained(tuple(range(groups.workers)), "the gradient scaler's check", groups.rank):
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=groups.group)
    groups.traffic.add("control", "all_reduce", largest.nbytes, groups.workers)
    for flag in found:
        flag.copy_(largest)
