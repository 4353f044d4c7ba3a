"""The full model of a checkpoint in one safetensors file, written one tensor at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import _TYPES

from sdp_compile.checkpoint.coverage import check_model, check_states
from sdp_compile.checkpoint.extra import states_in
from sdp_compile.checkpoint.manifest import shared_of
from sdp_compile.checkpoint.reading import Checkpoint
from sdp_compile.errors import SDPError

_ALIGNMENT = 8
_GO_ON = "write the model alone by --reset-lost-optimizer-state, after which training begins without these states"


@dataclass(frozen=True)
class Merged:
    """What `merge` wrote.

    Attributes:
        path: The file.
        tensors: The number of tensors.
        nbytes: The size of their values.
        damaged: Copies that were left out because they are damaged or missing, in words.
        extra: The keys of modules' extra states, which safetensors files cannot hold.
    """

    path: Path
    tensors: int
    nbytes: int
    damaged: tuple[str, ...]
    extra: tuple[str, ...] = ()


def merge(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    on_tensor: Callable[[int, int], None] = lambda done, count: None,
    reset_lost_optimizer_state: bool = False,
) -> Merged:
    """Writes the full model of a checkpoint into a file that the original loads with ``strict=True``.

    Any files of the checkpoint may be missing, as long as every element is in one of those that are left. All copies of
    an element are compared.

    Args:
        source: A checkpoint, or a folder of checkpoints, of which the newest counts.
        target: The safetensors file to write.
        on_tensor: Called after each tensor with the number of tensors done and of all tensors.
        reset_lost_optimizer_state: Whether to go on if parts of the optimizer's state are lost, which the file has not.

    Raises:
        SDPError: If a part of the model or the optimizer's state is lost, copies of it differ, or the file cannot be
            written.
    """
    checkpoint, path = Checkpoint(source), Path(target)
    manifest = checkpoint.manifest
    check_model(checkpoint)
    check_states(checkpoint, reset_lost_optimizer_state, _GO_ON)
    header, order = _header(checkpoint)
    damaged: dict[str, None] = {}
    staged = path.with_name(f".{path.name}.part")
    try:
        with staged.open("wb") as file:
            file.write(header)
            for number, name in enumerate(order, 1):
                entry = manifest.model[name]
                damaged.update(dict.fromkeys(checkpoint.compare(entry, name)))
                if entry.nbytes:
                    values = checkpoint.whole(entry, name)
                    file.write(values.reshape(-1).view(torch.uint8).numpy().data)
                on_tensor(number, len(order))
            file.flush()
            os.fsync(file.fileno())
            size = file.tell() - len(header)
        staged.replace(path)
    except OSError as error:
        staged.unlink(missing_ok=True)
        raise SDPError(
            f"{path} cannot be written ({error.strerror}). Choose another file or free some space."
        ) from error
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    extra = states_in(shared_of(manifest))
    return Merged(path, len(order), size, tuple(damaged), tuple(extra))


def _header(checkpoint: Checkpoint) -> tuple[bytes, list[str]]:
    """Returns the beginning of the file, and the tensors in the order of their values; tied ones are written twice."""
    names = {dtype: text for text, dtype in _TYPES.items()}
    entries: dict[str, object] = {"__metadata__": {"format": "pt", "step": str(checkpoint.manifest.step)}}
    # The widest first, so that all values are aligned.
    keys = sorted(
        checkpoint.manifest.keys.items(), key=lambda item: -checkpoint.manifest.model[item[1]].torch_dtype.itemsize
    )
    start = 0
    for key, name in keys:
        entry = checkpoint.manifest.model[name]
        if entry.torch_dtype not in names:
            raise SDPError(f"{name!r} is {entry.dtype}, which safetensors files cannot hold. Convert the model first.")
        stop = start + entry.nbytes
        entries[key] = {"dtype": names[entry.torch_dtype], "shape": list(entry.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text, [name for _, name in keys]
