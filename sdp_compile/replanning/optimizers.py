"""Optimizers that follow their model to another plan: their groups, and the state of each element."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from sdp_compile.checkpoint.items import state_slices
from sdp_compile.checkpoint.model import CompiledModel
from sdp_compile.checkpoint.states import OptimizerStates
from sdp_compile.errors import SDPError
from sdp_compile.planning.holdings import Holdings
from sdp_compile.planning.moves import Reslicing
from sdp_compile.replanning.exchange import Errand
from sdp_compile.replanning.stores import ShardPlaces, Shards, Slices, Store
from sdp_compile.runtime.gradients.shard_layout import ShardLayout
from sdp_compile.runtime.optimizer.sharded import ShardedOptimizer
from sdp_compile.runtime.packing.slots import Slot

Dtypes = Mapping[str, Mapping[str, torch.dtype]]


class Follower(ABC):
    """One optimizer on its way to another plan.

    Args:
        optimizer: The optimizer.
        model: The model by the plan until now.
        states: What the optimizers of all workers hold.
        after: What this worker holds from now on.
        parameters: Its parameters then, by name, in the plan's order.

    Raises:
        SDPError: If this worker's groups cannot take the parameters.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        model: CompiledModel,
        states: OptimizerStates,
        after: Holdings,
        parameters: Mapping[str, nn.Parameter],
    ) -> None:
        self._optimizer, self._model, self._states, self._after = optimizer, model, states, after
        self._parameters = parameters
        self._members = _members(optimizer, model, states.groups, parameters)
        before = {name: parameter for parameter, name in model.parameters.items()}
        self._kept = {name for name, one in parameters.items() if before.get(name) is one}

    @abstractmethod
    def errands(self, change: Reslicing) -> Iterator[Errand]:
        """Yields the states that move, in the same order on all workers. Collective where states are split."""

    def adopt(self) -> None:
        """Gives the optimizer the new parameters and their states; its groups and options stay."""
        for group, names in zip(self._optimizer.param_groups, self._members, strict=True):
            group["params"] = [self._parameters[name] for name in names]
            if "param_names" in group:
                group["param_names"] = list(names)

    def _scalars(self, name: str, old: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Any]:
        """Returns copies of the states of a parameter that are not per element."""
        found = {key: old.get(key, value) for key, value in self._states.scalars[name].items()}
        on_device = group.get("capturable") or group.get("fused")  # then torch keeps them beside the parameter
        copies = {key: value.clone() if isinstance(value, Tensor) else value for key, value in found.items()}
        return {
            key: value.to(self._parameters[name].device) if on_device and isinstance(value, Tensor) else value
            for key, value in copies.items()
        }

    def _group_of(self, name: str) -> Mapping[str, Any]:
        numbers = (number for number, names in enumerate(self._members) if name in names)
        return self._optimizer.param_groups[next(numbers)]


class PlainFollower(Follower):
    """An optimizer of which each owner holds all state of what it owns."""

    def errands(self, change: Reslicing) -> Iterator[Errand]:
        dtypes, before = self._states.dtypes, self._model.module.holdings
        held = state_slices(self._model, self._optimizer, dtypes)
        old = {name: self._optimizer.state.get(one, {}) for one, name in self._model.parameters.items()}
        self._new: dict[str, dict[str, Any]] = {}
        for name, scalars in self._states.scalars.items():
            if name in self._kept and old[name].keys() == {*dtypes[name], *scalars}:
                self._new[name] = old[name]
            elif name in self._parameters:
                like = self._parameters[name]
                own = self._scalars(name, old.get(name, {}), self._group_of(name))
                elements = {key: torch.zeros_like(like, dtype=dtype) for key, dtype in dtypes[name].items()}
                self._new[name] = {**own, **elements}
            moves = change.states(name)
            for key, dtype in dtypes[name].items():
                source = Slices(before, {name: held[one]} if (one := f"{name}:{key}") in held else {})
                target = Slices(self._after, {name: self._new[name][key]} if name in self._new else {})
                stays = name in self._new and self._new[name] is old.get(name)
                yield Errand(moves, dtype, source, target, stays)

    def adopt(self) -> None:
        super().adopt()
        self._optimizer.state.clear()
        self._optimizer.state.update((self._parameters[name], state) for name, state in self._new.items())


class ShardedFollower(Follower):
    """An optimizer whose state the owners of each unit split."""

    _optimizer: ShardedOptimizer

    def errands(self, change: Reslicing) -> Iterator[Errand]:
        peers, plan = self._model.peers, self._after.plan
        rank, slots, size = self._after.rank, list[Slot](), 0
        if peers is not None:
            size = peers.bucket_bytes
            buckets = [one for one in plan.buckets(rank, size) if any(piece.numel for piece in one.pieces)]
            slots = [Slot(bucket, self._after, peers.comm_dtype) for bucket in buckets]
        self._layout = ShardLayout(self._parameters, self._after, slots, plan.levels.in_chunk_order)
        before, old = self._model.module.holdings, self._optimizer.layout
        known = () if peers is None else before.plan.buckets(rank, size)
        old_places = ShardPlaces(old, before, known)
        new_places = ShardPlaces(self._layout, self._after, [slot.bucket for slot in slots])
        self._new: dict[Tensor, dict[str, Any]] = {}
        for name in self._states.scalars:
            shards = self._layout.shards.get(name, [])
            known_state: Mapping[str, Any] = next(
                (self._optimizer.state.get(one.parameter, {}) for one in old.shards.get(name, ())), {}
            )
            for shard in shards:
                self._new[shard.parameter] = self._scalars(name, known_state, self._group_of(name))
            moves = change.states(name)
            for key, dtype in self._states.dtypes[name].items():
                for shard in shards:
                    like = shard.parameter
                    self._new[like][key] = torch.zeros(like.shape, dtype=dtype, device=like.device)
                yield Errand(
                    moves,
                    dtype,
                    self._store(old_places, old, before, name, key, dtype, self._optimizer.state),
                    self._store(new_places, self._layout, self._after, name, key, dtype, self._new),
                )

    def _store(
        self,
        places: ShardPlaces,
        layout: ShardLayout,
        holdings: Holdings,
        name: str,
        key: str,
        dtype: torch.dtype,
        states: Mapping[Tensor, Mapping[str, Any]],
    ) -> Store:
        values: dict[Tensor, Tensor] = {}
        whole: dict[str, Tensor] = {}
        for shard in layout.shards.get(name, ()):
            own = states.get(shard.parameter, {}).get(key)
            if own is None:  # not stepped yet, unlike other shards of this parameter
                own = torch.zeros(shard.parameter.shape, dtype=dtype, device=shard.parameter.device)
            values[shard.parameter] = own
            if shard.region is None:
                whole[name] = own
        return Shards(places, values, Slices(holdings, whole))

    def adopt(self) -> None:
        super().adopt()
        self._optimizer.follow_plan(self._layout, self._new)


def follower(
    optimizer: Optimizer,
    model: CompiledModel,
    states: OptimizerStates,
    after: Holdings,
    parameters: Mapping[str, nn.Parameter],
) -> Follower:
    """Returns an optimizer on its way to another plan; see `Follower`."""
    kind = ShardedFollower if isinstance(optimizer, ShardedOptimizer) else PlainFollower
    return kind(optimizer, model, states, after, parameters)


def _members(
    optimizer: Optimizer,
    model: CompiledModel,
    groups: list[dict[str, Any]],
    parameters: Mapping[str, nn.Parameter],
) -> list[list[str]]:
    """Returns for each of the optimizer's groups the names of the parameters that it will hold."""
    own = [{model.parameters[parameter] for parameter in group["params"]} for group in optimizer.param_groups]
    by_number = len(groups) == len(own) and all(
        names <= set(group["params"]) for names, group in zip(own, groups, strict=True)
    )
    result: list[list[str]] = [[] for _ in own]
    for position, group in enumerate(groups):
        held = [name for name in group["params"] if name in parameters]
        numbers = [position] if by_number else [at for at, names in enumerate(own) if names & set(group["params"])]
        if len(numbers) == 1:
            result[numbers[0]] = held
        elif held:
            raise SDPError(
                f"Worker {model.rank} gets {held[0]!r}, but its optimizer has no group for it: other workers have one "
                "more group, or other options under the same number. Build the optimizer with the same groups on all "
                "workers; a group may be empty."
            )
    return result
