"""What is in a checkpoint: one JSON file, checked completely before anything is allocated or read.

PyTorch's own description, ``.metadata``, is a pickle, and reading a pickle runs code. It is written for other readers.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from hashlib import sha256
from math import prod
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from sdp_compile.errors import SDPError
from sdp_compile.planning.boxes import Box, cover_exactly

FORMAT = "sdp-compile checkpoint 1"
FILE = "manifest.json"
METADATA = ".metadata"
"""PyTorch's own description."""
MOST_BYTES = 2**30
"""The largest manifest that is read."""

DTYPES = frozenset(
    {"bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"}
    | {"float16", "bfloat16", "float32", "float64", "complex32", "complex64", "complex128"}
    | {"float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"}
)
"""What checkpoints hold. Quantized tensors have scales besides values, and elements of others are parts of a byte."""

_MOST_LAYERS = 50
"""How deeply a layout may be nested."""

_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class Data(BaseModel):
    """Data that are checked as they are read."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class Chunk(Data):
    """One worker's copy of a box of a tensor.

    Attributes:
        file: The position of its file in `Manifest.files`.
        offsets: The first index along each dimension of the full tensor.
        sizes: The number of indices along each dimension.
        start: The first byte of its values in the file.
        nbytes: The number of bytes of its values, in row-major order.
        crc: The CRC-32 of these bytes.
        blob: First byte and length of what ``torch.load`` reads, in which the values lie.
    """

    file: int = Field(ge=0)
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    start: int = Field(ge=0)
    nbytes: int = Field(ge=0)
    crc: int = Field(ge=0, lt=2**32)
    blob: tuple[int, int]

    @property
    def box(self) -> Box:
        """The box of the full tensor."""
        return Box(self.offsets, self.sizes)


class TensorEntry(Data):
    """A full tensor. Chunks of the same box are copies of each other."""

    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype."""
        dtype = getattr(torch, self.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype

    @property
    def nbytes(self) -> int:
        """The size of the values in bytes."""
        return prod(self.shape) * self.torch_dtype.itemsize


class File(Data):
    """A file of the checkpoint.

    Attributes:
        name: Its name within the checkpoint.
        worker: The worker that wrote it.
        nbytes: Its size.
        crc: The CRC-32 of all of it, if it is read as a whole.
    """

    name: str = Field(max_length=200)
    worker: int = Field(ge=0)
    nbytes: int = Field(ge=0)
    crc: int | None = Field(default=None, ge=0, lt=2**32)


class LayoutEntry(Data):
    """How the indices of a dimension are composed of units; see `sdp_compile.structure.layout`.

    Attributes:
        size: The number of indices.
        family: The family whose units they are, if it is one.
        product: The factors that they are the row-major product of, if any.
        sum: The parts that they are the concatenation of, if any.
    """

    size: int = Field(ge=0)
    family: str | None = None
    product: tuple[LayoutEntry, ...] = ()
    sum: tuple[LayoutEntry, ...] = ()


class PlanEntry(Data):
    """What the model was partitioned by.

    Attributes:
        digest: The plan's.
        slices: What tells apart workers with different slices, by worker: `Holdings.digest`.
        policy: The policy's description.
        masking: ``"forward"`` or ``"backward"``.
        lowering: ``"sliced"`` or ``"masked"``.
        layouts: How the dimensions of each tensor that is cut are composed of units.
        blocks: The family and the unit of each tensor of a block that is partitioned.
    """

    digest: str
    slices: tuple[str, ...]
    policy: JsonValue
    masking: str
    lowering: str
    layouts: dict[str, tuple[LayoutEntry, ...]]
    blocks: dict[str, tuple[str, int]]


class GroupEntry(Data):
    """A parameter group: encoded options, the names of its parameters, and whether the optimizer was given names."""

    options: dict[str, JsonValue]
    names: tuple[str, ...]
    named: bool


class OptimizerEntry(Data):
    """An optimizer's state.

    Attributes:
        kind: The name of its class.
        groups: The parameter groups.
        scalars: States of a parameter that are not per element, encoded, by parameter and name.
        tensors: States of a parameter that are per element, by parameter and name.
    """

    kind: str
    groups: tuple[GroupEntry, ...]
    scalars: dict[str, dict[str, JsonValue]]
    tensors: dict[str, dict[str, TensorEntry]]


class Manifest(Data):
    """A checkpoint.

    Attributes:
        byteorder: That of all values.
        torch: The version of torch that wrote it.
        step: The number of steps done.
        samples: The number of samples that all workers together have trained on.
        workers: The number of workers.
        redundancy: ``"none"``: one copy of each unit; ``"owners"``: one of each owner.
        plan: The partition; None for a model that was not compiled.
        model: Parameters and persistent buffers by canonical name.
        keys: The canonical name of each key of the original's ``state_dict()``.
        optimizer: The optimizer's state, if it was saved.
        shared: States that all workers have alike: schedulers, scaler and what the user added.
        files: All files but this one.
    """

    byteorder: Literal["little", "big"]
    torch: str
    step: int = Field(ge=0)
    samples: int | None = Field(default=None, ge=0)
    workers: int = Field(ge=1)
    redundancy: Literal["none", "owners"]
    plan: PlanEntry | None
    model: dict[str, TensorEntry]
    keys: dict[str, str]
    optimizer: OptimizerEntry | None
    shared: JsonValue
    files: tuple[File, ...]

    def tensors(self) -> Iterator[tuple[str, TensorEntry]]:
        """Yields all tensors, each with what it is called in errors."""
        yield from self.model.items()
        for name, entries in () if self.optimizer is None else self.optimizer.tensors.items():
            yield from ((f"{key} of {name}", entry) for key, entry in entries.items())

    def private_file(self, worker: int) -> int | None:
        """Returns the position of a worker's file of states that only it has."""
        names = [file.name for file in self.files]
        name = private_name(worker)
        return names.index(name) if name in names else None


def data_name(worker: int) -> str:
    """Returns the name of a worker's file of values; those of PyTorch's own writer are alike."""
    return f"__{worker}_0.distcp"


def private_name(worker: int) -> str:
    """Returns the name of the file with what only this worker has: random states, data position, local statistics."""
    return f"worker-{worker}.json"


def dumps(manifest: Manifest) -> str:
    """Returns a manifest as the text of its file."""
    body = manifest.model_dump(mode="json")
    return json.dumps({"format": FORMAT, "digest": _digest(body), "checkpoint": body})


def loads(text: str | bytes, where: str) -> tuple[Manifest, str]:
    """Reads and checks a manifest.

    Args:
        text: What `dumps` returned.
        where: The file, for errors.

    Returns:
        The manifest and its digest.

    Raises:
        SDPError: If it is damaged, or says what cannot be.
    """
    damaged = f"{where} is not the manifest of a checkpoint, or is damaged"
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SDPError(f"{damaged}: it is not valid JSON ({error}). Load another checkpoint.") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        found = document.get("format") if isinstance(document, dict) else type(document).__name__
        raise SDPError(f"{damaged}: its format must be {FORMAT!r}, got {found!r:.80}. Load another checkpoint.")
    body = document.get("checkpoint")
    try:
        if document.get("digest") != _digest(body):
            raise SDPError(f"{damaged}: its digest does not fit its content. Load another checkpoint.")
        manifest = Manifest.model_validate_json(json.dumps(body))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))[:200]
        raise SDPError(f"{damaged}: {place}: {first['msg']}. Load another checkpoint.") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise SDPError(f"{damaged}: {error}. Load another checkpoint.") from error
    problem = problem_of(manifest)
    if problem:
        raise SDPError(f"{damaged}: {problem}. Load another checkpoint.")
    return manifest, str(document["digest"])


def _digest(body: Any) -> str:
    return sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def problem_of(manifest: Manifest) -> str:
    """Returns what cannot be in a manifest; empty if all is well."""
    if manifest.byteorder != sys.byteorder:
        return f"it was written on a {manifest.byteorder}-endian machine, and this one is {sys.byteorder}-endian"
    names = [file.name for file in manifest.files]
    if len(set(names)) < len(names):
        return "two files have the same name"
    for file in manifest.files:
        if not _SAFE_NAME.fullmatch(file.name) or file.worker >= manifest.workers:
            return f"{file.name!r:.80} of worker {file.worker} is no file of the checkpoint"
    for key, name in manifest.keys.items():
        if name not in manifest.model:
            return f"the key {key!r:.80} stands for {name!r:.80}, which it lacks"
    for name, layouts in () if manifest.plan is None else manifest.plan.layouts.items():
        shape = manifest.model[name].shape if name in manifest.model else None
        if shape is not None and shape != tuple(layout.size for layout in layouts):
            return f"{name!r:.200} is composed of units in another way than its shape"
        if not all(map(_is_possible, layouts)):
            return f"{name!r:.200} is composed of units in a way that cannot be"
    left = [file.nbytes for file in manifest.files]
    for name, entry in manifest.tensors():
        problem = _tensor_problem(entry, manifest.files)
        if problem:
            return f"{name!r:.200} {problem}"
        for chunk in entry.chunks:
            left[chunk.file] -= chunk.nbytes
            if left[chunk.file] < 0:  # so that no tensor is larger than the files
                return f"{name!r:.200} has chunks that share bytes of {manifest.files[chunk.file].name}"
    return ""


def _is_possible(layout: LayoutEntry, depth: int = 0) -> bool:
    """Whether a layout is of one kind and its sizes fit together."""
    if depth > _MOST_LAYERS or (layout.family is not None) + bool(layout.product) + bool(layout.sum) > 1:
        return False
    if layout.product and (layout.size == 0 or prod(factor.size for factor in layout.product) != layout.size):
        return False
    if layout.sum and sum(part.size for part in layout.sum) != layout.size:
        return False
    return all(_is_possible(inner, depth + 1) for inner in (*layout.product, *layout.sum))


def _tensor_problem(entry: TensorEntry, files: tuple[File, ...]) -> str:
    if entry.dtype not in DTYPES or not isinstance(getattr(torch, entry.dtype, None), torch.dtype):
        return f"has the unknown dtype {entry.dtype!r:.80}"
    if any(size < 0 for size in entry.shape):
        return f"has the shape {entry.shape}"
    for chunk in entry.chunks:
        if chunk.file >= len(files):
            return f"has a chunk in file {chunk.file} of {len(files)}"
        first, length = chunk.blob
        if not 0 <= first <= chunk.start <= chunk.start + chunk.nbytes <= first + length <= files[chunk.file].nbytes:
            return f"has a chunk outside of its file {files[chunk.file].name}"
        if len(chunk.offsets) != len(entry.shape) or len(chunk.sizes) != len(entry.shape):
            return f"has a chunk with {len(chunk.sizes)} dimensions instead of {len(entry.shape)}"
        for start, size, extent in zip(chunk.offsets, chunk.sizes, entry.shape, strict=True):
            if start < 0 or size < 0 or start + size > extent:
                return f"has a chunk at {chunk.offsets} of {chunk.sizes}, outside of its shape {entry.shape}"
        if not chunk.box.numel:
            return f"has a chunk at {chunk.offsets} without elements"
        if chunk.nbytes != chunk.box.numel * entry.torch_dtype.itemsize:
            return f"has a chunk of {chunk.nbytes} bytes for {chunk.box.numel} elements of {entry.dtype}"
    if not cover_exactly(list(dict.fromkeys(chunk.box for chunk in entry.chunks)), entry.shape):
        return "has chunks that overlap or do not cover it"
    return ""


def shared_of(manifest: Manifest) -> Mapping[str, Any]:
    """Returns the states that all workers have alike, still encoded."""
    return manifest.shared if isinstance(manifest.shared, dict) else {}
