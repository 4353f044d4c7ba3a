"""How far a reduction is: which buckets are complete, launched and issued."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn

from sdp_compile.errors import SDPError
from sdp_compile.ownership.owners import OwnerSet
from sdp_compile.runtime.comm.groups import Groups
from sdp_compile.runtime.comm.issuer import InOrder
from sdp_compile.runtime.gradients.reduction import Reduction
from sdp_compile.runtime.levels.room import Arrangement, Room
from sdp_compile.runtime.packing.lots import Lot, lots_of
from sdp_compile.runtime.packing.slots import Slot
from sdp_compile.runtime.tensors import untracked


class Progress:
    """The progress of one reduction after the other; positions count the buckets of this worker.

    Args:
        slots: What this worker holds of each bucket, in the order in which they are reduced.
        groups: The workers' process groups.
        reduction: How a bucket is averaged.
        scale: Returns what this worker's gradients are multiplied by before they are averaged.

    Attributes:
        lots: The buckets of each round.
        issued: The bucket numbers that were issued since `begin`, in the order in which they were issued.
    """

    def __init__(
        self, slots: Sequence[Slot], groups: Groups, reduction: Reduction, scale: Callable[[], float] = lambda: 1.0
    ) -> None:
        self._slots, self._groups, self._reduction, self._scale = slots, groups, reduction, scale
        self.lots = lots_of(slots)
        self._lot_of = [lot for lot in self.lots for _ in lot.slots]
        self._of_round = {_round(lot): lot for lot in self.lots}
        self._positions: dict[Lot, list[int]] = {lot: [] for lot in self.lots}
        for position, lot in enumerate(self._lot_of):
            self._positions[lot].append(position)
        self._arrangements: dict[Lot, tuple[object, Arrangement]] = {}
        self._parameters: Mapping[str, nn.Parameter] = {}
        self._members: list[list[nn.Parameter]] = []

    def follow(self, parameters: Mapping[str, nn.Parameter]) -> dict[nn.Parameter, list[int]]:
        """Takes the gradients of these parameters, given by name. Returns the positions of each one's buckets."""
        self._parameters = parameters
        self._members = [list(dict.fromkeys(parameters[name] for name in slot.names)) for slot in self._slots]
        positions: dict[nn.Parameter, list[int]] = {parameter: [] for parameter in parameters.values()}
        for position, members in enumerate(self._members):
            for parameter in members:
                positions[parameter].append(position)
        return positions

    def begin(self, reduction: Reduction, may_issue: Callable[[], bool] = lambda: True) -> None:
        """Starts from the beginning: nothing is complete, launched or issued.

        Args:
            reduction: How a bucket is averaged.
            may_issue: Whether a bucket may be issued before `start_all`.
        """
        if reduction is not self._reduction:
            self._arrangements.clear()
        self._reduction = reduction
        self.issued: list[int] = []
        self._in_order = InOrder(len(self._slots), self._issue, may_issue)
        self._missing = [sum(parameter.requires_grad for parameter in members) for members in self._members]
        self._done: set[Lot] = set()
        self._waiting: list[int] = []
        self._after_failure = False
        self._packed: list[tuple[str, Tensor, int]] = []
        for lot in self.lots:
            lot.forget()

    def complete(self, position: int) -> None:
        """Notes that one more gradient of a bucket is in ``.grad``, and issues what is complete."""
        self._missing[position] -= 1
        if not self._missing[position]:
            self._in_order.ready(position)

    def names(self, number: int) -> Sequence[str]:
        """Returns the parameters of a round; none if this worker has no bucket in it."""
        lot = self._of_round.get(number)
        return () if lot is None else lot.names

    def has_packed(self, number: int) -> bool:
        """Whether a round was launched or issued since `begin`."""
        return self._of_round[number] in self._done

    def launch(self, number: int, gradients: Mapping[str, Tensor]) -> None:
        """Packs a round with these gradients, given by name, added to those in ``.grad``, and issues what is complete.

        They are not kept: autograd copies a gradient that others hold.
        """
        lot = self._of_round[number]
        self._pack(lot, {self._parameters[name]: gradient for name, gradient in gradients.items()})
        for position in self._positions[lot]:
            self._in_order.ready(position)

    def start_all(self, after_failure: bool = False) -> None:
        """Issues everything that is not issued yet.

        Args:
            after_failure: Whether zeros are sent in place of gradients that cannot be packed: peers wait for them.
        """
        self._after_failure = after_failure
        self._in_order.rest()
        self._flush()
        with untracked():
            self._reduction.started_all()

    def finished(self) -> Iterator[Room]:
        """Waits for one round after the other, and yields the room with its averages."""
        for lot in self.lots:
            with untracked():
                room = self._reduction.finish(_round(lot))
            yield room

    def write(
        self, rooms: Iterable[Room], factor: Callable[[OwnerSet], float], kept: Callable[[OwnerSet], float]
    ) -> None:
        """Writes what `finished` has yielded into ``.grad``, or where the reduction keeps it.

        Args:
            rooms: The averages of each round.
            factor: Returns what averages over some owners are multiplied by.
            kept: Returns what earlier ones are multiplied by before these are added.
        """
        for lot, room in zip(self.lots, rooms, strict=True):
            for number, slot in enumerate(lot.slots):
                by = factor(slot.bucket.owners)
                if by != 1:
                    torch._foreach_mul_(list(room.stretches[number]), by)
            if not self._reduction.keeps:
                lot.unpack(room, self._parameters)
                continue
            for slot, memory in zip(lot.slots, room.stretches, strict=True):
                self._reduction.keep(slot.bucket, memory, self._parameters, kept)
            lot.forget()

    def discard(self) -> None:
        """Waits for everything that was issued and drops the averages."""
        for lot in self.lots:
            self._reduction.finish(_round(lot))
            lot.forget()

    def check_unchanged(self) -> None:
        """Raises `SDPError` if a gradient changed after its bucket was issued."""
        with torch._C.DisableTorchFunctionSubclass():
            changed = [
                name
                for name, gradient, version in self._packed
                if self._parameters[name].grad is not gradient or gradient._version != version
            ]
        if changed:
            self.discard()
            raise SDPError(
                f"A hook changed the gradient of {changed[0]!r} after its averaging had started. Change it in a tensor "
                "hook (parameter.register_hook) or after backward."
            )
        self._packed.clear()

    def _pack(self, lot: Lot, given: Mapping[nn.Parameter, Tensor] = MappingProxyType({})) -> None:
        """Packs the buckets of a round."""
        with untracked():
            room = lot.pack(lambda: self._arranged(lot), self._parameters, given)
            scale = self._scale()
            if scale != 1:
                torch._foreach_mul_([one for own in room.stretches for one in own], scale)
        self._done.add(lot)

    def _arranged(self, lot: Lot) -> Arrangement:
        """Returns how the buckets of a round lie in its room."""
        wire, dtypes = self._wire(lot), tuple(self._parameters[name].dtype for name in lot.names)
        known = self._arrangements.get(lot)
        if known is None or known[0] != (wire, dtypes):
            travel = [slot.dtype(self._parameters) for slot in lot.slots]
            made = self._reduction.arranged([slot.bucket for slot in lot.slots], travel, wire)
            known = self._arrangements[lot] = (wire, dtypes), made
        return known[1]

    def _wire(self, lot: Lot) -> torch.device:
        """Returns the device on which the buckets of a round travel."""
        return self._groups.wire(self._parameters[lot.slots[0].names[0]].device)

    def _issue(self, position: int) -> None:
        """Issues the buckets of a round, in their order, when all of them are complete."""
        self._waiting.append(position)
        if position + 1 == len(self._slots) or self._lot_of[position + 1] is not self._lot_of[position]:
            self._flush()

    def _flush(self) -> None:
        """Issues what waits, round by round. What cannot be packed waits on, and what comes after it."""
        while self._waiting:
            lot = self._lot_of[self._waiting[0]]
            waiting = [position for position in self._waiting if self._lot_of[position] is lot]
            self._pack_unless_done(lot)
            with untracked():
                self._reduction.start(_round(lot), lot.sent(self._wire(lot)))
            if self._reduction.keeps:
                lot.forget()
            self.issued += [self._slots[position].bucket.number for position in waiting]
            del self._waiting[: len(waiting)]

    def _pack_unless_done(self, lot: Lot) -> None:
        """Packs a round that was not launched."""
        if lot in self._done:
            return
        try:
            self._pack(lot)
        except Exception:
            if not self._after_failure:
                raise
            lot.clear(lambda: self._arranged(lot), self._parameters)
        with torch._C.DisableTorchFunctionSubclass():
            for name in lot.names:
                gradient = self._parameters[name].grad
                if gradient is not None:
                    self._packed.append((name, gradient, gradient._version))


def _round(lot: Lot) -> int:
    return lot.slots[0].bucket.round
