"""A fake process group whose collectives end only after the time that a link between the workers would take."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeProcessGroup
from torch.utils import _pytree as pytree

from sdp_compile.bench.overlap import LINK
from sdp_compile.runtime.comm.traffic import CollectiveKind
from sdp_compile.runtime.waiting.spans import WAIT, span
from sdp_compile.simulator import collectives
from sdp_compile.simulator.cluster import Link

BACKEND = "fake_delayed"

# The methods of a process group: the kind of collective, and the argument that holds the parts of all workers.
_METHODS: dict[str, tuple[CollectiveKind, int]] = {
    "allreduce": ("all_reduce", 0),
    "allreduce_coalesced": ("all_reduce", 0),
    "broadcast": ("broadcast", 0),
    "allgather": ("all_gather", 0),
    "allgather_coalesced": ("all_gather", 0),
    "_allgather_base": ("all_gather", 0),
    "allgather_into_tensor_coalesced": ("all_gather", 0),
    "all_gather_single": ("all_gather", 0),
    "all_gather_single_coalesced": ("all_gather", 0),
    "reduce_scatter": ("reduce_scatter", 1),
    "_reduce_scatter_base": ("reduce_scatter", 1),
    "reduce_scatter_tensor_coalesced": ("reduce_scatter", 1),
    "reduce_scatter_single": ("reduce_scatter", 1),
    "reduce_scatter_single_coalesced": ("reduce_scatter", 1),
    "alltoall": ("all_to_all", 1),
    "alltoall_base": ("all_to_all", 1),
    "all_to_all_single": ("all_to_all", 1),
}

_SPLIT = ("alltoall_base", "all_to_all_single")
"""The methods whose fourth argument says how much goes to whom."""


class DelayedWork(dist.Work):
    """A collective that has ended at ``due``, by `time.perf_counter`."""

    def __init__(self, due: float, tensors: Sequence[Tensor]) -> None:
        super().__init__()
        self._due, self._tensors = due, list(tensors)

    def is_completed(self) -> bool:
        """Whether it has ended."""
        return time.perf_counter() >= self._due

    def is_success(self) -> bool:
        """Whether it has ended; it cannot fail."""
        return self.is_completed()

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        """Waits for the end.

        Args:
            timeout: The longest time to wait; zero for any.

        Returns:
            True.

        Raises:
            RuntimeError: If it has not ended in time.
        """
        left = self._due - time.perf_counter()
        late = bool(timeout) and left > timeout.total_seconds()
        if left > 0:  # even a sleep of no time can give the processor away
            with span(WAIT):
                time.sleep(timeout.total_seconds() if late else left)
        if late:
            raise RuntimeError("Timed out waiting for a delayed collective.")
        return True

    def result(self) -> list[Tensor]:
        """Returns the tensors."""
        return self._tensors

    def get_future(self) -> torch.futures.Future[list[Tensor]]:
        """Returns a future that a thread sets at the end."""
        future: torch.futures.Future[list[Tensor]] = torch.futures.Future()
        left = max(0.0, self._due - time.perf_counter())
        threading.Timer(left, lambda: future.set_result(self._tensors)).start()
        return future


class Wire:
    """The connection of one worker to its peers, which carries one collective after the other.

    Args:
        link: What a message costs.

    Attributes:
        carried: The name, start and end of each collective, by `time.perf_counter`.
    """

    def __init__(self, link: Link) -> None:
        self._link, self._free = link, 0.0
        self.carried: list[tuple[str, float, float]] = []

    def start(self, kind: CollectiveKind, payload: float, members: int, tensors: Sequence[Tensor] = ()) -> DelayedWork:
        """Starts a collective.

        Args:
            kind: The kind of collective.
            payload: Bytes of its tensor, as `sdp_compile.runtime.comm.traffic.sent_bytes` counts them.
            members: Number of workers.
            tensors: Its tensors.

        Returns:
            The collective, which ends after the predicted time.
        """
        began = time.perf_counter()
        self._free = max(began, self._free) + collectives.seconds(kind, payload, members, self._link)
        self.carried.append((LINK + kind, began, self._free))
        return DelayedWork(self._free, tensors)


class DelayedGroup(dist.ProcessGroup):
    """torch's fake process group on a wire."""

    def __init__(self, rank: int, size: int, wire: Wire) -> None:
        super().__init__(rank, size)  # type: ignore[call-arg, unused-ignore]  # stubs before 2.15 lack the one for groups in Python
        self._fake = FakeProcessGroup._create_internal(rank, size)
        self._wire, self._rank, self._members = wire, rank, size

    def getBackendName(self) -> str:
        """Returns the name of the backend."""
        return BACKEND

    @property
    def group_name(self) -> Any:
        """The name of the group; torch keeps that of a group in Python here only."""
        return dist.distributed_c10d._world.pg_names[self]

    def barrier(self, opts: Any = None) -> DelayedWork:
        """Starts a barrier, which takes no time."""
        return self._wire.start("all_reduce", 0.0, self._members)

    def _run(self, name: str, kind: CollectiveKind, position: int, args: tuple[Any, ...], options: Any) -> DelayedWork:
        getattr(self._fake, name)(*args, **options)
        tensors = [leaf for leaf in pytree.tree_leaves(args[position]) if isinstance(leaf, Tensor)]
        payload = float(sum(tensor.nbytes for tensor in tensors))
        if name in _SPLIT and len(args) > 3 and sum(args[3]):  # a worker may have nothing for itself
            others = payload * (1 - args[3][self._rank] / sum(args[3]))
            payload = others * self._members / (self._members - 1)
        return self._wire.start(kind, payload, self._members, tensors)


def _method(name: str, kind: CollectiveKind, position: int) -> Callable[..., DelayedWork]:
    def run(self: DelayedGroup, *args: Any, **options: Any) -> DelayedWork:
        return self._run(name, kind, position, args, options)

    return run


for _name, (_kind, _position) in _METHODS.items():
    if hasattr(FakeProcessGroup, _name):  # releases of torch differ in them
        setattr(DelayedGroup, _name, _method(_name, _kind, _position))


def use(wire: Wire) -> str:
    """Returns the name of a backend whose process groups all share one wire; once per process."""

    def create(common: Any, _: Any) -> dist.ProcessGroup:
        return DelayedGroup(common.group_rank, common.group_size, wire)

    dist.Backend.register_backend(BACKEND, create, extended_api=True, devices=["cpu"])
    return BACKEND
