"""What a worker says when it fails."""

import json
from pathlib import Path

import pytest

from sdp_compile.errors import DistributedError, PlanError
from sdp_compile.train import worker


class Exit(BaseException):
    """In place of the end of this process."""


@pytest.mark.parametrize(
    ("error", "message", "expected"),
    [
        (PlanError("the plan says so"), "the plan says so", True),
        (ValueError("no"), "worker 3 failed: ValueError: no (--debug shows where)", False),
    ],
)
def test_failures_are_left_in_one_file(
    error: Exception, message: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(settings: object) -> None:
        raise error

    def leave(code: int) -> None:
        assert code == 1
        raise Exit

    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv(worker.FAILURES, str(tmp_path))
    monkeypatch.setenv(worker.LEASH_FD, "0")
    monkeypatch.setattr(worker, "watch_leash", lambda descriptor: None)
    monkeypatch.setattr(worker, "work", fail)
    monkeypatch.setattr(worker.os, "_exit", leave)
    monkeypatch.setattr(worker.sys, "argv", ["worker", worker.TrainSettings().dumps()])
    with pytest.raises(Exit):
        worker.main()
    (path,) = tmp_path.iterdir()
    report = json.loads(path.read_text())
    assert path.name == "3.json"
    assert (report["rank"], report["message"], report["expected"]) == (3, message, expected)
    assert f"{type(error).__name__}: " in report["details"]


def broken(text: str) -> Exception:
    """An error of this package that a failed collective led to."""
    try:
        try:
            raise RuntimeError(f"[pair.cc:561] {text} [127.0.0.1]:1")
        except RuntimeError as error:
            raise DistributedError("Communication of gradients failed.") from error
    except DistributedError as error:
        return error


@pytest.mark.parametrize(
    ("error", "is_loss"),
    [
        (broken("Connection closed by peer"), True),
        (broken("Connection reset by peer"), True),
        (broken("Invalid scalar type"), False),
        (ConnectionResetError(104, "Connection reset by peer"), True),
        (DistributedError("Workers 0 and 1 have different policies: Connection refused"), False),
        (ValueError("Broken pipe"), False),
    ],
)
def test_what_follows_from_the_end_of_another_worker_may_pass(error: Exception, is_loss: bool) -> None:
    assert worker.is_loss(error) == is_loss
