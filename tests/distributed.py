"""Runs a function in several processes that share a Gloo process group, for tests."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist

from tests import captures

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


class WorkerFailed(AssertionError):
    """What the failed workers reported, by rank."""

    def __init__(self, failures: dict[int, str]) -> None:
        self.failures = failures
        super().__init__("\n".join(f"worker {rank}:\n{text}" for rank, text in sorted(failures.items())))


def run_workers(
    function: Callable[..., Any], workers: int, *args: Any, limit: float = 100.0, timeout: float = 60.0
) -> list[Any]:
    """``function(rank, *args)`` in each of ``workers`` processes; their results (tensors included) by rank.

    ``limit`` is the time for all of it, ``timeout`` that of each collective, in seconds; SDP_TEST_PATIENCE multiplies
    both on a machine that does other work. A failure on any rank raises
    WorkerFailed with all tracebacks; processes that are still running are killed.
    """
    patience = float(os.environ.get("SDP_TEST_PATIENCE", "1"))
    limit, timeout = limit * patience, timeout * patience
    # One server imports torch once; each worker is a fork of it, with no threads of its own to inherit.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.preload"])
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes, pipes = [], []
    for rank in range(workers):
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_worker, args=(theirs, rank, workers, store.port, timeout, function, args), daemon=True
        )
        process.start()
        theirs.close()
        processes.append(process)
        pipes.append(ours)
    try:
        results, failures = _collect(pipes, time.monotonic() + limit)
    finally:
        for process in processes:
            process.join(2)
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, signal.SIGKILL)
                process.join()
    if failures:
        raise WorkerFailed(failures)
    return [results[rank] for rank in range(workers)]


def _collect(pipes: list[Connection], deadline: float) -> tuple[dict[int, Any], dict[int, str]]:
    results: dict[int, Any] = {}
    failures: dict[int, str] = {}
    ranks = {pipe: rank for rank, pipe in enumerate(pipes)}
    while ranks:
        # After a failure the others get a moment to report theirs.
        ready = wait(list(ranks), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            failures.update((rank, "did not end in time") for rank in ranks.values())
            break
        for pipe in ready:
            assert isinstance(pipe, Connection)
            rank = ranks.pop(pipe)
            try:
                ok, payload = pipe.recv()
            except EOFError:
                failures[rank] = "the process ended without a report"
                continue
            if ok:
                results[rank] = torch.load(io.BytesIO(payload), weights_only=False)
            else:
                failures[rank] = payload
                deadline = min(deadline, time.monotonic() + 20)
    return results, failures


def _worker(
    pipe: Connection, rank: int, workers: int, port: int, timeout: float, function: Callable[..., Any], args: Any
) -> None:
    torch.set_num_threads(1)
    captures.share()
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(workers), LOCAL_RANK=str(rank))
    try:
        store = dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=workers, timeout=timedelta(seconds=timeout))
        result = function(rank, *args)
        buffer = io.BytesIO()
        torch.save(result, buffer)
        pipe.send((True, buffer.getvalue()))
    except BaseException:
        pipe.send((False, traceback.format_exc()))
    pipe.close()
    # Destroying groups can wait for peers that failed.
    os._exit(0)
