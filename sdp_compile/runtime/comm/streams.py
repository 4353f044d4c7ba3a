"""Collectives that run beside the computation: asynchronous on the CPU, in a stream of their own on an accelerator."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from sdp_compile.runtime.waiting.patience import complete
from sdp_compile.runtime.waiting.spans import LAUNCH, span

_streams: dict[torch.device, torch.Stream] = {}
"""The communication stream of each device in use."""


def issue(collective: Callable[[], dist.Work | None], *tensors: Tensor) -> Callable[[], object]:
    """Starts an asynchronous collective.

    On an accelerator the collectives of all process groups run one after the other, because overlapping groups that run
    at the same time can block each other (documentation of ``torch.distributed.new_group``). There the current stream
    waits and not the host.

    Args:
        collective: Starts the collective and returns its handle.
        tensors: The tensors that it reads and writes, at least one.

    Returns:
        A function that waits for the collective.
    """
    device = tensors[0].device
    if device.type == "cpu":
        with span(LAUNCH):
            work = collective()
        return lambda: complete(work, tensors[0])
    stream = _streams.setdefault(device, torch.Stream(device))
    stream.wait_stream(torch.accelerator.current_stream(device))
    with span(LAUNCH), stream:
        work = collective()
        if work is not None:
            work.wait()
        event = stream.record_event()
    for tensor in tensors:
        tensor.record_stream(stream)
    return lambda: torch.accelerator.current_stream(device).wait_event(event)


def wait_for_all() -> None:
    """Makes the current streams wait for all issued collectives; called before a collective in the current stream."""
    for device, stream in _streams.items():
        torch.accelerator.current_stream(device).wait_stream(stream)
