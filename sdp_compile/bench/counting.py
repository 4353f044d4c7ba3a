"""The bytes that a worker sends, counted below every library: each collective that reaches torch.distributed's ops."""

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

# The operators of c10d and _c10d_functional by the start of their names: what they are, and which argument holds
# everybody's part. The functional all-gather has no such argument: its result does.
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
_SILENT = ("barrier", "monitored_barrier", "wait_tensor", "_wrap_tensor_autograd")

_resolve: Any = getattr(dist.distributed_c10d, "_resolve_process_group")  # noqa: B009 (not among its declared names)


@dataclass(frozen=True)
class Sent:
    """One collective: the bytes of the tensor that holds everybody's part, and how many take part."""

    kind: CollectiveKind
    payload: float
    members: int

    @property
    def nbytes(self) -> float:
        """What this worker sends, with a ring."""
        return sent_bytes(self.kind, self.payload, self.members)


@dataclass
class Counter:
    """What was handed to collectives while a `counted` was active."""

    collectives: list[Sent] = field(default_factory=list)

    @property
    def nbytes(self) -> float:
        return sum(sent.nbytes for sent in self.collectives)


class counted(TorchDispatchMode):
    """Context in which every collective of this thread is counted, in eager mode and in compiled graphs.

    A collective that it does not know raises `SDPError`: what is not counted would be reported as not sent.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counter = Counter()

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Compiled code runs under it as it is; under another mode torch.compile would fall back to eager."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace in ("c10d", "_c10d_functional"):
            sent = _sent(func.__name__.partition(".")[0], args, result)
            if sent is not None:
                self.counter.collectives.append(sent)
        return result


def _sent(name: str, args: tuple[Any, ...], result: Any) -> Sent | None:
    if name in _SILENT:
        return None
    known = next((name_ for name_ in sorted(_KINDS, key=len, reverse=True) if name.startswith(name_)), None)
    if known is None:
        raise SDPError(f"A collective {name} was called, which `sdp-compile bench` cannot count.")
    kind, position = _KINDS[known]
    group, tensors = _group(args), result if position == _RESULT else args[position]
    payload = _nbytes(tensors)
    if kind == "all_to_all" and group.size() > 1:
        # Its parts can have unequal sizes: a worker sends all but its own.
        payload = (payload - _own_part(tensors, args, group.rank())) * group.size() / (group.size() - 1)
    return Sent(kind, payload, group.size())


def _own_part(tensors: Any, args: Sequence[Any], rank: int) -> float:
    """Bytes of an all-to-all's input that this worker sends to itself."""
    if not isinstance(tensors, Tensor):
        return _nbytes(tensors[rank])
    # The sizes of the parts to send are the last list of integers; none where all are equal.
    sizes = next((arg for arg in reversed(args) if isinstance(arg, list | tuple) and arg), None)
    group = _group(args)
    return tensors.nbytes * (sizes[rank] / tensors.shape[0] if sizes and tensors.numel() else 1 / group.size())


def _nbytes(tensors: Any) -> float:
    return sum(leaf.nbytes for leaf in pytree.tree_leaves(tensors) if isinstance(leaf, Tensor))


def _group(args: Sequence[Any]) -> dist.ProcessGroup:
    """The process group among the arguments: an object of c10d, a name of _c10d_functional."""
    names: list[Any] = []
    for arg in args:
        if isinstance(arg, torch.ScriptObject) and "ProcessGroup" in str(arg._type()):
            return dist.ProcessGroup.unbox(arg)
        if isinstance(arg, str):
            names.append(arg)
    group: dist.ProcessGroup = _resolve(names[-1])  # the reduction's name comes first
    return group
