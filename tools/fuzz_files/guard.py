"""What no input may cause, watched from inside of the process."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RUNS_CODE = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
    "pickle.find_class",
    "ctypes.dlopen",
)
HARMLESS = ("sdp_compile", "torch", "numpy", "safetensors", "encodings")
WRITES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree")

_watched: list[tuple[Path, list[str]]] = []


class Forbidden(AssertionError):
    """An input has caused what it must not."""


@contextmanager
def guarded(folder: Path, may_load: bool = False) -> Iterator[None]:
    """Raises `Forbidden` at the end if code was run, or if something was written outside of a folder.

    Args:
        folder: Where files may be written.
        may_load: Whether modules may be imported.
    """
    if not _watched:
        sys.addaudithook(_hook)
    found: list[str] = []
    modules = set(sys.modules)
    _watched.append((folder.resolve(), found))
    try:
        yield
    finally:
        _watched[-1] = (Path("/"), [])
    loaded = [] if may_load else sorted(set(sys.modules) - modules)
    strange = [name for name in loaded if not name.startswith(HARMLESS)]
    if found or strange:
        raise Forbidden("; ".join([*found, *(f"import of {name}" for name in strange)]))


def limit_memory(spare: int) -> None:
    """Makes allocations fail beyond so many bytes more than now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + spare, resource.RLIM_INFINITY))


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watched:
        return
    folder, found = _watched[-1]
    if folder == Path("/"):
        return
    if event in RUNS_CODE and not _asks_driver(event, arguments):
        found.append(f"{event}{arguments!r:.200}")
        return
    path = arguments[0] if arguments else None
    if isinstance(path, (str, bytes, os.PathLike)) and (event in WRITES or (event == "open" and _writes(arguments))):
        _check(folder, path, event, found)


def _asks_driver(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether torch looks for a card: it asks the system's loader for the driver by a name without a folder."""
    if event != "ctypes.dlopen" or os.sep in str(arguments[0]):
        return False
    frame: Any = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__") == "ctypes":
        frame = frame.f_back
    return frame is not None and frame.f_globals.get("__name__", "").startswith("torch.cuda")


def _writes(arguments: tuple[Any, ...]) -> bool:
    _, mode, flags = arguments
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))


def _check(folder: Path, path: Any, event: str, found: list[str]) -> None:
    place = os.path.abspath(os.fsdecode(path))
    if not place.startswith((f"{folder}{os.sep}", "/dev/")) and place != str(folder):
        found.append(f"{event} of {place}")
