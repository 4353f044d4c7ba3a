"""Checks at each step that all owners are about to apply the same, so that no change on one worker goes unnoticed.

Before a step all workers compare in one small all-reduce that they step, with which options, and checksums of a part of
the gradients and values, bit by bit. The parts rotate, so that any difference is found within `SHARES` steps. The first
step of an optimizer compares everything.

On an accelerator the host does not wait for the checksums: they are compared at the next step. If a gradient was not
finite, everything is compared then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from sdp_compile.planning.regions import full
from sdp_compile.runtime.comm.meeting import Meeting, Statement, mixed, share_of_zero
from sdp_compile.runtime.comm.verdict import OUTSIDE, ROUNDING, Details
from sdp_compile.runtime.gradients.engine import GradientEngine, engines
from sdp_compile.runtime.gradients.reduce_scatter import ReduceScatter
from sdp_compile.runtime.owners import backward, rates
from sdp_compile.runtime.owners.backward import leave_out
from sdp_compile.runtime.owners.checksums import fetched
from sdp_compile.runtime.owners.comparison import Comparison, Item, is_late, items, read
from sdp_compile.runtime.owners.parts import SHARES, holder_factor
from sdp_compile.runtime.probing.elementwise import needs_broadcast
from sdp_compile.runtime.sharding.gradient import local_gradient

_SAMPLES = 4
"""Of how many gradients a worker looks at each step whether they are finite: its smallest ones."""

_NOT_OPTIONS = ("params", "param_names")

_TRAINABLE = {flag: mixed("requires_grad", flag) for flag in (False, True)}


@dataclass(frozen=True)
class Late:
    """What a step leaves to the next one to look at, when it has arrived from the devices.

    Attributes:
        comparison: Its checksums.
        finite: Returns whether each of this worker's gradients was finite.
    """

    comparison: Comparison
    finite: Callable[[], list[int]]


class StepCheck:
    """The check of an optimizer's steps among the workers of one common group.

    Args:
        optimizer: The optimizer.
        own: The engines of this group that average gradients for the optimizer.
    """

    def __init__(self, optimizer: Optimizer, own: Sequence[GradientEngine]) -> None:
        known = {parameter: (engine, name) for engine in own for parameter, name in engine.names().items()}
        elsewhere = {parameter for engine in engines() for parameter in engine.names()}.difference(known)
        everyone = range(own[0].groups.workers)
        self.keys: list[list[str]] = []
        self.factors: list[int] = []
        self.items: list[Item] = []
        self._trainable: list[tuple[nn.Parameter, str, str, int]] = []
        outside = 0
        for group in optimizer.param_groups:
            keys, factor = [], 0
            for parameter in group["params"]:
                if parameter in known:
                    engine, name = known[parameter]
                    keys.append(engine.key(name))
                    own_factor = holder_factor(engine, name)
                    factor += own_factor
                    self._trainable.append((parameter, keys[-1], name, own_factor))
                elif parameter.requires_grad and parameter not in elsewhere and type(parameter) is nn.Parameter:
                    key = f"{OUTSIDE}:parameter {outside} of shape {list(parameter.shape)} outside the compiled model"
                    keys.append(key)
                    factor += share_of_zero(own[0].groups.rank, everyone) * mixed(key)
                    self.items += _outside(parameter, key, outside % SHARES, own[0])
                    outside += 1
            self.keys.append(keys)
            self.factors.append(factor)
        given = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        for engine in own:
            parameters = {name: parameter for parameter, name in engine.names().items() if parameter in given}
            self.items += items(engine, parameters, with_gradients=True)
        self._given = sorted(given, key=Tensor.numel)
        self._stepped = [
            (engine, [name for parameter, name in engine.names().items() if parameter in given]) for engine in own
        ]

    def meet(self, optimizer: Optimizer, own: Sequence[GradientEngine], count: int, late: Late | None) -> Late | None:
        """Compares a step with the other workers'. Collective.

        Args:
            optimizer: The optimizer, which is about to step.
            own: The engines of this group that average its gradients.
            count: How many steps it has taken.
            late: What the step before has left to look at.

        Returns:
            What this step leaves to the next one.

        Raises:
            DistributedError: On all workers, if any of them steps with other options, gradients or values.
        """
        compared = [item for item in self.items if not count or item.share == count % SHARES]
        for keys, factor, group in zip(self.keys, self.factors, optimizer.param_groups, strict=True):
            compared += _options_on_devices(group, keys, factor)
        given = (parameter for group in optimizer.param_groups for parameter in group["params"])
        waits = is_late(given) or any(engine.unequal_devices for engine in own)
        comparison = Comparison(compared, waits)
        # Without checksums at once, all gradients count: after two steps of waiting all owners agree again.
        finite = fetched(_are_finite(self._given if waits else self._given[:_SAMPLES]), waits)
        new = Late(comparison, finite) if waits else None
        if waits:
            comparison, finite = (Comparison([], False), list) if late is None else (late.comparison, late.finite)
        rounding = _rounding(optimizer, own)
        extra = {ROUNDING: rounding, "rate_by_owners": rates.powers([engine.holdings.plan for engine in own])}
        options = [{**_options(optimizer, group, count), **extra} for group in optimizer.param_groups]
        without = {
            engine.key(n) for engine, names in self._stepped for n in engine.unused.missing(engine.hooked, names)
        }
        meeting = self._meet(own, options, comparison, not all(finite()), without)
        if meeting.finish():
            self._meet(own, options, Comparison(self.items, False)).finish()
        had = meeting.had_by_any(partial(self._having, without))
        for engine, names in self._stepped:
            if had is not None:
                unused = [name for name in names if engine.key(name) not in had]
                engine.contract.dropped(engine.unused.drop(engine.hooked, unused))
            engine.values_are_compared = True
            leave_out(engine, self._given)
        return new

    def _having(self, without: Set[str]) -> list[str]:
        """Returns the keys of what the optimizer steps, and this worker has a gradient of."""
        keys = [engine.key(name) for engine, names in self._stepped for name in names]
        return [key for key in keys if key not in without]

    def _meet(
        self,
        own: Sequence[GradientEngine],
        options: Sequence[Mapping[str, str]],
        comparison: Comparison,
        flag: bool = False,
        without: Set[str] = frozenset(),
    ) -> Meeting:
        """Begins to compare a step."""
        hashes = [mixed(*chosen.items()) for chosen in options]
        stated = sum(factor * hash_ for factor, hash_ in zip(self.factors, hashes, strict=True))
        stated += sum(factor * _TRAINABLE[parameter.requires_grad] for parameter, _, _, factor in self._trainable)

        def details() -> Details:
            steps = {key: number for number, keys in enumerate(self.keys) for key in keys}
            trainable = {
                f"requires_grad:{key}": (str(parameter.requires_grad), "requires_grad", f"requires_grad of {name!r}")
                for parameter, key, name, _ in self._trainable
            }
            items = {**trainable, **comparison.details()}
            return Details(steps=steps, options=options, having=self._having(without), items=items)

        terms = stated, comparison.term()
        number = mixed(own[0].groups.rank, *sorted(without)) if without else 0
        return own[0].meet(Statement("in an optimizer's step", terms, flag, number, details))


class _Watch:
    """What is known of an optimizer since its first step."""

    def __init__(self) -> None:
        self.count = 0
        self.parameters: list[list[nn.Parameter]] = []
        self.checks: dict[dist.ProcessGroup, StepCheck] = {}
        self.late: dict[dist.ProcessGroup, Late | None] = {}


_watches: WeakKeyDictionary[Optimizer, _Watch] = WeakKeyDictionary()


@torch.no_grad()
def check_step(optimizer: Optimizer, own: Sequence[GradientEngine]) -> None:
    """Raises the same error on all workers unless they are about to take the same step. Collective.

    Args:
        optimizer: The optimizer that is about to step.
        own: The engines with more than one worker that average its gradients.

    Raises:
        DistributedError: If a worker steps with other options, gradients or values than another owner, or not at all.
    """
    watch = _watches.setdefault(optimizer, _Watch())
    parameters = [list(group["params"]) for group in optimizer.param_groups]
    if [list(map(id, group)) for group in parameters] != [list(map(id, group)) for group in watch.parameters]:
        watch.parameters, watch.checks = parameters, {}
    by_group: dict[dist.ProcessGroup, list[GradientEngine]] = {}
    for engine in sorted(own, key=lambda engine: engine.created):
        by_group.setdefault(engine.groups.raw_group, []).append(engine)
    for group, members in by_group.items():
        if group not in watch.checks:
            watch.checks[group] = StepCheck(optimizer, members)
        with torch._C.DisableTorchFunctionSubclass():  # this worker's part of a gradient, not the full model's
            watch.late[group] = watch.checks[group].meet(optimizer, members, watch.count, watch.late.get(group))
    watch.count += 1


def forget_parameters(optimizer: Optimizer) -> None:
    """Lets go of the parameters that an optimizer has held until now, as its model has got another plan."""
    watch = _watches.get(optimizer)
    if watch is not None:
        watch.parameters, watch.checks = [], {}


def begin_anew(engine: GradientEngine, optimizers: Iterable[Optimizer]) -> None:
    """Forgets what is still to be compared, after all workers have repaired what they hold. The next step compares all.

    Args:
        engine: The engine of the module.
        optimizers: The optimizers of its parameters.
    """
    backward.begin_anew(engine)
    for optimizer in optimizers:
        _watches.pop(optimizer, None)


def _are_finite(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """Returns whether the gradients on each device are finite, as scalars there.

    A value that is not finite on one owner makes all its gradients so, and after the next step those of all owners,
    which then agree. So everything is compared before that step.
    """
    by_device: dict[torch.device, list[Tensor]] = {}
    for gradient in map(local_gradient, parameters):
        if gradient is not None and gradient.numel() and gradient.layout == torch.strided:
            by_device.setdefault(gradient.device, []).append(gradient)
    norms = [torch._foreach_norm(gradients, torch.inf) for gradients in by_device.values()]
    return [torch.stack(own).isfinite().all() for own in norms]


def _outside(parameter: nn.Parameter, key: str, share: int, engine: GradientEngine) -> Iterator[Item]:
    factor = share_of_zero(engine.groups.rank, range(engine.groups.workers)) * mixed(key)
    name = key.partition(":")[2]
    for kind in ("gradient", "value"):
        tensor = partial(read, parameter, kind, full(parameter.shape))
        yield Item(f"{kind}:{key}", OUTSIDE, f"The {kind} of {name}", tensor, share, factor)


def _rounding(optimizer: Optimizer, own: Sequence[GradientEngine]) -> str:
    """Returns what decides whether values are broadcast after the step, as text. All workers must decide alike."""
    if any(engine.unequal_devices or isinstance(engine.reduction, ReduceScatter) for engine in own):
        return "not asked"
    return str(needs_broadcast(optimizer, next(iter(own[0].names())).device))


def _options(optimizer: Optimizer, group: Mapping[str, Any], count: int) -> dict[str, str]:
    """Returns what decides a step, as text."""
    kind = type(optimizer)
    return {
        **{key: _text(value) for key, value in sorted(group.items()) if key not in _NOT_OPTIONS},
        "the optimizer's class": f"{kind.__module__}.{kind.__qualname__}",
        "the number of its earlier steps": str(count),
    }


def _options_on_devices(group: Mapping[str, Any], keys: Sequence[str], factor: int) -> Iterator[Item]:
    """Yields the options that are tensors on a device, such as a learning rate, which the host cannot read at once."""
    for option, value in group.items():
        if isinstance(value, Tensor) and value.device.type != "cpu" and keys:
            yield Item(f"{keys[0]}:{option}", "option", f"The option {option!r}", partial(_same, value), 0, factor)


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _text(value: Any) -> str:
    if isinstance(value, Tensor):
        return str(value.item()) if value.numel() == 1 and value.device.type == "cpu" else type(value).__name__
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_text, value))})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_text(item)}' for key, item in value.items())}}}"
    return repr(value) if value is None or isinstance(value, (bool, int, float, str)) else type(value).__name__
