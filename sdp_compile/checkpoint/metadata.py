"""PyTorch's own description of a checkpoint, with which torch.distributed.checkpoint reads it."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from sdp_compile.checkpoint.manifest import Chunk, Manifest, TensorEntry, data_name

Path = tuple[str | int, ...]


def objects_of(optimizer: Mapping[str, Any] | None, extra: Mapping[str, Any]) -> dict[Path, Any]:
    """Returns the values of the full state that are not tensors, by their path in the saved state.

    Args:
        optimizer: What ``full_optimizer_state_dict`` returns.
        extra: The modules' own states, by key of the model's ``state_dict()``.
    """
    found: dict[Path, Any] = {("model", key): value for key, value in extra.items()}
    if optimizer is None:
        return found
    for number, group in enumerate(optimizer["param_groups"]):
        found.update({("optimizer", "param_groups", number, key): value for key, value in group.items()})
    for name, state in optimizer["state"].items():
        found.update({("optimizer", "state", name, key): value for key, value in state.items()})
    return found


def flat(path: Path) -> str:
    """Returns the name of a value in a checkpoint of torch.distributed.checkpoint."""
    return ".".join(map(str, path))


def metadata(manifest: Manifest, objects: Mapping[Path, Any], places: Mapping[str, tuple[int, int]]) -> bytes:
    """Returns the content of ``.metadata``.

    The state is the one that ``{"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model,
    optimizer)}`` is for the original.

    Args:
        manifest: The checkpoint.
        objects: What is not in the manifest's tensors, by path.
        places: Where worker 0's file holds each of them, by flat name.
    """
    result = _Builder(manifest)
    for key, name in manifest.keys.items():
        result.add_tensor(("model", key), manifest.model[name])
    for name, entries in () if manifest.optimizer is None else manifest.optimizer.tensors.items():
        for key, entry in entries.items():
            result.add_tensor(("optimizer", "state", name, key), entry)
    for path, value in objects.items():
        result.add_object(path, value, places[flat(path)])
    return pickle.dumps(result.metadata)


class _Builder:
    def __init__(self, manifest: Manifest) -> None:
        self._files = manifest.files
        self.metadata = Metadata({}, planner_data={}, storage_data={}, storage_meta=StorageMeta())
        self.metadata.version = CURRENT_DCP_VERSION

    def add_tensor(self, path: Path, entry: TensorEntry) -> None:
        one_each: dict[Any, Chunk] = {}
        for chunk in entry.chunks:
            one_each.setdefault(chunk.box, chunk)
        name = self._name(path)
        parts = [ChunkStorageMetadata(torch.Size(box.offsets), torch.Size(box.sizes)) for box in one_each]
        self._describe(name, entry.torch_dtype, torch.Size(entry.shape), parts)
        for box, chunk in one_each.items():
            self._place(MetadataIndex(name, torch.Size(box.offsets)), self._files[chunk.file].name, chunk.blob)

    def add_object(self, path: Path, value: Any, place: tuple[int, int]) -> None:
        name, index = self._name(path), None
        if isinstance(value, torch.Tensor):
            index = torch.Size([0] * value.dim())
            self._describe(name, value.dtype, value.shape, [ChunkStorageMetadata(index, value.shape)])
        else:
            self.metadata.state_dict_metadata[name] = BytesStorageMetadata()
        self._place(MetadataIndex(name, index), data_name(0), place)

    def _name(self, path: Path) -> str:
        name = flat(path)
        self.metadata.planner_data[name] = path
        return name

    def _describe(self, name: str, dtype: torch.dtype, size: torch.Size, parts: list[ChunkStorageMetadata]) -> None:
        self.metadata.state_dict_metadata[name] = TensorStorageMetadata(TensorProperties(dtype), size, parts)

    def _place(self, index: MetadataIndex, file: str, place: tuple[int, int]) -> None:
        self.metadata.storage_data[index] = _StorageInfo(file, *place)
