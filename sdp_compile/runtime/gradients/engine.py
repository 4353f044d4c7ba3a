"""Averaging gradients over their owners while backward runs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import count

import torch
from torch import Tensor, nn

from sdp_compile.errors import SDPError
from sdp_compile.planning.buckets import Bucket
from sdp_compile.planning.holdings import Holdings
from sdp_compile.runtime.comm.agreement import Flags, agree, device_code
from sdp_compile.runtime.comm.finite import first_not_finite, require_finite
from sdp_compile.runtime.comm.issuer import issuer_of
from sdp_compile.runtime.comm.meeting import Meeting, Statement
from sdp_compile.runtime.contract.contract import Contract
from sdp_compile.runtime.contract.own import multiply, own_regions
from sdp_compile.runtime.gradients.arrivals import is_accumulated
from sdp_compile.runtime.gradients.by_levels import ByLevels
from sdp_compile.runtime.gradients.hooks import Hook, Hooks
from sdp_compile.runtime.gradients.launch_state import LaunchState, Switch
from sdp_compile.runtime.gradients.progress import Progress
from sdp_compile.runtime.gradients.unused import Unused
from sdp_compile.runtime.levels.refresh import Refresh
from sdp_compile.runtime.levels.room import Room
from sdp_compile.runtime.levels.route import Route
from sdp_compile.runtime.packing.slots import Slot
from sdp_compile.runtime.sharding.gradient import local_gradient
from sdp_compile.runtime.tensors import NamedParameters

_numbers = count()
_engines: weakref.WeakSet[GradientEngine] = weakref.WeakSet()

IN_BACKWARD = Statement("in a backward pass that averages gradients")


class GradientEngine:
    """Averages what is accumulated in ``.grad`` at each backward, with the semantics of DistributedDataParallel.

    A hook on every trainable parameter notices when backward has completed its gradient. A bucket is issued as soon as
    its gradients and all earlier buckets are complete, in the one order that `Issuer` and `InOrder` keep. At the end of
    backward the remaining buckets are issued, with zeros where this rank has no gradient, and all averages are written
    to ``.grad``. The engine need not know which gradients a backward will compute. Every owner ends with the same bits.

    A compiled backward completes all its gradients at once, so its graph launches the buckets itself (`launch`).

    Args:
        module: The module whose gradients are averaged.
        holdings: Which tensors the module holds, and where they lie in the full ones.
        route: What this worker does in its process groups.
        buckets: The buckets of this worker, in the global order.
        exchanges: For each round of all workers, whether classes exchange anything in it.
        comm_dtype: The dtype in which gradients travel; by default their own.
        check_finite: Whether a gradient that is infinite or NaN on any worker is an error on all.
        contract: What the averages make up; by default the mean over the owners.

    Attributes:
        reduction: How a bucket is averaged.
        contract: What the averages make up.
        switch: Whether backward averages gradients.
        unused: Knows which gradients are nothing but the zeros of a reduction.
        refresher: Refreshes the values of other workers after a step, under backward masking.
        number: The engine's number among those of its common group, the same on all workers.
        created: Its number among all engines of this process.
        in_backward: Returns what this worker states when a backward begins to reduce.
        values_are_compared: Whether `full_state_dict` compares the owners' values: not in a copy that nothing steps.

    Raises:
        SDPError: If ``comm_dtype`` is not a floating-point type.
    """

    def __init__(
        self,
        module: nn.Module,
        holdings: Holdings,
        route: Route,
        buckets: Sequence[Bucket],
        exchanges: Sequence[bool],
        comm_dtype: torch.dtype | None = None,
        check_finite: bool = False,
        contract: Contract | None = None,
    ) -> None:
        if comm_dtype is not None and not comm_dtype.is_floating_point:
            raise SDPError(f"comm_dtype must be a floating-point dtype such as torch.bfloat16, got {comm_dtype}.")
        self._current_parameters = NamedParameters(module)
        self.holdings, self.groups, self.route = holdings, route.groups, route
        self.comm_dtype, self.check_finite = comm_dtype, check_finite
        self.contract = contract or Contract()
        self._slots = [Slot(bucket, holdings, comm_dtype) for bucket in buckets if any(p.numel for p in bucket.pieces)]
        self.reduction = ByLevels(route, [slot.bucket for slot in self._slots], exchanges)
        self._progress = Progress(self._slots, self.groups, self.reduction, self.contract.scale)
        self._own = own_regions(holdings, self._slots) if self.contract.watches else {}
        state = holdings.plan.state.items()
        self._frozen = [name for name, tensor in state if tensor.kind == "parameter" and not tensor.requires_grad]
        self.switch = Switch()
        self._accumulated = False
        self._unequal_devices: bool | None = None
        self._reductions = 0
        self._launches = LaunchState()
        self._backward = self._watched = -1
        self._ignores = False
        self._hooks, self.unused = Hooks(), Unused()
        self.refresher: Refresh | None = None
        self.values_are_compared = True
        self.in_backward: Callable[[GradientEngine], Statement] = lambda _: IN_BACKWARD
        self._issuer = issuer_of(self.groups.raw_group)
        self.groups.locate(self._current_parameters)
        self.rehook()
        self._begin()
        self.number = self._issuer.add(self)
        self.created = next(_numbers)
        _engines.add(self)

    def rehook(self) -> None:
        """Hooks the module's parameters. Call it after other Parameter objects have replaced them."""
        self._parameters = self._current_parameters()
        watcher = self if self.contract.watches else None
        self._hooks.attach(self, self._progress.follow(self._parameters), self.names(), watcher)
        self._unequal_devices = None

    def detach(self) -> None:
        """Averages nothing any more: another engine takes the place of this one on all workers."""
        self._hooks.attach(self, {})
        self._issuer.remove(self)
        _engines.discard(self)

    @property
    def hooked(self) -> Mapping[str, nn.Parameter]:
        """The parameters by name, as they were at the last backward; another object after a change."""
        return self._parameters

    @property
    def slots(self) -> Sequence[Slot]:
        """What this worker holds of each of its buckets, in the order in which they are reduced."""
        return self._slots

    @property
    def issued(self) -> Sequence[int]:
        """The bucket numbers of the last reduction, in the order in which they were issued."""
        return self._progress.issued

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

    def held(self) -> list[str]:
        """The keys of the parameters of which this worker holds a part."""
        return [self.key(name) for name in self.names().values()]

    def key(self, name: str) -> str:
        """Returns the name of a parameter among those of all engines of the common group."""
        return f"{self.number}:{name}"

    def no_sync(self) -> AbstractContextManager[None]:
        """Within this context, backward only accumulates."""
        return self.switch.off()

    def sync(self) -> None:
        """Averages pending gradients, and does nothing if none are pending.

        Collective: all ranks run the same program, so gradients are pending on all of them or on none.
        """
        if self.pending:
            self._issuer.settle()
            self._begin()
            self._issuer.reduce(self)

    def meet(self, statement: Statement | None = None) -> Meeting:
        """Tells the other workers what this one is about to do; by default, that a backward begins to reduce."""
        return Meeting(statement or self.in_backward(self), self.groups, self._issuer.held)

    # -- during backward -----------------------------------------------------------------------------------------

    def on_arrival(self, parameter: Tensor, gradient: Tensor) -> Tensor | None:
        """Called with each gradient before it is accumulated, or returned by ``torch.autograd.grad``."""
        self._watch(lambda: is_accumulated(parameter))
        return torch.zeros_like(gradient) if self._ignores else None

    def on_gradient(self, slots: Sequence[int], name: str | None = None) -> None:
        """Called for each parameter whose gradient a backward has completed; see `Listener`."""
        self._accumulated = True
        if name is not None:
            self.unused.arrived(name)
        if self.switch.is_on and self._take_part():
            for position in slots:
                self._progress.complete(position)

    def launch(self, number: int, gradients: Sequence[Tensor]) -> None:
        """Called by a compiled backward with the gradients of the parameters in round ``number``.

        The same gradients arrive in ``.grad`` at its end, unless the parameters have other uses in this backward, which
        the graph cannot see. Then the launch was too early, and everything is reduced once more at the end.
        """
        launches = self._launches
        launches.graph_asked = True
        names = self._progress.names(number)
        if not self.switch.is_on or not launches.graphs_launch or len(names) != len(gradients):
            return  # the last: the graph does not use all of the round
        trainable = {n: one for n, one in zip(names, gradients, strict=True) if self._parameters[n].requires_grad}
        by_parameter = {self._parameters[name]: gradient for name, gradient in trainable.items()}
        if not launches.admits(by_parameter) or not self._take_part():
            return
        if self.contract.watches:
            self._watch(lambda: True)
            if self._ignores:
                return
        if self._progress.has_packed(number):
            launches.arrivals.reject()  # a second forward call
            return
        launches.arrivals.expect(by_parameter)
        self._progress.launch(number, trainable)

    def _watch(self, accumulates: Callable[[], bool]) -> None:
        """Begins the current backward, once, if it accumulates gradients."""
        backward = torch._C._current_graph_task_id()
        if backward != self._watched:
            self._watched, self._ignores = backward, False
            if accumulates():
                self.contract.begin(self._current_parameters())
                self._ignores = self.contract.ignores

    def _take_part(self) -> bool:
        """Joins the current backward, which reduces. Returns whether reductions may be issued before its end."""
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
        before = self._parameters
        if current is not before and any(before.get(name) is not parameter for name, parameter in current.items()):
            self.rehook()
        for name in self._frozen:
            if name in current and current[name].requires_grad:
                raise SDPError(
                    f"{name!r} did not require a gradient when the model was compiled, so its gradient is not "
                    "averaged. Call requires_grad_() on the original model, before sdp.compile()."
                )
        self._launches.arrivals.forget()
        self._progress.begin(self.reduction, lambda: self.contract.is_ready and self._issuer.may_issue())

    # -- at the end of backward ----------------------------------------------------------------------------------

    @torch.no_grad()
    def start_all(self) -> None:
        """Issues everything that is not issued yet."""
        if not self.contract.is_ready:  # nothing is issued
            self.contract.agree()
        self._progress.start_all()

    @torch.no_grad()
    def finish(self) -> None:
        """Waits for all averages and writes them into ``.grad``. Collective."""
        self._backward = -1
        self._agree()
        self._progress.check_unchanged()
        if self.contract.is_ready:
            try:
                self.contract.agree()
            except SDPError:
                self._progress.discard()
                raise
        rooms: Iterable[Room] = self._progress.finished()
        if self.check_finite:
            rooms = list(rooms)
            self._check_finite(rooms)
        multiply(self._own, self._parameters, self.contract.own_factor())
        missing = self.unused.missing(self._parameters, dict.fromkeys(n for slot in self._slots for n in slot.names))
        self._progress.write(rooms, self.contract.factor, self.contract.kept)
        self.unused.fill(self._parameters, missing)
        self._hooks.mark()
        self.contract.end(self._parameters)
        self._accumulated = False

    @torch.no_grad()
    def abandon(self) -> None:
        """Ends a failed backward: issues what peers wait for, waits for it and discards the result."""
        self._backward = -1
        if self._issues_early:
            if self.contract.is_ready:
                self._progress.start_all(after_failure=True)
                self._progress.discard()
            self.contract.abandon()

    def _agree(self) -> None:
        """Learns whether this reduction holds for all workers, and decides with them about the next ones.

        Whether graphs may launch is decided at the 1st, 2nd, 4th, 8th, ... reduction: in the long run this costs
        nothing where nothing is compiled, and a model that is compiled late is noticed soon.
        """
        self._reductions += 1
        launches = self._launches
        is_scheduled = self._unequal_devices is None or self._reductions & (self._reductions - 1) == 0
        if not launches.graphs_launch and not is_scheduled:
            return
        code = device_code({parameter.device.type for parameter in self._parameters.values()})
        flags = agree(Flags(launches.arrivals.differ(), not launches.graph_asked, code, -code), self.groups)
        self._unequal_devices = flags.unequal_devices
        if flags.launch_was_incomplete:
            launches.rule_out()
            self._progress.discard()
            self._progress.begin(self.reduction)
            self._progress.start_all()
        launches.decide(not flags.no_graph_asked, self._parameters.values())

    def _check_finite(self, rooms: Iterable[Room]) -> None:
        gradients = ((name, local_gradient(p)) for name, p in self._parameters.items())
        local = first_not_finite((name, gradient) for name, gradient in gradients if gradient is not None)
        slots = (slot for lot in self._progress.lots for slot in lot.slots)
        memory = (own for room in rooms for own in room.stretches)
        average = first_not_finite((slot.names[0], one) for slot, own in zip(slots, memory, strict=True) for one in own)
        require_finite(local, average, self.groups)


def engines() -> list[GradientEngine]:
    """Returns all engines of this process."""
    return list(_engines)


def engine_of(parameter: Tensor) -> GradientEngine | None:
    """Returns the engine that averages this parameter's gradient, if any."""
    for hook in (getattr(parameter, "_post_accumulate_grad_hooks", None) or {}).values():
        if isinstance(hook, Hook) and isinstance(engine := hook.engine_ref(), GradientEngine):
            return engine
    return None
