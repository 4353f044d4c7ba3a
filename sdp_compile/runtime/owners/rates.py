"""Learning rates by owners: what fewer workers train, on the mean of fewer samples, may take smaller steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import nn
from torch.optim.optimizer import Optimizer
from torch.utils.hooks import RemovableHandle

from sdp_compile.planning.plan import Plan
from sdp_compile.policies import Schedule
from sdp_compile.runtime.owners.division import Division

Factors = Mapping[nn.Parameter, float]

_models: WeakSet[Any] = WeakSet()
_factors: WeakKeyDictionary[Any, tuple[tuple[str, float], Mapping[str, float]]] = WeakKeyDictionary()
_divisions: WeakKeyDictionary[Optimizer, Division] = WeakKeyDictionary()
_hooked: WeakKeyDictionary[Optimizer, tuple[RemovableHandle, RemovableHandle]] = WeakKeyDictionary()
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
    """Returns what the learning rate of each parameter is multiplied by, by name; empty where that is nothing."""
    power = 0.0 if model.schedule is None else model.schedule.rate_by_owners
    if not power:
        return {}
    key, known = (model.plan.digest, power), _factors.get(model)
    if known is None or known[0] != key:
        parameters = [name for name, tensor in model.plan.state.items() if tensor.kind == "parameter"]
        known = _factors[model] = key, {name: owned_share(model.plan, name) ** power for name in parameters}
    return known[1]


def powers(plans: Sequence[Plan]) -> str:
    """Returns the ``rate_by_owners`` of the models with these plans, as text."""
    schedules = [model.schedule for model in _models if any(model.plan is one for one in plans)]
    return ", ".join(sorted({str(one.rate_by_owners) for one in schedules if one is not None}))


def watch(model: Rated) -> None:
    """Lets all optimizers of this process follow the learning rates by owners of a model, as long as it exists."""
    _models.add(model)


def leave_alone(optimizer: Optimizer) -> None:
    """Gives an optimizer no stand-in from now on: it multiplies rates itself, with `scaled`."""
    _exempt.add(optimizer)


def prepare(optimizer: Optimizer) -> None:
    """Lets the step that an optimizer is about to take follow learning rates by owners; see `watch`."""
    if optimizer in _exempt:
        return
    known = {
        parameter: of_model[name]
        for model in _models
        if (of_model := factors(model))
        for name, parameter in model.named_parameters()
        if name in of_model
    }
    if _division(optimizer, known) is None:
        return
    if optimizer not in _hooked:
        before = optimizer.register_step_pre_hook(_before_step)
        _hooked[optimizer] = before, optimizer.register_step_post_hook(_after_step)
    before, after = _hooked[optimizer]
    # What the user's hooks change counts for this step, and they see what it has changed.
    hooks: tuple[Any, Any] = optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks
    hooks[0].move_to_end(before.id)
    hooks[1].move_to_end(after.id, last=False)


def with_closure(
    args: tuple[Any, ...], kwargs: dict[str, Any], wrap: Callable[[Callable[[], Any]], Callable[[], Any]]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Returns the arguments of an optimizer's step, the optimizer first, with another closure; None without one.

    Args:
        args: The positional arguments.
        kwargs: The keyword arguments.
        wrap: Returns what takes the place of the closure.
    """
    if len(args) > 1 and callable(args[1]):
        return (args[0], wrap(args[1]), *args[2:]), kwargs
    if callable(kwargs.get("closure")):
        return args, {**kwargs, "closure": wrap(kwargs["closure"])}
    return None


@contextmanager
def scaled(optimizer: Optimizer, known: Factors) -> Iterator[Optimizer]:
    """Within this context, another optimizer takes the place of one that was left alone.

    Args:
        optimizer: The optimizer.
        known: What the learning rate of each parameter is multiplied by; others keep theirs.

    Yields:
        What to step; the optimizer itself if all its learning rates are as they are.

    Raises:
        SDPError: If its groups have no learning rate, or the step changes options in another way for each part.
    """
    division = _division(optimizer, known)
    yield optimizer if division is None else division.stand_in(optimizer)
    if division is not None:
        division.take_over(optimizer)


def _division(optimizer: Optimizer, known: Factors) -> Division | None:
    """Returns how the groups of an optimizer are divided; None if all learning rates are as they are."""
    if "param_groups" not in vars(optimizer):  # those of another optimizer, which will step
        return None
    groups = optimizer.param_groups if known else ()
    layout = tuple(tuple(known.get(one, 1.0) for one in group["params"]) for group in groups)
    if all(factor == 1.0 for of_group in layout for factor in of_group):
        _divisions.pop(optimizer, None)
        return None
    division = _divisions.get(optimizer)
    if division is None or division.layout != layout:
        division = _divisions[optimizer] = Division(type(optimizer), layout)
    return division


@torch.compiler.disable(reason="The groups of the optimizer are divided.")  # type: ignore[untyped-decorator]
def _before_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    division = _divisions.get(optimizer)
    if division is None:
        return None
    args, kwargs = with_closure(args, kwargs, partial(_filling, division, optimizer)) or (args, kwargs)
    return (division.stand_in(optimizer), *args[1:]), kwargs


@torch.compiler.disable(reason="The groups of the optimizer are divided.")  # type: ignore[untyped-decorator]
def _after_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    division = _divisions.get(optimizer)
    if division is not None:
        division.take_over(optimizer)


def _filling(division: Division, optimizer: Optimizer, closure: Callable[[], Any]) -> Callable[[], Any]:
    """Returns a closure after which the step has the options that the closure has set."""

    def filling() -> Any:
        loss = closure()
        division.fill(optimizer)
        return loss

    return filling
