"""An optimizer's state as all workers together describe it: by parameter and name, without the values per element."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.optimizer import Optimizer

from sdp_compile.checkpoint.manifest import GroupEntry, OptimizerEntry, TensorEntry
from sdp_compile.checkpoint.model import Model
from sdp_compile.checkpoint.plain import decode as plain_decode
from sdp_compile.checkpoint.plain import encode
from sdp_compile.errors import SDPError
from sdp_compile.runtime.optimizer.full_state import describe
from sdp_compile.runtime.optimizer.param_groups import decode, merged_groups
from sdp_compile.runtime.optimizer.sharded import ShardedOptimizer
from sdp_compile.runtime.probing.replica import replicas


def optimizer_states(model: Model, optimizer: Optimizer) -> dict[str, Any]:
    """Describes this worker's optimizer to the others, as plain data.

    Raises:
        SDPError: If it holds other parameters, or a state that is neither per element nor a scalar.
    """
    responsible = {name for name in model.shapes for share in model.shares(name) if share.writer == model.rank}
    found = describe(optimizer, model.parameters, responsible.__contains__)
    return {**found, "kind": kind_of(optimizer)}


def kind_of(optimizer: Optimizer) -> str:
    """Returns the name of an optimizer's class; of a sharded one, that of the optimizer that it shards."""
    return type(optimizer.wrapped if isinstance(optimizer, ShardedOptimizer) else optimizer).__name__


@dataclass(frozen=True)
class OptimizerStates:
    """What a full optimizer state holds.

    Attributes:
        kind: The name of the optimizer's class.
        groups: The parameter groups, each with its options and the names of its parameters.
        dtypes: The dtypes of the states per element, by parameter and name.
        scalars: The other states, by parameter and name.
    """

    kind: str
    groups: list[dict[str, Any]]
    dtypes: dict[str, dict[str, torch.dtype]]
    scalars: dict[str, dict[str, Any]]

    @classmethod
    def merged(cls, described: Sequence[Any], model: Model) -> OptimizerStates | None:
        """Merges what the workers described; None without an optimizer. The first description of each state counts."""
        if described[0] is None:
            return None
        states: dict[str, dict[str, Any]] = {}
        for one in described:
            for name, state in one["state"].items():
                states.setdefault(name, state)
        order = [name for name in model.shapes if name in states]
        return cls(
            described[0]["kind"],
            merged_groups([one["groups"] for one in described], list(model.shapes)),
            {
                name: {key: getattr(torch, one["dtype"]) for key, one in states[name].items() if one["per_element"]}
                for name in order
            },
            {
                name: {key: decode(one["value"]) for key, one in states[name].items() if not one["per_element"]}
                for name in order
            },
        )

    @property
    def plain(self) -> dict[str, Any]:
        """The full state without the values per element."""
        return {"param_groups": self.groups, "state": self.scalars}

    def entry(self, tensors: dict[str, dict[str, TensorEntry]]) -> OptimizerEntry:
        """Returns the manifest's entry; ``tensors`` are the states per element."""
        scalars = {
            name: {key: encode(value, f"the optimizer's state {key!r}") for key, value in state.items()}
            for name, state in self.scalars.items()
        }
        return OptimizerEntry(kind=self.kind, groups=tuple(map(_entry, self.groups)), scalars=scalars, tensors=tensors)


def check_alike(described: Sequence[Any], model: Model) -> None:
    """Checks that what the workers described as states of a whole parameter are the same on all of them.

    Parameters of which workers own parts alone may have taken another number of steps on each of them.

    Args:
        described: What the workers described.
        model: The model.

    Raises:
        SDPError: If a state that is not per element differs between the owners of parts of a parameter.
    """
    states: dict[str, dict[str, Any]] = {}
    for one in described:
        for name, mine in ({} if one is None else one["state"]).items():
            state = states.setdefault(name, mine)
            for key in sorted(state.keys() | mine.keys()):
                first, other = (json.dumps(held.get(key), sort_keys=True) for held in (state, mine))
                if first != other and not (key == "step" and model.has_lone_owners(name)):
                    raise SDPError(
                        f"The optimizer's state {key!r} of {name!r} differs between workers that hold parts of it, and "
                        "is no value per element, so the full model has no such state. Use an optimizer that treats "
                        "each element alone, such as AdamW."
                    )


def unstepped_states(
    model: Model, optimizer: Optimizer, known: Container[str]
) -> tuple[dict[str, dict[str, torch.dtype]], dict[str, dict[str, Any]]]:
    """Returns the states that an optimizer will have after its first step: dtypes per element, and other values.

    A new optimizer of the same class steps a small parameter.

    Args:
        model: The model.
        optimizer: An optimizer of its parameters.
        known: Parameters that are left out.

    Raises:
        SDPError: If there is no such optimizer without arguments of its own.
    """
    dtypes: dict[str, dict[str, torch.dtype]] = {}
    scalars: dict[str, dict[str, Any]] = {}
    stepping = optimizer.wrapped if isinstance(optimizer, ShardedOptimizer) else optimizer
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.requires_grad and model.parameters[parameter] not in known:
                small = torch.nn.Parameter(torch.zeros(2, 3, dtype=parameter.dtype, device=parameter.device))
                name, state = model.parameters[parameter], _first_state(stepping, group, small)
                dtypes[name] = {key: value.dtype for key, value in state.items() if _is_per_element(value, small)}
                scalars[name] = {key: value for key, value in state.items() if not _is_per_element(value, small)}
    return dtypes, scalars


def _first_state(optimizer: Optimizer, group: Mapping[str, Any], small: torch.nn.Parameter) -> dict[str, Any]:
    """Returns the state of a parameter after the first step of an optimizer like the given one."""
    why: Exception | None = None
    for replicate in replicas(optimizer, group):
        try:
            replica = replicate([small])
            small.grad = torch.zeros_like(small)
            replica.step()
        except Exception as error:
            why = error
        else:
            return dict(replica.state[small])
    raise SDPError(
        f"{type(optimizer).__name__} has no state before its first step, and it cannot be foreseen ({why}). Run one "
        "step before loading."
    )


def _is_per_element(value: Any, parameter: torch.Tensor) -> bool:
    return isinstance(value, torch.Tensor) and value.shape == parameter.shape


def groups_of(optimizer: OptimizerEntry) -> list[dict[str, Any]]:
    """Returns the parameter groups of a manifest, with names as ``params``."""
    groups = []
    for group in optimizer.groups:
        options = {key: plain_decode(value) for key, value in group.options.items()}
        groups.append({**options, "params": list(group.names)})
    return groups


def _entry(group: dict[str, Any]) -> GroupEntry:
    options = {
        key: encode(value, f"the optimizer's option {key!r}")
        for key, value in group.items()
        if key not in ("params", "param_names")
    }
    return GroupEntry(options=options, names=tuple(group["params"]), named="param_names" in group)
