"""An optimizer's parameter groups as plain data, and the ranks' groups put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sdp_compile.errors import SDPError


def encode(value: Any, what: str) -> Any:
    """A number, flag, text, one-element tensor or list of them, as JSON can hold it."""
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
    raise SDPError(f"{what} is a {type(value).__name__}; only numbers, texts and tensors can be exchanged and saved.")


def decode(value: Any) -> Any:
    """What ``encode`` was given; lists come back as tuples."""
    if isinstance(value, dict):
        return torch.tensor(value["tensor"], dtype=getattr(torch, value["dtype"])).reshape(value["shape"])
    return tuple(decode(item) for item in value) if isinstance(value, list) else value


def merged_groups(ranks: Sequence[Sequence[dict[str, Any]]], order: Sequence[str]) -> list[dict[str, Any]]:
    """One list of groups, with names in the given ``order``, from each rank's list of {options, names, named}.

    A rank knows only the parameters that it holds. Groups are matched by number where all ranks have the same options
    under the same numbers, else (a rank holds nothing of some group and made none) by the names that they share.
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
    """Groups that share a name, directly or through others, are one."""
    matched: list[list[dict[str, Any]]] = []
    for groups in ranks:
        for group in groups:
            names = set(group["names"])
            related = [parts for parts in matched if any(names.intersection(part["names"]) for part in parts)]
            matched = [parts for parts in matched if parts not in related]
            matched.append([part for parts in related for part in parts] + [group])
    return matched
