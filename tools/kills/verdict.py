"""What must hold after a fault."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from sdp_compile.checkpoint.folder import whole_checkpoints
from sdp_compile.checkpoint.merge import merge
from sdp_compile.checkpoint.reading import Checkpoint
from sdp_compile.errors import SDPError
from tools.kills.job import digest_of
from tools.kills.reference import Reference

_LOST_PEERS = (
    "Connection",
    "connection",
    "closed",
    "reset by peer",
    "timed out",
    "Timed out",
    "Timeout",
    "Broken pipe",
)
"""What torch.distributed says when another process is gone."""


_ENDS = (0, 1, -signal.SIGKILL)
"""How a worker may end: at its end, with an error that it has told, or killed."""


def run_problem(
    events: list[dict[str, Any]], codes: dict[int, int], expected: Reference, must_end: bool = False
) -> str:
    """Returns in words what is wrong with what workers did; empty if nothing is.

    Args:
        events: What they told.
        codes: How they ended.
        expected: The uninterrupted run.
        must_end: Whether all of them must have reached the end.
    """
    for event in events:
        if event["event"] in ("ready", "done"):
            wanted = expected.digests[event["step"], event["rank"]]
            if event["digest"] != wanted:
                return f"worker {event['rank']} has another state after step {event['step']} ({event['event']})"
        if event["event"] == "error" and (must_end or not _is_clear(event)):
            return f"worker {event['rank']}: {event['kinds'][0]}: {event['text']}\n{event['where']}"
    odd = {rank: code for rank, code in codes.items() if code not in ((0,) if must_end else _ENDS)}
    return f"workers ended with {odd}" if odd else ""


def folder_problem(folder: Path, before: dict[int, int], keep: int | None, expected: Reference, space: Path) -> str:
    """Returns in words what is wrong with a folder; empty if nothing is.

    Args:
        folder: The folder of checkpoints.
        before: The order of the whole checkpoints that it held before the fault, by step.
        keep: How many stay.
        expected: The uninterrupted run.
        space: Where files can be written.
    """
    there = whole_checkpoints(folder)
    orders = {step_of(path): int((path / "order").read_text()) for path in there}
    for path in there:
        problem = assembled(path, (), expected, space / "whole")
        if problem:
            return problem
    visible = set(folder.glob("step-*"))
    if visible - set(there):
        return f"{sorted(path.name for path in visible - set(there))} look like checkpoints and are none"
    for step in before.keys() - orders.keys():
        newer = [order for order in orders.values() if order > before[step]]
        if keep is None or len(newer) < keep:
            return f"the checkpoint of step {step} was whole before the fault and is gone; there are {sorted(orders)}"
    return ""


def step_of(path: Path) -> int:
    """Returns the step of a checkpoint, perhaps under its hidden name."""
    return int(path.name.partition("step-")[2][:8])


def assembled(path: Path, lost: tuple[int, ...], expected: Reference, space: Path) -> str:
    """Returns in words how a checkpoint without the files of some workers is not the uninterrupted run's."""
    if lost:
        shutil.copytree(path, space)
        for worker in lost:
            for file in (f"__{worker}_0.distcp", f"worker-{worker}.json"):
                (space / file).unlink()
        path = space
    target = space.with_suffix(".safetensors")
    try:
        checkpoint = Checkpoint(path)
        checkpoint.verify()
        merge(path, target)
        found = digest_of(load_file(target))
    except SDPError as error:
        return f"{path.name} cannot be assembled{f' without workers {lost}' if lost else ''}: {error}"
    finally:
        target.unlink(missing_ok=True)
        if lost:
            shutil.rmtree(space)
    if found != expected.full[checkpoint.manifest.step]:
        return f"{path.name} holds another model than that of step {checkpoint.manifest.step}"
    return ""


def _is_clear(event: dict[str, Any]) -> bool:
    """Whether an error says what happened: one of ours, or that of a collective whose peer is gone."""
    if "SDPError" in event["kinds"] or "DistError" in event["kinds"]:
        return True
    return "RuntimeError" in event["kinds"] and any(word in event["text"] for word in _LOST_PEERS)
