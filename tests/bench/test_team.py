"""Each way in which a variant's workers can fail is reported in time and leaves no process behind."""

import os
import time
from pathlib import Path

import pytest

from sdp_compile.bench.settings import BenchSettings
from sdp_compile.bench.team import Team, TeamFailure
from sdp_compile.bench.variants import VARIANTS
from tests.bench import models

pytestmark = pytest.mark.timeout(180)


def team(factory: str, folder: Path, variant: str = "ddp", timeout: float = 60.0) -> Team:
    settings = BenchSettings(model=f"{models.__file__}:{factory}", workers=2, warmup=1, timeout=timeout)
    return Team(VARIANTS[variant], settings, folder)


def assert_gone(workers: Team) -> None:
    for process in workers._processes:
        assert process.pid is not None
        with pytest.raises(ProcessLookupError):
            os.kill(process.pid, 0)


def test_workers_get_ready_take_turns_and_end(tmp_path: Path) -> None:
    workers = team("residual", tmp_path)
    try:
        facts = workers.answers()
        assert [fact["traffic"]["as_predicted"] for fact in facts] == [True, True]
        turns = [workers.ask({"steps": 2}) for _ in range(2)]
        assert all(answer["seconds"] > 0 for turn in turns for answer in turn)
    finally:
        workers.stop()
    assert_gone(workers)
    workers.stop()  # a second call does nothing


@pytest.mark.parametrize(
    ("factory", "timeout", "words"),
    [
        ("fails", 60.0, ["worker 1", "fails raised", "no such data"]),
        ("dies", 60.0, ["worker 1 was killed by SIGKILL", "out of memory"]),
        ("hangs", 20.0, ["no answer from worker", "1", "within 20 s", "--timeout"]),
    ],
)
def test_a_failure_is_reported_in_time(factory: str, timeout: float, words: list[str], tmp_path: Path) -> None:
    workers = team(factory, tmp_path, timeout=timeout)
    started = time.monotonic()
    try:
        with pytest.raises(TeamFailure) as caught:
            workers.answers()
    finally:
        workers.stop()
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert time.monotonic() - started < timeout + 20
    assert_gone(workers)


def test_errors_of_sdp_compile_keep_their_message(tmp_path: Path) -> None:
    """A model without residual branches has no block to drop."""
    settings = BenchSettings(model="torch.nn:Flatten", inputs=("4x3x2",), workers=2)
    workers = Team(VARIANTS["sdp-block"], settings, tmp_path)
    try:
        with pytest.raises(TeamFailure, match="no residual blocks"):
            workers.answers()
    finally:
        workers.stop()
