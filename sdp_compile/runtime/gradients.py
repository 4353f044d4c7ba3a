"""Averaging gradients over their owners at the end of every backward."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sdp_compile.buckets import Bucket
from sdp_compile.errors import SDPError
from sdp_compile.runtime.groups import Groups, explained
from sdp_compile.runtime.pieces import Local, Region
from sdp_compile.runtime.refresh import Refresh


@dataclass(frozen=True)
class _Entry:
    """A piece of a parameter in a bucket, and where it lies in this rank's tensor."""

    name: str
    region: Region


@dataclass
class _InFlight:
    """A bucket whose reduction has been issued."""

    bucket: Bucket
    entries: tuple[_Entry, ...]
    flat: Tensor
    work: dist.Work | None


class GradientEngine:
    """Reduces everything accumulated in ``.grad`` at the end of each backward, DistributedDataParallel's semantics.

    A hook on every trainable parameter notices a backward; the first of them asks the autograd engine for one callback
    at its end. That callback issues the buckets in number order on all of their members, with zeros where this rank has
    no gradient, so ranks with different graphs always issue the same collectives in the same order. Every owner ends
    with the same bits.

    The parameters are looked up by name when they are needed: the module may be moved or converted in between.
    """

    def __init__(
        self, module: nn.Module, local: Local, groups: Groups, buckets: Sequence[Bucket],
        comm_dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        if comm_dtype is not None and not comm_dtype.is_floating_point:
            raise SDPError(f"comm_dtype={comm_dtype} is no floating point type; use torch.float16 or torch.bfloat16.")
        self._module = weakref.ref(module)
        self.local, self.groups = local, groups
        self._comm_dtype = comm_dtype
        self._buckets = [
            (bucket, tuple(_Entry(piece.name, local.region(piece)) for piece in bucket.pieces))
            for bucket in buckets
            if any(piece.numel for piece in bucket.pieces)
        ]
        self._synchronise = True
        self._accumulated = False
        self._backward = -1
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._unequal_devices: bool | None = None
        self.refresher: Refresh | None = None
        self.refresh()

    @property
    def comm_dtype(self) -> torch.dtype | None:
        """The dtype in which gradients travel; None: their own."""
        return self._comm_dtype

    def refresh(self) -> None:
        """Hooks the module's parameters; call it after other Parameter objects took their places."""
        self.detach()
        hook = _Hook(self)
        for parameter in self._parameters().values():
            if parameter.is_leaf and parameter.requires_grad:
                self._handles.append(parameter.register_post_accumulate_grad_hook(hook))
        self._unequal_devices = None

    def detach(self) -> None:
        """Removes the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @property
    def pending(self) -> bool:
        """Whether gradients have been accumulated since the last reduction and are still there."""
        return self._accumulated and any(parameter.grad is not None for parameter in self._parameters().values())

    @property
    def unequal_devices(self) -> bool:
        """Whether the workers compute on different kinds of devices; known after the first reduction."""
        return bool(self._unequal_devices)

    def names(self) -> dict[nn.Parameter, str]:
        """The full-model name of each of the module's parameters."""
        state = self.local.plan.state
        return {parameter: name for name, parameter in self._parameters().items() if name in state}

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
            self.reduce()

    @torch.no_grad()
    def reduce(self) -> None:
        """Averages all gradients over their owners. Collective."""
        if self._unequal_devices is None:
            self._unequal_devices = self._compare_devices()
        parameters = self._parameters()
        self._check_unfrozen(parameters)
        in_flight = []
        for bucket, entries in self._buckets:
            flat = self._pack(entries, parameters)
            in_flight.append(_InFlight(bucket, entries, flat, self._issue(bucket, flat)))
        for reduction in in_flight:
            self._finish(reduction, parameters)
        self._accumulated = False

    def on_gradient(self) -> None:
        """Called for each parameter whose gradient a backward has accumulated."""
        self._accumulated = True
        # The number of the backward, and not a flag: a backward that fails never runs its callbacks.
        backward = torch._C._current_graph_task_id()
        if self._synchronise and backward != self._backward:
            self._backward = backward
            torch.autograd.Variable._execution_engine.queue_callback(self.reduce)

    def _parameters(self) -> dict[str, nn.Parameter]:
        module = self._module()
        return {} if module is None else dict(module.named_parameters(remove_duplicate=False))

    def _pack(self, entries: Sequence[_Entry], parameters: dict[str, nn.Parameter]) -> Tensor:
        parts = []
        for entry in entries:
            parameter = parameters[entry.name]
            gradient = parameter.grad
            if gradient is None:
                parts.append(torch.zeros(entry.region.numel, dtype=parameter.dtype, device=parameter.device))
            elif gradient.layout != torch.strided:
                raise SDPError(
                    f"The gradient of {entry.name!r} is sparse; sparse gradients cannot be averaged over slices. "
                    "Build its embedding with sparse=False."
                )
            else:
                parts.append(entry.region.read(gradient).reshape(-1))
        flat = torch.cat(parts)
        dtype = flat.dtype if self._comm_dtype is None or flat.dtype.is_complex else self._comm_dtype
        return flat.to(self.groups.wire(flat.device), dtype)

    def _issue(self, bucket: Bucket, flat: Tensor) -> dist.Work | None:
        with explained(bucket.owners, f"gradient bucket {bucket.number}", self.groups.rank):
            if flat.dtype == torch.float16:  # a sum over many owners could overflow
                flat.div_(len(bucket.owners))
            work = dist.all_reduce(flat, group=self.groups.process_group(bucket.owners), async_op=True)
            if flat.device.type != "cpu" and work is not None:
                # On the stream only: collectives of overlapping groups must not run at the same time.
                work.wait()
                return None
            return work

    def _finish(self, reduction: _InFlight, parameters: dict[str, nn.Parameter]) -> None:
        bucket, flat = reduction.bucket, reduction.flat
        if reduction.work is not None:
            with explained(bucket.owners, f"gradient bucket {bucket.number}", self.groups.rank):
                reduction.work.wait()
        if flat.dtype != torch.float16:
            flat.div_(len(bucket.owners))
        offset = 0
        for entry in reduction.entries:
            parameter = parameters[entry.name]
            values = flat[offset : offset + entry.region.numel]
            offset += entry.region.numel
            if parameter.grad is None:
                if not parameter.requires_grad:  # frozen by the user since, on all ranks
                    continue
                parameter.grad = torch.zeros_like(parameter)
            entry.region.write(parameter.grad, values)

    def _check_unfrozen(self, parameters: dict[str, nn.Parameter]) -> None:
        for name, tensor in self.local.plan.state.items():
            frozen = tensor.kind == "parameter" and not tensor.requires_grad and name in parameters
            if frozen and parameters[name].grad is not None:
                raise SDPError(
                    f"{name!r} did not require a gradient when the model was compiled, so its gradient is not "
                    "averaged. Call requires_grad_() on the original model, before sdp_compile()."
                )

    def _compare_devices(self) -> bool:
        kinds = {parameter.device.type for parameter in self._parameters().values()}
        code = float(sum(map(ord, "".join(sorted(kinds)))))
        extremes = torch.tensor([code, -code], device=self.groups.device)
        with explained(tuple(range(self.groups.workers)), "device check", self.groups.rank):
            dist.all_reduce(extremes, op=dist.ReduceOp.MAX, group=self.groups.group)
        return bool(extremes[0] != -extremes[1])


class _Hook:
    """The hook of all parameters of one engine, which it does not keep alive."""

    def __init__(self, engine: GradientEngine) -> None:
        self._engine = weakref.ref(engine)

    @property
    def engine(self) -> GradientEngine | None:
        return self._engine()

    def __call__(self, parameter: Tensor) -> None:
        engine = self.engine
        if engine is not None:
            engine.on_gradient()


def engine_of(parameter: Tensor) -> GradientEngine | None:
    """The engine that averages this parameter's gradient, if any."""
    hooks = getattr(parameter, "_post_accumulate_grad_hooks", None) or {}
    return next((hook.engine for hook in hooks.values() if isinstance(hook, _Hook)), None)
