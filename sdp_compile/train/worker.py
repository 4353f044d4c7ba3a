"""A worker process of ``train``: joins the process group, runs the job, and reports a failure in one message."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sdp_compile.errors import DamagedState, SDPError
from sdp_compile.processes import DAMAGED, FAILURES, LEASH_FD, STORE_FD, STORE_PORT
from sdp_compile.train.settings import TrainSettings

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_NETWORK_ERRORS = ("DistNetworkError", "DistStoreError", "DistBackendError")
_BROKEN = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused")


def main() -> None:
    """Entry point of a worker that `sdp_compile.processes.launch` started."""
    watch_leash(int(os.environ[LEASH_FD]))
    try:
        work(TrainSettings.loads(sys.argv[1]))
    except SystemExit as stopped:  # it was given notice, and has saved
        sys.stdout.flush()
        os._exit(stopped.code if isinstance(stopped.code, int) else 1)
    except Exception as error:
        _report_failure(error)
        sys.stdout.flush()
        os._exit(DAMAGED if isinstance(error, DamagedState) else 1)  # at once: the parent ends the other workers


def work(settings: TrainSettings) -> None:
    """Trains as one rank of the process group that the environment variables describe."""
    from sdp_compile.train.job import run

    with process_group() as device:
        run(settings, device)


@contextmanager
def process_group() -> Iterator[str]:
    """Joins the process group on this worker's device: an accelerator if each local worker has one, else the CPU.

    Yields the device's name.
    """
    import torch
    import torch.distributed as dist

    from sdp_compile.train.joining import joined_store
    from sdp_compile.train.watch import Watch

    rank, workers = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    local_workers = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    device = torch.device("cpu")
    accelerators = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    if accelerators >= local_workers:
        device = torch.device(str(torch.accelerator.current_accelerator()).split(":")[0], local_rank)
        torch.accelerator.set_device_index(local_rank)
    elif accelerators and local_rank == 0:
        print(
            f"Training on the CPU: {local_workers} workers need an accelerator each, and this machine has "
            f"{accelerators}. Pass --workers {accelerators} to train on accelerators.",
            file=sys.stderr,
        )
    if STORE_PORT in os.environ:
        host = "127.0.0.1"
        store: Store = dist.TCPStore(  # type: ignore[attr-defined]
            host,
            int(os.environ[STORE_PORT]),
            workers,
            is_master=rank == 0,
            wait_for_workers=False,
            master_listen_fd=int(os.environ[STORE_FD]) if rank == 0 else None,
        )
    else:
        host, store = os.environ.get("MASTER_ADDR", ""), joined_store(rank, workers)
    watch = Watch(store, rank, workers, host)
    backend = dist.get_default_backend_for_device(device)
    dist.init_process_group(backend, store=store, rank=rank, world_size=workers)
    try:
        yield str(device)
    except SystemExit:  # all workers were given notice
        watch.close()
        raise
    watch.close()
    dist.destroy_process_group()  # not after an error, when it may wait for workers that are gone


def describe(error: Exception, rank: int) -> str:
    """Returns the message for ``error``; errors of other packages are marked with the rank and their type."""
    if isinstance(error, SDPError):
        return str(error)
    return f"worker {rank} failed: {type(error).__name__}: {error} (--debug shows where)"


def is_loss(error: BaseException | None) -> bool:
    """Whether an error follows from the end of another worker: a connection to it, or to its store, is broken."""
    while error is not None:
        text = str(error)
        if isinstance(error, (ConnectionError, EOFError)) or type(error).__name__ in _NETWORK_ERRORS:
            return True
        if isinstance(error, RuntimeError) and any(words in text for words in _BROKEN):
            return True
        error = error.__cause__ or error.__context__
    return False


def _report_failure(error: Exception) -> None:
    rank = int(os.environ["RANK"])
    report = {
        "rank": rank,
        "time": time.time(),
        "expected": isinstance(error, SDPError),
        "may_pass": is_loss(error) or not isinstance(error, SDPError),
        "message": describe(error, rank),
        "details": "".join(traceback.format_exception(error)),
    }
    path = Path(os.environ[FAILURES], f"{rank}.part")
    path.write_text(json.dumps(report))
    path.rename(path.with_suffix(".json"))  # the parent never reads half a report


def watch_leash(descriptor: int) -> None:
    """Ends this process as soon as the process that holds the other end of the pipe ``descriptor`` is gone."""

    def watch() -> None:
        os.read(descriptor, 1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main()
