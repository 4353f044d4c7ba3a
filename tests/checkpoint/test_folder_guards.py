"""Whose a folder of checkpoints is, and what in it is not to be replaced."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

import sdp_compile as sdp
from sdp_compile.checkpoint import folder as folders
from sdp_compile.errors import SDPError

pytestmark = pytest.mark.timeout(120)

OTHER = (
    "import sys; from pathlib import Path; from sdp_compile.checkpoint.folder import claim; claim(Path(sys.argv[1]))"
)


def is_free(folder: Path) -> bool:
    """Whether another process may write to a folder."""
    done = subprocess.run([sys.executable, "-c", OTHER, str(folder)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 or "Another running job" in done.stderr, done.stderr
    return done.returncode == 0


HOLDER = """
import os, sys, time
from pathlib import Path
from sdp_compile.checkpoint.folder import claim
claim(Path(sys.argv[1]))
if os.fork() == 0:
    print(os.getpid(), flush=True)
    time.sleep(100)
    os._exit(0)
os._exit(0)
"""


def test_a_child_that_lives_on_does_not_keep_the_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.wait(60)
        try:
            assert is_free(tmp_path)
        finally:
            os.kill(child, 9)


def test_a_child_has_to_claim_the_folder_itself(tmp_path: Path) -> None:
    folders.claim(tmp_path)
    if not (child := os.fork()):
        try:
            folders.claim(tmp_path)
        except SDPError:
            os._exit(3)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3


def test_a_folder_that_is_removed_and_made_again_is_locked_again(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    sdp.save_checkpoint(folder, nn.Linear(2, 2), step=1)
    shutil.rmtree(folder)
    sdp.save_checkpoint(folder, nn.Linear(2, 2), step=2)
    assert not is_free(folder)
    assert {path.name for path in folder.iterdir()} == {".lock", "step-00000002"}


def test_what_somebody_else_put_into_a_checkpoint_s_place_stays(tmp_path: Path) -> None:
    mine = tmp_path / "step-00000010"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    with pytest.raises(SDPError, match=r"step-00000010 would be replaced .* and is none: notes\.txt"):
        sdp.save_checkpoint(tmp_path, nn.Linear(2, 2), step=10)
    assert (mine / "notes.txt").read_text() == "mine"
    (tmp_path / "step-00000011").write_text("mine")
    (tmp_path / "step-00000012").symlink_to(mine)
    for step in (11, 12):
        with pytest.raises(SDPError, match="would be replaced"):
            sdp.save_checkpoint(tmp_path, nn.Linear(2, 2), step=step)
    assert (tmp_path / "step-00000011").read_text() == "mine" and (tmp_path / "step-00000012").is_symlink()


def test_a_checkpoint_is_no_folder_of_checkpoints(tmp_path: Path) -> None:
    place = sdp.save_checkpoint(tmp_path, nn.Linear(2, 2), step=1)
    with pytest.raises(SDPError, match="is a checkpoint itself"):
        sdp.save_checkpoint(place, nn.Linear(2, 2), step=2)
    assert not list(place.glob("step-*")) and not (place / ".lock").exists()


def test_a_failure_to_remove_old_ones_does_not_deny_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sdp.save_checkpoint(tmp_path, nn.Linear(2, 2), step=1)
    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if str(target).endswith(".gone"):
            raise OSError(13, "Permission denied", str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.warns(UserWarning, match=r"step-00000002 was saved, but older checkpoints could not be removed"):
        place = sdp.save_checkpoint(tmp_path, nn.Linear(2, 2), step=2, keep=1)
    assert sdp.load_checkpoint(tmp_path, nn.Linear(2, 2)).path == place


def test_folders_that_were_made_reach_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    real = folders.sync
    monkeypatch.setattr(folders, "sync", lambda folder: (synced.append(folder), real(folder)))
    sdp.save_checkpoint(tmp_path / "a" / "b", nn.Linear(2, 2), step=1)
    assert {tmp_path, tmp_path / "a", tmp_path / "a" / "b"} <= set(synced)
