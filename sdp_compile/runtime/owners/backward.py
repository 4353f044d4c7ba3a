"""What workers compare when a backward begins: the dtypes of their parameters, and a part of the values.

Another dtype makes gradients of another size, which would abort the process. The values find what no optimizer's step
compares: parameters that are updated by hand, or by objects that are no `torch.optim.Optimizer`. What a step has
compared since the last backward is left out, on all workers alike, as they agreed on what they step.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from weakref import WeakKeyDictionary

import torch
from torch import nn

from sdp_compile.runtime.comm.meeting import Statement, mixed
from sdp_compile.runtime.comm.verdict import OF_BACKWARD, Details
from sdp_compile.runtime.gradients.engine import IN_BACKWARD, GradientEngine
from sdp_compile.runtime.owners.comparison import Comparison, Item, is_late, items
from sdp_compile.runtime.owners.parts import SHARES, holder_factor

_DTYPES = {dtype: mixed(dtype) for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}


class BackwardCheck:
    """The statements of one engine.

    Args:
        engine: The engine.

    Attributes:
        stepped: Parameters whose values a step has compared since the last backward.
    """

    def __init__(self, engine: GradientEngine) -> None:
        self._factors: dict[str, int] = {}
        self._hooked: Mapping[str, nn.Parameter] = {}
        self._held: Mapping[str, nn.Parameter] = {}
        self._items: list[Item] = []
        self._late: Comparison | None = None
        self.stepped: set[nn.Parameter] = set()
        self._count = 0
        self._compares = engine.values_are_compared  # the same on all workers, as nothing has been stepped

    def statement(self, engine: GradientEngine) -> Statement:
        """Returns what this worker states when a backward begins."""
        began = time.thread_time()
        if engine.hooked is not self._hooked:
            self._hooked, state = engine.hooked, engine.holdings.plan.state
            self._held = {name: parameter for name, parameter in self._hooked.items() if name in state}
            self._factors = {name: holder_factor(engine, name) for name in self._held}
            self._items = list(items(engine, self._held, with_gradients=False)) if self._compares else []
        held = self._held
        term = sum(factor * _DTYPES[held[name].dtype] for name, factor in self._factors.items())
        comparison = self._compare(engine) if self._compares else Comparison([], False)
        self._count += 1

        def details() -> Details:
            dtypes = {
                f"dtype:{engine.key(name)}": (str(parameter.dtype), "dtype", f"The dtype of {name!r}")
                for name, parameter in held.items()
            }
            return Details(items={OF_BACKWARD: ("", "", ""), **dtypes, **comparison.details()})

        engine.groups.traffic.seconds["check"] += time.thread_time() - began
        return Statement(IN_BACKWARD.point, (term, comparison.term()), details=details)

    @torch.no_grad()
    def _compare(self, engine: GradientEngine) -> Comparison:
        """Returns the comparison of a share of the values; on accelerators that of the share before."""
        share = self._count % SHARES
        waits = engine.unequal_devices or is_late(self._held.values())
        compared = [item for item in self._items if item.share == share and item.parameter not in self.stepped]
        new = Comparison(compared, waits)
        before, self._late = self._late, new if waits else None
        self.stepped.clear()
        return new if not waits else before or Comparison([], False)


_checks: WeakKeyDictionary[GradientEngine, BackwardCheck] = WeakKeyDictionary()


def backward_statement(engine: GradientEngine) -> Statement:
    """Returns what a worker states when a backward begins.

    Args:
        engine: The engine that takes part first.
    """
    return _check_of(engine).statement(engine)


def leave_out(engine: GradientEngine, parameters: Iterable[nn.Parameter]) -> None:
    """Lets the next backward not compare the values of some parameters, as a step of an optimizer has on all workers.

    Args:
        engine: The engine that averages their gradients.
        parameters: The parameters, perhaps with others of other engines.
    """
    _check_of(engine).stepped.update(parameters)


def begin_anew(engine: GradientEngine) -> None:
    """Forgets what is still to be compared, after all workers have repaired their values."""
    _checks.pop(engine, None)


def _check_of(engine: GradientEngine) -> BackwardCheck:
    if engine not in _checks:
        _checks[engine] = BackwardCheck(engine)
    return _checks[engine]
