"""One worker of a run, in a process forked from one that has imported all and captured the model."""

from __future__ import annotations

import errno
import faulthandler
import json
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from sdp_compile.errors import SDPError
from sdp_compile.structure.analysis import Analysis
from tools.kills.job import Job
from tools.kills.trial import STEPS, WORKERS, Kind

_OPERATIONS = ("os.rename", "os.mkdir", "os.remove", "os.rmdir")


@dataclass(frozen=True)
class Orders:
    """What the workers of a run do.

    Attributes:
        kind: What is trained.
        folder: The folder of checkpoints.
        start: The checkpoint, or the folder, to go on from; None to begin.
        saves: The steps after which is saved, and whether in the background.
        options: ``redundancy`` and ``keep``.
        operation: The file operation before which one worker stops, and the worker.
        error: The number of the system's error that every operation has from then on, instead.
        goes_on: Whether training goes on after a save that failed.
        told: Whether digests are told after every step.
    """

    kind: Kind
    folder: Path
    start: Path | None
    saves: dict[int, bool]
    options: dict[str, Any]
    operation: tuple[int, int] | None = None
    error: int = 0
    goes_on: bool = False
    told: bool = False


def stack_file(orders: Orders, rank: int) -> Path:
    """Returns the file into which a worker writes where it is, when it gets SIGUSR2."""
    return orders.folder.parent / f"{orders.folder.name}-{rank}.stack"


class Teller:
    """Tells the process that started the workers what this one does, in lines that arrive whole."""

    def __init__(self, pipe: int, rank: int) -> None:
        self._pipe, self._rank = pipe, rank

    def __call__(self, event: str, **more: Any) -> None:
        line = (
            json.dumps(
                {"event": event, "rank": self._rank, "time": time.monotonic(), "cpu": time.process_time(), **more}
            )
            + "\n"
        )
        os.write(self._pipe, line.encode())


def work(orders: Orders, rank: int, listening: int, port: int, pipe: int, timeout: float, analysis: Analysis) -> None:
    """Does what a worker is told, and ends the process."""
    tell = Teller(pipe, rank)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # where torch's threads say that a peer is gone
    code = 1
    faulthandler.register(signal.SIGUSR2, stack_file(orders, rank).open("w"))
    try:
        warnings.simplefilter("ignore")
        _work(orders, rank, listening, port, timeout, analysis, tell)
        code = 0
    except BaseException as error:
        kinds = [one.__name__ for one in type(error).__mro__]
        where = traceback.format_exc()
        tell("error", kinds=kinds, text=str(error)[:600], where=where[-1800:])
    finally:
        os._exit(code)


def _work(
    orders: Orders, rank: int, listening: int, port: int, timeout: float, analysis: Analysis, tell: Teller
) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(WORKERS), LOCAL_RANK=str(rank), GLOO_SOCKET_IFNAME="lo")
    store = dist.TCPStore(  # type: ignore[attr-defined]
        "127.0.0.1",
        port,
        WORKERS,
        is_master=rank == 0,
        wait_for_workers=False,
        master_listen_fd=listening if rank == 0 else None,
    )
    if rank != 0:
        os.close(listening)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORKERS, timeout=timedelta(seconds=timeout))
    job = Job(orders.kind, rank, analysis, seed=0 if orders.start is None else 1)
    if orders.start is not None:
        job.load(orders.start)
    tell("ready", step=job.step, digest=job.digest())
    if orders.operation is not None:
        _watch(orders, rank, tell)
    last: Any = None
    while job.step < STEPS:
        job.train()
        told = {"digest": job.digest(), "full": job.full_digest()} if orders.told else {}
        tell("step", step=job.step, writing=last is not None and not last.done(), **told)
        if job.step in orders.saves:
            last = _save(job, orders, tell) or last
    if last is not None:
        _failing(lambda: last.wait(), orders, tell)
    tell("done", step=job.step, digest=job.digest())
    dist.barrier()


def _save(job: Job, orders: Orders, tell: Teller) -> Any:
    asynchronous = orders.saves[job.step]
    tell("save", step=job.step)
    saved = _failing(lambda: job.save(orders.folder, asynchronous=asynchronous, **orders.options), orders, tell)
    tell("saved", step=job.step, asynchronous=asynchronous)
    return saved if asynchronous else None


def _failing(call: Callable[[], Any], orders: Orders, tell: Teller) -> Any:
    """Calls what may fail on all workers together, after which they may go on."""
    try:
        return call()
    except SDPError as error:
        if not orders.goes_on:
            raise
        tell("refused", text=str(error)[:600])
        return None


def _watch(orders: Orders, rank: int, tell: Teller) -> None:
    """Stops this process before a file operation in the folder, or makes all operations from then on fail."""
    assert orders.operation is not None
    number, watched = orders.operation
    if rank != watched:
        return
    count, place = 0, str(orders.folder)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in _OPERATIONS and not (event == "open" and _writes(arguments)):
            return
        path = os.fsdecode(arguments[0]) if isinstance(arguments[0], (str, bytes, os.PathLike)) else ""
        if not path.startswith(place) and (not path or os.path.isabs(path)):
            return
        count += 1
        if orders.error and count > number:
            if count == number + 1:
                tell("fault", what=event)
            raise OSError(orders.error, os.strerror(orders.error), path)
        if count == number + 1:
            tell("operation", what=event, path=path)
            os.kill(os.getpid(), signal.SIGSTOP)

    sys.addaudithook(hook)


def _writes(arguments: tuple[Any, ...]) -> bool:
    _, mode, flags = arguments
    if isinstance(mode, str):
        return any(letter in mode for letter in "wxa+")
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))


READ_ONLY, FULL = errno.EROFS, errno.ENOSPC
