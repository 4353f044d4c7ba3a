"""Which parameters have no gradient: an optimizer leaves them alone, but would step zeros (weight decay, momentum).

A worker packs zeros where it has no gradient, since another one may have some. What no worker has a gradient of must
have none again before a step, as in the original: a head whose output is not part of the loss, for example.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn
from torch.utils.weak import TensorWeakRef

from sdp_compile.planning.plan import Plan
from sdp_compile.runtime.comm.agreement import maxima
from sdp_compile.runtime.comm.groups import Groups
from sdp_compile.runtime.comm.meeting import mixed


class Unused:
    """Knows which gradients of one worker are nothing but the zeros of a reduction.

    Args:
        plan: The plan of all workers.
        groups: The workers' process groups.
    """

    def __init__(self, plan: Plan, groups: Groups) -> None:
        self._names = [name for name, tensor in plan.state.items() if tensor.kind == "parameter"]
        self._groups = groups
        self._made: dict[str, TensorWeakRef] = {}
        self._agreed: tuple[int, frozenset[str]] = 0, frozenset()

    def arrived(self, name: str) -> None:
        """Notes that a backward has accumulated a gradient of this parameter."""
        self._made.pop(name, None)

    def missing(self, parameters: Mapping[str, nn.Parameter], names: Iterable[str]) -> list[str]:
        """Returns those of the named parameters of which this worker has no gradient."""
        with torch._C.DisableTorchFunctionSubclass():
            return [name for name in names if parameters[name].requires_grad and self._is_missing(name, parameters)]

    def fill(self, parameters: Mapping[str, nn.Parameter], names: Iterable[str]) -> None:
        """Notes that a reduction has made the gradients of these parameters."""
        found = ((name, parameters[name].grad) for name in names)
        self._made = {name: TensorWeakRef(gradient) for name, gradient in found if gradient is not None}

    def statement(self, parameters: Mapping[str, nn.Parameter]) -> int:
        """Returns a number that stands for the parameters of which this worker has no gradient; 0 for none."""
        missing = self._missing_here(parameters)
        return mixed(self._groups.rank, *missing) if missing else 0

    @torch.no_grad()
    def drop(self, parameters: Mapping[str, nn.Parameter], stated: int) -> None:
        """Drops the zeros in place of gradients that no worker has. Collective, if ``stated`` has changed.

        Args:
            parameters: This worker's parameters by name.
            stated: The sum of all workers' statements.
        """
        if stated != self._agreed[0]:
            mine = set(self._missing_here(parameters))
            has = [float(name in parameters and name not in mine) for name in self._names]
            known = maxima(has, "parameters without a gradient", self._groups)
            used = frozenset(name for name, value in zip(self._names, known, strict=True) if value)
            self._agreed = stated, used
        for name in list(self._made):
            if name in parameters and name not in self._agreed[1] and self._is_missing(name, parameters):
                parameters[name].grad = None

    def _missing_here(self, parameters: Mapping[str, nn.Parameter]) -> list[str]:
        return self.missing(parameters, (name for name in self._names if name in parameters))

    def _is_missing(self, name: str, parameters: Mapping[str, nn.Parameter]) -> bool:
        gradient = parameters[name].grad
        made = self._made.get(name)
        return gradient is None or (made is not None and made() is gradient)
