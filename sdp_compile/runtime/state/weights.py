"""Reads slices of full weights, from a mapping or from safetensors files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any, Protocol, cast

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from sdp_compile.errors import SDPError
from sdp_compile.planning.regions import Region
from sdp_compile.structure.layout import Indices

_MAX_READS = 64
"""With more separate runs of rows than this, the whole range is read and the rows are picked in memory."""


class Weights(Protocol):
    """A source of full tensors."""

    def __contains__(self, name: object) -> bool: ...

    def read(self, name: str, shape: tuple[int, ...], region: Region) -> Tensor:
        """Returns a copy of a region of a tensor; raises `SDPError` if its full shape is not ``shape``."""
        ...

    def explain(self, absent: list[str]) -> str:
        """Returns the error text for tensors that the source lacks."""
        ...


def open_weights(weights: str | os.PathLike[str] | Mapping[str, Tensor]) -> Weights:
    """Opens a source of full tensors.

    Args:
        weights: Tensors by name, or the path of a .safetensors file, of an index (.json) of several, or of a folder
            with exactly one of either.

    Raises:
        SDPError: If the path does not lead to such a file.
    """
    if isinstance(weights, Mapping):
        return _Mapped(weights)
    path = Path(weights)
    if path.is_dir():
        found = sorted(path.glob("*.safetensors.index.json")) or sorted(path.glob("*.safetensors"))
        if len(found) != 1:
            raise SDPError(f"{path} holds {len(found)} safetensors files or indices. Pass the path of the one to load.")
        path = found[0]
    if not path.is_file():
        raise SDPError(f"The weights file {path} does not exist. Pass the path of a safetensors file, index or folder.")
    try:
        if path.suffix == ".json":
            index = json.loads(path.read_text())["weight_map"]
            return _Files(path, {str(name): path.parent / _within(file, path) for name, file in index.items()})
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return _Files(path, dict.fromkeys(file.keys(), path))
    except SDPError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SDPError(
            f"{path} is not an index of safetensors files: it lacks a `weight_map` from names to files."
        ) from error
    except Exception as error:  # safetensors' own error type is not public in all versions
        raise SDPError(f"{path} cannot be read as a safetensors file: {error}. Check the file.") from error
    raise SDPError(f"{path} must be a .safetensors file or an index (.json) of such files.")


def _within(file: str, index: Path) -> str:
    """Returns the name of a file that an index refers to; it must not lead out of the folder."""
    name = PurePath(file)
    if name.is_absolute() or ".." in name.parts or "\0" in file:
        raise SDPError(f"{index} refers to {file!r:.200}, which is outside of its folder. Check the index.")
    return file


class _Mapped:
    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self._values = values

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def read(self, name: str, shape: tuple[int, ...], region: Region) -> Tensor:
        value = torch.as_tensor(self._values[name]).detach()
        _check(name, tuple(value.shape), shape, "the weights")
        return region.copy(value)

    def explain(self, absent: list[str]) -> str:
        return _missing(absent, "the weights")


class _Files:
    """Reads from files. Each is open for one tensor at a time, because closing it frees the memory it is mapped to."""

    def __init__(self, path: Path, files: Mapping[str, Path]) -> None:
        self._path, self._files = path, files

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def read(self, name: str, shape: tuple[int, ...], region: Region) -> Tensor:
        path = self._files[name]
        try:
            file: Any = safe_open(path, framework="pt")
        except Exception as error:
            raise SDPError(
                f"{path}, which {self._path} refers to, cannot be read: {error}. Check "
                "that all files of the index are there."
            ) from error
        with file:
            try:
                stored = file.get_slice(name)
                found = tuple(stored.get_shape())
            except Exception as error:  # safetensors' own
                raise SDPError(f"{path}, which {self._path} refers to, lacks {name!r}: {error}.") from error
            _check(name, found, shape, str(self._path))
            return _part(stored, region) if shape else cast(Tensor, file.get_tensor(name)).clone()

    def explain(self, absent: list[str]) -> str:
        return _missing(absent, str(self._path))


def _part(stored: Any, region: Region) -> Tensor:
    """Returns a copy of a region of a tensor in a file."""
    outer, *inner = region.index
    within = tuple(slice(int(index[0]), int(index[-1]) + 1) if len(index) else slice(0, 0) for index in inner)
    result: Tensor = stored[(slice(0, 0), *within)].new_empty(region.shape)
    done = 0
    for rows in _runs(outer):
        part = stored[(slice(int(rows[0]), int(rows[-1]) + 1), *within)]
        relative = [rows - rows[0], *(index - index[0] if len(index) else index for index in inner)]
        Region(relative).copy(part, result[done : done + len(rows)])
        done += len(rows)
    return result


def _runs(index: Indices) -> Iterator[Indices]:
    """Yields the runs of consecutive numbers in an ascending list, or the whole list if there are too many."""
    if not len(index):
        return
    breaks = np.flatnonzero(np.diff(index) != 1) + 1
    yield from (np.split(index, breaks) if len(breaks) < _MAX_READS else [index])


def _check(name: str, shape: tuple[int, ...], expected: tuple[int, ...], where: str) -> None:
    if shape != tuple(expected):
        raise SDPError(
            f"{name!r} has shape {list(shape)} in {where}, but {list(expected)} in the model. Pass "
            "the weights of this model."
        )


def _missing(absent: list[str], where: str) -> str:
    more = f" and {len(absent) - 10} more" if len(absent) > 10 else ""
    return (
        f"{', '.join(absent[:10])}{more} not found in {where}. Names must be those of the original model's "
        "state_dict()."
    )
