"""Which parts of a checkpoint are still there after files were lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sdp_compile.checkpoint.manifest import Manifest, TensorEntry
from sdp_compile.checkpoint.reading import Checkpoint
from sdp_compile.checkpoint.units import Units, merged, units_of
from sdp_compile.errors import SDPError
from sdp_compile.planning.boxes import Box


@dataclass(frozen=True)
class Lost:
    """A box of a tensor of which no copy is left.

    Attributes:
        name: The tensor.
        box: The part.
        workers: The workers whose files held it.
        state: The name of the optimizer's state of this tensor; empty for the tensor itself.
    """

    name: str
    box: Box
    workers: tuple[int, ...]
    state: str = ""

    def __str__(self) -> str:
        place = ", ".join(
            f"{start}:{start + size}" for start, size in zip(self.box.offsets, self.box.sizes, strict=True)
        )
        return f"{self.state and f'{self.state} of '}{self.name}[{place}] ({_workers(self.workers)})"


def lost_parts(checkpoint: Checkpoint, name: str, entry: TensorEntry, state: str = "") -> list[Lost]:
    """Returns the parts of a tensor that no file holds any more; files are not read.

    Args:
        checkpoint: The checkpoint.
        name: The tensor's name.
        entry: The tensor, or its state in the optimizer.
        state: The name of this state.
    """
    files, intact = checkpoint.manifest.files, checkpoint.intact_files
    holders: dict[Box, list[int]] = {}
    for chunk in entry.chunks:
        holders.setdefault(chunk.box, []).append(chunk.file)
    return [
        Lost(name, box, tuple(files[number].worker for number in numbers), state)
        for box, numbers in holders.items()
        if not any(number in intact for number in numbers)
    ]


def lost_of_model(checkpoint: Checkpoint) -> list[Lost]:
    """Returns the lost parts of the model."""
    return [part for name, entry in checkpoint.manifest.model.items() for part in lost_parts(checkpoint, name, entry)]


def lost_states(checkpoint: Checkpoint) -> dict[str, list[Lost]]:
    """Returns the lost parts of the optimizer's state, by parameter."""
    optimizer, found = checkpoint.manifest.optimizer, dict[str, list[Lost]]()
    for name, entries in () if optimizer is None else optimizer.tensors.items():
        lost = [part for key, one in entries.items() for part in lost_parts(checkpoint, name, one, key)]
        if lost:
            found[name] = lost
    return found


def check_model(checkpoint: Checkpoint) -> None:
    """Raises `SDPError` if a part of the model is lost."""
    lost = lost_of_model(checkpoint)
    if lost:
        files = " ".join(list(checkpoint.problems.values())[:5])
        raise SDPError(
            f"{checkpoint.path} lacks parts of the model that no other file holds: "
            f"{described(checkpoint.manifest, lost)}. {files} Bring back the files of one of these workers, or use "
            "another checkpoint."
        )


def check_states(checkpoint: Checkpoint, may_be_lost: bool, remedy: str) -> tuple[str, ...]:
    """Returns the parameters of whose optimizer state a part is lost, if that is allowed.

    Args:
        checkpoint: The checkpoint.
        may_be_lost: Whether it is.
        remedy: How to allow it, for the error.
    """
    lost = lost_states(checkpoint)
    if lost and not may_be_lost:
        parts = [part for parts in lost.values() for part in parts]
        raise SDPError(
            f"{checkpoint.path} lacks parts of the optimizer's state: {described(checkpoint.manifest, parts)}. Bring "
            f"back the files of these workers, or {remedy}."
        )
    return tuple(lost)


def described(manifest: Manifest, lost: Sequence[Lost]) -> str:
    """Returns lost units and parts as a part of a sentence, with the workers that had them."""
    by_workers: dict[tuple[int, ...], set[Units]] = {}
    for part in lost:
        by_workers.setdefault(part.workers, set()).update(units_of(manifest, part.name, part.box))
    units = [
        f"{'units' if words.strip('0123456789') else 'unit'} {words} of {family} ({_workers(workers)})"
        for workers, found in by_workers.items()
        for family, words in merged(found).items()
    ]
    parts = shortened(lost, "; ")
    return f"{shortened(units, '; ')}, which is {parts}" if units else parts


def shortened(items: Sequence[object], separator: str = ", ", shown: int = 5) -> str:
    """Returns a list as a part of a sentence: its first items, and how many more there are."""
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return separator.join(map(str, items[:shown])) + more


def _workers(numbers: Sequence[int]) -> str:
    return f"worker{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
