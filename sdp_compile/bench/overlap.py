"""The exposed communication of a training step, from the events of a trace that ``torch.profiler`` wrote."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdp_compile.runtime.waiting.spans import WAIT

Event = Mapping[str, Any]
Interval = tuple[float, float]

STEP = "bench step"
"""The name of the range around each step."""

LINK = "link:"
"""How the names of collectives on a link of given speed begin; see `sdp_compile.bench.one_of.delay`."""

_KERNELS = ("kernel", "gpu_memcpy", "gpu_memset")
_KERNEL_OF_COLLECTIVE = re.compile(r"^(nccl|rccl|oneccl|msccl)", re.IGNORECASE)
# Gloo, UCC and MPI report each collective from its launch to its end, on a thread of theirs.
_COLLECTIVE_ON_HOST = re.compile(rf"^(gloo|ucc|mpi|{LINK[:-1]}):")
_WAITS = re.compile(rf"^({re.escape(WAIT)}$|_?c10d_functional::wait_tensor)")
_LAUNCH = re.compile(r"^(_?c10d(_functional)?::|record_param_comms)")
_RANGE_THAT_COMPUTES = re.compile(r"^(sdp_compile::|Optimizer\.)")


@dataclass(frozen=True)
class Overlap:
    """What a worker did in the steps of a trace, in seconds per step.

    Attributes:
        steps: The number of steps.
        step: The time of a step.
        communication: How long at least one collective ran, or the worker waited for one.
        exposed: How long that was so while this worker computed nothing.
    """

    steps: int
    step: float
    communication: float
    exposed: float

    @property
    def hidden(self) -> float | None:
        """The share of communication that ran while the worker computed; None if there was no communication."""
        return None if not self.communication else 1 - self.exposed / self.communication

    def to_dict(self) -> dict[str, Any]:
        """Returns the figures as plain data."""
        return {
            "steps": self.steps,
            "step_seconds": self.step,
            "communication_seconds": self.communication,
            "exposed_seconds": self.exposed,
            "overlap_share": self.hidden,
        }


def overlap(events: Iterable[Event]) -> Overlap:
    """Returns the exposed communication of the steps in a trace.

    Where the trace has kernels of an accelerator, the worker computes while any of them runs but a collective's. On the
    CPU it computes while an operator runs on the thread of the steps, except in ranges in which it waits.

    Args:
        events: The ``traceEvents`` of the file; times are in microseconds.

    Raises:
        ValueError: If the trace has no step.
    """
    complete = [event for event in events if event.get("ph") == "X" and event.get("dur", 0) > 0]
    marks = [event for event in complete if event["name"] == STEP and event.get("cat") == "user_annotation"]
    if not marks:
        raise ValueError(f"The trace has no range named {STEP!r}.")
    thread = (marks[0]["pid"], marks[0]["tid"])
    waits = union(_span(event) for event in complete if _WAITS.match(event["name"]))
    kernels = [event for event in complete if event.get("cat") in _KERNELS]
    running = [event for event in kernels if _KERNEL_OF_COLLECTIVE.match(event["name"])]
    running += [event for event in complete if _COLLECTIVE_ON_HOST.match(event["name"])]
    communicating = union([*map(_span, running), *waits])
    if kernels:
        computing = union(_span(event) for event in kernels if not _KERNEL_OF_COLLECTIVE.match(event["name"]))
    else:
        on_thread = (event for event in complete if (event["pid"], event["tid"]) == thread)
        computing = without(union(_span(event) for event in on_thread if _computes(event)), waits)
    steps = union(map(_span, marks))
    communicating = within(communicating, steps)
    count = len(marks) * 1e6  # microseconds
    return Overlap(
        len(marks),
        length(steps) / count,
        length(communicating) / count,
        length(without(communicating, computing)) / count,
    )


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """Returns disjoint ascending intervals that cover the same."""
    result: list[Interval] = []
    for start, end in sorted(intervals):
        if result and start <= result[-1][1]:
            result[-1] = result[-1][0], max(end, result[-1][1])
        else:
            result.append((start, end))
    return result


def without(intervals: Sequence[Interval], others: Sequence[Interval]) -> list[Interval]:
    """Returns what ``intervals`` cover and ``others`` do not; both are disjoint and ascending."""
    result: list[Interval] = []
    position = 0
    for start, end in intervals:
        while position < len(others) and others[position][1] <= start:
            position += 1
        at = position
        while at < len(others) and others[at][0] < end:
            if start < others[at][0]:
                result.append((start, others[at][0]))
            start = max(start, others[at][1])
            at += 1
        if start < end:
            result.append((start, end))
    return result


def within(intervals: Sequence[Interval], others: Sequence[Interval]) -> list[Interval]:
    """Returns what both cover; both are disjoint and ascending."""
    return without(intervals, without(intervals, others))


def length(intervals: Iterable[Interval]) -> float:
    """Returns the total length of disjoint intervals."""
    return sum(end - start for start, end in intervals)


def _span(event: Event) -> Interval:
    return float(event["ts"]), float(event["ts"]) + float(event["dur"])


def _computes(event: Event) -> bool:
    """Whether an event on the thread of the steps is an operator, or a range of code that computes."""
    name = event["name"]
    if _LAUNCH.match(name) or _COLLECTIVE_ON_HOST.match(name) or _WAITS.match(name):
        return False
    return event.get("cat") == "cpu_op" or bool(_RANGE_THAT_COMPUTES.match(name))
