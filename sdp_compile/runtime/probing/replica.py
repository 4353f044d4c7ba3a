"""Builds optimizers like a given one, with the same class and options, for other parameters."""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

Replicate = Callable[[list[nn.Parameter]], Optimizer]
"""Builds an optimizer of the given parameters in one group, without state."""

LEARNING_RATES = 1e-2, 1.0
"""The range for replicas: what they show must not vanish in a warm-up, nor overflow."""

NOT_OPTIONS = ("params", "param_names", "lr", "initial_lr", "max_lr", "min_lr")
"""What a parameter group holds beside the options that matter."""

_BASE_ATTRIBUTES = (
    *("defaults", "state", "param_groups"),
    *("_zero_grad_profile_name", "_warned_capturable_if_run_uncaptured", "_opt_called"),
)
"""What ``Optimizer`` and schedulers set on every object."""

_PLAIN = (bool, int, float, complex, str, torch.dtype, torch.device, type(None))


def replicas(optimizer: Optimizer, group: Mapping[str, Any]) -> Iterator[Replicate]:
    """Yields ways to build an optimizer like a given one, the most faithful first. Each may fail with any exception.

    The constructor comes first: it sees the new parameters, so that whatever it computes from them is computed again.
    A copy of the object needs no constructor, and keeps such values.

    Args:
        optimizer: The optimizer to imitate.
        group: That one of its parameter groups whose options the replica has.
    """
    yield partial(_adjusted, optimizer, group, True)
    yield partial(_adjusted, optimizer, group, False)
    yield partial(_copied, optimizer, group)


def options_of(optimizer: Optimizer, group: Mapping[str, Any]) -> dict[str, Any]:
    """Returns copies of a group's options, with the learning rate of replicas, which follows no schedule."""
    options = {key: copy.deepcopy(value) for key, value in group.items() if key not in NOT_OPTIONS}
    rate = group.get("lr")
    if rate is not None:
        usual = optimizer.defaults.get("lr", rate)
        usual = min(max(float(rate if usual is None else usual), LEARNING_RATES[0]), LEARNING_RATES[1])
        options["lr"] = torch.full_like(rate.detach(), usual) if isinstance(rate, Tensor) else usual
    elif "lr" in group:
        options["lr"] = None
    return options


def plain_attributes(optimizer: Optimizer) -> dict[str, Any]:
    """Returns those attributes of the object itself that are numbers, strings, flags, or collections of these."""
    return {name: value for name, value in vars(optimizer).items() if name not in _BASE_ATTRIBUTES and _is_plain(value)}


def _adjusted(
    optimizer: Optimizer, group: Mapping[str, Any], with_options: bool, parameters: list[nn.Parameter]
) -> Optimizer:
    """Builds a replica, and sets those of its attributes that no argument sets and that parameters do not decide."""
    result = _constructed(optimizer, group, with_options, parameters)
    others = [
        plain_attributes(
            _constructed(optimizer, group, with_options, [_like(parameters[0], shape) for shape in shapes])
        )
        for shapes in ([(4, 3)], [(5, 2), (2, 3)])
    ]
    for name, value in plain_attributes(optimizer).items():
        if all(name in other for other in others) and others[0][name] == others[1][name]:
            setattr(result, name, copy.deepcopy(value))
    return result


def _constructed(
    optimizer: Optimizer, group: Mapping[str, Any], with_options: bool, parameters: list[nn.Parameter]
) -> Optimizer:
    kind: Any = type(optimizer)  # what its constructor takes is known at run time only
    known = {**plain_attributes(optimizer), **optimizer.defaults, **options_of(optimizer, group)}
    known = {**{name.lstrip("_"): value for name, value in known.items()}, **known}
    wrapped = [value for value in vars(optimizer).values() if isinstance(value, Optimizer)]
    first, *others = inspect.signature(kind).parameters.values()
    arguments = {
        entry.name: copy.deepcopy(known[entry.name])
        for entry in others
        if entry.name in known and entry.kind in (entry.POSITIONAL_OR_KEYWORD, entry.KEYWORD_ONLY)
    }
    result: Optimizer
    if wrapped and "optimizer" in first.name:
        inner = wrapped[0]
        result = kind(_constructed(inner, inner.param_groups[0], with_options, parameters), **arguments)
    else:
        result = kind([{"params": parameters, **(options_of(optimizer, group) if with_options else {})}], **arguments)
    if len(result.param_groups) == 1:
        result.param_groups[0].update(options_of(optimizer, group))
    return result


def _like(parameter: nn.Parameter, shape: tuple[int, ...]) -> nn.Parameter:
    zeros = torch.zeros(shape, dtype=parameter.dtype, device=parameter.device)
    return nn.Parameter(zeros, requires_grad=parameter.requires_grad)


def _copied(optimizer: Optimizer, group: Mapping[str, Any], parameters: list[nn.Parameter]) -> Optimizer:
    groups = [{**options_of(optimizer, group), "params": parameters}]
    memo: dict[int, Any] = {
        id(optimizer.param_groups): groups,
        id(group): groups[0],
        id(group["params"]): parameters,
    }
    for known in optimizer.param_groups:
        for parameter in known["params"]:
            memo.setdefault(id(parameter), object())  # stands for a parameter that the replica does not have
    return _copy(optimizer, memo)


def _copy(optimizer: Optimizer, memo: dict[int, Any]) -> Optimizer:
    """Copies all attributes, also those of optimizers within; ``Optimizer`` leaves most out of its own copies."""
    result = memo[id(optimizer)] = object.__new__(type(optimizer))
    memo.setdefault(id(optimizer.state), defaultdict(dict))
    for name, value in vars(optimizer).items():
        if name == "step":
            continue  # a scheduler's wrapper of the original's method
        if name.startswith("_optimizer_") and name.endswith("_hooks"):
            result.__dict__[name] = OrderedDict()
        elif isinstance(value, Optimizer):
            result.__dict__[name] = memo.get(id(value)) or _copy(value, memo)
        else:
            result.__dict__[name] = copy.deepcopy(value, memo)
    return result


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return len(value) < 100 and all(map(_is_plain, value))
    if isinstance(value, dict):
        return len(value) < 100 and all(map(_is_plain, (*value.keys(), *value.values())))
    return isinstance(value, _PLAIN)
