"""Averaging gradients over their owners while backward runs."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sdp_compile.errors import SDPError
from sdp_compile.planning.buckets import Bucket
from sdp_compile.planning.holdings import Holdings
from sdp_compile.runtime.comm.agreement import Flags, agree, device_code
from sdp_compile.runtime.comm.groups import Groups
from sdp_compile.runtime.comm.issuer import Ascending, issuer_of
from sdp_compile.runtime.comm.refresh import Refresh
from sdp_compile.runtime.gradients.arrivals import Early
from sdp_compile.runtime.gradients.finite import first_not_finite, require_finite
from sdp_compile.runtime.gradients.hooks import Hook
from sdp_compile.runtime.gradients.reduction import AllReduce, Reduction
from sdp_compile.runtime.gradients.slots import Slot
from sdp_compile.runtime.sharding.gradient import local_gradient

_Average = tuple[Slot, Tensor, slice]
"""A bucket, its flat buffer, and the part of it that holds averages."""


class GradientEngine:
    """Reduces everything accumulated in ``.grad`` with each backward, DistributedDataParallel's semantics.

    A hook on every trainable parameter notices when backward has completed its gradient. A bucket whose gradients are
    all complete is issued at once, if all before it are: in the one order that `Issuer` and `Ascending` keep. At the
    end of backward the rest is issued, with zeros where this rank has no gradient, and all averages are written to
    ``.grad``. Which gradients a backward will compute is unknown, and need not be known. Every owner ends with the same
    bits.

    A compiled backward completes all its gradients at once, so its graph launches the buckets itself (`launch`).

    ``reduction`` is how a bucket is averaged; ``issued`` the bucket numbers of the last reduction in the order in which
    they were issued.
    """

    def __init__(
        self,
        module: nn.Module,
        holdings: Holdings,
        groups: Groups,
        buckets: Sequence[Bucket],
        comm_dtype: torch.dtype | None = None,
        check_finite: bool = False,
    ) -> None:
        if comm_dtype is not None and not comm_dtype.is_floating_point:
            raise SDPError(f"comm_dtype={comm_dtype} is no floating point type; use torch.float16 or torch.bfloat16.")
        self._module = weakref.ref(module)
        self.holdings, self.groups = holdings, groups
        self.comm_dtype, self.check_finite = comm_dtype, check_finite
        self.reduction: Reduction = AllReduce(groups)
        self.issued: list[int] = []
        self._slots = [Slot(bucket, holdings, comm_dtype) for bucket in buckets if any(p.numel for p in bucket.pieces)]
        self._positions = {slot.bucket.number: position for position, slot in enumerate(self._slots)}
        self._frozen = [
            name
            for name, tensor in holdings.plan.state.items()
            if tensor.kind == "parameter" and not tensor.requires_grad
        ]
        self._synchronise = True
        self._accumulated = False
        self._unequal_devices: bool | None = None
        self._reductions = 0
        self._early = Early()
        self._backward = -1
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self.refresher: Refresh | None = None
        self.rehook()
        self._begin()
        self._issuer = issuer_of(groups.raw_group)
        self._issuer.add(self)

    def rehook(self) -> None:
        """Hooks the module's parameters; call it after other Parameter objects took their places."""
        self.detach()
        self._parameters = self._current_parameters()
        distinct = {id(parameter): parameter for parameter in self._parameters.values()}
        self._members = [
            list({id(self._parameters[name]): self._parameters[name] for name in slot.names}.values())
            for slot in self._slots
        ]
        slots: dict[int, list[int]] = {identity: [] for identity in distinct}
        for position, members in enumerate(self._members):
            for parameter in members:
                slots[id(parameter)].append(position)
        for identity, parameter in distinct.items():
            if parameter.is_leaf and parameter.requires_grad:
                hook = Hook(self, slots[identity])
                self._handles.append(parameter.register_post_accumulate_grad_hook(hook))
        self._unequal_devices = None

    def detach(self) -> None:
        """Removes the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @property
    def slots(self) -> Sequence[Slot]:
        """What this worker holds of each of its buckets, in the order in which they are reduced."""
        return self._slots

    @property
    def pending(self) -> bool:
        """Whether gradients have been accumulated since the last reduction and are still there."""
        return self._accumulated and any(p.grad is not None for p in self._current_parameters().values())

    @property
    def unequal_devices(self) -> bool:
        """Whether the workers compute on different kinds of devices; known after the first reduction."""
        return bool(self._unequal_devices)

    def names(self) -> dict[nn.Parameter, str]:
        """The full-model name of each of the module's parameters."""
        state = self.holdings.plan.state
        return {parameter: name for name, parameter in self._current_parameters().items() if name in state}

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Within, backward only accumulates."""
        before, self._synchronise = self._synchronise, False
        try:
            yield
        finally:
            self._synchronise = before

    def sync(self) -> None:
        """Reduces what is pending; nothing where nothing is.

        Collective: all ranks run the same program, so it is pending on all of them or on none.
        """
        if self.pending:
            self._issuer.settle()
            self._begin()
            self._issuer.reduce(self)

    # -- during backward -----------------------------------------------------------------------------------------

    def on_gradient(self, slots: Sequence[int]) -> None:
        """Called for each parameter whose gradient a backward has completed, with the positions of its buckets."""
        self._accumulated = True
        if self._synchronise and self._take_part():
            for position in slots:
                self._missing[position] -= 1
                if not self._missing[position]:
                    self._ascending.ready(position)

    def launch(self, number: int, gradients: Sequence[Tensor]) -> None:
        """Called by a compiled backward with the gradients of the parameters in bucket ``number``.

        What arrives in ``.grad`` at its end is the same, unless the parameters have other uses in this backward, of
        which the graph knows nothing: then it was too early, and everything is reduced once more at the end.
        """
        self._early.asked = True
        position = self._positions.get(number)
        if position is None or not self._synchronise or not self._early.on:
            return
        names = self._slots[position].names
        if len(names) != len(gradients):
            return  # the graph does not use all of the bucket
        trainable = [
            (name, gradient)
            for name, gradient in zip(names, gradients, strict=True)
            if self._parameters[name].requires_grad
        ]
        if not self._early.accumulates(self._parameters[name] for name, _ in trainable) or not self._take_part():
            return
        if position in self._launched:
            self._early.stale = True  # a second forward call
            return
        self._early.expect({self._parameters[name]: gradient for name, gradient in trainable})
        self._launched[position] = self._pack(position, dict(trainable))
        self._ascending.ready(position)

    def _take_part(self) -> bool:
        """In a backward that reduces; whether reductions may be issued before its end."""
        # The number of the backward, and not a flag: a backward that fails never runs its callbacks.
        backward = torch._C._current_graph_task_id()
        if backward != self._backward:
            early = self._issuer.join(self)
            self._begin()
            self._issues_early, self._backward = early, backward
        return self._issues_early

    def _begin(self) -> None:
        self._issues_early = False
        current = self._current_parameters()
        if any(self._parameters.get(name) is not parameter for name, parameter in current.items()):
            self.rehook()
        for name in self._frozen:
            if name in current and current[name].requires_grad:
                raise SDPError(
                    f"{name!r} did not require a gradient when the model was compiled, so its gradient is not "
                    "averaged. Call requires_grad_() on the original model, before sdp_compile()."
                )
        self._early.forget()
        self._reset()

    def _reset(self) -> None:
        self.issued = []
        self._ascending = Ascending(len(self._slots), self._issue)
        self._missing = [sum(parameter.requires_grad for parameter in members) for members in self._members]
        self._launched: dict[int, Tensor | None] = {}
        self._packed: list[tuple[str, Tensor, int]] = []

    @torch.no_grad()
    def _pack(self, position: int, given: Mapping[str, Tensor]) -> Tensor:
        slot = self._slots[position]
        flat = slot.pack(self._parameters, self.reduction.length(slot.bucket, slot.numel), given)
        return flat.to(self.groups.wire(flat.device))

    def _issue(self, position: int) -> None:
        slot, flat = self._slots[position], self._launched.get(position)
        if flat is not None:
            self._launched[position] = None
        else:
            flat = self._pack(position, {})
            for name in slot.names:
                gradient = self._parameters[name].grad
                if gradient is not None:
                    self._packed.append((name, gradient, gradient._version))
        self.reduction.start(slot.bucket, flat)
        self.issued.append(slot.bucket.number)

    # -- at the end of backward ----------------------------------------------------------------------------------

    @torch.no_grad()
    def start_all(self) -> None:
        """Issues everything that is not issued yet."""
        self._ascending.rest()
        self.reduction.started_all()

    @torch.no_grad()
    def finish(self) -> None:
        """Waits for all averages and writes them into ``.grad``. Collective."""
        self._backward = -1
        self._agree()
        self._check_unchanged()
        averages: Iterable[_Average] = ((slot, *self.reduction.finish(slot.bucket)) for slot in self._slots)
        if self.check_finite:
            averages = list(averages)
            self._check_finite(averages)
        for slot, flat, part in averages:
            if not self.reduction.keep(slot.bucket, flat, self._parameters):
                slot.unpack(flat, part, self._parameters)
        self._accumulated = False

    @torch.no_grad()
    def abandon(self) -> None:
        """After a failed backward: issues what peers wait for, waits for it and forgets it."""
        self._backward = -1
        if self._issues_early:
            self.start_all()
            self._discard()

    def _discard(self) -> None:
        for slot in self._slots:
            self.reduction.finish(slot.bucket)

    def _agree(self) -> None:
        """Learns whether this reduction holds for all workers, and decides with them about the next ones.

        Whether graphs may launch is decided at the 1st, 2nd, 4th, 8th, ... reduction: it costs nothing in the long run
        where nothing is compiled, and a model that is compiled late is noticed soon.
        """
        self._reductions += 1
        early = self._early
        scheduled = self._unequal_devices is None or self._reductions & (self._reductions - 1) == 0
        if not early.on and not scheduled:
            return
        code = device_code({parameter.device.type for parameter in self._parameters.values()})
        flags = agree(Flags(early.incomplete(), not early.asked, code, -code), self.groups)
        self._unequal_devices = flags.unequal_devices
        if flags.stale:
            early.refused, early.on = True, False
            warnings.warn(
                "The gradients are averaged after backward from now on, not during it: parameters have other uses than "
                "in one call of the compiled model (a penalty on the weights, or several forward calls per backward), "
                "so its graph does not know when their gradients are complete.",
                stacklevel=2,
            )
            self._discard()
            self._reset()
            self.start_all()
        elif not (early.on or early.refused or flags.eager):
            early.on = early.missed = True
        if early.on and early.missed:
            early.follow(self._parameters.values())
        early.asked = early.missed = False

    def _check_unchanged(self) -> None:
        for name, gradient, version in self._packed:
            if self._parameters[name].grad is not gradient or gradient._version != version:
                self._discard()
                raise SDPError(
                    f"A hook changed the gradient of {name!r} after it had been accumulated, when its reduction had "
                    "been issued. Change it before, in a hook of the tensor (parameter.register_hook), or after "
                    "backward."
                )
        self._packed.clear()

    def _check_finite(self, averages: Sequence[_Average]) -> None:
        gradients = ((name, local_gradient(p)) for name, p in self._parameters.items())
        local = first_not_finite((name, gradient) for name, gradient in gradients if gradient is not None)
        average = first_not_finite((slot.names[0], flat[part]) for slot, flat, part in averages)
        require_finite(local, average, self.groups)

    def _current_parameters(self) -> dict[str, nn.Parameter]:
        module = self._module()
        return {} if module is None else dict(module.named_parameters(remove_duplicate=False))


def engine_of(parameter: Tensor) -> GradientEngine | None:
    """Returns the engine that averages this parameter's gradient, if any."""
    hooks = getattr(parameter, "_post_accumulate_grad_hooks", None) or {}
    engines = (hook.engine for hook in hooks.values() if isinstance(hook, Hook))
    return next((engine for engine in engines if isinstance(engine, GradientEngine)), None)
