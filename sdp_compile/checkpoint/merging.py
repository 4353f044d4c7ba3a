"""Puts what the workers have written together to a checkpoint's manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sdp_compile.checkpoint.manifest import Chunk, File, Manifest, OptimizerEntry, PlanEntry, TensorEntry, problem_of
from sdp_compile.checkpoint.model import CompiledModel, Model
from sdp_compile.checkpoint.states import OptimizerStates
from sdp_compile.checkpoint.units import blocks_of, layouts_of
from sdp_compile.checkpoint.writing import Written
from sdp_compile.errors import SDPError


def manifest_of(
    facts: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, torch.dtype],
    written: Sequence[Written],
    states: OptimizerStates | None,
) -> Manifest:
    """Returns the manifest of a checkpoint. It asks the model nothing, which may train on meanwhile.

    Args:
        facts: The other fields of the manifest.
        shapes: The shapes of the model's full tensors by name.
        dtypes: The dtypes of those that this worker holds.
        written: What each worker has written.
        states: The optimizer's state, if it was saved.

    Raises:
        SDPError: If the parts do not make up the whole.
    """
    files, parts = list[File](), _Parts()
    for one in written:
        parts.add(one, len(files))
        files += one.files
    manifest = Manifest(
        **facts,
        model={
            name: parts.entry(("model", name), shape, dtypes.get(name, torch.float32)) for name, shape in shapes.items()
        },
        optimizer=None if states is None else _optimizer(shapes, states, parts),
        files=tuple(files),
    )
    problem = problem_of(manifest)
    if problem:
        raise SDPError(f"The checkpoint would be useless: {problem}. Please report this as a defect of sdp-compile.")
    return manifest


class _Parts:
    """The chunks of all workers by tensor."""

    def __init__(self) -> None:
        self._dtypes: dict[tuple[str, ...], str] = {}
        self._chunks: dict[tuple[str, ...], list[Chunk]] = {}

    def add(self, written: Written, first_file: int) -> None:
        """Adds what a worker has written; its files are numbered from ``first_file``."""
        for part in written.chunks:
            dtype = self._dtypes.setdefault(part.key, part.dtype)
            if dtype != part.dtype:
                raise SDPError(
                    f"Workers hold {' of '.join(reversed(part.key[1:]))!r} as {dtype} and as {part.dtype}. Convert the "
                    "model on all workers."
                )
            chunk = part.chunk.model_copy(update={"file": first_file + part.chunk.file})
            self._chunks.setdefault(part.key, []).append(chunk)

    def entry(self, key: tuple[str, ...], shape: tuple[int, ...], dtype: torch.dtype) -> TensorEntry:
        """Returns a tensor; ``dtype`` is that of a tensor without elements."""
        text = self._dtypes.get(key, str(dtype).removeprefix("torch."))
        return TensorEntry(dtype=text, shape=tuple(shape), chunks=tuple(self._chunks.get(key, ())))


def _optimizer(shapes: Mapping[str, tuple[int, ...]], states: OptimizerStates, parts: _Parts) -> OptimizerEntry:
    tensors = {
        name: {key: parts.entry(("optimizer", name, key), shapes[name], dtype) for key, dtype in dtypes.items()}
        for name, dtypes in states.dtypes.items()
    }
    return states.entry(tensors)


def plan_entry(model: Model, slices: Sequence[str]) -> PlanEntry | None:
    """Returns what a model was partitioned by.

    Args:
        model: The model.
        slices: What tells apart workers with different slices, by worker.
    """
    if not isinstance(model, CompiledModel):
        return None
    plan = model.module.plan
    return PlanEntry(
        digest=plan.digest,
        slices=tuple(slices),
        policy=json.loads(json.dumps(plan.policy)),
        masking=plan.masking,
        lowering=model.module.holdings.lowering,
        layouts=layouts_of(plan),
        blocks=blocks_of(plan),
    )
