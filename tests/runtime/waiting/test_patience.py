"""A worker that leaves, skips or waits elsewhere ends all of them with one error that names what each of them does."""

from __future__ import annotations

import atexit
import io
import os
import signal
import sys
import time
import warnings
from contextlib import redirect_stderr, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import sdp_compile as sdp
from sdp_compile.runtime.state.full_state import full_state_dict
from sdp_compile.runtime.waiting import patience
from tests.distributed import WorkerFailed, run_workers
from tests.runtime.connected import WORKERS, connected, loss_of
from tests.runtime.stub import CYCLIC

pytestmark = pytest.mark.timeout(120)


def train(module: Any, seed: int, batches: int = 1, clip: bool = False) -> None:
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    for batch in range(batches):
        optimizer.zero_grad()
        loss_of(module, seed + batch).backward()
        if clip:
            sdp.clip_grad_norm_(module, 1.0)
        optimizer.step()


def raised(call: Any) -> tuple[str, float]:
    """The error of a call, and after how many seconds it came."""
    began = time.monotonic()
    try:
        call()
    except sdp.SDPError as error:
        return str(error), time.monotonic() - began
    except RuntimeError as error:
        return f"RuntimeError {error}", time.monotonic() - began
    return "no error", time.monotonic() - began


def hurry() -> None:
    patience.ASK_EVERY, patience.STALLED_AFTER = 2.0, 5.0


def in_a_barrier_of_their_own(rank: int) -> tuple[str, float, str]:
    hurry()
    module = connected(rank, CYCLIC)
    train(module, rank, clip=True)
    printed = io.StringIO()
    with redirect_stderr(printed):
        found = raised(dist.barrier if rank == 2 else lambda: train(module, rank))
    return *found, printed.getvalue()


def test_a_worker_in_a_collective_of_the_users() -> None:
    found = run_workers(in_a_barrier_of_their_own, WORKERS, timeout=600)
    for rank in (0, 1, 3):
        text, seconds, printed = found[rank]
        assert seconds < 20
        assert "worker 2: in torch.distributed.barrier() (test_patience.py, line" in text
        assert "workers 0, 1, 3: in a backward pass that averages gradients (test_patience" in text
        assert "uneven numbers of batches" in text
        assert not printed
    text, seconds, printed = found[2]
    assert text.startswith("RuntimeError")  # the others have ended
    assert printed.startswith("Worker 2 is in torch.distributed.barrier()")
    assert "workers 0, 1, 3: in a backward pass" in printed


def clips_alone(rank: int) -> tuple[str, float]:
    module = connected(rank, CYCLIC)
    train(module, rank, clip=True)
    loss_of(module, rank).backward()
    if rank == 1:
        return raised(lambda: torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0))
    return raised(lambda: train(module, rank))


def test_a_worker_that_clips_alone() -> None:
    for text, seconds in run_workers(clips_alone, WORKERS, timeout=600):
        assert seconds < 10
        assert "orkers 0, 2, 3 are in a backward pass that averages gradients" in text
        assert "orker 1 is in the gradient norm" in text


def leaves(rank: int, how: str, folder: str) -> None:
    hurry()
    module = connected(rank, CYCLIC)
    train(module, rank)
    if rank == 3:
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif how == "state":
            text, seconds = raised(lambda: full_state_dict(module))
        else:
            if how == "error":
                sys.last_value = ValueError("a defect of the user's")  # as after an error that nobody has caught
            atexit._run_exitfuncs()
            os._exit(0)
    else:
        text, seconds = raised(lambda: train(module, rank))
    Path(folder, str(rank)).write_text(f"{seconds} {text}")


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("kill", "worker 3: no answer"),
        ("exit", "worker 3: ended without an error"),
        ("error", "worker 3: ended with ValueError: a defect of the user's"),
        ("state", "worker 3 is in full_state_dict()"),
    ],
)
def test_a_worker_that_leaves(how: str, expected: str, tmp_path: Path) -> None:
    with suppress(WorkerFailed):  # a worker that was killed
        run_workers(leaves, WORKERS, how, str(tmp_path), timeout=600, limit=60)
    for rank in range(4 if how == "state" else 3):
        seconds, _, text = (tmp_path / str(rank)).read_text().partition(" ")
        assert float(seconds) < 20
        assert expected in text and "uneven numbers of batches" in text


def slow(rank: int) -> tuple[str, list[str]]:
    hurry()
    patience.WARN_AFTER = 4.0
    module = connected(rank, CYCLIC)
    train(module, rank)
    if rank == 1:
        time.sleep(12)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        text, _ = raised(lambda: train(module, rank))
    return text, [str(warning.message) for warning in found]


def among_several_groups(rank: int) -> tuple[str, float]:
    hurry()
    module = connected(rank, CYCLIC)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    group = dist.new_group()
    other = sdp.compile(model, sdp.NeuronPolicy(coverage=0.5), (torch.randn(6, 8),), group=group)
    train(module, rank)
    return raised(other.full_state_dict if rank == 0 else lambda: other(torch.randn(6, 8)).sum().backward())


def test_a_wait_among_several_groups_of_the_same_processes_ends() -> None:
    for text, seconds in run_workers(among_several_groups, WORKERS, timeout=600):
        assert seconds < 20
        assert "Worker 0 is in full_state_dict()" in text and "workers 1, 2, 3 are in a backward pass" in text


def test_a_worker_that_computes_is_waited_for() -> None:
    found = run_workers(slow, WORKERS)
    assert {text for text, _ in found} == {"no error"}
    texts = [text for _, warned in found for text in warned if "has waited" in text]
    assert any("worker 1: in no collective (test_patience.py, line" in text for text in texts)
