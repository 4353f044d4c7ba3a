"""Whether a gradient overflowed on any worker, for the gradient scalers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils import _pytree as pytree

from sdp_compile.errors import SDPError
from sdp_compile.runtime.comm.groups import Groups, explained
from sdp_compile.runtime.comm.meeting import meet
from sdp_compile.runtime.full_results.norms import Engine, common_groups, holders
from sdp_compile.runtime.waiting.patience import complete

UNSCALE = torch._amp_foreach_non_finite_check_and_unscale_
"""How torch's scaler divides gradients by the scale, and sets a flag if any is not finite."""


class FoundInf(Tensor):
    """A scaler's flag that knows of this worker's gradients only; whoever reads it first learns of all workers'.

    The scaler sets it once for each dtype of the gradients, of which workers can have different ones, and reads it
    where all workers do. Reading is collective. Then it becomes a plain tensor.

    Attributes:
        checked: The parameters whose gradients were checked, by the engine of their model.
    """

    checked: dict[Engine, set[str]]

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not UNSCALE:  # which may also set the flag for plain gradients
            for leaf in pytree.tree_leaves((args, kwargs)):
                if isinstance(leaf, FoundInf):
                    _outside_graphs(leaf)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


def defer(flag: Tensor, checked: Iterable[tuple[Engine, str]]) -> None:
    """Makes the first reader of a scaler's flag wait for the other workers' flags.

    Args:
        flag: The flag, as far as this worker knows.
        checked: The parameters whose gradients were checked, each with the engine of its model.
    """
    if not isinstance(flag, FoundInf):
        flag.__class__ = FoundInf  # the scaler keeps this very object
        assert isinstance(flag, FoundInf)
        flag.checked = {}
    for engine, name in checked:
        flag.checked.setdefault(engine, set()).add(name)


def agree(flags: Sequence[Tensor], groups: Groups) -> None:
    """Sets every flag to the maximum over all of them and over all workers. Collective."""
    for flag in flags:
        _as_plain(flag)
    meet("in the gradient scaler's check", groups)
    largest = torch.stack([flag.to(groups.device) for flag in flags]).amax()
    with explained(tuple(range(groups.workers)), "the gradient scaler's check", groups.rank):
        complete(dist.all_reduce(largest, dist.ReduceOp.MAX, groups.group, async_op=True), largest)
    groups.traffic.add("control", "all_reduce", largest.nbytes, groups.workers)
    for flag in flags:
        flag.copy_(largest)


def _as_plain(flag: Tensor) -> None:
    if type(flag) is FoundInf:
        del flag.checked
        flag.__class__ = Tensor  # type: ignore[assignment]  # not a subclass


@torch.no_grad()
def _settle(flag: FoundInf) -> None:
    names = flag.checked
    groups = common_groups(names, "torch.amp.GradScaler")
    if len(holders(names, groups.workers)) < groups.workers:
        raise SDPError(
            "torch.amp.GradScaler got an optimizer with parameters of which some workers hold nothing, so they would "
            "not learn of an overflow. Give one optimizer all of the model's parameters."
        )
    agree([flag], groups)


_outside_graphs = torch.compiler.disable(_settle)
