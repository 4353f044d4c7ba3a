"""Parameter groups of optimizers as plain data, and the merged groups of all ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from sdp_compile.errors import SDPError


def encode(value: Any, what: str) -> Any:
    """Returns a value as plain data for JSON.

    Args:
        value: A number, flag, text, one-element tensor, or a list or tuple of them.
        what: What the value is called in the error.

    Raises:
        SDPError: If it is anything else.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor) and value.numel() == 1:
        return {
            "tensor": value.reshape(()).tolist(),
            "dtype": str(value.dtype).removeprefix("torch."),
            "shape": list(value.shape),
        }
    if isinstance(value, (tuple, list)):
        return [encode(item, what) for item in value]
    raise SDPError(
        f"{what} is a {type(value).__name__}, but only numbers, texts and scalar tensors can be saved. Remove it first."
    )


def decode(value: Any) -> Any:
    """Returns the value that ``encode`` was given; lists come back as tuples."""
    if isinstance(value, dict):
        return torch.tensor(value["tensor"], dtype=getattr(torch, value["dtype"])).reshape(value["shape"])
    return tuple(decode(item) for item in value) if isinstance(value, list) else value


def merged_groups(ranks: Sequence[Sequence[dict[str, Any]]], order: Sequence[str]) -> list[dict[str, Any]]:
    """Merges the parameter groups of all ranks.

    A rank knows only the parameters that it holds. Groups are matched by number if all ranks have the same options
    under the same numbers. Otherwise some rank holds nothing of a group and lacks it, and groups are matched by the
    names that they share.

    Args:
        ranks: Each rank's groups: the encoded options, the parameter names, and whether the optimizer was given names.
        order: The order of all parameter names.

    Returns:
        The groups of the full model, each with its options and its parameter names in the given order.
    """
    position = {name: number for number, name in enumerate(order)}
    by_number = _by_number(ranks)
    matched = by_number or _by_name(ranks)
    result = []
    for parts in matched:
        names = sorted({name for part in parts for name in part["names"]}, key=position.__getitem__)
        group = {key: decode(value) for key, value in parts[0]["options"].items()}
        group["params"] = names
        if any(part["named"] for part in parts):
            group["param_names"] = list(names)
        result.append(group)
    if by_number is None:
        result.sort(key=lambda group: min((position[name] for name in group["params"]), default=len(order)))
    return result


def _by_number(ranks: Sequence[Sequence[dict[str, Any]]]) -> list[list[dict[str, Any]]] | None:
    if len({len(groups) for groups in ranks}) > 1:
        return None
    matched = [list(parts) for parts in zip(*ranks, strict=True)]
    if any(part["options"] != parts[0]["options"] for parts in matched for part in parts):
        return None
    seen: dict[str, int] = {}
    for number, parts in enumerate(matched):
        for part in parts:
            if any(seen.setdefault(name, number) != number for name in part["names"]):
                return None
    return matched


def _by_name(ranks: Sequence[Sequence[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
    """Merges groups that share a name, directly or through other groups."""
    matched: list[list[dict[str, Any]]] = []
    for groups in ranks:
        for group in groups:
            names = set(group["names"])
            related = [parts for parts in matched if any(names.intersection(part["names"]) for part in parts)]
            matched = [parts for parts in matched if parts not in related]
            matched.append([part for parts in related for part in parts] + [group])
    return matched


def keep_dtypes(optimizer: Optimizer, states: Mapping[int, Mapping[str, Any]]) -> None:
    """Gives states the dtypes that they were saved in: PyTorch's optimizers load all in the dtype of the parameter.

    Args:
        optimizer: The optimizer that has loaded the states.
        states: The states by the position of the parameter.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for position, saved in states.items():
        own = optimizer.state[parameters[position]]
        for key, value in saved.items():
            if isinstance(value, Tensor) and isinstance(own.get(key), Tensor) and own[key].dtype != value.dtype:
                own[key] = value.to(own[key].device, copy=True)
