"""A folder of checkpoints: their names, how one comes to be at once or not at all, and which are kept.

A checkpoint is written into a hidden folder beside its place and then renamed. So what has a checkpoint's name is
whole, whenever a process or the machine dies.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import warnings
from pathlib import Path

from sdp_compile.checkpoint.manifest import FILE, METADATA
from sdp_compile.errors import SDPError
from sdp_compile.formatting import size

_NAME = re.compile(r"step-(\d{1,18})")
_STAGED = re.compile(r"\.(step-\d{1,18})(?:\.\w{1,32})?\.(new|old|gone)")
_LOCK = ".lock"
_ORDER = "order"
"""A file in each checkpoint with its number among those that were written to its folder: clocks may go back. It is
written last, when everything else has reached the disk."""
_OURS = re.compile(r"__\d+_0\.distcp|(worker|part)-\d+\.json|manifest\.json|\.metadata|order")
"""The names of a checkpoint's files."""

_SPARE = 2**20
"""Bytes for descriptions, beside the values, in the estimate of the space that a checkpoint takes."""

_claims: dict[Path, int] = {}
"""The folders that this process writes to, and the open files that say so to others."""


def name_of(step: int) -> str:
    """Returns the name of the checkpoint of a step."""
    return f"step-{step:08d}"


def staged_name(step: int, attempt: str = "") -> str:
    """Returns the name of the hidden folder in which the checkpoint of a step is written.

    Args:
        step: The step.
        attempt: Tells apart those that are written by different processes: a worker that stood still for long, while
            the others gave up and started again, does not write into the files of the new ones.
    """
    return f".{name_of(step)}{attempt and f'.{attempt}'}.new"


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
    attempts = [path for path in folder.glob(f".{name}*.new") if _staged_for(path) == name]
    new, old = max(attempts, key=order_of, default=folder / f".{name}.new"), folder / f".{name}.old"
    return new if order_of(new) else old if (old / FILE).is_file() else None


def _staged_for(path: Path) -> str:
    """Returns the name of the checkpoint that a hidden folder is for; empty if it is for none."""
    match = _STAGED.fullmatch(path.name)
    return match[1] if match else ""


def resolve(path: Path) -> Path:
    """Returns the checkpoint at a path: itself, or the newest in the folder.

    Raises:
        SDPError: If there is none.
    """
    if (path / FILE).is_file() or (path / METADATA).is_file():
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
    return f"The newest checkpoint is {found[-1]}. Unless it was saved with verify=False, it is clean: go on from it."


def claim(folder: Path) -> None:
    """Makes a folder this process's to write to, until it ends, and removes what an earlier process left half done.

    Args:
        folder: The folder, which is made if it does not exist.

    Raises:
        SDPError: If another process writes to it.
    """
    if any((folder / name).is_file() for name in (FILE, METADATA)):
        raise SDPError(f"{folder} is a checkpoint itself. Pass the folder in which checkpoints are to be.")
    _make(folder)
    key, held = folder.resolve(), _claims.get(folder.resolve())
    if held is not None and not _is_open(folder / _LOCK, held):  # the folder was removed and made again
        os.close(_claims.pop(key))
    if key not in _claims:
        _claims[key] = _locked(folder)
    _clean(folder)


def _locked(folder: Path) -> int:
    """Locks a folder, and returns the open file that keeps it locked."""
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
    return descriptor


def _is_open(path: Path, descriptor: int) -> bool:
    """Whether an open file is the one at a path."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _release() -> None:
    """Leaves the folders to the parent, in a process that was forked: it would keep them locked after the parent."""
    for descriptor in _claims.values():
        os.close(descriptor)
    _claims.clear()


os.register_at_fork(after_in_child=_release)


def _make(folder: Path) -> None:
    """Makes a folder and those above it, so that they stay when the machine dies."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync(path.parent)


def begin(folder: Path, step: int, nbytes: int, attempt: str = "") -> Path:
    """Makes the hidden folder that a checkpoint is written into.

    Args:
        folder: Where the checkpoint will be; this process has claimed it.
        step: The checkpoint's step.
        nbytes: The size of the values.
        attempt: See `staged_name`.

    Raises:
        SDPError: If the disk has less space than the checkpoint takes.
    """
    free = shutil.disk_usage(folder).free
    if nbytes + _SPARE > free:
        raise SDPError(
            f"The checkpoint takes about {size(nbytes + _SPARE)}, but {folder} has {size(free)} left. Free "
            "some space, choose another folder, or keep fewer checkpoints."
        )
    _check_own(folder / name_of(step))
    staged = folder / staged_name(step, attempt)
    staged.mkdir()
    return staged


def _check_own(place: Path) -> None:
    """Raises `SDPError` if something is in a checkpoint's place that is none, which would be replaced."""
    if not place.is_symlink() and (not place.exists() or (place / FILE).is_file()):
        return
    strange = [path.name for path in place.iterdir() if not _OURS.fullmatch(path.name)] if place.is_dir() else ["it"]
    if (place / METADATA).is_file() and not (place / _ORDER).is_file():  # of torch.distributed.checkpoint
        strange.append(METADATA)
    if strange or place.is_symlink():
        raise SDPError(
            f"{place} would be replaced by the checkpoint, and is none: {strange[0] if strange else 'a link'} was not "
            "written by sdp.save_checkpoint(). Move it away, or choose another folder."
        )


def newest_order(folder: Path) -> int:
    """Returns the number of the newest checkpoint among those of its folder; 0 without any."""
    return max(map(order_of, whole_checkpoints(folder)), default=0)


def finish(staged: Path, order: int | None = None) -> Path:
    """Gives a checkpoint its name, after everything in it has reached the disk.

    Args:
        staged: The hidden folder in which it came to be.
        order: Its number among those that were written; by default that after the newest.

    Returns:
        Its place.
    """
    folder, name = staged.parent, _staged_for(staged)
    place, old = folder / name, folder / f".{name}.old"
    order = newest_order(folder) + 1 if order is None else order
    sync(staged)
    with (staged / _ORDER).open("w") as file:
        file.write(f"{order}\n")
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
        try:
            path.rename(hidden)  # one that is half removed must not look whole
        except OSError as error:  # the new one is there
            why = f"{error.filename}: {error.strerror}"
            warnings.warn(f"{written} was saved, but older checkpoints could not be removed ({why}).", stacklevel=2)
            return
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
    for name in (".probe-*", "step-*/.*.part"):
        for path in folder.glob(name):
            path.unlink(missing_ok=True)
    hidden = [(path, match[1]) for path in folder.iterdir() if (match := _STAGED.fullmatch(path.name))]
    for name in dict.fromkeys(name for _, name in hidden):
        whole = _successor(folder, name)
        if whole is not None:
            whole.rename(folder / name)
    for path, _ in hidden:
        if path.is_symlink():
            path.unlink()
        shutil.rmtree(path, ignore_errors=True)
