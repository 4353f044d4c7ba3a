"""The process groups of a plan: the common group of all workers, and this rank's group of each level."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from sdp_compile.errors import DistributedError
from sdp_compile.ownership.levels import Level, Levels
from sdp_compile.ownership.owners import OwnerSet
from sdp_compile.runtime.comm.issuer import issuer_of
from sdp_compile.runtime.comm.streams import wait_for_all
from sdp_compile.runtime.comm.traffic import Traffic
from sdp_compile.runtime.waiting.board import Board
from sdp_compile.runtime.waiting.observer import board_of, observe
from sdp_compile.runtime.waiting.patience import complete, waiting
from sdp_compile.runtime.waiting.words import ADVICE

_level_groups: WeakKeyDictionary[dist.ProcessGroup, dict[OwnerSet, dist.ProcessGroup | None]] = WeakKeyDictionary()
"""The groups of levels by common group, shared by all compilations and copies of modules in this process.

None stands for a group of others in whose making this process took part.
"""

_control_groups: WeakKeyDictionary[dist.ProcessGroup, dist.ProcessGroup] = WeakKeyDictionary()
"""The Gloo groups beside the common groups, in which workers compare what they do."""


class Groups:
    """The common group of all workers, and this worker's groups within it.

    Workers are numbered by their rank within the common group. `create` makes the groups of a plan's levels.

    Args:
        group: The common group; by default the world.

    Attributes:
        raw_group: The common group, for collectives that are issued during backward.
        rank: This worker.
        workers: The number of workers.
        traffic: Counts the bytes that this worker sends.
        peers_are_fake: Whether this worker runs alone; see `peers_are_fake`.

    Raises:
        DistributedError: If there is no process group, or this process is not a member of ``group``.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise DistributedError(
                "There is no process group. Start the script with torchrun and call "
                "torch.distributed.init_process_group(), or pass workers= and rank= for a subnetwork without training."
            )
        base = group if group is not None else dist.group.WORLD
        # For processes that are not members, new_group() returns a number.
        if not isinstance(base, dist.ProcessGroup) or dist.get_rank(base) < 0:
            raise DistributedError(
                "This process is not a member of the given process group. Use the group on its members only."
            )
        self.raw_group: dist.ProcessGroup = base
        self.rank: int = dist.get_rank(base)
        self.workers: int = dist.get_world_size(base)
        self._global_ranks: list[int] = dist.get_process_group_ranks(base)
        self._backends = _backends(base)
        self.peers_are_fake = peers_are_fake(base)
        self.traffic = Traffic()
        self._parameters: Callable[[], Mapping[str, Tensor]] = dict

    @property
    def group(self) -> dist.ProcessGroup:
        """The common process group, ready for a collective: everything issued during backward comes before it."""
        self.settle()
        return self.raw_group

    @property
    def device(self) -> torch.device:
        """The device for collectives of tensors that have no device of their own."""
        return torch.device("cpu") if "cpu" in self._backends else torch.device("cuda", torch.cuda.current_device())

    @property
    def idle_device(self) -> torch.device:
        """The device on which this worker takes part in collectives to which it adds nothing: that of its peers."""
        first = next(iter(self._parameters().values()), None)
        return self.device if first is None else self.wire(first.device)

    def locate(self, parameters: Callable[[], Mapping[str, Tensor]]) -> None:
        """Tells where this worker's parameters are, as they are at any time."""
        self._parameters = parameters

    @property
    def timeout(self) -> timedelta:
        """The timeout of collectives in the common group."""
        try:
            options = self.group._get_backend(self.device).options
            return timedelta(seconds=options._timeout.total_seconds())
        except (AttributeError, RuntimeError):
            return dist.distributed_c10d.default_pg_timeout

    def wire(self, device: torch.device) -> torch.device:
        """Returns the device to communicate tensors of ``device`` on: Gloo uses the host even for CUDA tensors."""
        backend = self._backends.get(device.type)
        return self.device if backend is None or backend == "gloo" else device

    @property
    def control(self) -> dist.ProcessGroup:
        """The group of all workers for small tensors on the host, also during backward.

        No collective of the user's runs in it. So a worker that is in one meanwhile makes the others wait for it, and
        cannot mix up the two, which may end the process without an error.
        """
        return _control_groups.get(self.raw_group, self.raw_group)

    def global_rank(self, worker: int) -> int:
        """Returns the rank of a worker in the world."""
        return self._global_ranks[worker]

    def create(self, levels: Levels) -> None:
        """Creates this worker's group of each level, and the group for control.

        Args:
            levels: The levels of the plan, the same on all ranks, which must all call this.
        """
        if not self.peers_are_fake:
            observe(self.raw_group)
        made = _level_groups.setdefault(self.group, {})
        for level in levels:
            own = level.group(self.rank)
            if level.size == self.workers:
                continue
            if not _names_are_common() and self.workers == dist.get_world_size():
                self._create_all(level, made)
            elif own not in made:
                made[own] = self._create(own, f"sdp {level.kind} {own[:8]}")
        if self.workers > 1 and self.raw_group not in _control_groups and not self.peers_are_fake:
            # On the host, workers can compare what they do without waiting for a device.
            everyone = tuple(range(self.workers))
            _control_groups[self.raw_group] = self._create(everyone, "control", backend="gloo")

    def _create_all(self, level: Level, made: dict[OwnerSet, dist.ProcessGroup | None]) -> None:
        """Creates all groups of a level that no earlier plan has: all ranks must take part in making each of them."""
        for members in level.groups:
            if members not in made:
                group = dist.new_group([self.global_rank(worker) for worker in members], timeout=self.timeout)
                made[members] = group if isinstance(group, dist.ProcessGroup) else None

    def _create(self, members: OwnerSet, description: str, backend: str | None = None) -> dist.ProcessGroup:
        """Creates a group; only its members call this."""
        ranks = [self.global_rank(worker) for worker in members]
        if len(ranks) == dist.get_world_size():
            group = dist.new_group(ranks, timeout=self.timeout, backend=backend, group_desc=description)
        else:
            with _common_name(f"{self.group.group_name} {description}"):
                group = dist.new_group(
                    ranks,
                    timeout=self.timeout,
                    backend=backend,
                    use_local_synchronization=True,
                    group_desc=description,
                )
        assert isinstance(group, dist.ProcessGroup)
        return group

    def settle(self) -> None:
        """Makes the groups ready for a collective: everything issued during backward comes before it."""
        issuer_of(self.raw_group).settle()
        wait_for_all()

    def raw_group_of(self, members: OwnerSet) -> dist.ProcessGroup:
        """Returns the process group of workers that form a group of a level, for collectives issued during backward."""
        if len(members) == self.workers:
            return self.raw_group
        group = _level_groups.get(self.raw_group, {}).get(members)
        if group is None:
            raise DistributedError(
                f"Rank {self.rank} has no process group for the workers {members}: it is not one of them, or the "
                "groups of this plan were not created."
            )
        return group

    def has_library(self, device: torch.device) -> bool:
        """Whether the library's reduce-scatter and all-gather are the best way for tensors on a device: not Gloo's."""
        return self._backends.get(device.type) != "gloo"

    def gather_row(self, row: Tensor, members: OwnerSet) -> Tensor:
        """Returns a small tensor of each member, in their order. Collective among them.

        Args:
            row: This worker's tensor.
            members: The workers that take part, this one among them.
        """
        if len(members) == 1 or self.peers_are_fake:
            return row.expand(len(members), *row.shape)
        if len(members) == self.workers:
            rows = row.new_empty(len(members), *row.shape)
            complete(dist.all_gather(list(rows.unbind()), row, group=self.group, async_op=True), row)
            return rows
        self.settle()
        first, others = members[0], members[1:]
        rows = torch.empty(len(members), *row.shape, dtype=row.dtype)
        if self.rank == first:
            rows[0] = row
            for number, member in enumerate(others, 1):
                complete(dist.irecv(rows[number], self.global_rank(member), group=self.control), rows)
            for member in others:
                complete(dist.isend(rows, self.global_rank(member), group=self.control), rows)
        else:
            own = row.cpu()
            complete(dist.isend(own, self.global_rank(first), group=self.control), own)
            complete(dist.irecv(rows, self.global_rank(first), group=self.control), rows)
        return rows.to(row.device)

    def broadcast(self, flat: Tensor, source: int) -> None:
        """Copies the contiguous ``flat`` of worker ``source`` to all workers."""
        # As bytes, so that every dtype travels the same way, also complex, bool and float8.
        raw = flat.view(torch.uint8)
        complete(dist.broadcast(raw, src=self.global_rank(source), group=self.group, async_op=True), raw)

    def gather_json(self, value: Any) -> list[Any]:
        """Returns the ``value`` of every worker by rank. JSON and not pickle, so that nothing received is executed."""
        if self.peers_are_fake:
            return [value] * self.workers
        mine = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(self.device)
        sizes = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.workers)]
        own = torch.tensor([len(mine)], device=self.device)
        complete(dist.all_gather(sizes, own, group=self.group, async_op=True), own)
        lengths = [int(size) for size in sizes]
        padded = torch.zeros(max(lengths), dtype=torch.uint8, device=self.device)
        padded[: len(mine)] = mine
        everyone = [torch.empty_like(padded) for _ in lengths]
        complete(dist.all_gather(everyone, padded, group=self.group, async_op=True), padded)
        return [json.loads(bytes(text[:length].cpu().numpy())) for text, length in zip(everyone, lengths, strict=True)]


def peers_are_fake(group: dist.ProcessGroup) -> bool:
    """Whether the group is one of torch's fake process groups: one worker runs, its peers' traffic is left out.

    Then there is nobody to agree with, and collectives leave meaningless values.
    """
    return str(dist.get_backend(group)).startswith("fake")  # with or without delays


class explained:
    """Context that turns an error of the communication library into one that names the workers and what each did.

    The other workers learn meanwhile that this one waits there; see `sdp_compile.runtime.waiting`.

    Args:
        owners: The workers that take part in the collective.
        what: What it sends, for the error: "gradient bucket 3".
        rank: This worker.
        doing: Where this worker is, for errors; by default in that collective.

    Raises:
        DistributedError: If the collective fails, or cannot end.
    """

    def __init__(self, owners: OwnerSet, what: str, rank: int, doing: str = "") -> None:
        self._owners, self._what, self._rank = owners, what, rank
        self._waiting = waiting(what, doing or f"in the communication of {what}", owners, rank)

    def __enter__(self) -> None:
        self._waiting.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        try:
            if isinstance(error, RuntimeError):
                raise self._error(error) from error
        finally:
            self._waiting.__exit__()

    def _error(self, error: RuntimeError) -> DistributedError:
        board = board_of(self._rank, self._owners)
        verdict, report = ("", "") if board is None else _known(board)
        if verdict:  # a worker that has raised it ended before this one looked
            return DistributedError(verdict)
        first = (str(error).splitlines() or [""])[0]
        shown = ", ".join(map(str, self._owners[:16])) + (", ..." if len(self._owners) > 16 else "")
        return DistributedError(
            f"Communication of {self._what} among workers {shown} failed on worker {self._rank}: {first}\n{report}If a "
            f"worker has ended, look at its output. {ADVICE}"
        )


def _known(board: Board) -> tuple[str, str]:
    """Returns why the workers cannot go on, and what each of them did; both are empty if nobody can tell."""
    try:
        verdict = board.verdict()
        report = "" if verdict else board.report()
    except RuntimeError:  # the process that serves the store has ended
        return "", ""
    return verdict, f"What the workers did:\n{report}\n" if report else ""


@contextmanager
def _common_name(text: str) -> Iterator[None]:
    """Makes all members derive the same name for a group that is created with local synchronisation.

    PyTorch 2.14 derives the name from the ranks and from the number of groups that this process has created before.
    That number differs between the members of overlapping groups, and they would wait for each other under different
    names.
    """
    c10d = dist.distributed_c10d
    if not _names_are_common():
        raise DistributedError(
            "This version of torch cannot create overlapping groups within group=. Leave out group= and use all ranks "
            "of the world as workers, or update torch to 2.14."
        )
    before = c10d._world.group_count
    c10d._world.group_count = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    try:
        yield
    finally:
        c10d._world.group_count = before


def _names_are_common() -> bool:
    """Whether `_common_name` works with this version of torch."""
    return "group_count" in dist.distributed_c10d._hash_ranks_to_str.__code__.co_names


def _backends(group: dist.ProcessGroup) -> dict[str, str]:
    """Returns the backend of each device type, from text like "cpu:gloo,cuda:nccl"."""
    config = str(dist.get_backend_config(group))
    if ":" not in config:
        return {"cuda": "nccl"} if config == "nccl" else {"cpu": config, "cuda": config}
    pairs = (entry.partition(":") for entry in config.split(","))
    return {device: backend for device, _, backend in pairs}
