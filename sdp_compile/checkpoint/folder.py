"""A folder of checkpoints: their names, how one comes to be at once or not at all, and which are kept.

A checkpoint is written into a hidden folder beside its place and then renamed. So what has a checkpoint's name is
whole, whenever a process or the machine dies.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from pathlib import Path

from sdp_compile.checkpoint.manifest import FILE
from sdp_compile.errors import SDPError
from sdp_compile.formatting import size

_NAME = re.compile(r"step-(\d{1,18})")
_STAGED = re.compile(r"\.(step-\d{1,18})\.(new|old|gone)")
_LOCK = ".lock"
_ORDER = "order"
"""A file in each checkpoint with its number among those that were written to its folder: clocks may go back. It is
written last, when everything else has reached the disk."""
_SPARE = 2**20
"""Bytes for descriptions, beside the values, in the estimate of the space that a checkpoint takes."""

_claims: dict[Path, int] = {}
"""The folders that this process writes to, and the open files that say so to others."""


def name_of(step: int) -> str:
    """Returns the name of the checkpoint of a step."""
    return f"step-{step:08d}"


def whole_checkpoints(folder: Path) -> list[Path]:
    """Returns the checkpoints in a folder in the order in which they were written.

    That is not always the order of steps: a run may go on from an early checkpoint while later ones are there. Where a
    process died while it replaced a checkpoint, the new one counts, still under its hidden name.
    """
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        match, hidden = _NAME.fullmatch(path.name), _STAGED.fullmatch(path.name)
        if hidden and _successor(folder, hidden[1]) == path:
            match = _NAME.fullmatch(hidden[1])
        if match and (path / FILE).is_file():
            found.append((order_of(path), int(match[1]), path))
    return [path for _, _, path in sorted(found)]


def order_of(path: Path) -> int:
    """Returns the number of a checkpoint among those of its folder; 0 if it has none."""
    try:
        return int((path / _ORDER).read_text())
    except (OSError, ValueError):
        return 0


def _successor(folder: Path, name: str) -> Path | None:
    """Returns the whole checkpoint that a process which died would have given a name, None if it has it."""
    if (folder / name).exists():
        return None
    new, old = folder / f".{name}.new", folder / f".{name}.old"
    return new if order_of(new) else old if (old / FILE).is_file() else None


def resolve(path: Path) -> Path:
    """Returns the checkpoint at a path: itself, or the newest in the folder.

    Raises:
        SDPError: If there is none.
    """
    if (path / FILE).is_file() or (path / ".metadata").is_file():
        return path
    found = whole_checkpoints(path)
    if not found:
        what = "is no checkpoint and holds none" if path.is_dir() else "does not exist"
        raise SDPError(f"{path} {what}. Pass a folder that sdp.save_checkpoint() wrote to, or one of its checkpoints.")
    return found[-1]


def described_newest(folder: Path) -> str:
    """Returns a sentence about where to go on from when what a run holds has been damaged."""
    found = whole_checkpoints(folder)
    if not found:
        return f"{folder} has no checkpoint yet."
    return f"The newest checkpoint, {found[-1]}, was clean when it was saved: go on from it."


def claim(folder: Path) -> None:
    """Makes a folder this process's to write to, until it ends, and removes what an earlier process left half done.

    Args:
        folder: The folder, which is made if it does not exist.

    Raises:
        SDPError: If another process writes to it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key = folder.resolve()
    if key not in _claims:
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise SDPError(
                f"Another running job writes its checkpoints to {folder}. Give each job a folder of its own."
            ) from None
        except OSError:
            os.close(descriptor)
            raise
        _claims[key] = descriptor
    _clean(folder)


def begin(folder: Path, step: int, nbytes: int) -> Path:
    """Makes the hidden folder that a checkpoint is written into.

    Args:
        folder: Where the checkpoint will be; this process has claimed it.
        step: The checkpoint's step.
        nbytes: The size of the values.

    Raises:
        SDPError: If the disk has less space than the checkpoint takes.
    """
    free = shutil.disk_usage(folder).free
    if nbytes + _SPARE > free:
        raise SDPError(
            f"The checkpoint takes about {size(nbytes + _SPARE)}, but {folder} has {size(free)} left. Free "
            "some space, choose another folder, or keep fewer checkpoints."
        )
    staged = folder / f".{name_of(step)}.new"
    staged.mkdir()
    return staged


def finish(staged: Path) -> Path:
    """Gives a checkpoint its name, after everything in it has reached the disk. Returns its place."""
    folder, name = staged.parent, staged.name[1:].removesuffix(".new")
    place, old = folder / name, folder / f".{name}.old"
    newest = max(map(order_of, whole_checkpoints(folder)), default=0)
    sync(staged)
    with (staged / _ORDER).open("w") as file:
        file.write(f"{newest + 1}\n")
        file.flush()
        os.fsync(file.fileno())
    sync(staged)
    if place.exists():  # of an earlier run that this one repeats
        place.rename(old)
    try:
        staged.rename(place)
    except OSError:
        if old.exists():
            old.rename(place)
        raise
    sync(folder)
    shutil.rmtree(old, ignore_errors=True)
    return place


def discard(staged: Path | None) -> None:
    """Removes a checkpoint that could not be written."""
    if staged is not None:
        shutil.rmtree(staged, ignore_errors=True)


def prune(folder: Path, keep: int | None, written: Path) -> None:
    """Removes all but the newest ``keep`` checkpoints, one of which was just written; None keeps all."""
    others = [path for path in whole_checkpoints(folder) if path != written]
    for path in others[: len(others) - keep + 1] if keep and keep <= len(others) else ():
        hidden = folder / f".{path.name}.gone"
        path.rename(hidden)  # one that is half removed must not look whole
        shutil.rmtree(hidden, ignore_errors=True)


def sync(folder: Path) -> None:
    """Waits until a folder's entries have reached the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _clean(folder: Path) -> None:
    """Removes what is half written, and gives a checkpoint its name that a process died before giving it."""
    hidden = [(path, match[1]) for path in folder.iterdir() if (match := _STAGED.fullmatch(path.name))]
    for name in dict.fromkeys(name for _, name in hidden):
        whole = _successor(folder, name)
        if whole is not None:
            whole.rename(folder / name)
    for path, _ in hidden:
        if path.is_symlink():
            path.unlink()
        shutil.rmtree(path, ignore_errors=True)
