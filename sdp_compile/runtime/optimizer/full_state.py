"""Full optimizer states: assembled from the workers' slices by parameter name, and cut into slices again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from sdp_compile.errors import SDPError
from sdp_compile.planning.holdings import Holdings
from sdp_compile.runtime.comm.transfer import Request, assemble
from sdp_compile.runtime.optimizer.param_groups import decode, encode, merged_groups
from sdp_compile.runtime.optimizer.shard_states import slices_of
from sdp_compile.runtime.optimizer.sharded import ShardedOptimizer
from sdp_compile.runtime.state.full_state import device_of, enter, responsible
from sdp_compile.runtime.state.origin import KEY
from sdp_compile.runtime.subnetwork import Subnetwork


def full_optimizer_state_dict(
    module: Subnetwork, optimizer: Optimizer, rank0_only: bool = False, cpu_offload: bool = False
) -> dict[str, Any]:
    """Returns the optimizer's state as it would be for the original model. Collective.

    Args:
        module: The compiled module.
        optimizer: An optimizer of its parameters.
        rank0_only: Whether the other ranks get an empty dictionary.
        cpu_offload: Whether the tensors are moved to the CPU.

    Returns:
        The state by parameter name, with full tensors. Each group's ``params`` are names in the order of the original
        model's ``named_parameters()``. PyTorch matches parameters by position, so
        ``torch.optim.AdamW(original.parameters()).load_state_dict()`` takes it as it is.

    Raises:
        SDPError: If ``optimizer`` holds other parameters, or state that is neither per element nor a scalar.
        DistributedError: If there is no process group, or the ranks call different things.
    """
    what = "sdp.full_optimizer_state_dict()"
    peers, mine = enter(
        module,
        what,
        f"rank0_only={rank0_only}",
        lambda: describe(optimizer, _names(module), lambda name: responsible(module, name) == module.rank),
    )
    groups = None if peers is None else peers.groups
    everyone = [mine] if groups is None else groups.gather_json(mine)
    states: dict[str, dict[str, Any]] = {name: state for rank in everyone for name, state in rank["state"].items()}
    order = [name for name in module.plan.state if name in states]
    requests = [
        Request(f"{name}:{key}", name, getattr(torch, entry["dtype"]))
        for name in order
        for key, entry in states[name].items()
        if entry["per_element"]
    ]
    held = (
        slices_of(optimizer, module, requests)
        if isinstance(optimizer, ShardedOptimizer)
        else _element_states(module, optimizer, requests)
    )
    full = assemble(
        requests,
        held,
        module.holdings,
        groups,
        wanted=(0,) if rank0_only else None,
        device=torch.device("cpu") if cpu_offload else device_of(module),
    )
    if rank0_only and module.rank != 0:
        return {}
    return {
        "state": {
            name: {
                key: full[f"{name}:{key}"] if entry["per_element"] else decode(entry["value"])
                for key, entry in states[name].items()
            }
            for name in order
        },
        "param_groups": merged_groups([rank["groups"] for rank in everyone], list(module.plan.state)),
    }


def load_full_optimizer_state_dict(module: Subnetwork, optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Loads this worker's slices of a full optimizer state. Not collective.

    Args:
        module: The compiled module.
        optimizer: An optimizer of its parameters.
        state: What `full_optimizer_state_dict` returned, or the ``state_dict()`` of an optimizer of all of the original
            model's parameters in one group; the same on all ranks.

    Raises:
        SDPError: If the state lacks parameters, has other shapes, or its groups do not fit those of ``optimizer``.
    """
    groups, states = _cut(module, optimizer, state)
    if isinstance(optimizer, ShardedOptimizer):
        optimizer.load_slices(groups, states)
    else:
        optimizer.load_state_dict(numbered(groups, states))


def sliced_optimizer_state(module: Subnetwork, optimizer: Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns this worker's slices of a full optimizer state, as its ``state_dict()`` would hold them. Not collective.

    Args:
        module: The compiled module.
        optimizer: An optimizer of its parameters that is not sharded.
        state: The full state, as `load_full_optimizer_state_dict` takes it.

    Raises:
        SDPError: If the state lacks parameters, has other shapes, or its groups do not fit those of ``optimizer``.
    """
    return numbered(*_cut(module, optimizer, state))


def _cut(
    module: Subnetwork, optimizer: Optimizer, state: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Returns the options and parameter names of each of the optimizer's groups, and the slices of the states."""
    state, holdings = _by_name(module, state), module.holdings
    groups = fitted_groups(optimizer, _names(module), state["param_groups"])
    members = [name for group in groups for name in group["params"] if name in state["state"]]
    return groups, {name: sliced(name, state["state"][name], holdings) for name in members}


def fitted_groups(
    optimizer: Optimizer, names: Mapping[Tensor, str], saved_groups: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Returns an optimizer's groups with the options of saved ones, and names in place of parameters.

    Args:
        optimizer: The optimizer.
        names: The names of the parameters that it may hold.
        saved_groups: The groups of a full state.

    Raises:
        SDPError: If the saved groups lack parameters, or divide them in another way.
    """
    source = {name: group for group in saved_groups for name in group["params"]}
    groups = []
    for number, group in enumerate(optimizer.param_groups):
        members = [_name_of(parameter, names) for parameter in group["params"]]
        absent = [name for name in members if name not in source]
        if absent:
            raise SDPError(
                f"The optimizer state lacks {len(absent)} parameters of group {number}, among them {absent[0]!r}. Load "
                "a state that holds all parameters of the optimizer."
            )
        if len({id(source[name]) for name in members}) > 1:
            raise SDPError(
                f"The parameters of group {number} of the optimizer are in several groups of the loaded state. Build "
                "the optimizer with the groups of the saved one."
            )
        options = {key: value for key, value in group.items() if key not in ("params", KEY)}
        if members:
            saved = source[members[0]]
            options.update((key, value) for key, value in saved.items() if key not in ("params", "param_names", KEY))
        groups.append({**options, "params": members})
    return groups


def numbered(groups: list[dict[str, Any]], states: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a state with the positions of the parameters in place of their names, as PyTorch's optimizers load it."""
    positions = {name: position for position, name in enumerate(name for group in groups for name in group["params"])}
    return {
        "state": {positions[name]: value for name, value in states.items()},
        "param_groups": [{**group, "params": [positions[name] for name in group["params"]]} for group in groups],
    }


def describe(
    optimizer: Optimizer, names: Mapping[Tensor, str], is_responsible: Callable[[str], bool]
) -> dict[str, Any]:
    """Describes this rank's optimizer to the others: its groups, and the states that this rank is responsible for.

    Args:
        optimizer: The optimizer.
        names: The names of the parameters that it may hold.
        is_responsible: Whether this rank describes the states of a parameter.

    Returns:
        Plain data for JSON: the ``groups``, and in ``state`` by parameter and name what each state is.

    Raises:
        SDPError: If ``optimizer`` holds other parameters, or state that is neither per element nor a scalar.
    """
    groups = []
    states: dict[str, dict[str, Any]] = {}
    for group in optimizer.param_groups:
        members = [_name_of(parameter, names) for parameter in group["params"]]
        options = {
            key: encode(value, f"the optimizer's option {key!r}")
            for key, value in group.items()
            if key not in ("params", "param_names", KEY)
        }
        groups.append({"options": options, "names": members, "named": "param_names" in group})
        for name, parameter in zip(members, group["params"], strict=True):
            if isinstance(optimizer, ShardedOptimizer):
                stepped = [shard.parameter for shard in optimizer.layout.shards[name][:1]]
            else:
                stepped = [parameter] if is_responsible(name) else []
            for held in stepped:
                if state := optimizer.state.get(held):
                    states[name] = {key: _entry(name, key, value, held) for key, value in state.items()}
    return {"groups": groups, "state": states}


def _entry(name: str, key: str, value: Any, parameter: Tensor) -> dict[str, Any]:
    if isinstance(value, Tensor) and value.shape == parameter.shape:
        return {"per_element": True, "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, Tensor) and value.numel() != 1:
        raise SDPError(
            f"The optimizer's state {key!r} of {name!r} cannot be assembled from slices: it has shape "
            f"{list(value.shape)}, but the parameter's slice has shape {list(parameter.shape)}. "
            "Use an optimizer whose state has one value per element or is a scalar."
        )
    return {"per_element": False, "value": encode(value, f"the optimizer's state {key!r} of {name!r}")}


def _element_states(module: Subnetwork, optimizer: Optimizer, requests: list[Request]) -> dict[str, Tensor]:
    """Returns this rank's slices of the requested states, zeros for states that do not exist yet."""
    parameters = {name: parameter for parameter, name in _names(module).items()}
    result = {}
    for request in requests:
        if request.name in parameters:
            parameter = parameters[request.name]
            value = optimizer.state.get(parameter, {}).get(request.key[len(request.name) + 1 :])
            result[request.key] = value if value is not None else torch.zeros_like(parameter, dtype=request.dtype)
    return result


def sliced(name: str, state: Mapping[str, Any], holdings: Holdings) -> dict[str, Any]:
    """Returns this worker's slices of the full optimizer state of one parameter."""
    shape, region = holdings.plan.state[name].shape, holdings.region_of(name)
    result = {}
    for key, value in state.items():
        if isinstance(value, Tensor) and tuple(value.shape) == shape and region is not None:
            result[key] = region.read(value).clone()
        elif isinstance(value, Tensor) and value.numel() != 1:
            raise SDPError(
                f"The state {key!r} of {name!r} has shape {list(value.shape)}, but the full parameter has shape "
                f"{list(shape)}. Load a state of the same model."
            )
        else:
            result[key] = value.clone() if isinstance(value, Tensor) else value
    return result


def _by_name(module: Subnetwork, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the state with parameter names in place of the positions of the original's parameters."""
    if not {"state", "param_groups"} <= set(state):
        raise SDPError("Not an optimizer state: it must have the keys 'state' and 'param_groups'.")
    keys = [key for group in state["param_groups"] for key in group["params"]]
    if all(isinstance(key, str) for key in keys):
        return state
    names = [name for name, tensor in module.plan.state.items() if tensor.kind == "parameter"]
    if len(state["param_groups"]) != 1 or len(keys) != len(names):
        raise SDPError(
            f"The optimizer state numbers {len(keys)} parameters in {len(state['param_groups'])} groups. Numbers can "
            f"only be matched if one group holds all {len(names)} parameters of the original. Load a state from "
            "sdp.full_optimizer_state_dict() instead."
        )
    by_key = dict(zip(keys, names, strict=True))
    return {
        "state": {by_key[key]: value for key, value in state["state"].items()},
        "param_groups": [{**state["param_groups"][0], "params": names}],
    }


def _names(module: Subnetwork) -> dict[Tensor, str]:
    """Returns the canonical name of each parameter of the module."""
    return {
        parameter: name
        for name, parameter in module.named_parameters(remove_duplicate=False)
        if name in module.plan.state
    }


def _name_of(parameter: Tensor, names: Mapping[Tensor, str]) -> str:
    if parameter not in names:
        raise SDPError(
            f"The optimizer holds a parameter of shape {list(parameter.shape)} that is not the module's. Build it "
            "after sdp.compile() and materialize(), from the parameters of the compiled module."
        )
    return names[parameter]
