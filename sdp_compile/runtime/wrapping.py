"""Refuses wrappers that would treat a worker's slices as a copy of the full model.

DistributedDataParallel and its relatives give every rank the tensors of rank 0 as they are constructed. They have no
hook that says no, but all of them list the submodules or parameters of what they wrap first, also those deep inside. So
a compiled module looks at who is asking.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType

import torch
from torch import nn

from sdp_compile.errors import SDPError

_INSTEAD = (
    "Train the module as it is: its backward averages the gradients over their owners. Wrap other parts of your model "
    "on their own."
)
_INTEGRATIONS = {
    "transformers": "Give the original model to SDPTrainer from sdp_compile.integrations.transformers, in place of "
    "transformers' Trainer.",
    "accelerate": "Use SDPAccelerator from sdp_compile.integrations.accelerate in place of Accelerator.",
}
"""What to use instead, by the package whose code wraps the module; of several callers the outermost counts."""

_OVERWRITES = "it would overwrite this worker's slices with those of rank 0"
_SHARDS = "it would shard this worker's slices among the ranks, which hold different slices"
_AVERAGER = (
    "average_parameters()",
    "it would average different slices",
    "Leave it out: backward averages the gradients of every slice over its owners.",
)

_CALLS: dict[tuple[str, str], tuple[str, str, str]] = {
    ("torch.nn.parallel.distributed", "__init__"): ("DistributedDataParallel", _OVERWRITES, _INSTEAD),
    ("torch.distributed.fsdp.fully_sharded_data_parallel", "__init__"): (
        "FullyShardedDataParallel",
        _SHARDS,
        _INSTEAD,
    ),
    ("torch.nn.parallel.replicate", "replicate"): (
        "DataParallel",
        "it would run copies of this worker's subnetwork, which the other workers do not know",
        _INSTEAD,
    ),
    ("deepspeed.runtime.engine", "__init__"): ("DeepSpeed", _OVERWRITES, _INSTEAD),
    ("torch.distributed.optim.zero_redundancy_optimizer", "__init__"): (
        "ZeroRedundancyOptimizer",
        "it would overwrite this worker's slices with those of the rank that steps them",
        "Use sdp.ShardedOptimizer(model, torch.optim.AdamW, lr=...), which splits the state among the owners.",
    ),
    ("torch.distributed.algorithms.model_averaging.utils", "average_parameters"): _AVERAGER,
    ("torch.distributed.algorithms.model_averaging.utils", "get_params_to_average"): _AVERAGER,
}
"""By module and name of a function that a wrapper runs while it lists modules: the wrapper, why not, what instead."""

_COMPOSABLE = {"fully_shard": _SHARDS, "replicate": _OVERWRITES}
"""The functions that change a module in place, which `torch.distributed._composable` calls through one function."""

_CHECKPOINTS = "torch.distributed.checkpoint"


class Unwrappable(nn.Module):
    """A module that refuses to be wrapped for another kind of parallelism, wherever it is nested."""

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """Yields all modules and their names, as ``torch.nn.Module`` does; raises `SDPError` if a wrapper asks."""
        # Within this module, the outermost one has looked.
        if not torch.compiler.is_compiling() and not (memo and _is_within(sys._getframe(1))):
            refuse_wrappers(sys._getframe(1))
        listed: Iterator[tuple[str, nn.Module]] = super().named_modules(memo, prefix, remove_duplicate)
        return listed


def refuse_wrappers(frame: FrameType | None) -> None:
    """Raises `SDPError` if a function that called this one is that of a wrapper.

    Args:
        frame: The innermost frame to look at.
    """
    while frame is not None:
        code, module = frame.f_code.co_name, frame.f_globals.get("__name__", "")
        if (module, code) in _CALLS:
            raise _refusal(*_CALLS[module, code], frame)
        if code == "wrapper" and module == "torch.distributed._composable.contract":
            name = getattr(frame.f_locals.get("func"), "__name__", "")
            if name in _COMPOSABLE:
                raise _refusal(f"{name}()", _COMPOSABLE[name], _INSTEAD, frame)
        frame = frame.f_back


def in_checkpoint(frame: FrameType | None, deep: bool) -> bool:
    """Whether torch.distributed.checkpoint is calling.

    Args:
        frame: The innermost frame to look at.
        deep: Whether the callers of the frame count too.
    """
    while frame is not None:
        if f"{frame.f_globals.get('__name__', '')}.".startswith(f"{_CHECKPOINTS}."):
            return True
        frame = frame.f_back if deep else None
    return False


def _is_within(frame: FrameType) -> bool:
    """Whether the caller lists the modules of a module that has looked already."""
    return frame.f_code.co_name == "named_modules" and isinstance(frame.f_locals.get("self"), Unwrappable)


def _refusal(wrapper: str, why: str, instead: str, frame: FrameType | None) -> SDPError:
    while frame is not None:
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        instead = _INTEGRATIONS.get(package, instead)
        frame = frame.f_back
    return SDPError(f"{wrapper} cannot take a module from sdp.compile(): {why}. {instead}")
