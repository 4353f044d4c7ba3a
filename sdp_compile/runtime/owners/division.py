"""The groups of an optimizer, divided into parts with learning rates of their own for the time of a step.

A step runs on a stand-in of the optimizer: the same object but for its groups. So the groups of the optimizer itself
are as the user made them at any time: for hooks and closures in a step, schedulers, checkpoints and logs, and after a
step that failed.
"""

from __future__ import annotations

from types import MethodType
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from sdp_compile.errors import SDPError

Layout = tuple[tuple[float, ...], ...]
"""What the learning rate of each parameter of each group is multiplied by."""

Parts = list[tuple[float, dict[str, Any]]]
"""The parts of a group, each with what its learning rate is multiplied by."""

_RATE, _PARAMETERS, _NAMES, _GROUPS = "lr", "params", "param_names", "param_groups"

_stand_ins: WeakSet[Optimizer] = WeakSet()


def is_stand_in(optimizer: Optimizer) -> bool:
    """Whether an optimizer is the stand-in of another one, which is in a step."""
    return optimizer in _stand_ins


class Division:
    """The groups of an optimizer in parts with different rates, and its stand-in.

    Between steps it holds nothing of the optimizer. Its objects are the same at each step, because `torch.compile`
    compiles steps for them.

    Args:
        kind: The type of the optimizer.
        layout: How its groups are divided.

    Raises:
        SDPError: If the type has a finaliser, which would run for the stand-in, too.
    """

    def __init__(self, kind: type[Optimizer], layout: Layout) -> None:
        if hasattr(kind, "__del__"):
            raise SDPError(
                f"{kind.__name__} has a finaliser, and learning rates by owners need a second object of its type. Use "
                "another optimizer, or a schedule without rate_by_owners."
            )
        self.layout = layout
        self._parts: list[Parts] = [
            [(factor, {}) for factor in dict.fromkeys(of_group or (1.0,))] for of_group in layout
        ]
        self._given: list[list[dict[str, tuple[Any, Any]]]] = []
        self._put: dict[str, Any] = {}
        self._other: Optimizer = object.__new__(kind)
        _stand_ins.add(self._other)

    def stand_in(self, optimizer: Optimizer) -> Optimizer:
        """Returns an optimizer with everything of another one, and parts in place of its groups, until `take_over`."""
        other, own = self._other, vars(optimizer).items()
        self._put = {key: _rebound(value, optimizer, other) for key, value in own if key != _GROUPS}
        vars(other).clear()
        vars(other).update(self._put)
        other.param_groups = [part for parts in self._parts for _, part in parts]
        self.fill(optimizer)
        return other

    def fill(self, optimizer: Optimizer) -> None:
        """Gives the parts the parameters and options that the groups have now."""
        for group, of_group, parts in zip(optimizer.param_groups, self.layout, self._parts, strict=True):
            for factor, part in parts:
                part.clear()
                members = [one for one, own in zip(group[_PARAMETERS], of_group, strict=True) if own == factor]
                part.update({key: value for key, value in group.items() if key != _NAMES} | {_PARAMETERS: members})
                if factor != 1.0:
                    part[_RATE] = _multiplied(group.get(_RATE), factor, optimizer)
        self._given = [
            [{key: (value, _mark(value)) for key, value in part.items()} for _, part in parts] for parts in self._parts
        ]

    def take_over(self, optimizer: Optimizer) -> None:
        """Gives an optimizer what a step has changed in its stand-in, and in all parts of a group alike."""
        try:
            after = {key: value for key, value in vars(self._other).items() if key != _GROUPS}
            put = self._put
            changed = [key for key, value in after.items() if key not in put or value is not put[key]]
            vars(optimizer).update((key, _rebound(after[key], self._other, optimizer)) for key in changed)
            for key in put.keys() - after.keys():
                vars(optimizer).pop(key, None)
            for group, parts, given in zip(optimizer.param_groups, self._parts, self._given, strict=True):
                group.update(_changed(parts, given, optimizer))
        finally:
            self.clear()

    def clear(self) -> None:
        """Forgets what it holds of an optimizer."""
        vars(self._other).clear()
        self._given, self._put = [], {}
        for parts in self._parts:
            for _, part in parts:
                part.clear()


def _rebound(value: Any, source: Optimizer, target: Optimizer) -> Any:
    """Returns an attribute of one optimizer for another: its methods are the other's."""
    is_own = isinstance(value, MethodType) and value.__self__ is source
    return MethodType(value.__func__, target) if is_own else value


def _multiplied(rate: Any, factor: float, optimizer: Optimizer) -> Any:
    if not isinstance(rate, (int, float, Tensor)):
        raise SDPError(
            f"{type(optimizer).__name__} has no learning rate 'lr' in a group, and the model's schedule has "
            "rate_by_owners. Use an optimizer that has one, or a schedule without rate_by_owners."
        )
    return rate * factor


def _changed(parts: Parts, given: list[dict[str, tuple[Any, Any]]], optimizer: Optimizer) -> dict[str, Any]:
    """Returns the options that a step has changed, in the same way for all parts of a group."""
    found: dict[str, Any] = {}
    is_whole = [factor for factor, _ in parts] == [1.0]
    for (_, part), own in zip(parts, given, strict=True):
        found |= {key: value for key, value in part.items() if key != _PARAMETERS and _is_changed(value, own.get(key))}
    for key, value in found.items() if not is_whole else ():
        in_place = any(own.get(key, (None, None))[0] is value and value is not None for own in given)
        if key == _RATE or in_place or any(_differ(part.get(key), value) for _, part in parts):
            raise SDPError(
                f"{type(optimizer).__name__} has taken a step and changed {key!r} of a group by what the group holds, "
                "or by its learning rate, and learning rates by owners divide the group. Use another optimizer, or a "
                "schedule without rate_by_owners."
            )
    return found


def _mark(value: Any) -> Any:
    """Returns what differs after a change in place."""
    if isinstance(value, Tensor):
        return value._version
    if isinstance(value, dict):
        return [(key, id(one)) for key, one in value.items()]
    return list(map(id, value)) if isinstance(value, (list, set)) else None


def _is_changed(value: Any, given: tuple[Any, Any] | None) -> bool:
    return given is None or _differ(value, given[0]) or _mark(value) != given[1]


def _differ(one: Any, other: Any) -> bool:
    if one is other:
        return False
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return not (isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other))
    return bool(one != other)
