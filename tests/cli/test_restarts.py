"""Local workers that are started again after one was lost. The workers here are tiny scripts."""

from __future__ import annotations

import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from sdp_compile.cli.train import check_new
from sdp_compile.errors import SDPError
from sdp_compile.processes import STOPPED, WorkerFailure
from sdp_compile.restarts import launch_again
from sdp_compile.train.settings import TrainSettings
from tests.cli.test_launch import SAY, python, wait_for

pytestmark = pytest.mark.timeout(120)

DIE = """
import os, signal, sys, time
rank, size, restart = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(sys.argv[1])
"""
KILL = "os.kill(os.getpid(), signal.SIGKILL)"


def run(code: str, restarts: int, least: int | None = None, workers: int = 4) -> tuple[list[int], list[str]]:
    """How many workers were started each time, and what was said."""
    starts: list[int] = []
    words: list[str] = []

    def command(count: int, restart: int) -> list[str]:
        assert restart == len(starts)
        starts.append(count)
        return python(DIE + code, str(restart))

    launch_again(command, workers, restarts, least, words.append)
    return starts, words


def test_as_many_workers_start_again() -> None:
    starts, words = run(f"if rank == restart and restart < 2: {KILL}\nif restart < 2: time.sleep(60)", 3)
    assert starts == [4, 4, 4]
    assert words[0].startswith("worker 0 was ended by SIGKILL") and words[0].endswith("Restart 1 of 3, with 4 workers.")
    assert words[1].startswith("worker 1 was ended by SIGKILL") and words[1].endswith("Restart 2 of 3, with 4 workers.")


def test_fewer_workers_go_on_but_not_fewer_than_the_least() -> None:
    both = f"if restart < 3 and rank >= size - 2: {KILL}\nif restart < 3: time.sleep(60)"
    starts, words = run(both, 3, 3, 6)
    assert starts == [6, 4, 3, 3]
    assert "worker 4 was ended by SIGKILL, worker 5 by SIGKILL" in words[0]
    with pytest.raises(WorkerFailure, match="ended by SIGKILL") as caught:
        run(both, 2, 1, 6)
    assert caught.value.killed == (0, 1)


def test_workers_that_abort_because_another_was_killed_are_not_lost() -> None:
    code = f"if restart == 0 and rank == 1: {KILL}\nif restart == 0: time.sleep(0.5); os.abort()"
    assert run(code, 1, 1)[0] == [4, 3]


def test_what_the_user_has_to_correct_is_final() -> None:
    with pytest.raises(WorkerFailure, match=r"^wrong policy$"):
        run(SAY + "fail('wrong policy')", 3)
    starts = []
    with pytest.raises(WorkerFailure, match=r"^disk full$"):
        launch_again(
            lambda count, restart: starts.append(count) or python(SAY + "fail('disk full')"), 2, 3, None, starts.append
        )
    assert starts == [2]


def test_an_error_that_may_pass_is_not() -> None:
    assert run(SAY + "if restart == 0: fail('unexpected', expected=False)", 1)[0] == [4, 4]
    assert run("if restart == 0: raise SystemExit(76)", 1)[0] == [4, 4]
    # The others only say that one of them failed.
    code = "if restart == 0: time.sleep(0.5 if rank else 0); fail('worker 0 failed', expected=rank > 0)"
    assert run(SAY + code, 1)[0] == [4, 4]


def test_a_restart_does_not_go_on_with_another_run(tmp_path: Path) -> None:
    settings = TrainSettings(checkpoint=str(tmp_path), max_restarts=2)
    check_new(settings)
    (tmp_path / "step-00000010").mkdir()
    (tmp_path / "step-00000010" / "manifest.json").touch()
    with pytest.raises(SDPError, match=r"step-00000010.*--resume auto"):
        check_new(settings)
    check_new(replace(settings, resume="auto"))
    check_new(replace(settings, max_restarts=0))


PARENT = """
import sys
from sdp_compile.restarts import launch_again
code = launch_again(
    lambda count, restart: [sys.executable, "-c", sys.argv[1 + min(restart, 1)], sys.argv[3]],
    2, 5, None, lambda words: None, hand_on=True,
)
raise SystemExit(code)
"""
LINGER = """
import os, signal, sys, time
{}
open(f"{{sys.argv[1]}}/{{os.environ['RANK']}}-{{os.getpid()}}", "w").close()
time.sleep(100)
"""


@pytest.mark.parametrize(
    ("number", "handler", "expected"),
    [
        (signal.SIGTERM, "", "KeyboardInterrupt"),
        (signal.SIGUSR1, "", "KeyboardInterrupt"),
        (signal.SIGINT, "", "KeyboardInterrupt"),
        (signal.SIGTERM, f"signal.signal(signal.SIGTERM, lambda *_: os._exit({STOPPED}))", STOPPED),
    ],
)
def test_a_signal_after_a_restart_ends_it(
    number: signal.Signals, handler: str, expected: object, tmp_path: Path
) -> None:
    """Workers that cannot save end as on Ctrl-C, and are not started again."""
    parent = subprocess.Popen(
        python(PARENT, "import os\nos.kill(os.getpid(), 9)", LINGER.format(handler), str(tmp_path)),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(tmp_path, 2)
    parent.send_signal(number)
    _, errors = parent.communicate(timeout=60)
    assert len(list(tmp_path.iterdir())) == 2
    if isinstance(expected, int):
        assert parent.returncode == expected
    else:
        assert errors.strip().endswith(expected)
