"""Chains of collectives beside the computation: asynchronous on the CPU, in streams of their own on an accelerator.

On an accelerator each lane has a stream, in which the collectives of one level run in the order in which they were
issued. All workers issue all collectives of all lanes in one order, as the documentation of
``torch.distributed.new_group`` requires of groups that run at the same time. There streams wait and not the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from sdp_compile.runtime.waiting.patience import complete
from sdp_compile.runtime.waiting.spans import LAUNCH, span

_streams: dict[tuple[torch.device, int], torch.Stream] = {}
"""The stream of each lane in use, by device and number."""


def _stream(device: torch.device, lane: int) -> torch.Stream:
    found = _streams.get((device, lane))
    if found is None:  # making one takes most of a millisecond
        found = _streams[device, lane] = torch.Stream(device)
    return found


@dataclass(frozen=True)
class Begun:
    """Collectives that were issued.

    Attributes:
        works: The collectives, each with a tensor that it reads or writes.
        end: Called when all of them have completed. Returns the results.
    """

    works: Sequence[tuple[dist.Work | None, Tensor]]
    end: Callable[[], list[Tensor]]


@dataclass(frozen=True)
class Step:
    """Collectives to issue.

    Attributes:
        lane: The number of their lane.
        begin: Issues them, given the tensors that they work on.
        explained: A context that explains their errors.
    """

    lane: int
    begin: Callable[[Sequence[Tensor]], Begun]
    explained: Callable[[], AbstractContextManager[None]]


class Pending:
    """The results of collectives that run beside the computation.

    Args:
        step: Issues the collectives.
        before: What they work on: tensors, or the results of earlier collectives.
        device: The device of the tensors.
    """

    def __init__(self, step: Step, before: Sequence[Tensor] | Pending, device: torch.device) -> None:
        self._explained = step.explained
        self._results: list[Tensor] | None = None
        self._event: torch.Event | None = None
        if device.type == "cpu":
            tensors = before.results() if isinstance(before, Pending) else before
            with self._explained(), span(LAUNCH):
                self._begun = step.begin(tensors)
            return
        stream = _stream(device, step.lane)
        if isinstance(before, Pending):
            assert before._event is not None and before._results is not None
            stream.wait_event(before._event)
            tensors = before._results
        else:
            stream.wait_stream(torch.accelerator.current_stream(device))
            tensors = list(before)
        for tensor in tensors:
            tensor.record_stream(stream)
        with span(LAUNCH), stream, self._explained():
            begun = step.begin(tensors)
            for work, _ in begun.works:
                if work is not None:
                    work.wait()
            self._results = begun.end()
            self._event = stream.record_event()

    def results(self) -> list[Tensor]:
        """Waits for the collectives, and returns their results."""
        if self._event is not None:
            assert self._results is not None
            for tensor in self._results:
                current = torch.accelerator.current_stream(tensor.device)
                current.wait_event(self._event)
                tensor.record_stream(current)
        elif self._results is None:
            with self._explained():
                for work, tensor in self._begun.works:
                    complete(work, tensor)
            self._results = self._begun.end()
            del self._begun
        return self._results


def wait_for_all() -> None:
    """Makes the current streams wait for all issued collectives; called before a collective in the current stream."""
    for (device, _), stream in _streams.items():
        torch.accelerator.current_stream(device).wait_stream(stream)
