"""A compiled model and its optimizer as a part of the user's own ``torch.distributed.checkpoint``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.optim.optimizer import Optimizer

from sdp_compile.checkpoint.buffers import saved_tensors
from sdp_compile.checkpoint.items import state_slices
from sdp_compile.checkpoint.model import CompiledModel, Model, model_of
from sdp_compile.checkpoint.plain import decode, encode
from sdp_compile.checkpoint.states import OptimizerStates, check_alike, optimizer_states, unstepped_states
from sdp_compile.checkpoint.taking import load_optimizer
from sdp_compile.checkpoint.team import Team
from sdp_compile.errors import SDPError
from sdp_compile.planning.boxes import Box, boxes
from sdp_compile.runtime.optimizer.full_state import fitted_groups
from sdp_compile.runtime.owners.comparison import check_values

WHAT = "sdp.CheckpointState"

_STEP = "step"
"""The state in which PyTorch's optimizers count the steps of a parameter."""

_Place = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], bool]
"""A box: its offsets in the full tensor, its sizes, its offsets in the worker's, and whether this worker saves it."""


_COPIED_BY = "new_empty", "empty_like", "detach", "clone", "copy_", "_to_copy"
_COPIES = tuple(getattr(torch.ops.aten, name).default for name in _COPIED_BY)
"""The functions with which torch.distributed.checkpoint copies a state before it writes it in the background."""


class WorkerSlice(Tensor):
    """A full tensor of which this worker holds a slice, as torch.distributed.checkpoint saves and loads it.

    It has the full shape, and the methods that DTensor has for this. Nothing can be computed with it.
    """

    held: Tensor
    places: list[_Place]

    @classmethod
    def of(cls, tensor: Tensor, model: Model, name: str) -> WorkerSlice:
        """Returns a full tensor of which this worker holds ``tensor``, in the same memory."""
        return cls.made(
            tensor.detach(),
            model.shapes[name],
            [
                (box.offsets, box.sizes, local.offsets, share.writer == model.rank)
                for share in model.shares(name)
                if share.local is not None
                for box, local in boxes(share.index, share.local)
            ],
        )

    @classmethod
    def made(cls, held: Tensor, shape: Sequence[int], places: list[_Place]) -> WorkerSlice:
        """Returns a full tensor of which this worker holds ``held``, at these places."""
        result: WorkerSlice = Tensor._make_wrapper_subclass(
            cls, torch.Size(shape), dtype=held.dtype, device=held.device
        )
        result.held, result.places = held, places
        return result

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in _COPIES:
            raise SDPError(
                f"{func} cannot be computed with what sdp.CheckpointState.state_dict() returns: it holds a worker's "
                "slices. It is for torch.distributed.checkpoint alone; use full_state_dict()."
            )
        first, *others = (arg.held if isinstance(arg, WorkerSlice) else arg for arg in args)
        if func is torch.ops.aten.new_empty.default:
            others[0] = first.shape
        held = func(first, *others, **(kwargs or {}))
        return args[0] if held is first else cls.made(held, args[0].shape, args[0].places)

    def __create_write_items__(self, fqn: str, object: Any) -> list[WriteItem]:
        properties = TensorProperties.create_from_tensor(self.held)
        return [
            WriteItem(
                index=MetadataIndex(fqn, torch.Size(offsets)),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)),
                    properties=properties,
                    size=self.size(),
                ),
            )
            for offsets, sizes, _, is_saved in self.places
            if is_saved
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)) for offsets, sizes, _, _ in self.places]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        wanted = tuple(index.offset or ())
        for offsets, sizes, local, _ in self.places:
            if offsets == wanted:
                return self.held[Box(local, sizes).slices]
        raise SDPError(f"This worker has no part of {index.fqn} at {list(wanted)}.")


class CheckpointState:
    """A compiled model and its optimizer, as a ``Stateful`` for ``torch.distributed.checkpoint``.

    ``dcp.save({"app": sdp.CheckpointState(model, optimizer)})`` saves the full model under the original names, each
    element once, as ``{"model": ..., "optimizer": ...}``; ``dcp.load`` loads it, also with other workers or policies.
    `save_checkpoint` does more: random states, schedulers, checksums, and a checkpoint that is whole or not there.

    Args:
        model: The compiled module, perhaps in the wrapper of ``torch.compile``.
        optimizer: An optimizer of its parameters; perhaps a `ShardedOptimizer`.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer | None = None) -> None:
        self._model, self._optimizer = model, optimizer

    @torch.no_grad()
    def state_dict(self) -> dict[str, Any]:
        """Returns the state for torch.distributed.checkpoint, with the memory of this worker's tensors. Collective.

        Returns:
            What this worker holds, by the original's names.

        Raises:
            SDPError: If something cannot be saved.
            DistributedError: If owners hold different values.
        """
        model = model_of(self._model, WHAT)
        if model.peers is not None:
            check_values(model.peers.engine, f"in {WHAT}")
        tensors = saved_tensors(model)
        state: dict[str, Any] = {
            "model": {
                key: WorkerSlice.of(tensors[name], model, name) for key, name in model.keys.items() if name in tensors
            }
        }
        if self._optimizer is not None:
            state["optimizer"] = _optimizer_state(model, self._optimizer)
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over the values that torch.distributed.checkpoint has read. Collective under backward masking.

        Args:
            state: What `state_dict` returned, with other values.

        Raises:
            SDPError: If the state does not fit the optimizer.
        """
        model = model_of(self._model, WHAT)
        tensors, optimizer = model.tensors(), self._optimizer
        if optimizer is not None:  # what does not fit changes nothing
            groups, states = _fitted(model, optimizer, state["optimizer"])
        strange = [key for key in state["model"] if model.keys.get(key) not in tensors]
        if strange:
            raise SDPError(f"The state is that of another model or worker: it has {strange[0]!r}. Nothing was loaded.")
        for key, value in state["model"].items():
            tensor, value = tensors[model.keys[key]], value.held if isinstance(value, WorkerSlice) else value
            if tensor.data_ptr() != value.data_ptr():
                tensor.copy_(value)
        if isinstance(model, CompiledModel):
            model.module.holdings.clear_unowned(tensors)
            if model.peers is not None:
                model.peers.refresh_parameters()
        if optimizer is not None:
            load_optimizer(optimizer, groups, states)


def _fitted(
    model: Model, optimizer: Optimizer, saved: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Returns an optimizer's groups with the options of a state, and this worker's slices of its states."""
    groups = fitted_groups(optimizer, model.parameters, saved["param_groups"])
    own = {name for group in groups for name in group["params"]}
    states = {
        name: {key: one.held if isinstance(one, WorkerSlice) else one for key, one in entries.items()}
        for name, entries in saved["state"].items()
        if name in own and not _is_unstepped(entries)
    }
    return groups, states


def _optimizer_state(model: Model, optimizer: Optimizer) -> dict[str, Any]:
    team = Team(model.peers, WHAT)
    with team.together():
        mine = optimizer_states(model, optimizer)
    everyone = team.gather(mine)
    check_alike(everyone, model)
    states = OptimizerStates.merged(everyone, model)
    assert states is not None
    dtypes, scalars = _completed(model, optimizer, states, team)
    slices = state_slices(model, optimizer, dtypes)
    return {
        "param_groups": states.groups,
        "state": {
            name: {
                **scalars[name],
                **{
                    key: WorkerSlice.of(slices[f"{name}:{key}"], model, name)
                    for key in dtypes.get(name, ())
                    if f"{name}:{key}" in slices
                },
            }
            for name in scalars
        },
    }


def _is_unstepped(entries: Mapping[str, Any]) -> bool:
    """Whether the states of a parameter are those that an optimizer makes at its first step."""
    step = entries.get(_STEP)
    return step is not None and not isinstance(step, WorkerSlice) and float(step) == 0


def _completed(
    model: Model, optimizer: Optimizer, states: OptimizerStates, team: Team
) -> tuple[dict[str, dict[str, torch.dtype]], dict[str, dict[str, Any]]]:
    """Returns the states that an optimizer has when it has stepped all of its parameters. Collective.

    So a state has the same entries before the first step, and where a parameter never had a gradient.
    """
    described: dict[str, Any] = {}
    with team.together():
        try:
            dtypes, scalars = unstepped_states(model, optimizer, states.scalars)
        except SDPError:  # it cannot be foreseen
            if not states.scalars:
                raise
            dtypes, scalars = {}, {}
        for name, entries in scalars.items():
            described[name] = [
                {key: str(dtype).removeprefix("torch.") for key, dtype in dtypes[name].items()},
                {
                    key: encode(value * 0 if key == _STEP else value, f"the optimizer's state {key!r}")
                    for key, value in entries.items()
                },
            ]
    found = {name: one for other in team.gather(described) for name, one in other.items()}
    order = [name for name in model.shapes if name in states.scalars or name in found]
    all_dtypes, all_scalars = dict(states.dtypes), dict(states.scalars)
    for name, (kinds, values) in found.items():
        all_dtypes.setdefault(name, {key: getattr(torch, dtype) for key, dtype in kinds.items()})
        all_scalars.setdefault(name, {key: decode(value) for key, value in values.items()})
    return {name: all_dtypes[name] for name in order}, {name: all_scalars[name] for name in order}
