"""The compiled subnetwork of one worker: a module that trains like any other."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from sdp_compile.ir.parts import submodule
from sdp_compile.ir.program import Capture, Program
from sdp_compile.lowering import Lowered
from sdp_compile.planning.holdings import LoweringKind
from sdp_compile.policies import Schedule
from sdp_compile.runtime.containers import register_tensors, reregister_tensors, retie, tensor_places
from sdp_compile.runtime.doors import Doors
from sdp_compile.runtime.lowerings import Lowerings
from sdp_compile.runtime.module.orphan import refuse_backward
from sdp_compile.runtime.module.per_mode import GraphPerMode
from sdp_compile.runtime.module.programs import Programs
from sdp_compile.runtime.module.user_names import OwnNames, UserNames
from sdp_compile.runtime.optimizer import full_state as optimizer_state
from sdp_compile.runtime.optimizer.clipping import clip_grad_norm_
from sdp_compile.runtime.optimizer.guard import follow_schedule
from sdp_compile.runtime.parts import WithAttributes, open_container
from sdp_compile.runtime.peers import weighted
from sdp_compile.runtime.python_state import PythonState
from sdp_compile.runtime.state import full_state, initialisation
from sdp_compile.runtime.state.origin import Origin, SliceState
from sdp_compile.runtime.subnetwork import Subnetwork
from sdp_compile.structure.analysis import Analysis


class SDPModule(OwnNames, Doors, WithAttributes, UserNames, Subnetwork, GraphPerMode):
    """One worker's subnetwork as an `fx.GraphModule`, with the original's names, modes and calling convention.

    ``graph`` and ``code`` are those of the current mode; the graphs of both modes read the same parameters and buffers.
    Methods that say *collective* must be called by all workers. An attribute hides a part of the model with the same
    name, which ``get_submodule`` returns, and a setting with the same name, which counts in forward when it is set.

    Attributes:
        lowered: What the module was made from: analysis, plan, passes and programs.
        plan: Who owns what.
        rank: This worker's number, from 0.
        workers: The number of workers.
        mode: ``"train"`` or ``"eval"``.
        programs: The graph of each mode, as it is or was last run.
        number: Identifies the module in this process; compiled graphs use it to find the gradient engine.
    """

    lowered: Lowered
    _is_orphan = False

    def __init__(
        self,
        lowered: Lowered,
        tensors: Mapping[str, Tensor],
        programs: Mapping[str, Program] | None = None,
        capture: Capture | None = None,
    ) -> None:
        """Makes the module of one worker.

        Args:
            lowered: The worker's programs, and what they were made from.
            tensors: The worker's values by name, without those of which it holds nothing.
            programs: Its programs by name, if there are more than those in ``lowered``, for other dtypes or sizes.
            capture: The original model as captured, if more is known of it than in ``lowered``.
        """
        fx.GraphModule.__init__(self, nn.Module(), fx.Graph(), class_name="SDPModule")
        self.lowered, self.holdings = lowered, lowered.holdings
        self.capture = capture or lowered.analysis.capture
        self.peers = None
        self._origin = Origin(self.holdings)
        state = PythonState(self.capture.skeleton, self.capture.kept)
        self._programs = Programs(
            self, lowered, state, programs or {str(mode): one for mode, one in lowered.programs.items()}
        )
        self.number = self._programs.number
        self._device = self._programs.device
        register_tensors(self, self.capture, tensors, state)  # last: parts may have the names of these attributes
        open_container(type(self), type(state.skeleton))
        self._follow_dtypes()
        self._follow_device()
        # load_state_dict(assign=True) may replace tensors by others of another dtype.
        self.register_load_state_dict_post_hook(lambda module, _: module._follow_dtypes())  # type: ignore[no-untyped-call]
        self._origin.watch(self)
        self.recompile()

    @property
    def analysis(self) -> Analysis:
        """The captured model with its axes and blocks."""
        return self.lowered.analysis

    @property
    def lowering(self) -> LoweringKind:
        """``"sliced"``, or ``"masked"`` for the full-size reference."""
        return self.lowered.lowering

    @property
    def lowerings(self) -> Lowerings:
        """What was captured, to be lowered by another plan."""
        return self._programs.lowerings

    @property
    def unowned(self) -> Mapping[str, Tensor]:
        """Under backward masking, the buffers with values that the worker computes with but does not own, by name."""
        names = [part.name for parts in self.holdings.unowned.values() for part in parts]
        return {name: self.get_buffer(name) for name in names}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SDPModule:
        places = tensor_places(self)
        constants = {name: self.get_buffer(name) for name in self.capture.constants if name in self._buffers}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, before in constants.items():
            # Constants are part of the model's code, which a cast of the model does not reach.
            self._buffers[name] = before.to(self.get_buffer(name).device)
        if retie(places) and self.peers is not None:
            self.peers.rehook()
        self._follow_device()
        self._follow_dtypes()
        return self

    def follow_plan(self, lowered: Lowered, tensors: Mapping[str, Tensor]) -> None:
        """Takes over another plan, as a part of `replan`. Collective if there are peers.

        Args:
            lowered: The worker's programs by that plan.
            tensors: Its values by name.
        """
        before = {*self.holdings.buffers, *self.capture.state}
        vars(self).update(lowered=lowered, holdings=lowered.holdings)
        constants = self._programs.follow_plan(lowered)
        reregister_tensors(self, self.capture, {**tensors, **constants}, before)
        self._origin.follow(self.holdings)
        self._follow_dtypes()
        self.recompile()
        if self.peers is not None:
            self.peers.follow_plan(self, self.number, self.holdings)

    def _follow_dtypes(self) -> None:
        """Tells the programs the current dtypes of the module's tensors."""
        self._programs.follow_dtypes(self._tensors())

    def _tensors(self) -> dict[str, Tensor]:
        """Returns each parameter and buffer once, by canonical name."""
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the worker's slices under the original names, marked as this worker's.

        `load_state_dict` takes only a state with the mark of the same slices. ``torch.save`` and ``copy.deepcopy`` keep
        the mark; safetensors files and plain dict copies do not. See `full_state_dict` for the whole model.

        Args:
            args: The positional arguments of `torch.nn.Module.state_dict`.
            kwargs: Its keyword arguments.

        Returns:
            The tensors by name.
        """
        if not args and kwargs.get("destination") is None and self._origin.is_cut:
            kwargs["destination"] = SliceState()
        return super().state_dict(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> SDPModule:
        tensors = {name: copy.deepcopy(tensor, memo) for name, tensor in self._tensors().items()}
        result = _rebuild(*self._arguments(tensors, self._is_orphan))
        memo[id(self)] = result
        if self.peers is not None:
            vars(result)["peers"] = self.peers.attach(result, result.number)
        return result

    def __copy__(self) -> SDPModule:
        return _rebuild(*self._arguments(self._tensors(), self._is_orphan))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, self._arguments(self._tensors(), self._is_orphan or self.peers is not None)

    def _arguments(self, tensors: Mapping[str, Tensor], is_orphan: bool) -> tuple[Any, ...]:
        capture = replace(self.capture, skeleton=self._programs.state.share(), training=self.training)
        capture = replace(capture, kept=self._programs.state.kept.all())
        return self.lowered, tensors, self._programs.programs, capture, self.schedule, is_orphan

    # -- what workers do together -----------------------------------------------------------------------------------

    def full_state_dict(self, rank0_only: bool = False, cpu_offload: bool = False) -> dict[str, Any]:
        """Returns the original model's ``state_dict()`` with the values of all workers. Collective.

        Running statistics are merged over their owners; see `calibrate`.

        Args:
            rank0_only: Whether the other ranks get an empty dictionary.
            cpu_offload: Whether the tensors are moved to the CPU.

        Returns:
            Every key of the original ``state_dict()``, tied ones included, with full tensors. It loads into the
            original model with ``strict=True``.

        Raises:
            SDPError: If the module is on the meta device.
            DistributedError: If there is no process group, or the ranks call different things.
        """
        return full_state.full_state_dict(self, rank0_only, cpu_offload)

    def load_full_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> Any:
        """Copies this worker's slices of a ``state_dict()`` of the original model. Not collective.

        Args:
            state: The full tensors by name, the same on all ranks. One name of a tied parameter is enough.
            strict: Whether missing and unexpected keys are an error; a wrong shape always is.

        Returns:
            The missing and the unexpected keys, as ``torch.nn.Module.load_state_dict`` does.

        Raises:
            SDPError: If the state does not fit, or the module is on the meta device.
        """
        return full_state.load_full_state_dict(self, state, strict)

    def full_model(self) -> nn.Module:
        """Returns a new copy of the original model with the values of all workers. Collective.

        Returns:
            The model on this module's device and in its modes. Call `calibrate` on it if it has running statistics.

        Raises:
            SDPError: If the module is on the meta device.
            DistributedError: If there is no process group, or the ranks call different things.
        """
        model = full_state.full_model(self)
        for path, part in model.named_modules():
            part.training = submodule(self, path).training
        return model

    def full_optimizer_state_dict(
        self, optimizer: torch.optim.Optimizer, rank0_only: bool = False, cpu_offload: bool = False
    ) -> dict[str, Any]:
        """Returns the optimizer's state as it would be for the original model. Collective.

        Args:
            optimizer: An optimizer of this module's parameters.
            rank0_only: Whether the other ranks get an empty dictionary.
            cpu_offload: Whether the tensors are moved to the CPU.

        Returns:
            The state by parameter name, with full tensors, for any number of workers.

        Raises:
            SDPError: If ``optimizer`` holds other parameters, or state that is neither per element nor a scalar.
            DistributedError: If there is no process group, or the ranks call different things.
        """
        return optimizer_state.full_optimizer_state_dict(self, optimizer, rank0_only, cpu_offload)

    def load_full_optimizer_state_dict(self, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
        """Loads this worker's slices of a full optimizer state. Not collective.

        Args:
            optimizer: An optimizer of this module's parameters.
            state: What `full_optimizer_state_dict` returned, the same on all ranks.

        Raises:
            SDPError: If the state lacks parameters, has other shapes, or its groups do not fit those of ``optimizer``.
        """
        optimizer_state.load_full_optimizer_state_dict(self, optimizer, state)

    def materialize(self, weights: Any = None, device: torch.device | str | None = None, seed: int = 0) -> SDPModule:
        """Fills a module on the meta device with this worker's slices. Collective if there are peers.

        Create optimizers afterwards, because the parameters are new objects.

        Args:
            weights: Full tensors by the original names, or the path of a safetensors file, of an index, or of a folder
                with either, of which only the slices are read. By default the original's own modules initialise each
                tensor.
            device: Where the values go; by default the CPU.
            seed: Random seed of the initialisation, which depends only on it and on the tensor's name.

        Returns:
            This module.

        Raises:
            SDPError: If the weights lack a tensor or have another shape, or no module initialises it.
        """
        initialisation.materialize(self, weights, device, seed)
        self._follow_device()
        return self

    def clip_grad_norm_(self, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False) -> Tensor:
        """Scales the gradients so that the full model's gradient has at most norm ``max_norm``. Collective.

        Args:
            max_norm: Upper bound of the norm.
            norm_type: The order p of the norm, positive; ``inf`` gives the largest absolute value.
            error_if_nonfinite: Whether a norm that is infinite or NaN is an error.

        Returns:
            The norm of the full gradient before scaling, a scalar tensor that is equal on all ranks.

        Raises:
            SDPError: If ``norm_type`` is not positive, or the norm is not finite and ``error_if_nonfinite`` is set.
            DistributedError: If gradients were accumulated under ``no_sync()`` and not synchronised, or a worker is
                missing.
        """
        return clip_grad_norm_(self, max_norm, norm_type, error_if_nonfinite)

    def no_sync(self) -> AbstractContextManager[None]:
        """Within this context, backward only accumulates gradients; the next backward outside averages them all."""
        return nullcontext() if self.peers is None else self.peers.no_sync()

    def weighted(self, tokens: float | Tensor) -> AbstractContextManager[None]:
        """Returns a context in which gradients are means over ``tokens`` tokens, for ``reduction="tokens"``.

        Args:
            tokens: The number of tokens of this micro-batch on this worker; 0 ignores its gradients, also NaN.

        Raises:
            SDPError: If the model was compiled with another reduction, or ``tokens`` is not a number.
        """
        return weighted(self.peers, tokens)

    def refresh_parameters(self) -> None:
        """Under backward masking, fetches the values that other workers own, as a step does itself. Collective."""
        if self.peers is not None:
            self.peers.refresh_parameters()

    def sync_gradients(self) -> None:
        """Averages gradients that were accumulated under `no_sync`, and does nothing if there are none. Collective."""
        if self.peers is not None:
            self.peers.sync_gradients()


def _rebuild(
    lowered: Lowered,
    tensors: Mapping[str, Tensor],
    programs: Mapping[str, Program],
    capture: Capture,
    schedule: Schedule | None,
    is_orphan: bool,
) -> SDPModule:
    module = SDPModule(lowered, tensors, programs, capture)
    follow_schedule(module, schedule)
    if is_orphan and module.workers > 1:
        module._is_orphan = True
        refuse_backward(module)
    return module
