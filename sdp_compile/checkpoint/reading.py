"""Reads parts of full tensors from the files of a checkpoint, and checks every byte that it uses."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdp_compile.checkpoint.folder import resolve
from sdp_compile.checkpoint.manifest import FILE, MOST_BYTES, Chunk, TensorEntry, loads
from sdp_compile.errors import SDPError
from sdp_compile.planning.boxes import Box
from sdp_compile.planning.regions import Region


class Checkpoint:
    """A checkpoint on disk.

    Args:
        path: The checkpoint, or a folder of checkpoints, of which the newest counts.

    Attributes:
        path: The checkpoint.
        manifest: What is in it.
        digest: The manifest's digest.

    Raises:
        SDPError: If it is no checkpoint, or is damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = resolve(Path(path))
        where = self.path / FILE
        if not where.is_file():
            raise SDPError(
                f"{self.path} has no {FILE}, so it was written by torch.distributed.checkpoint. Its description is a "
                "pickle, and reading a pickle runs code. If you trust it, call sdp.load_checkpoint() with "
                "trusted=True."
            )
        if where.stat().st_size > MOST_BYTES:
            raise SDPError(
                f"{where} has {where.stat().st_size} bytes, more than any manifest. Load another checkpoint."
            )
        self.manifest, self.digest = loads(where.read_bytes(), str(where))

    def read(self, entry: TensorEntry, region: Region, name: str) -> Tensor:
        """Returns a region of a full tensor.

        Args:
            entry: The tensor.
            region: What to read.
            name: The tensor's name, for errors.

        Raises:
            SDPError: If no intact copy of a part is left.
        """
        if not region.shape:
            return self._any_copy(entry, entry.chunks, name)
        result = torch.empty(region.shape, dtype=entry.torch_dtype)
        for box, chunks in _copies(entry).items():
            within = [
                slice(*np.searchsorted(index, [start, start + size]))
                for index, start, size in zip(region.index, box.offsets, box.sizes, strict=True)
            ]
            if all(part.start < part.stop for part in within):
                relative = [
                    index[part] - start for index, part, start in zip(region.index, within, box.offsets, strict=True)
                ]
                result[tuple(within)] = Region(relative).read(self._any_copy(entry, chunks, name))
        return result

    def whole(self, entry: TensorEntry, name: str) -> Tensor:
        """Returns a full tensor.

        Args:
            entry: The tensor.
            name: Its name, for errors.

        Raises:
            SDPError: If no intact copy of a part is left.
        """
        result = torch.empty(entry.shape, dtype=entry.torch_dtype)
        for box, chunks in _copies(entry).items():
            result[box.slices] = self._any_copy(entry, chunks, name)
        return result

    @cached_property
    def intact_files(self) -> frozenset[int]:
        """The positions of the files that are there with their size."""
        return frozenset(range(len(self.manifest.files))) - frozenset(self.problems)

    @cached_property
    def problems(self) -> dict[int, str]:
        """In words, which files are not there with their size, by position."""
        found = {number: self._missing(number) for number in range(len(self.manifest.files))}
        return {number: problem for number, problem in found.items() if problem}

    def verify(self) -> None:
        """Reads everything once.

        Raises:
            SDPError: If no intact copy of a part of a tensor is left.
        """
        optimizer = self.manifest.optimizer
        tensors = list(self.manifest.model.items())
        for name, entries in ({} if optimizer is None else optimizer.tensors).items():
            tensors += [(f"{key} of {name}", entry) for key, entry in entries.items()]
        for name, entry in tensors:
            for chunks in _copies(entry).values():
                self._any_copy(entry, chunks, name)

    def compare(self, entry: TensorEntry, name: str) -> list[str]:
        """Compares the copies of each part of a tensor.

        Args:
            entry: The tensor.
            name: Its name, for errors.

        Returns:
            In words, the copies that are damaged or missing.

        Raises:
            SDPError: If two intact copies differ.
        """
        first: dict[Box, Chunk] = {}
        problems = []
        for chunk in entry.chunks:
            other = first.setdefault(chunk.box, chunk)
            if other.crc != chunk.crc:
                workers = [self.manifest.files[one.file].worker for one in (other, chunk)]
                raise SDPError(
                    f"Workers {workers[0]} and {workers[1]} saved different values of {name!r} at "
                    f"{list(chunk.offsets)} of size {list(chunk.sizes)}. Load another checkpoint."
                )
            problem = self._missing(chunk.file)
            if not problem and zlib.crc32(self._read(chunk.file, chunk.start, chunk.nbytes)) != chunk.crc:
                problem = f"{self._place(chunk.file)} is damaged at byte {chunk.start}: its checksum is another one."
            problems += [problem] if problem else []
        return problems

    def private(self, worker: int) -> Any:
        """Returns what only one worker has, still encoded; None if it is not in the checkpoint.

        Raises:
            SDPError: If the file is damaged.
        """
        number = self.manifest.private_file(worker)
        if number is None:
            return None
        file = self.manifest.files[number]
        content = self._read(number, 0, file.nbytes)
        if zlib.crc32(content) != file.crc:
            raise SDPError(f"{self._place(number)} is damaged: its checksum is another one. Load another checkpoint.")
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise SDPError(f"{self._place(number)} is damaged: {error}. Load another checkpoint.") from error

    def _any_copy(self, entry: TensorEntry, chunks: Sequence[Chunk], name: str) -> Tensor:
        """Returns the values of the first of several copies that is intact."""
        problems = []
        for chunk in chunks:
            try:
                content = self._read(chunk.file, chunk.start, chunk.nbytes)
            except SDPError as error:
                problems.append(str(error))
                continue
            if zlib.crc32(content) == chunk.crc:
                return torch.frombuffer(content, dtype=torch.uint8).view(entry.torch_dtype).reshape(chunk.sizes)
            problems.append(f"{self._place(chunk.file)} is damaged at byte {chunk.start}: its checksum is another one.")
        box = chunks[0].box
        what = "its only copy" if len(chunks) == 1 else f"all {len(chunks)} copies"
        raise SDPError(
            f"{name!r}{list(box.offsets)}+{list(box.sizes)} is lost with {what}: {' '.join(problems)} Load another "
            "checkpoint."
        )

    def _read(self, number: int, start: int, nbytes: int) -> bytearray:
        place, problem = self._place(number), self._missing(number)
        if problem:
            raise SDPError(problem)
        content = bytearray(nbytes)
        try:
            with place.open("rb") as file:
                file.seek(start)
                if file.readinto(content) != nbytes:
                    raise SDPError(f"{place} ends too early.")
        except OSError as error:
            raise SDPError(f"{place} cannot be read ({error.strerror}).") from error
        return content

    def _missing(self, number: int) -> str:
        """Returns in words that a file is not there with its size; empty if it is."""
        place, size = self._place(number), self.manifest.files[number].nbytes
        if place.is_symlink() or not place.is_file():
            return f"{place} is missing."
        found = place.stat().st_size
        return "" if found == size else f"{place} has {found} bytes instead of {size}."

    def _place(self, number: int) -> Path:
        return self.path / self.manifest.files[number].name


def _copies(entry: TensorEntry) -> dict[Box, list[Chunk]]:
    """Returns the copies of each part of a tensor."""
    copies: dict[Box, list[Chunk]] = {}
    for chunk in entry.chunks:
        copies.setdefault(chunk.box, []).append(chunk)
    return copies
