"""Rewrites what is damaged in the files of a checkpoint from intact copies, which ``redundancy="owners"`` has."""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sdp_compile.checkpoint.folder import sync
from sdp_compile.checkpoint.manifest import Chunk, TensorEntry
from sdp_compile.checkpoint.reading import Checkpoint
from sdp_compile.errors import SDPError


@dataclass(frozen=True)
class Mended:
    """What `mend` has done.

    Attributes:
        path: The checkpoint.
        files: The files that were rewritten.
        parts: The number of parts of tensors in them that were damaged.
        left: What is still damaged, in words.
    """

    path: Path
    files: tuple[str, ...]
    parts: int
    left: tuple[str, ...]


def mend(source: str | os.PathLike[str], on_file: Callable[[str], None] = lambda name: None) -> Mended:
    """Rewrites damaged, truncated and missing files of a checkpoint from intact copies of their parts.

    A file is written beside the old one and then takes its place, so that nothing that is intact can get lost.

    Args:
        source: A checkpoint, or a folder of checkpoints, of which the newest counts.
        on_file: Called with the name of each file before it is checked.

    Raises:
        SDPError: If it is no checkpoint, its manifest is damaged, or a file cannot be written.
    """
    checkpoint = Checkpoint(source)
    rewritten, left, count = list[str](), list[str](), 0
    by_file: dict[int, list[_Part]] = {}
    for part in _parts(checkpoint):
        by_file.setdefault(part.chunk.file, []).append(part)
    for number, file in enumerate(checkpoint.manifest.files):
        on_file(file.name)
        place = checkpoint.path / file.name
        if file.crc is not None:
            content = _all_of(place, file.nbytes)
            if len(content) != file.nbytes or zlib.crc32(content) != file.crc:
                left.append(
                    f"{place} is what only worker {file.worker} had: random states and its position in the data."
                )
            continue
        parts = by_file.get(number, [])
        damaged = [part for part in parts if _content(place, part.chunk) is None]
        is_whole = place.is_file() and place.stat().st_size == file.nbytes
        if not damaged and is_whole:
            continue
        copies = {part: copy for part in damaged if (copy := part.intact_copy(checkpoint)) is not None}
        left += [f"{part.label} in {place} has no intact copy." for part in damaged if part not in copies]
        is_short = not place.is_file() or place.stat().st_size < file.nbytes
        if is_short and sum(part.chunk.blob[1] for part in parts) != file.nbytes:
            left.append(f"{place} has values that no other file has: what torch.distributed.checkpoint reads besides.")
        elif (copies or not damaged) and (not is_short or len(copies) == len(damaged)):
            try:
                _rewrite(checkpoint, place, file.nbytes, copies)
            except OSError as error:
                raise SDPError(f"{place} cannot be written ({error.strerror}). It is as before.") from error
            rewritten.append(file.name)
            count += len(copies)
    return Mended(checkpoint.path, tuple(rewritten), count, tuple(left))


@dataclass(frozen=True, eq=False)
class _Part:
    """One worker's copy of a part of a tensor."""

    label: str
    chunk: Chunk
    entry: TensorEntry

    def intact_copy(self, checkpoint: Checkpoint) -> Chunk | None:
        """Returns another copy that is intact and lies in its file in the same way."""
        mine = self.chunk
        for other in self.entry.chunks:
            is_alike = (other.box, other.crc, other.blob[1], other.start - other.blob[0]) == (
                *(mine.box, mine.crc, mine.blob[1], mine.start - mine.blob[0]),
            )
            place = checkpoint.path / checkpoint.manifest.files[other.file].name
            if other is not mine and is_alike and _content(place, other) is not None:
                return other
        return None


def _parts(checkpoint: Checkpoint) -> Iterator[_Part]:
    manifest = checkpoint.manifest
    tensors = list(manifest.model.items())
    for name, entries in ({} if manifest.optimizer is None else manifest.optimizer.tensors).items():
        tensors += [(f"{key} of {name}", entry) for key, entry in entries.items()]
    for name, entry in tensors:
        for chunk in entry.chunks:
            yield _Part(f"{name!r}{list(chunk.offsets)}+{list(chunk.sizes)}", chunk, entry)


def _all_of(place: Path, nbytes: int) -> bytes:
    """Returns what is in a file of so many bytes; nothing if it has another size or cannot be read."""
    try:
        return place.read_bytes() if place.is_file() and place.stat().st_size == nbytes else b""
    except OSError:
        return b""


def _content(place: Path, chunk: Chunk) -> bytes | None:
    """Returns all that a file has of a part; None if the values are not there or damaged."""
    begin, length = chunk.blob
    if place.is_symlink() or not place.is_file():
        return None
    try:
        with place.open("rb") as file:
            file.seek(begin)
            blob = file.read(length)
    except OSError:  # a bad sector, say
        return None
    values = blob[chunk.start - begin :][: chunk.nbytes]
    return blob if len(blob) == length and zlib.crc32(values) == chunk.crc else None


def _rewrite(checkpoint: Checkpoint, place: Path, nbytes: int, copies: dict[_Part, Chunk]) -> None:
    """Writes a file anew, with other copies of some parts."""
    aside = place.with_name(f".{place.name}.new")
    try:
        if place.is_file() and not place.is_symlink():
            shutil.copyfile(place, aside)
        with aside.open("r+b" if aside.exists() else "w+b") as file:
            file.truncate(nbytes)
            for part, copy in copies.items():
                _write(file, part.chunk, _content(checkpoint.path / checkpoint.manifest.files[copy.file].name, copy))
            file.flush()
            os.fsync(file.fileno())
        aside.replace(place)
        sync(place.parent)
    finally:
        aside.unlink(missing_ok=True)


def _write(file: BinaryIO, chunk: Chunk, content: bytes | None) -> None:
    if content is None:  # intact a moment ago
        raise OSError(None, "another file changes meanwhile")
    file.seek(chunk.blob[0])
    file.write(content)
