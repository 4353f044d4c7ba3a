"""Completes the newest checkpoint that lies in parts on the disks of several nodes, of which some may be gone."""

from __future__ import annotations

import os
import warnings
import zlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import IO

import torch
import torch.distributed as dist

from sdp_compile.checkpoint import folder as folders
from sdp_compile.checkpoint.coverage import check_model, check_states
from sdp_compile.checkpoint.manifest import FILE, MOST_BYTES, Chunk, TensorEntry
from sdp_compile.checkpoint.model import Model
from sdp_compile.checkpoint.nodes import Node, node_of
from sdp_compile.checkpoint.reading import Checkpoint
from sdp_compile.checkpoint.team import Team
from sdp_compile.errors import SDPError
from sdp_compile.planning.boxes import Box
from sdp_compile.runtime.comm.groups import Groups, explained
from sdp_compile.runtime.waiting.patience import complete

_PIECE = 2**24
"""Bytes that are sent at once."""

Order = tuple[int, int]
"""The number of a checkpoint among those that were written, and its step."""

Transfer = tuple[str, int, int, int]
"""A file, the worker that sends it, the worker that needs it, and its size."""


def gather_checkpoint(folder: Path, model: Model, team: Team, may_be_lost: bool, remedy: str) -> Path | None:
    """Brings the newest checkpoint of which the disks of all workers hold every unit to each of them. Collective.

    Each node gets the files that it lacks to read the whole, and no others.

    Args:
        folder: This worker's folder of checkpoints, perhaps empty.
        model: The model.
        team: The workers.
        may_be_lost: Whether parts of the optimizer's state may be lost.
        remedy: How to allow that, for the error.

    Returns:
        The checkpoint on this worker's disk; None if there is none on any.

    Raises:
        SDPError: If there are checkpoints, but none is covered by the disks that are left.
    """
    node = node_of(folder, team, model.rank, model.workers)
    mine: dict[str, tuple[Order, Path]] = {}
    with team.together():
        if node.is_leader:
            folders.claim(folder)
            mine = _found(folder)
    known = team.gather({digest: order for digest, (order, _) in mine.items()})
    orders = {digest: max(tuple(one.get(digest, (0, 0))) for one in known) for one in known for digest in one}
    problems: list[str] = []
    for digest in sorted(orders, key=lambda digest: (orders[digest], digest), reverse=True):
        if problems and model.rank == 0:
            warnings.warn(f"Leaves out a newer checkpoint. {problems[-1]}", stacklevel=2)
        path = mine[digest][1] if digest in mine else None
        names: list[str] = []
        with team.together():
            names = [] if path is None else _intact(Checkpoint(path))
        intact = team.gather(names)
        holder = next(worker for worker, one in enumerate(known) if digest in one)
        problem = ""
        if model.rank == holder and path is not None:
            problem = _problem(path, {name for one in intact for name in one}, model.workers, may_be_lost, remedy)
        problem = team.gather(problem)[holder]
        if not problem:
            return _completed(folder, path, model, node, team, intact, holder, orders[digest][0])
        problems.append(problem)
    if problems:
        raise SDPError(f"No checkpoint is whole on the disks that are left. {problems[0]}")
    return None


class _Spread(Checkpoint):
    """A checkpoint of which the files lie on several disks.

    Args:
        path: One of the disks' folders.
        names: The files that are intact on any of them.
    """

    def __init__(self, path: Path, names: set[str]) -> None:
        super().__init__(path)
        self._names = names

    @cached_property
    def problems(self) -> dict[int, str]:
        files = enumerate(self.manifest.files)
        return {at: f"{file.name} is on no disk that is left." for at, file in files if file.name not in self._names}


def _found(folder: Path) -> dict[str, tuple[Order, Path]]:
    """Returns the order and the place of the checkpoints in a folder whose manifests are intact, by digest."""
    found: dict[str, tuple[Order, Path]] = {}
    for path in folders.whole_checkpoints(folder):
        try:
            checkpoint = Checkpoint(path)
            found[checkpoint.digest] = ((folders.order_of(path), checkpoint.manifest.step), path)
        except SDPError:
            continue  # other disks may have it
    return found


def _intact(checkpoint: Checkpoint) -> list[str]:
    """Returns the files that are there and undamaged; reads all of them once."""
    chunks: dict[int, list[Chunk]] = {}
    for _, entry in checkpoint.manifest.tensors():
        for chunk in entry.chunks:
            chunks.setdefault(chunk.file, []).append(chunk)
    intact = []
    for at in sorted(checkpoint.intact_files):
        file = checkpoint.manifest.files[at]
        try:
            with (checkpoint.path / file.name).open("rb") as content:
                good = file.crc is None or zlib.crc32(content.read()) == file.crc
                for chunk in sorted(chunks.get(at, ()), key=lambda chunk: chunk.start) if good else ():
                    content.seek(chunk.start)
                    good = good and zlib.crc32(content.read(chunk.nbytes)) == chunk.crc
        except OSError:
            continue
        intact += [file.name] if good else []
    return intact


def _problem(path: Path, names: set[str], workers: int, may_be_lost: bool, remedy: str) -> str:
    """Returns why a checkpoint is not whole on the disks that are left; empty if it is."""
    try:
        checkpoint = _Spread(path, names)
        check_model(checkpoint)
        check_states(checkpoint, may_be_lost, remedy)
        manifest = checkpoint.manifest
        own = {file.name for file in manifest.files if file.crc is not None}
        lost = sorted(own - names) if manifest.workers == workers and not may_be_lost else []
        if lost:
            return f"{path}: {', '.join(lost)} is on no disk that is left, or damaged. {remedy}"
    except SDPError as error:
        return str(error)
    except OSError as error:
        return f"{path}: {error}"
    return ""


def _completed(
    folder: Path,
    path: Path | None,
    model: Model,
    node: Node,
    team: Team,
    intact: list[list[str]],
    holder: int,
    order: int,
) -> Path:
    """Brings the files of a checkpoint to the disks that lack them. Collective."""
    files, step = [0, 0], 0
    with team.together():
        if model.rank == holder and path is not None:
            manifest = Checkpoint(path).manifest
            files, step = [(path / FILE).stat().st_size, sum(file.nbytes for file in manifest.files)], manifest.step
    size, total, step = team.gather([*files, step])[holder]
    staged = folder / folders.staged_name(step)
    with team.together():
        if size > MOST_BYTES:
            raise SDPError(f"{path} has a manifest of {size} bytes. Remove this checkpoint.")
        if node.is_leader and path is None:
            folders.begin(folder, step, total)
    target = staged if path is None else path
    lacking = [leader for leader, one in enumerate(team.gather(node.is_leader and path is None)) if one]
    _send([(FILE, holder, leader, size) for leader in lacking], target, model, team)
    needed: list[str] = []
    sizes: dict[str, int] = {}
    with team.together():
        if node.is_leader:
            checkpoint = Checkpoint(target)
            there = {name for one in intact for name in one}
            needed = _needed(checkpoint, set(intact[model.rank]), there, node, model.workers)
            sizes = {file.name: file.nbytes for file in checkpoint.manifest.files}
    asked = team.gather([[name, sizes[name]] for name in needed])
    transfers = [
        (name, next(worker for worker, names in enumerate(intact) if name in names), leader, nbytes)
        for leader, names in enumerate(asked)
        for name, nbytes in names
    ]
    _send(transfers, target, model, team)
    with team.together():
        if node.is_leader and path is None:
            folders.finish(staged, order)
    return folder / folders.name_of(step)


def _needed(checkpoint: Checkpoint, mine: set[str], there: set[str], node: Node, workers: int) -> list[str]:
    """Returns the files that a node lacks of those that it takes to read everything."""
    files = checkpoint.manifest.files
    chosen, needed = {at for at, file in enumerate(files) if file.name in mine}, list[str]()
    wanted = [numbers for _, entry in checkpoint.manifest.tensors() for numbers in _holders(entry).values()]
    if checkpoint.manifest.workers == workers:
        private = [checkpoint.manifest.private_file(worker) for worker in node.members]
        wanted += [[number] for number in private if number is not None]
    for numbers in wanted:
        offered = [number for number in numbers if files[number].name in there]
        if offered and not chosen.intersection(offered):
            chosen.add(offered[0])
            needed.append(files[offered[0]].name)
    return needed


def _holders(entry: TensorEntry) -> dict[Box, list[int]]:
    """Returns the files that hold each part of a tensor."""
    found: dict[Box, list[int]] = {}
    for chunk in entry.chunks:
        found.setdefault(chunk.box, []).append(chunk.file)
    return found


def _send(transfers: Sequence[Transfer], folder: Path, model: Model, team: Team) -> None:
    """Sends files from disk to disk, one after the other, in pieces. Collective.

    A worker that cannot read or write goes on with the others to the end, and raises then.
    """
    problem: OSError | None = None
    for name, sender, receiver, nbytes in transfers:
        if model.peers is None or model.rank not in (sender, receiver):
            continue
        is_sender = model.rank == sender
        file: IO[bytes] | None = None
        place = folder / (name if is_sender else f".{name}.part")
        try:
            file = place.open("rb" if is_sender else "wb")
        except OSError as error:
            problem = problem or error
        problem = _pieces(file, nbytes, sender, receiver, model.peers.groups) or problem
        try:
            if file is not None:
                file.close()
            if not is_sender and problem is None:
                place.replace(folder / name)
        except OSError as error:
            problem = problem or error
    with team.together():
        if problem is not None:
            raise problem


def _pieces(file: IO[bytes] | None, nbytes: int, sender: int, receiver: int, groups: Groups) -> OSError | None:
    """Sends or receives the content of one file to the end. Returns the first error of the file."""
    problem = None
    for start in range(0, nbytes, _PIECE):
        piece = torch.zeros(min(_PIECE, nbytes - start), dtype=torch.uint8)
        with explained((sender, receiver), "a part of a checkpoint", groups.rank):
            if groups.rank == sender:
                try:
                    content = bytearray(b"" if file is None else file.read(len(piece)))
                    if content:
                        piece[: len(content)] = torch.frombuffer(content, dtype=torch.uint8)
                except OSError as error:
                    problem = problem or error
                complete(dist.isend(piece, groups.global_rank(receiver), groups.control), piece)
                continue
            complete(dist.irecv(piece, groups.global_rank(sender), groups.control), piece)
        try:
            if file is not None and problem is None:
                file.write(piece.numpy().tobytes())
        except OSError as error:
            problem = error
    try:
        if file is not None and groups.rank == receiver:
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        problem = problem or error
    return problem
