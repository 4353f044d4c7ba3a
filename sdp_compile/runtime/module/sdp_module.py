"""The compiled subnetwork of one worker: a module that trains like any other."""

from __future__ import annotations

import copy
import itertools
import types
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from sdp_compile.capture.precision import autocast_dtype
from sdp_compile.capture.regions import restored_autocast
from sdp_compile.ir.program import Capture, Mode, Program
from sdp_compile.lowering import Lowered
from sdp_compile.planning.holdings import LoweringKind
from sdp_compile.runtime.containers import register_tensors, retie, tensor_places
from sdp_compile.runtime.module.programs import Programs, chosen_while_compiling
from sdp_compile.runtime.optimizer import full_state as optimizer_state
from sdp_compile.runtime.optimizer.clipping import clip_grad_norm_
from sdp_compile.runtime.state import full_state, initialisation
from sdp_compile.runtime.subnetwork import Subnetwork
from sdp_compile.structure.analysis import Analysis

_instances = itertools.count()


class SDPModule(Subnetwork, fx.GraphModule):
    """One worker's subnetwork as an `fx.GraphModule`: the original's names, its two modes, its calling convention.

    ``graph`` and ``code`` are the current mode's; the graphs of both modes read the same parameters and buffers.
    Methods that say *collective* must be called by all workers.

    Attributes:
        lowered: What the module was made from: analysis, plan, passes and programs.
        plan: Who owns what.
        rank: This worker's number, from 0.
        workers: The number of workers.
        programs: The graph of each mode, as it is or was last run.
        number: Identifies the module in this process; its compiled graphs find the gradient engine by it.
    """

    lowered: Lowered

    def __init__(self, lowered: Lowered, tensors: Mapping[str, Tensor], programs: Mapping[str, Program] | None = None):
        """Makes the module of one worker.

        Args:
            lowered: The worker's programs, and what they were made from.
            tensors: The worker's values by name; those it holds nothing of are left out.
            programs: Its programs by name, if the module has more of them by now: those for other dtypes.
        """
        fx.GraphModule.__init__(self, nn.Module(), fx.Graph(), class_name="SDPModule")
        self.lowered, self.holdings, self.capture = lowered, lowered.holdings, lowered.analysis.capture
        self.peers = None
        register_tensors(self, self.capture, tensors)
        self._programs = Programs(self, lowered, programs or {str(mode): one for mode, one in lowered.programs.items()})
        self.number = self._programs.number
        self._device = self._programs.device
        self._follow_dtypes()
        self._follow_device()
        for module in self.modules():
            module.training = self.capture.training
        self.register_load_state_dict_post_hook(_follow_dtypes)  # type: ignore[no-untyped-call]
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
    def unowned(self) -> Mapping[str, Tensor]:
        """Under backward masking, the buffers with what the worker computes with but does not own, by name."""
        names = [part.name for parts in self.holdings.unowned.values() for part in parts]
        return {name: self.get_buffer(name) for name in names}

    @property
    def mode(self) -> Mode:
        """The current mode, which decides what ``graph``, ``code`` and a call are."""
        return "train" if self.training else "eval"

    @property
    def programs(self) -> Mapping[Mode, Program]:
        """The lowered graph of each mode, as it is or was last run."""
        return self._programs.current

    # GraphModule keeps one graph and its code in these two attributes; here they are the current mode's.

    @property
    def _graph(self) -> fx.Graph:
        variants = self.__dict__.get("_programs")
        graph: fx.Graph = self.__dict__["_empty_graph"] if variants is None else variants.current[self.mode].graph
        return graph

    @_graph.setter
    def _graph(self, graph: fx.Graph) -> None:
        if "_programs" not in self.__dict__:
            self.__dict__["_empty_graph"] = graph
        else:
            self._programs.replace_graph(self.mode, graph)

    @property
    def _code(self) -> str:
        return self._programs.source(self.mode)

    @_code.setter
    def _code(self, code: str) -> None:
        """Written by `recompile`, once per graph."""

    def recompile(self) -> fx.graph.PythonCode:
        """Generates the code of the graphs anew; to be called after one was edited in place."""
        if "_programs" not in self.__dict__:
            return self._graph.python_code(root_module="self")  # GraphModule's constructor: nothing to run yet
        codes = self._programs.generate()
        cls: Any = type(self)
        cls.forward = _own_code(_forward)
        return codes[self._programs.name(self.mode)]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SDPModule:
        places = tensor_places(self)
        constants = {name: self.get_buffer(name) for name in self.capture.constants if name in self._buffers}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, before in constants.items():
            # Constants stand in the model's code, where a cast of the model does not reach them.
            self._buffers[name] = before.to(self.get_buffer(name).device)
        if retie(places) and self.peers is not None:
            self.peers.rehook()
        self._follow_device()
        self._follow_dtypes()
        return self

    def _follow_device(self) -> None:
        """Makes the graphs' device constants those of the module's tensors."""
        device = next((t.device for t in itertools.chain(self.parameters(), self.buffers())), self._programs.device)
        if self._programs.follow_device(device):
            self._device = device
            self.recompile()

    def _follow_dtypes(self) -> None:
        """Takes note of the dtypes that the module's tensors have now."""
        self._programs.follow_dtypes(self._tensors())

    def _tensors(self) -> dict[str, Tensor]:
        """Each parameter and buffer once, by canonical name."""
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}

    def __deepcopy__(self, memo: dict[int, Any]) -> SDPModule:
        tensors = {name: copy.deepcopy(tensor, memo) for name, tensor in self._tensors().items()}
        result = _rebuild(*self._arguments(tensors))
        memo[id(self)] = result
        if self.peers is not None:
            result.peers = self.peers.attach(result, result.number)
        return result

    def __copy__(self) -> SDPModule:
        return _rebuild(*self._arguments(self._tensors()))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, self._arguments(self._tensors())

    def _arguments(self, tensors: Mapping[str, Tensor]) -> tuple[Any, ...]:
        return self.lowered, tensors, self._programs.programs, self.capture, self.training

    # -- what workers do together; the functions say more -----------------------------------------------------------

    def full_state_dict(self, rank0_only: bool = False, cpu_offload: bool = False) -> dict[str, Any]:
        """Returns the original model's ``state_dict()`` with the values of all workers. Collective.

        Running statistics are merged over their owners; see `calibrate`.

        Args:
            rank0_only: Whether the other ranks get an empty dictionary.
            cpu_offload: Whether the tensors are moved to the CPU.

        Returns:
            Every key of the original ``state_dict()``, tied ones included, with full tensors. It loads into the
            original model with ``strict=True``.
        """
        return full_state.full_state_dict(self, rank0_only, cpu_offload)

    def load_full_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> Any:
        """Copies this worker's slices out of a ``state_dict()`` of the original model. Communicates nothing.

        Args:
            state: The full tensors by name, the same on all ranks. One name of a tied parameter is enough.
            strict: Whether missing and unexpected keys are an error; a wrong shape always is.

        Returns:
            The missing and the unexpected keys, as ``torch.nn.Module.load_state_dict`` does.
        """
        return full_state.load_full_state_dict(self, state, strict)

    def full_model(self) -> nn.Module:
        """Returns a new copy of the original model with the values of all workers. Collective.

        Returns:
            The model on this module's device and in its mode. Call `calibrate` on it if it has running statistics.
        """
        return full_state.full_model(self)

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
        """
        return optimizer_state.full_optimizer_state_dict(self, optimizer, rank0_only, cpu_offload)

    def load_full_optimizer_state_dict(self, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
        """Copies this worker's slices out of a full optimizer state. Communicates nothing.

        Args:
            optimizer: An optimizer of this module's parameters.
            state: What `full_optimizer_state_dict` returned, the same on all ranks.
        """
        optimizer_state.load_full_optimizer_state_dict(self, optimizer, state)

    def materialize(self, weights: Any = None, device: torch.device | str | None = None, seed: int = 0) -> SDPModule:
        """Fills a module on the meta device with this worker's slices. Collective.

        Create optimizers afterwards, since the parameters are new objects.

        Args:
            weights: Full tensors by the original names, or the path of a safetensors file, of an index, or of a folder
                with either, of which only the slices are read. By default the model's own modules initialise each
                tensor.
            device: Where the values go; by default the CPU.
            seed: Random seed of the initialisation, which depends on it and on the tensor's name alone.

        Returns:
            This module.
        """
        initialisation.materialize(self, weights, device, seed)
        self._follow_device()
        return self

    def clip_grad_norm_(self, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False) -> Tensor:
        """Scales the gradients so that the full model's gradient has at most norm ``max_norm``. Collective.

        Args:
            max_norm: Upper bound of the norm.
            norm_type: The order p of the norm, positive; ``inf`` is the largest absolute value.
            error_if_nonfinite: Whether a norm that is infinite or NaN is an error.

        Returns:
            The norm of the full gradient before scaling, equal on all ranks.
        """
        return clip_grad_norm_(self, max_norm, norm_type, error_if_nonfinite)

    def inspect(self, view: str = "structure", **options: Any) -> Any:
        """Returns a view of what was compiled, for the terminal or a notebook.

        Args:
            view: ``"structure"``, ``"owners"``, ``"graph"``, ``"diff"`` or ``"cost"``.
            options: What the command ``sdp-compile inspect`` takes for the view, such as ``rank`` or ``module``, a
                glob.

        Returns:
            An object that prints as text, renders as HTML in a notebook and has the data in ``to_dict()``.
        """
        from sdp_compile.inspector import inspect

        return inspect(self, view, **options)

    def report(self, path: str | Path) -> None:
        """Writes the report page of this worker's subnetwork, one HTML file that needs no network.

        Args:
            path: The file to write.
        """
        from sdp_compile.inspector import Subject
        from sdp_compile.report_page import write_report

        write_report(Subject.of(self.lowered), path, self.rank)

    def no_sync(self) -> AbstractContextManager[None]:
        """Within, backward accumulates gradients without reducing them; the next backward outside reduces all."""
        return nullcontext() if self.peers is None else self.peers.no_sync()

    def refresh_parameters(self) -> None:
        """Under backward masking, fetches the values that other workers own; nothing else. Collective.

        Optimizer steps and `load_state_dict` do so by themselves; call it after changing parameters in another way.
        """
        if self.peers is not None:
            self.peers.refresh_parameters()

    def sync_gradients(self) -> None:
        """Reduces gradients that were accumulated under `no_sync`; nothing where none are pending. Collective."""
        if self.peers is not None:
            self.peers.sync_gradients()


def _forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Runs the graph of the current mode and dtypes, called like the original model."""
    name = mode = "train" if self.training else "eval"
    caller = getattr(self, "_caller_" + mode)
    inputs = caller.bind(args, kwargs)
    dtypes, autocast = caller.dtypes(inputs), autocast_dtype(self._device.type)
    if torch.compiler.is_compiling():
        name = chosen_while_compiling(self.number, mode, dtypes, autocast)
    else:
        name = self._programs.choose(mode, dtypes, autocast)
    if name != mode:
        caller = getattr(self, "_caller_" + name)
        inputs = caller.bind(args, kwargs)
    run = getattr(self, "_run_" + name)
    if not caller.autocast_devices or torch.compiler.is_compiling():
        return caller.result(run(*inputs))
    with restored_autocast(caller.autocast_devices):
        return caller.result(run(*inputs))


def _follow_dtypes(module: SDPModule, _keys: Any) -> None:
    """``load_state_dict(assign=True)`` puts tensors of other dtypes in place."""
    module._follow_dtypes()


def _own_code(function: Any) -> Any:
    """The function with a code object that equals no other: TorchDynamo's cache and its limit belong to the code."""
    code = function.__code__
    code = code.replace(co_name="forward", co_consts=(*code.co_consts, f"instance {next(_instances)}"))
    return types.FunctionType(code, function.__globals__, "forward", function.__defaults__, function.__closure__)


def _rebuild(
    lowered: Lowered, tensors: Mapping[str, Tensor], programs: Mapping[str, Program], capture: Capture, training: bool
) -> SDPModule:
    module = SDPModule(lowered, tensors, programs)
    module.capture = capture
    module.train(training)
    return module
