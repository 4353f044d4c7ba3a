"""A timeline: streams run their operations in order, and transfers that are under way share their link.

A stream is a processor or the collectives of one level. A link is that of a worker inside its node or that of a node.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Operation:
    """Something that takes time.

    Attributes:
        stream: What runs it. A stream runs one operation after the other, in their order in the list.
        latency: Seconds that it takes whatever else happens: computing, or messages that wait for each other.
        transfer: Seconds that its bytes then take on ``link``, if nothing else uses the link.
        link: The link that it shares evenly with the transfers of other streams; None if it is no transfer.
        ready: The time at which it may begin.
        after: The numbers of operations that end before it begins.
    """

    stream: Hashable
    latency: float
    transfer: float = 0.0
    link: Hashable = None
    ready: float = 0.0
    after: tuple[int, ...] = ()


@dataclass
class _Running:
    number: int
    begins: float  # its transfer
    left: float  # of its transfer


def run(operations: Sequence[Operation]) -> list[float]:
    """Returns when each operation ends.

    Raises:
        ValueError: If operations wait for each other in a circle.
    """
    waiting: dict[Hashable, deque[int]] = {}
    for number, operation in enumerate(operations):
        waiting.setdefault(operation.stream, deque()).append(number)
    ends: list[float | None] = [None] * len(operations)
    running: dict[Hashable, _Running] = {}
    now = 0.0
    while running or any(waiting.values()):
        for stream, numbers in waiting.items():
            if stream in running or not numbers:
                continue
            operation = operations[numbers[0]]
            if all(ends[number] is not None for number in operation.after):
                begins = max(now, operation.ready) + operation.latency
                running[stream] = _Running(numbers.popleft(), begins, operation.transfer)
        if not running:
            raise ValueError("operations wait for each other")
        now = _advance(operations, running, ends, now)
    return [end for end in ends if end is not None]


def _advance(
    operations: Sequence[Operation], running: dict[Hashable, _Running], ends: list[float | None], now: float
) -> float:
    """Goes on to the next time at which a transfer begins or an operation ends, and returns it."""
    users: dict[Hashable, int] = {}
    for one in running.values():
        if one.begins <= now:
            link = operations[one.number].link
            users[link] = users.get(link, 0) + 1

    def until(one: _Running) -> float:
        return one.begins if one.begins > now else now + one.left * users[operations[one.number].link]

    then = min(map(until, running.values()))
    for stream, one in list(running.items()):
        ended = until(one) <= then and (one.begins <= now or not one.left)
        if one.begins <= now:
            one.left -= (then - now) / users[operations[one.number].link]
        if ended:
            ends[one.number] = then
            del running[stream]
    return then
