"""Writes a few steps as a trace of ``torch.profiler``, and says how much of their communication is exposed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile, record_function

from sdp_compile.bench.overlap import STEP, Overlap, overlap
from sdp_compile.runtime.waiting.spans import WAIT

STEPS = 3
"""Steps in a trace."""

_CLOCK = "bench clock"

Carried = tuple[str, float, float]
"""The name, start and end of a collective, by `time.perf_counter`."""


def profiled(
    step: Callable[[], Any], device: torch.device, path: Path | None, carried: Sequence[Carried] = ()
) -> Overlap:
    """Runs some steps under the profiler. Collective.

    Args:
        step: Runs one training step.
        device: The device on which it computes.
        path: The file for the trace, for chrome://tracing and Perfetto; None for none.
        carried: Collectives that the profiler does not see; it may grow while the steps run.

    Returns:
        The figures of this worker.
    """
    activities = [ProfilerActivity.CPU]
    if device.type != "cpu":
        activities.append(getattr(ProfilerActivity, device.type.upper()))
    step()  # so that nothing is in flight that began before the profiler
    with profile(activities=activities) as recorder, _named_waits():
        with record_function(_CLOCK):
            began = time.perf_counter()
        for _ in range(STEPS):
            with record_function(STEP):
                step()
                if device.type != "cpu":
                    torch.accelerator.synchronize(device)
    with TemporaryDirectory(prefix="sdp-compile-bench-") as folder:
        written = Path(folder) / "trace.json"
        recorder.export_chrome_trace(str(written))
        trace: dict[str, Any] = json.loads(written.read_text(encoding="utf-8", errors="replace"))
    trace["traceEvents"] += _on_the_wire(trace["traceEvents"], began, [one for one in carried if one[1] >= began])
    if path is not None:
        path.write_text(json.dumps(trace), encoding="utf-8")
    return overlap(trace["traceEvents"])


def _on_the_wire(events: Sequence[Any], began: float, carried: Sequence[Carried]) -> list[dict[str, Any]]:
    """Returns events of collectives that began after ``began``, when the range of the clock was recorded."""
    clock = next(event for event in events if event["name"] == _CLOCK)
    shared = {"ph": "X", "cat": "user_annotation", "pid": clock["pid"], "tid": "wire"}
    return [
        {**shared, "name": name, "ts": clock["ts"] + (start - began) * 1e6, "dur": (end - start) * 1e6}
        for name, start, end in carried
    ]


@contextmanager
def _named_waits() -> Iterator[None]:
    """Names the waits of all libraries that wait from Python, such as FSDP2's."""
    plain = dist.Work.wait

    def wait(self: dist.Work, *args: timedelta) -> bool:
        with record_function(WAIT):
            return plain(self, *args)

    dist.Work.wait = wait  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        dist.Work.wait = plain  # type: ignore[method-assign]
