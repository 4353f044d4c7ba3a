"""Puts what the workers have written together to a checkpoint's manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sdp_compile.checkpoint.manifest import Chunk, File, Manifest, OptimizerEntry, PlanEntry, TensorEntry, problem_of
from sdp_compile.checkpoint.model import CompiledModel, Model
from sdp_compile.checkpoint.states import OptimizerStates
from sdp_compile.checkpoint.writing import Written
from sdp_compile.errors import SDPError


def manifest_of(
    model: Model,
    facts: Mapping[str, Any],
    written: Sequence[Written],
    states: OptimizerStates | None,
    slices: Sequence[str],
) -> Manifest:
    """Returns the manifest of a checkpoint.

    Args:
        model: The model.
        facts: The other fields of the manifest.
        written: What each worker has written.
        states: The optimizer's state, if it was saved.
        slices: What tells apart workers with different slices.

    Raises:
        SDPError: If the parts do not make up the whole.
    """
    files, parts = list[File](), _Parts()
    for one in written:
        parts.add(one, len(files))
        files += one.files
    tensors = model.tensors()
    manifest = Manifest(
        **facts,
        workers=model.workers,
        plan=_plan(model, slices),
        model={
            name: parts.entry(("model", name), shape, tensors[name].dtype if name in tensors else torch.float32)
            for name, shape in model.shapes.items()
        },
        keys=dict(model.keys),
        optimizer=None if states is None else _optimizer(model, states, parts),
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


def _optimizer(model: Model, states: OptimizerStates, parts: _Parts) -> OptimizerEntry:
    tensors = {
        name: {key: parts.entry(("optimizer", name, key), model.shapes[name], dtype) for key, dtype in dtypes.items()}
        for name, dtypes in states.dtypes.items()
    }
    return states.entry(tensors)


def _plan(model: Model, slices: Sequence[str]) -> PlanEntry | None:
    if not isinstance(model, CompiledModel):
        return None
    plan = model.module.plan
    return PlanEntry(
        digest=plan.digest,
        slices=tuple(slices),
        policy=json.loads(json.dumps(plan.policy)),
        masking=plan.masking,
        lowering=model.module.holdings.lowering,
    )
