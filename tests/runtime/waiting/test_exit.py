"""A process that ends while its observer is within a call of torch, which a thread must not be at that time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(120)

SCRIPT = """
import sys, time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
import torch.distributed as dist
from sdp_compile.runtime.waiting import observer
from sdp_compile.runtime.waiting.board import Board

def slowly(self, *arguments):  # as in a store that is far away
    with suppress(RuntimeError):
        self._store.wait(["never"], timedelta(seconds=0.3))
    return 0

Board.asked = slowly
observer.LOOK_EVERY = 0.01
rank, file = int(sys.argv[1]), Path(sys.argv[2])
if rank == 0:
    store = dist.TCPStore("127.0.0.1", 0, 2, True, wait_for_workers=False)
    file.with_suffix(".part").write_text(str(store.port))
    file.with_suffix(".part").rename(file)
else:
    while not file.exists():
        time.sleep(0.05)
    store = dist.TCPStore("127.0.0.1", int(file.read_text()), 2, False)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
observer.observe(dist.group.WORLD)
dist.barrier()
time.sleep(0.1)
if sys.argv[3] == "destroyed":
    dist.destroy_process_group()
"""


@pytest.mark.parametrize("group", ["destroyed", "left"])
def test_a_process_ends_without_abort(group: str, tmp_path: Path) -> None:
    commands = [[sys.executable, "-c", SCRIPT, str(rank), str(tmp_path / "port"), group] for rank in range(2)]
    workers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    errors = [worker.communicate(timeout=100)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors
