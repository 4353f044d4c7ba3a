"""Counts the bytes that a worker sends, below all libraries: every collective that reaches c10d's operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from sdp_compile.errors import SDPError
from sdp_compile.runtime.comm.traffic import CollectiveKind, sent_bytes

# The operators of c10d and _c10d_functional by the start of their names: the kind of collective, and the position of
# the argument that holds the parts of all workers. For the functional all-gather, this is the result.
_RESULT = -1
_KINDS: dict[str, tuple[CollectiveKind, int]] = {
    "allreduce": ("all_reduce", 0),
    "all_reduce": ("all_reduce", 0),
    "_allgather_base": ("all_gather", 0),
    "allgather": ("all_gather", 0),
    "all_gather_into_tensor": ("all_gather", _RESULT),
    "_reduce_scatter_base": ("reduce_scatter", 1),
    "reduce_scatter_tensor_coalesced_": ("reduce_scatter", 1),
    "reduce_scatter_tensor": ("reduce_scatter", 0),
    "reduce_scatter": ("reduce_scatter", 1),
    "broadcast": ("broadcast", 0),
    "alltoall": ("all_to_all", 1),
    "all_to_all_single": ("all_to_all", 0),
}
_WITHOUT_PAYLOAD = ("barrier", "monitored_barrier", "wait_tensor", "_wrap_tensor_autograd")

_resolve: Any = getattr(dist.distributed_c10d, "_resolve_process_group")  # noqa: B009 (not declared)


@dataclass(frozen=True)
class Sent:
    """One collective: the bytes of the tensor that holds all workers' parts, and the number of workers."""

    kind: CollectiveKind
    payload: float
    members: int

    @property
    def nbytes(self) -> float:
        """Bytes that this worker sends in a ring."""
        return sent_bytes(self.kind, self.payload, self.members)


@dataclass
class Counter:
    """The collectives that ran while a `counted` context was active."""

    collectives: list[Sent] = field(default_factory=list)

    @property
    def nbytes(self) -> float:
        """Bytes that this worker sent."""
        return sum(sent.nbytes for sent in self.collectives)


class counted(TorchDispatchMode):
    """Context that counts every collective of this thread, in eager mode and in compiled graphs.

    An unknown collective raises `SDPError`, because its bytes would otherwise be missing from the count.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counter = Counter()

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Lets compiled code run in this context; with other modes torch.compile falls back to eager."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace in ("c10d", "_c10d_functional"):
            sent = _sent(func.__name__.partition(".")[0], args, result)
            if sent is not None:
                self.counter.collectives.append(sent)
        return result


def _sent(name: str, args: tuple[Any, ...], result: Any) -> Sent | None:
    if name in _WITHOUT_PAYLOAD:
        return None
    known = next((prefix for prefix in sorted(_KINDS, key=len, reverse=True) if name.startswith(prefix)), None)
    if known is None:
        raise SDPError(f"`sdp-compile bench` cannot count the collective {name!r}.")
    kind, position = _KINDS[known]
    group, tensors = _group(args), result if position == _RESULT else args[position]
    payload = _nbytes(tensors)
    if kind == "all_to_all" and group.size() > 1:
        # Its parts can have different sizes; a worker sends all but its own.
        payload = (payload - _own_part(tensors, args, group.rank())) * group.size() / (group.size() - 1)
    return Sent(kind, payload, group.size())


def _own_part(tensors: Any, args: Sequence[Any], rank: int) -> float:
    """The bytes of an all-to-all's input that this worker keeps."""
    if not isinstance(tensors, Tensor):
        return _nbytes(tensors[rank])
    # The sizes of the parts to send are the last list of integers, which is empty if all are equal.
    sizes = next((arg for arg in reversed(args) if isinstance(arg, list | tuple) and arg), None)
    group = _group(args)
    return tensors.nbytes * (sizes[rank] / tensors.shape[0] if sizes and tensors.numel() else 1 / group.size())


def _nbytes(tensors: Any) -> float:
    return sum(leaf.nbytes for leaf in pytree.tree_leaves(tensors) if isinstance(leaf, Tensor))


def _group(args: Sequence[Any]) -> dist.ProcessGroup:
    """The process group among the arguments: an object for c10d, a name for _c10d_functional."""
    names: list[Any] = []
    for arg in args:
        if isinstance(arg, torch.ScriptObject) and "ProcessGroup" in str(arg._type()):
            return dist.ProcessGroup.unbox(arg)
        if isinstance(arg, str):
            names.append(arg)
    group: dist.ProcessGroup = _resolve(names[-1])  # the name of the reduction comes first
    return group
