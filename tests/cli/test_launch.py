"""Local workers: started together, ended together, the first failure shown. The workers here are tiny scripts."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sdp_compile.processes import WorkerFailure, launch

pytestmark = pytest.mark.timeout(120)

SAY = """
import json, os, time
def fail(message, at=None, expected=True):
    rank = os.environ["RANK"]
    report = {"rank": int(rank), "time": at or time.time(), "message": message, "details": "", "expected": expected}
    with open(f"{os.environ['SDP_COMPILE_FAILURES']}/{rank}.json", "w") as file:
        json.dump(report, file)
    raise SystemExit(1)
"""
LINGER = """
import os, sys, time
from sdp_compile.train.worker import watch_leash
watch_leash(int(os.environ["SDP_COMPILE_LEASH_FD"]))
open(f"{sys.argv[1]}/{os.environ['RANK']}-{os.getpid()}", "w").close()
time.sleep(100)
"""
PARENT = """
import sys
from sdp_compile.processes import launch
try:
    launch([sys.executable, "-c", sys.argv[1], sys.argv[2]], 3)
except KeyboardInterrupt:
    raise SystemExit(130)
"""


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


def test_every_rank_runs_once_with_torchrun_like_environment(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys; e = os.environ; pathlib.Path(sys.argv[1], e['RANK']).write_text("
        "' '.join(e[k] for k in ('LOCAL_RANK', 'WORLD_SIZE', 'LOCAL_WORLD_SIZE', 'OMP_NUM_THREADS')))"
    )
    launch(python(code, str(tmp_path)), 3)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        str(rank): f"{rank} 3 3 {os.environ.get('OMP_NUM_THREADS', '1')}" for rank in range(3)
    }


def test_the_earliest_failure_is_raised() -> None:
    code = SAY + "fail(f'from {os.environ[\"RANK\"]}', at=100 - int(os.environ['RANK']))"
    with pytest.raises(WorkerFailure, match=r"^from 2$") as caught:
        launch(python(code), 3)
    assert caught.value.expected


def test_one_failure_ends_the_others() -> None:
    started = time.monotonic()
    code = SAY + "fail('mine') if os.environ['RANK'] == '1' else time.sleep(100)"
    with pytest.raises(WorkerFailure, match=r"^mine$"):
        launch(python(code), 3)
    assert time.monotonic() - started < 20


def test_a_worker_that_dies_without_a_word_is_named() -> None:
    code = (
        "import os, signal, time; os.kill(os.getpid(), signal.SIGKILL) if os.environ['RANK'] == '1' else time.sleep(60)"
    )
    with pytest.raises(WorkerFailure, match=r"worker 1 was ended by SIGKILL \(out of memory"):
        launch(python(code), 2)
    consequence = SAY + "time.sleep(0.3) or fail('lost connection')"
    with pytest.raises(WorkerFailure, match="worker 1 was ended by SIGSEGV"):
        launch(python(f"import os, signal\nif os.environ['RANK'] == '1': os.kill(os.getpid(), 11)\n{consequence}"), 2)
    with pytest.raises(WorkerFailure, match="worker 0 ended with exit code 7"):
        launch(python("raise SystemExit(7)"), 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_workers_end_with_their_parent(number: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C, an orderly end, a closed terminal; and a parent that has no chance to end them itself."""
    parent = subprocess.Popen(
        python(PARENT, LINGER, str(tmp_path)),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    workers = wait_for(tmp_path, 3)
    started = time.monotonic()
    parent.send_signal(number)
    parent.wait(10)
    while any(alive(worker) for worker in workers):
        assert time.monotonic() - started < 10, "workers outlive their parent"
        time.sleep(0.05)
    assert parent.returncode == (-9 if number == signal.SIGKILL else 130)


def wait_for(folder: Path, count: int) -> list[int]:
    """The process ids of ``count`` workers, once all are there."""
    while True:
        names = [path.name for path in folder.iterdir()]
        if len(names) == count:
            return [int(name.split("-")[1]) for name in names]
        time.sleep(0.05)


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    # An orphan that has ended may stay a zombie where the first process of a container does not reap.
    return (
        Path(f"/proc/{process}/stat").read_text().rsplit(")")[-1].split()[0] != "Z" if os.path.exists("/proc") else True
    )
