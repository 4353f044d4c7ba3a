"""Learning rates by owners: what fewer workers train, on the mean of fewer samples, may take smaller steps.

A step runs on a stand-in of the optimizer: the same object but for its groups, which are divided into parts with rates
of their own. So the groups of the optimizer itself are as the user made them at any time: for hooks and closures in a
step, schedulers, checkpoints and logs, and after a step that failed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from sdp_compile.errors import SDPError
from sdp_compile.planning.plan import Plan
from sdp_compile.policies import Schedule

Factors = Mapping[nn.Parameter, float]

_RATE, _GROUPS = "lr", "param_groups"
_NOT_OPTIONS = ("params", "param_names")

_models: WeakSet[Any] = WeakSet()
_factors: WeakKeyDictionary[Any, dict[tuple[str, float], Mapping[str, float]]] = WeakKeyDictionary()
_divisions: WeakKeyDictionary[Optimizer, _Division] = WeakKeyDictionary()
_stand_ins: WeakKeyDictionary[Optimizer, _Division] = WeakKeyDictionary()
_exempt: WeakSet[Optimizer] = WeakSet()


class Rated(Protocol):
    """A model whose schedule may have learning rates by owners."""

    schedule: Schedule | None

    @property
    def plan(self) -> Plan:
        """Who owns what."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yields its parameters with the names of the plan."""
        ...


def owned_share(plan: Plan, name: str) -> float:
    """Returns the share of the workers that own an element of a parameter, on average, in [0, 1]."""
    pieces = plan.pieces(name)
    owned = sum(piece.numel * len(piece.owners) for piece in pieces)
    return owned / max(sum(piece.numel for piece in pieces), 1) / plan.workers


def factors(model: Rated) -> Mapping[str, float]:
    """Returns what the learning rate of each parameter is multiplied with, by name; empty where that is nothing."""
    power = 0.0 if model.schedule is None else model.schedule.rate_by_owners
    if not power:
        return {}
    key = model.plan.digest, power
    if key not in (known := _factors.setdefault(model, {})):
        parameters = [name for name, tensor in model.plan.state.items() if tensor.kind == "parameter"]
        known.clear()
        known[key] = {name: owned_share(model.plan, name) ** power for name in parameters}
    return known[key]


def watch(model: Rated) -> None:
    """Lets all optimizers of this process follow the learning rates by owners of a model, as long as it exists."""
    _models.add(model)


def leave_alone(optimizer: Optimizer) -> None:
    """Gives an optimizer no stand-in from now on: it multiplies rates itself, with `scaled`."""
    _exempt.add(optimizer)


def stand_in(optimizer: Optimizer) -> Optimizer | None:
    """Returns what takes the place of an optimizer in its step; None if all its learning rates are as they are.

    Raises:
        SDPError: If its groups have no learning rate.
    """
    if optimizer in _exempt or optimizer in _stand_ins:
        return None
    known = {
        parameter: of_model[name]
        for model in _models
        if (of_model := factors(model))
        for name, parameter in model.named_parameters()
        if name in of_model
    }
    return _stand_in(optimizer, known)


def take_over(optimizer: Optimizer, other: Any) -> None:
    """Takes over what a step has changed in a stand-in.

    Args:
        optimizer: The optimizer.
        other: Its stand-in, or anything else, which is left alone.

    Raises:
        SDPError: If the step has changed the options of a group, in another way for each of its parts.
    """
    division = _stand_ins.get(other) if isinstance(other, Optimizer) and other is not optimizer else None
    if division is not None:
        division.take_over(optimizer, other)


@contextmanager
def scaled(optimizer: Optimizer, known: Factors) -> Iterator[Optimizer]:
    """Within this context, another optimizer takes the place of one that was left alone.

    Args:
        optimizer: The optimizer.
        known: What the learning rate of each parameter is multiplied with; others keep theirs.

    Yields:
        What to step; the optimizer itself if all its learning rates are as they are.

    Raises:
        SDPError: If its groups have no learning rate, or the step changes options in another way for each part.
    """
    other = _stand_in(optimizer, known) or optimizer
    yield other
    take_over(optimizer, other)


class _Division:
    """The groups of an optimizer in parts with different rates.

    The parts are the same objects at each step, because `torch.compile` compiles steps for them.

    Args:
        parameters: The parameters of each group.
        known: What the learning rate of each parameter is multiplied with; others keep theirs.
    """

    def __init__(self, parameters: Sequence[Sequence[nn.Parameter]], known: Factors) -> None:
        self._key = _key(parameters, known)
        self._parts = [_parts(members, known) for members in parameters]
        self._given: list[dict[str, tuple[Any, int]]] = []

    def serves(self, parameters: Sequence[Sequence[nn.Parameter]], known: Factors) -> bool:
        """Whether groups with these parameters have these parts."""
        return _key(parameters, known) == self._key

    def stand_in(self, optimizer: Optimizer) -> Optimizer:
        """Returns an optimizer with everything of another one, and the parts in place of its groups."""
        for group, parts in zip(optimizer.param_groups, self._parts, strict=True):
            if _RATE not in group:
                raise SDPError(
                    f"{type(optimizer).__name__} has no learning rate 'lr' in its groups, and the model's schedule has "
                    "rate_by_owners. Use an optimizer that has one, or a schedule without rate_by_owners."
                )
            for factor, part in parts:
                part.update((key, value) for key, value in group.items() if key not in _NOT_OPTIONS)
                part[_RATE] = group[_RATE] * factor
        self._given = [{key: (value, _version(value)) for key, value in parts[0][1].items()} for parts in self._parts]
        result: Optimizer = object.__new__(type(optimizer))
        vars(result).update(vars(optimizer))
        result.param_groups = [part for parts in self._parts for _, part in parts]
        _stand_ins[result] = self
        return result

    def take_over(self, optimizer: Optimizer, other: Optimizer) -> None:
        """Gives an optimizer the attributes of its stand-in, and its groups what is the same in all of their parts."""
        vars(optimizer).update((key, value) for key, value in vars(other).items() if key != _GROUPS)
        for group, parts, given in zip(optimizer.param_groups, self._parts, self._given, strict=True):
            first = parts[0][1]
            for key in (key for key in first if key not in _NOT_OPTIONS and _is_changed(first[key], given.get(key))):
                in_place = key in given and first[key] is given[key][0]  # once for each part
                if key == _RATE or in_place or any(_differ(part.get(key), first[key]) for _, part in parts):
                    raise SDPError(
                        f"{type(optimizer).__name__} changes {key!r} of its groups by what they hold, and learning "
                        "rates by owners divide them. Use another optimizer, or a schedule without rate_by_owners."
                    )
                group[key] = first[key]


def _stand_in(optimizer: Optimizer, known: Factors) -> Optimizer | None:
    parameters = [group["params"] for group in optimizer.param_groups]
    if all(known.get(one, 1.0) == 1.0 for members in parameters for one in members):
        return None
    division = _divisions.get(optimizer)
    if division is None or not division.serves(parameters, known):
        division = _divisions[optimizer] = _Division(parameters, known)
    return division.stand_in(optimizer)


def _key(parameters: Sequence[Sequence[nn.Parameter]], known: Factors) -> list[list[tuple[int, float]]]:
    return [[(id(one), known.get(one, 1.0)) for one in members] for members in parameters]


def _parts(members: Sequence[nn.Parameter], known: Factors) -> list[tuple[float, dict[str, Any]]]:
    """Returns the parts of a group; one without parameters if the group has none."""
    found: dict[float, list[nn.Parameter]] = {} if members else {1.0: []}
    for one in members:
        found.setdefault(known.get(one, 1.0), []).append(one)
    return [(factor, {"params": some}) for factor, some in found.items()]


def _version(value: Any) -> int:
    """Returns a number that changes with every change in place."""
    return value._version if isinstance(value, Tensor) else 0


def _is_changed(value: Any, given: tuple[Any, int] | None) -> bool:
    return given is None or _differ(value, given[0]) or _version(value) != given[1]


def _differ(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is not other and not torch.equal(one, other)
    return one is not other and bool(one != other)
