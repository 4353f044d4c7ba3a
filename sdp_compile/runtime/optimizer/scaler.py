"""Loss scaling for float16: all workers skip a step together."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sdp_compile.runtime.comm.groups import Groups, explained
from sdp_compile.runtime.optimizer.guard import engines_of
from sdp_compile.runtime.optimizer.sharded import ShardedOptimizer


class GradScaler(torch.amp.GradScaler):
    """`torch.amp.GradScaler` for subnetworks: a gradient that is not finite on one worker skips the step on all.

    Workers that do not share the unit where a float16 gradient overflowed would step otherwise, and their owners'
    values, and the scales of all workers, would go apart. ``device`` defaults to the accelerator of this machine, or to
    the CPU. Used like the original; `unscale_` and `step` are collective. Source:
    https://docs.pytorch.org/docs/stable/amp.html#gradient-scaling.
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
            found = found or {found_inf.device: found_inf}  # no shard has fallen to this worker
        else:
            found = super()._unscale_grads_(optimizer, inv_scale, found_inf, allow_fp16)
        for engine in engines_of(optimizer):
            _agree(list(found.values()), engine.groups)
        return found


def _agree(found: list[Tensor], groups: Groups) -> None:
    """Makes every flag the largest one on any worker."""
    largest = torch.stack([flag.to(groups.device) for flag in found]).amax()
    with explained(tuple(range(groups.workers)), "the gradient scaler's check", groups.rank):
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=groups.group)
    groups.traffic.add("control", "all_reduce", largest.nbytes, groups.workers)
    for flag in found:
        flag.copy_(largest)
