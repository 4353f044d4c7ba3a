"""Training text that every machine has: the source of Python's standard library."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from sdp_compile.errors import SDPError

# Third-party packages and caches do not belong to the library; its tests would be two thirds of the text.
_SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"})
_VALIDATION_SHARE = 16  # one file in this many


@dataclass(frozen=True)
class Corpus:
    """Training and validation bytes; no file contributes to both."""

    training: bytes
    validation: bytes
    files: int


def load_corpus(limit: int = 8_000_000, root: Path | None = None) -> Corpus:
    """Reads about ``limit`` bytes of the library's ``.py`` files.

    Files are ordered by the hash of their relative path, so that every machine reads the same text and both parts are
    samples of the whole library.

    Args:
        limit: bytes to read; the last file is read whole.
        root: the library's folder; default: this Python's.

    Raises:
        SDPError: the library's source is not on this machine.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    names = sorted(_source_files(root), key=_hash)
    parts: dict[bool, list[bytes]] = {True: [], False: []}
    size = files = 0
    for name in names:
        if size >= limit:
            break
        text = (root / name).read_bytes()
        parts[_hash(name)[-1] % _VALIDATION_SHARE == 0].append(text)
        size += len(text)
        files += 1
    corpus = Corpus(training=b"\n".join(parts[False]), validation=b"\n".join(parts[True]), files=files)
    if min(len(corpus.training), len(corpus.validation)) < 4096:
        raise SDPError(
            f"The Python standard library's source is not on this machine: {root} holds {files} .py files with {size} "
            "bytes. Install Python with its library as files, not zipped or compiled."
        )
    return corpus


def _source_files(root: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS]
        relative = Path(folder).relative_to(root)
        yield from ((relative / name).as_posix() for name in files if name.endswith(".py"))


def _hash(name: str) -> bytes:
    return sha256(name.encode()).digest()
