"""Points at which all workers meet: each states what it is about to do, and one small all-reduce tells if all agree.

A statement is three numbers that sum to zero over all workers if and only if they agree, a flag, and a number of which
all learn the sum. So its size does not grow with the number of parameters, owner groups or workers. Where n workers
must have an equal number h, the first contributes (n - 1) h and each of the others -h, modulo 2^64. The numbers are
hashes, so different ones do not cancel each other.

A worker that skips its optimizer's step meets the others with another statement, in the same collective. Only then do
they exchange the details, find the cause and raise the same error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist

from sdp_compile.errors import DamagedState, DistributedError
from sdp_compile.runtime.comm.groups import Groups, explained
from sdp_compile.runtime.comm.issuer import issuer_of
from sdp_compile.runtime.comm.verdict import Details, judge
from sdp_compile.runtime.waiting.patience import complete


@dataclass(frozen=True)
class Statement:
    """What a worker is about to do.

    Attributes:
        point: Where the worker is, for errors: "in an optimizer's step".
        terms: Its contributions to two more sums, which are zero if all workers agree.
        flag: Something that all workers shall know if it holds on any of them.
        number: What the worker has no gradient of, as a number; 0 for nothing.
        details: What stands behind the terms.
    """

    point: str
    terms: tuple[int, int] = (0, 0)
    flag: bool = False
    number: int = 0
    details: Callable[[], Details] = Details


class Meeting:
    """One worker's part in a meeting. The constructor states what the worker is about to do, and does not wait.

    Args:
        statement: What the worker is about to do.
        groups: The workers' process groups.
        held: Returns the keys of all parameters of which this worker holds a part.
    """

    def __init__(self, statement: Statement, groups: Groups, held: Callable[[], list[str]]) -> None:
        self._statement, self._groups, self._held = statement, groups, held
        self._agreed = groups.workers == 1
        self._apart: list[Details] = []
        if not self._agreed:
            self._start()

    def is_agreed(self) -> bool:
        """Waits for all workers. Returns whether they agree; if not, `finish` finds out why."""
        if not self._agreed:
            with self._explained():
                complete(self._work, self._sums)
            self._agreed = self._groups.peers_are_fake or not self._sums[:3].any()
        return self._agreed

    def finish(self) -> bool:
        """Waits for all workers. Collective.

        Returns:
            Whether the flag is set on any worker.

        Raises:
            DistributedError: On all workers, if they do not agree.
        """
        while not self.is_agreed():
            views = self._everyone()
            verdict = judge(views)
            if verdict.error:
                raise (DamagedState if verdict.is_damage else DistributedError)(verdict.error)
            if self._groups.rank in verdict.complete:
                self._agreed = True
                self._apart = [views[rank] for rank in sorted(verdict.complete)]
            else:
                self._start()  # others take a step first, of parameters of which this worker holds nothing
        return self._groups.workers > 1 and bool(self._sums[3])

    def had_by_any(self, having: Callable[[], list[str]]) -> frozenset[str] | None:
        """Returns the keys that any worker of this meeting has a gradient of; None if each has one of all its keys.

        Collective if the sum of all workers' numbers is a new one.

        Args:
            having: Returns those of this worker.
        """
        if self._apart:  # they go on without the others, who have told them
            return frozenset(key for view in self._apart for key in view.having)
        total = int(self._sums[4]) if self._groups.workers > 1 else 0
        if not total:
            return None
        known = _had.setdefault(self._groups.raw_group, {})
        if total not in known:
            if len(known) == _REMEMBERED:
                known.clear()
            with self._explained():
                known[total] = frozenset(key for keys in self._groups.gather_json(having()) for key in keys)
        return known[total]

    def _start(self) -> None:
        groups = self._groups
        point = share_of_zero(groups.rank, range(groups.workers)) * mixed(self._statement.point)
        terms = (point, *self._statement.terms, int(self._statement.flag), self._statement.number)
        self._sums = torch.tensor([_signed(term) for term in terms])
        with self._explained():
            self._work = dist.all_reduce(self._sums, group=groups.control, async_op=True)
        groups.traffic.add("control", "all_reduce", self._sums.nbytes, groups.workers)

    def _everyone(self) -> list[Details]:
        """Returns the details of all workers by rank. Collective."""
        own = replace(self._statement.details(), point=self._statement.point, held=self._held())
        with self._explained():
            return [Details(**view) for view in self._groups.gather_json(asdict(own))]

    def _explained(self) -> AbstractContextManager[None]:
        groups = self._groups
        everyone = tuple(range(groups.workers))
        return explained(everyone, "what the workers do next", groups.rank, self._statement.point)


_REMEMBERED = 16

_had: WeakKeyDictionary[dist.ProcessGroup, dict[int, frozenset[str]]] = WeakKeyDictionary()
"""What `Meeting.had_by_any` has returned for a sum: the same on all workers, since all of them were there."""


def meet(point: str, groups: Groups) -> None:
    """Waits for all workers. Collective.

    Args:
        point: Where this worker is, for errors: "in the gradient norm".
        groups: The workers' process groups.

    Raises:
        DistributedError: On all workers, if any of them is elsewhere.
    """
    issuer = issuer_of(groups.raw_group)
    issuer.settle()
    Meeting(Statement(point), groups, issuer.held).finish()


def mixed(*parts: object) -> int:
    """Returns a 64-bit hash of numbers and texts, the same in every process."""
    text = "\0".join(map(str, parts))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def share_of_zero(rank: int, members: Sequence[int]) -> int:
    """Returns the factor with which one of the ascending ``members`` contributes a number that all must have equal."""
    return len(members) - 1 if rank == members[0] else -1


def _signed(number: int) -> int:
    """Returns the number modulo 2^64 as a signed integer."""
    number %= 2**64
    return number - 2**64 if number >= 2**63 else number
