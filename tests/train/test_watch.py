"""A worker ends soon after another one has ended without a word, also where no collective tells it."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from sdp_compile.train import watch
from sdp_compile.train.watch import Watch
from tests.distributed import WorkerFailed, run_workers

pytestmark = pytest.mark.timeout(120)


def store_of(rank: int) -> dist.Store:
    return dist.distributed_c10d._get_process_group_store(dist.group.WORLD)


def bereft(rank: int, dying: int, folder: Path) -> None:
    watch._GRACE = 0.2
    watching = Watch(store_of(rank), rank, 3, "localhost")
    if rank == 0:  # strangers are no workers
        for words in (b"", b"hello", b"x" * 100 + b"\n", b"0000000000000000 1\n"):
            with socket.create_connection(("localhost", watching._server.getsockname()[1])) as stranger:
                stranger.sendall(words)
    dist.barrier()
    time.sleep(1)
    (folder / str(rank)).touch()  # nobody has ended yet
    if rank == dying:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


@pytest.mark.parametrize("dying", [0, 2])
def test_the_end_of_a_worker_ends_the_others(dying: int, tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(WorkerFailed) as caught:
        run_workers(bereft, 3, dying, tmp_path)
    assert set(caught.value.failures.values()) == {"the process ended without a report"}
    assert len(caught.value.failures) == 3 and time.monotonic() - started < 40
    assert len(list(tmp_path.iterdir())) == 3


def parting(rank: int, first: int) -> str:
    watch._GRACE = 0.1
    watching = Watch(store_of(rank), rank, 3, "localhost")
    dist.barrier()
    time.sleep(0 if rank == first else 1)
    watching.close()
    return "well"


@pytest.mark.parametrize("first", [0, 1])
def test_a_farewell_ends_nobody(first: int) -> None:
    assert run_workers(parting, 3, first) == ["well"] * 3
