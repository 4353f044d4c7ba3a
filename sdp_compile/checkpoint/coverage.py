"""Which parts of a checkpoint are still there after files were lost."""

from __future__ import annotations

from dataclasses import dataclass

from sdp_compile.checkpoint.manifest import TensorEntry
from sdp_compile.checkpoint.reading import Checkpoint
from sdp_compile.errors import SDPError
from sdp_compile.planning.boxes import Box


@dataclass(frozen=True)
class Lost:
    """A box of a tensor of which no copy is left.

    Attributes:
        name: The tensor.
        box: The part.
        workers: The workers whose files held it.
    """

    name: str
    box: Box
    workers: tuple[int, ...]

    def __str__(self) -> str:
        place = ", ".join(
            f"{start}:{start + size}" for start, size in zip(self.box.offsets, self.box.sizes, strict=True)
        )
        workers = ", ".join(map(str, self.workers))
        return f"{self.name}[{place}] (worker{'s' if len(self.workers) > 1 else ''} {workers})"


def lost_parts(checkpoint: Checkpoint, name: str, entry: TensorEntry) -> list[Lost]:
    """Returns the parts of a tensor that no file holds any more; files are not read.

    Args:
        checkpoint: The checkpoint.
        name: The tensor's name.
        entry: The tensor.
    """
    files, intact = checkpoint.manifest.files, checkpoint.intact_files
    holders: dict[Box, list[int]] = {}
    for chunk in entry.chunks:
        holders.setdefault(chunk.box, []).append(chunk.file)
    return [
        Lost(name, box, tuple(files[number].worker for number in numbers))
        for box, numbers in holders.items()
        if not any(number in intact for number in numbers)
    ]


def check_model(checkpoint: Checkpoint) -> None:
    """Raises `SDPError` if a part of the model is lost."""
    lost = [part for name, entry in checkpoint.manifest.model.items() for part in lost_parts(checkpoint, name, entry)]
    if lost:
        raise SDPError(
            f"{checkpoint.path} lacks parts of the model that no other file holds: {described(lost)}. "
            f"{' '.join(list(checkpoint.problems.values())[:5])} Bring back the files of one of these workers, or use "
            "another checkpoint."
        )


def lost_states(checkpoint: Checkpoint) -> dict[str, list[Lost]]:
    """Returns the lost parts of the optimizer's state, by parameter."""
    optimizer, found = checkpoint.manifest.optimizer, dict[str, list[Lost]]()
    for name, entries in () if optimizer is None else optimizer.tensors.items():
        lost = [part for key, one in entries.items() for part in lost_parts(checkpoint, f"{key} of {name}", one)]
        if lost:
            found[name] = lost
    return found


def described(lost: list[Lost], shown: int = 5) -> str:
    """Returns lost parts as a part of a sentence."""
    more = f" and {len(lost) - shown} more" if len(lost) > shown else ""
    return "; ".join(map(str, lost[:shown])) + more
