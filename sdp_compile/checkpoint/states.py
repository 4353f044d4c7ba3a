"""An optimizer's state as all workers together describe it: by parameter and name, without the values per element."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.optimizer import Optimizer

from sdp_compile.checkpoint.model import Model
from sdp_compile.runtime.optimizer.full_state import describe
from sdp_compile.runtime.optimizer.param_groups import decode, encode, merged_groups
from sdp_compile.runtime.optimizer.sharded import ShardedOptimizer


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
        scalars: The other states, encoded, by parameter and name.
    """

    kind: str
    groups: list[dict[str, Any]]
    dtypes: dict[str, dict[str, torch.dtype]]
    scalars: dict[str, dict[str, Any]]

    @classmethod
    def merged(cls, described: Sequence[Any], model: Model) -> OptimizerStates | None:
        """Merges what the workers described; None without an optimizer."""
        if described[0] is None:
            return None
        states: dict[str, dict[str, Any]] = {name: state for one in described for name, state in one["state"].items()}
        order = [name for name in model.shapes if name in states]
        return cls(
            described[0]["kind"],
            merged_groups([one["groups"] for one in described], list(model.shapes)),
            {
                name: {key: getattr(torch, one["dtype"]) for key, one in states[name].items() if one["per_element"]}
                for name in order
            },
            {
                name: {key: one["value"] for key, one in states[name].items() if not one["per_element"]}
                for name in order
            },
        )

    @property
    def plain(self) -> dict[str, Any]:
        """The full state without the values per element."""
        scalars = {name: {key: decode(one) for key, one in state.items()} for name, state in self.scalars.items()}
        return {"param_groups": self.groups, "state": scalars}

    @property
    def encoded_groups(self) -> tuple[dict[str, Any], ...]:
        """The groups as plain data, as `merged_groups` takes those of one worker."""
        return tuple(
            {
                "options": {
                    key: encode(value, key) for key, value in group.items() if key not in ("params", "param_names")
                },
                "names": list(group["params"]),
                "named": "param_names" in group,
            }
            for group in self.groups
        )
