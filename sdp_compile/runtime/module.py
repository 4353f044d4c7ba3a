"""The compiled subnetwork of one worker: a module that trains like any other."""

from __future__ import annotations

import copy
import itertools
import types
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph_module import _forward_from_src

from sdp_compile.capture.devices import has_dtype_constants, retarget_devices
from sdp_compile.capture.regions import restored_autocast
from sdp_compile.errors import SDPError
from sdp_compile.passes.base import copy_program
from sdp_compile.program import Capture, Mode, Program
from sdp_compile.runtime.calling import Caller
from sdp_compile.runtime.containers import register_tensors, retie, tensor_places

if TYPE_CHECKING:
    from sdp_compile.plan import Plan
    from sdp_compile.runtime.runtime import Runtime

_instances = itertools.count()


class SDPModule(fx.GraphModule):
    """One worker's subnetwork as an `fx.GraphModule`: the original's names, its two modes, its calling convention.

    ``plan``, ``rank``, ``workers``, ``programs`` (one lowered graph per mode) and ``lowering`` say what it is;
    ``graph`` and ``code`` are the current mode's. Both graphs read the same parameters and buffers.

    Methods that say *collective* must be called by all workers.
    """

    plan: Plan
    rank: int
    programs: Mapping[Mode, Program]
    lowering: str
    capture: Capture
    runtime: Runtime | None

    def __init__(
        self,
        capture: Capture,
        plan: Plan,
        rank: int,
        programs: Mapping[Mode, Program],
        tensors: Mapping[str, Tensor],
        lowering: str,
    ) -> None:
        """``tensors``: this worker's values by canonical name; those it owns nothing of are left out."""
        super().__init__(nn.Module(), fx.Graph(), class_name="SDPModule")
        # Own graphs: moving the module rewrites their device constants.
        own = {mode: copy_program(program) for mode, program in programs.items()}
        self.capture, self.plan, self.rank, self.programs, self.lowering = capture, plan, rank, own, lowering
        self.runtime = None
        register_tensors(self, capture, tensors)
        self._device = capture.device
        self._follow_device()
        for module in self.modules():
            module.training = capture.training
        self.recompile()

    @property
    def workers(self) -> int:
        """The number of workers of the plan."""
        return self.plan.workers

    @property
    def mode(self) -> Mode:
        """The current mode, which decides what ``graph``, ``code`` and a call are."""
        return "train" if self.training else "eval"

    # GraphModule keeps one graph and its code in these two attributes; here they are the current mode's.

    @property
    def _graph(self) -> fx.Graph:
        programs = self.__dict__.get("programs")
        graph: fx.Graph = self.__dict__["_empty_graph"] if programs is None else programs[self.mode].graph
        return graph

    @_graph.setter
    def _graph(self, graph: fx.Graph) -> None:
        if "programs" not in self.__dict__:
            self.__dict__["_empty_graph"] = graph
        else:
            self.programs = {**self.programs, self.mode: replace(self.programs[self.mode], graph=graph)}

    @property
    def _code(self) -> str:
        code: str = self.__dict__["_codes"][self.mode]
        return code

    @_code.setter
    def _code(self, code: str) -> None:
        """Written by `recompile`, once per mode."""

    def recompile(self) -> fx.graph.PythonCode:
        """Generates the code of both graphs anew; to be called after a graph was edited in place."""
        programs: Mapping[Mode, Program] | None = self.__dict__.get("programs")
        if programs is None:
            return self._graph.python_code(root_module="self")  # GraphModule's constructor: nothing to run yet
        cls: Any = type(self)
        codes = {}
        for mode, program in programs.items():
            program.graph.owning_module = self
            codes[mode] = program.graph.python_code(root_module="self")
            # Every generated function has a file name, and so a code object, of its own.
            setattr(cls, f"_run_{mode}", _forward_from_src(codes[mode].src, codes[mode].globals, {}))
        self.__dict__["_codes"] = {mode: code.src for mode, code in codes.items()}
        self.__dict__["_callers"] = {mode: Caller(self.capture.skeleton, program) for mode, program in programs.items()}
        cls.forward = _own_code(_forward)
        return codes[self.mode]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SDPModule:
        self._check_dtype(fn)
        places = tensor_places(self)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if retie(places) and self.runtime is not None:
            self.runtime.refresh()
        self._follow_device()
        return self

    def _check_dtype(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Raises where the graphs hold casts to the captured dtype, which would undo the move to another one."""
        first = next((p for p in self.parameters() if p.is_floating_point()), None)
        if first is None or not any(has_dtype_constants(program.graph) for program in self.programs.values()):
            return
        moved = fn(torch.empty(0, dtype=first.dtype, device=first.device))
        if moved.dtype != first.dtype:
            raise SDPError(
                f"The compiled {type(self.capture.skeleton).__name__} holds casts to the dtypes that it was captured "
                f"with and cannot move from {first.dtype} to {moved.dtype}. Convert the original model first: "
                f"sdp_compile(model.to({moved.dtype}), ...); or train under torch.autocast."
            )

    def _follow_device(self) -> None:
        """Makes the graphs' device constants those of the module's tensors; the meta device has nothing to run."""
        device = next((t.device for t in itertools.chain(self.parameters(), self.buffers())), self._device)
        if device.type != "meta" and device != self._device:
            for program in self.programs.values():
                retarget_devices(program.graph, self._device, device)
            self._device = device
            if "_codes" in self.__dict__:
                self.recompile()

    def _tensors(self) -> dict[str, Tensor]:
        """Each parameter and buffer once, by canonical name."""
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}

    def __deepcopy__(self, memo: dict[int, Any]) -> SDPModule:
        tensors = {name: copy.deepcopy(tensor, memo) for name, tensor in self._tensors().items()}
        result = _rebuild(*self._arguments(tensors))
        memo[id(self)] = result
        if self.runtime is not None:
            result.runtime = self.runtime.attach(result)
        return result

    def __copy__(self) -> SDPModule:
        return _rebuild(*self._arguments(self._tensors()))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, self._arguments(self._tensors())

    def _arguments(self, tensors: Mapping[str, Tensor]) -> tuple[Any, ...]:
        return self.capture, self.plan, self.rank, self.programs, tensors, self.lowering, self.training

    # What follows is one line each; the functions live beside their helpers in this package. They are imported late,
    # since they know this class.

    def full_state_dict(self, rank0_only: bool = False, cpu_offload: bool = False) -> dict[str, Any]:
        """The original model's ``state_dict()`` with the values that all workers hold together. Collective."""
        from sdp_compile.runtime import state

        return state.full_state_dict(self, rank0_only, cpu_offload)

    def load_full_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> Any:
        """Takes this worker's slices out of a ``state_dict()`` of the original model; nothing is communicated."""
        from sdp_compile.runtime import state as functions

        return functions.load_full_state_dict(self, state, strict)

    def full_model(self) -> nn.Module:
        """A new copy of the original model with the values that all workers hold together. Collective."""
        from sdp_compile.runtime import state

        return state.full_model(self)

    def full_optimizer_state_dict(self, optimizer: torch.optim.Optimizer, rank0_only: bool = False) -> dict[str, Any]:
        """The optimizer's state as it would be for the original model, by parameter name. Collective."""
        from sdp_compile.runtime import optimizer as functions

        return functions.full_optimizer_state_dict(self, optimizer, rank0_only)

    def load_full_optimizer_state_dict(self, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
        """Takes this worker's slices out of a full optimizer state; nothing is communicated."""
        from sdp_compile.runtime import optimizer as functions

        functions.load_full_optimizer_state_dict(self, optimizer, state)

    def materialize(self, weights: Any = None, device: torch.device | str | None = None, seed: int = 0) -> SDPModule:
        """Fills a module on the meta device from weights (a path or mapping) or by initialisation. Collective."""
        from sdp_compile.runtime import initialisation

        initialisation.materialize(self, weights, device, seed)
        self._follow_device()
        return self

    def clip_grad_norm_(self, max_norm: float, norm_type: float = 2.0) -> Tensor:
        """Scales the gradients so that the full gradient's norm is at most ``max_norm``; returns it. Collective."""
        from sdp_compile.runtime import norm

        return norm.clip_grad_norm_(self, max_norm, norm_type)

    def no_sync(self) -> AbstractContextManager[None]:
        """Within, backward accumulates gradients without reducing them; the next backward outside reduces all."""
        return nullcontext() if self.runtime is None else self.runtime.no_sync()

    def sync_gradients(self) -> None:
        """Reduces gradients that were accumulated under `no_sync`; nothing where none are pending. Collective."""
        if self.runtime is not None:
            self.runtime.sync_gradients()


def _forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Runs the current mode's graph, called like the original model."""
    if self.training:
        caller, run = self._callers["train"], self._run_train
    else:
        caller, run = self._callers["eval"], self._run_eval
    inputs = caller.bind(args, kwargs)
    if not caller.autocast_devices or torch.compiler.is_compiling():
        return caller.result(run(*inputs))
    with restored_autocast(caller.autocast_devices):
        return caller.result(run(*inputs))


def _own_code(function: Any) -> Any:
    """The function with a code object that equals no other: TorchDynamo's cache and its limit belong to the code."""
    code = function.__code__
    code = code.replace(co_name="forward", co_consts=(*code.co_consts, f"instance {next(_instances)}"))
    return types.FunctionType(code, function.__globals__, "forward", function.__defaults__, function.__closure__)


def _rebuild(
    capture: Capture,
    plan: Plan,
    rank: int,
    programs: Mapping[Mode, Program],
    tensors: Mapping[str, Tensor],
    lowering: str,
    training: bool,
) -> SDPModule:
    module = SDPModule(capture, plan, rank, programs, tensors, lowering)
    module.train(training)
    return module
