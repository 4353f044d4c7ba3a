"""Names what the runtime does in the traces of ``torch.profiler``; free where nothing is profiled."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.autograd import profiler

WAIT = "sdp_compile::wait"
"""The host waits for a collective."""

LAUNCH = "sdp_compile::launch"
"""The host starts a collective."""

AVERAGE = "sdp_compile::average"
"""The end of backward: the rest of the reductions, and averages written to ``.grad``."""


def span(name: str) -> AbstractContextManager[object]:
    """Returns a context that a trace shows under this name."""
    return torch.profiler.record_function(name) if profiler._is_profiler_enabled else nullcontext()
