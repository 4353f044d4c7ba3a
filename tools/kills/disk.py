"""A disk of its own for each trial, which can be filled, where mounting is allowed."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_NEW_NAMESPACE = 0x00020000
_BYTES = 64 * 2**20  # all checkpoints of a trial fit if nobody fills it
_FILLER = "filler"


def own_mounts() -> bool:
    """Makes mounts of this process invisible to others, and gone when it ends. Returns whether it may mount."""
    try:
        if ctypes.CDLL(None, use_errno=True).unshare(_NEW_NAMESPACE):
            return False
        made = subprocess.run(["mount", "--make-rprivate", "/"], capture_output=True)
    except (OSError, AttributeError):
        return False
    return made.returncode == 0


class Disk:
    """A folder that may be a disk of its own.

    Args:
        folder: The folder.
        is_mounted: Whether it is one.
    """

    def __init__(self, folder: Path, is_mounted: bool) -> None:
        self.folder, self.is_mounted = folder, is_mounted

    def fill(self, left: int) -> None:
        """Leaves so many bytes."""
        free = shutil.disk_usage(self.folder).free
        with (self.folder / _FILLER).open("wb") as file, suppress(OSError):  # others write meanwhile
            os.posix_fallocate(file.fileno(), 0, max(1, free - left))

    def free(self) -> None:
        """Makes room again."""
        (self.folder / _FILLER).unlink(missing_ok=True)


@contextmanager
def disk(folder: Path, may_mount: bool) -> Iterator[Disk]:
    """A new folder for one trial, on a disk of its own if that is possible; it is removed afterwards."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={_BYTES}", "tmpfs", str(folder)]
    is_mounted = may_mount and subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield Disk(folder, is_mounted)
    finally:
        if is_mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        shutil.rmtree(folder)
