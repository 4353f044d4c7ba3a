"""Items that are compared bit by bit: what several workers must hold alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from sdp_compile.planning.regions import Region
from sdp_compile.runtime.comm.meeting import Statement, mixed
from sdp_compile.runtime.comm.verdict import Details
from sdp_compile.runtime.gradients.engine import GradientEngine
from sdp_compile.runtime.owners.checksums import LARGEST_BYTES, checksums
from sdp_compile.runtime.owners.parts import owned_parts
from sdp_compile.runtime.sharding.gradient import ShardedGradient

LATE = False
"""Whether checksums are compared later on the CPU too, as on an accelerator; for tests."""

_NO_TENSOR = mixed("no tensor") >> 1


@dataclass(frozen=True, eq=False)
class Item:
    """Something that is compared bit by bit among some workers.

    Attributes:
        identifier: The same on these workers, and for nothing else.
        kind: Which of the verdict's `CAUSES` a difference probably has.
        label: What it is called in errors.
        read: Returns the tensor; None for no gradient.
        share: The number of its share.
        factor: This worker's `share_of_zero`, times a number of the item's own, so that no two items cancel.
        parameter: The parameter that it is a part of; None for anything else.
    """

    identifier: str
    kind: str
    label: str
    read: Callable[[], Tensor | None]
    share: int
    factor: int
    parameter: nn.Parameter | None = None


class Comparison:
    """The checksums of some items, perhaps still on their way from a device.

    Args:
        items: What is compared.
        late: Whether the checksums are wanted later, so that the host need not wait for the devices now.
    """

    def __init__(self, items: Sequence[Item], late: bool) -> None:
        self._items = items
        self._has_tensor: list[bool] = []
        self._fetched: list[Callable[[], list[int]]] = []
        lot: list[Tensor] = []
        nbytes = 0
        for item in items:
            tensor = item.read()  # perhaps a copy, so not all of them at once
            self._has_tensor.append(tensor is not None)
            if tensor is not None:
                lot.append(tensor)
                nbytes += tensor.nbytes
            if nbytes >= LARGEST_BYTES:
                self._fetched.append(checksums(lot, late))
                lot, nbytes = [], 0
        self._fetched.append(checksums(lot, late))

    def term(self) -> int:
        """Returns this worker's contribution to a sum that is zero if all workers agree."""
        return sum(item.factor * mixed(value) for item, value in self._pairs())

    def details(self) -> dict[str, tuple[str, str, str]]:
        """Returns what `Details` tells of the items."""
        return {item.identifier: (str(value), item.kind, item.label) for item, value in self._pairs()}

    def _pairs(self) -> Iterator[tuple[Item, int]]:
        values = iter([value for fetch in self._fetched for value in fetch()])
        for item, has_tensor in zip(self._items, self._has_tensor, strict=True):
            yield item, next(values) if has_tensor else _NO_TENSOR


def items(engine: GradientEngine, parameters: Mapping[str, nn.Parameter], with_gradients: bool) -> Iterator[Item]:
    """Yields the parts of some of an engine's parameters that this worker owns together with others.

    Args:
        engine: The engine.
        parameters: The parameters by name.
        with_gradients: Whether to yield their gradients besides their values.
    """
    for part in owned_parts(engine):
        parameter = parameters.get(part.name)
        if parameter is None:
            continue
        for kind in ("gradient", "value") if with_gradients else ("value",):
            label = f"The {kind} of {part.label}"
            tensor = partial(read, parameter, kind, part.region)
            yield Item(f"{kind}:{part.identifier}", kind, label, tensor, part.share, part.factor, parameter)


def is_late(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether the checksums of these parameters are compared later, so that the host need not wait for their device."""
    return LATE or {parameter.device.type for parameter in parameters} != {"cpu"}


def read(parameter: nn.Parameter, kind: str, region: Region) -> Tensor | None:
    """Returns a region of a parameter's gradient or value; None if there is no gradient."""
    tensor = parameter.grad if kind == "gradient" else parameter
    # No two workers hold the same element of a sharded gradient.
    return None if tensor is None or isinstance(tensor, ShardedGradient) else region.read(tensor)


@torch.no_grad()
def check_values(engine: GradientEngine, point: str) -> None:
    """Raises the same error on all workers unless all owners hold the same values. Collective.

    Args:
        engine: The engine of the module.
        point: Where the workers are, for errors.

    Raises:
        DistributedError: If the owners of an element hold different values.
    """
    if not engine.values_are_compared:
        return
    parameters = {name: parameter for parameter, name in engine.names().items()}
    comparison = Comparison(list(items(engine, parameters, with_gradients=False)), False)
    statement = Statement(point, (0, comparison.term()), details=lambda: Details(items=comparison.details()))
    engine.meet(statement).finish()
