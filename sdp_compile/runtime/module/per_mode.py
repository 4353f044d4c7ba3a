"""A graph module with one graph per mode, and more graphs for other dtypes."""

from __future__ import annotations

import inspect
import itertools
import types
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from sdp_compile.capture.inputs import grad_answer
from sdp_compile.capture.precision import autocast_dtype
from sdp_compile.capture.regions import restored_autocast
from sdp_compile.ir.program import Mode, Program, key_of
from sdp_compile.runtime.module.foreign_tools import NoForeignTools, refuse_proxies
from sdp_compile.runtime.module.programs import Programs
from sdp_compile.runtime.module.while_compiling import chosen_while_compiling, guard, numbers_of, read_now, unchanged

_instances = itertools.count()


class GraphPerMode(NoForeignTools):
    """An `fx.GraphModule` whose ``graph`` and ``code`` are those of the current mode.

    A subclass sets ``_programs`` and then calls `recompile`.

    Attributes:
        number: Identifies the module in this process.
    """

    _programs: Programs
    _device: torch.device
    _lineno_map = None  # TorchDynamo reads it; GraphModule sets it where it generates its only forward
    number: int

    @property
    def mode(self) -> Mode:
        """The current mode, which decides what ``graph``, ``code`` and a call are."""
        return "train" if self.training else "eval"

    @property
    def programs(self) -> Mapping[str, Program]:
        """The lowered graph of each mode and further method, as it is or was last run."""
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
        """Does nothing: `recompile` has written the code of each graph."""

    def recompile(self) -> fx.graph.PythonCode:
        """Generates the code of all graphs again. Call it after editing a graph in place."""
        if "_programs" not in self.__dict__:
            return self._graph.python_code(root_module="self")  # GraphModule's constructor: nothing to run yet
        codes = self._programs.generate()
        cls: Any = type(self)
        run = _own_code(_run, "run")
        for method in dict.fromkeys(program.method for program in self._programs):
            function = _own_code(_calling(method, run), method)
            original = getattr(self._programs.state.skeleton, method)
            function.__signature__, function.__doc__ = _signature(original), original.__doc__
            setattr(cls, method, function)
        return codes[self._programs.name(self.mode)]

    def _follow_device(self) -> None:
        """Sets the device constants of the graphs to the device of the module's tensors."""
        device = next((t.device for t in itertools.chain(self.parameters(), self.buffers())), self._programs.device)
        if self._programs.follow_device(device):
            self._device = device
            self.recompile()


def _calling(method: str, run: Any) -> Any:
    """Returns a method of a compiled module."""
    train, evaluation = key_of("train", method), key_of("eval", method)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            refuse_proxies(args, kwargs)
        return run(self, train if self.training else evaluation, args, kwargs)

    return forward


def _run(self: Any, key: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Runs the graph of a mode and method for the call's dtypes and sizes, called like the original model."""
    caller = getattr(self, "_caller_" + key)
    inputs = caller.bind(args, kwargs)
    tensors = caller.tensors(inputs)
    dtypes, shapes = tuple([one.dtype for one in tensors]), [one.shape for one in tensors]
    grad = (torch.is_grad_enabled(), *[grad_answer(one) for one in tensors]) if caller.asks_grad else ()
    autocast, state = autocast_dtype(self._device.type), self._programs.state
    if torch.compiler.is_compiling():
        settings = state.version, state.switches
        guard(caller.readers, read_now(self._programs.number, key, state.version))
        name = chosen_while_compiling(self._programs.number, key, dtypes, autocast, grad, None, settings)
        if getattr(self, "_caller_" + name).mismatch(shapes):
            fixed = tuple([tuple([int(size) for size in shape]) for shape in shapes])
            name = chosen_while_compiling(self._programs.number, key, dtypes, autocast, grad, fixed, settings)
    else:
        name = self._programs.choose(key, dtypes, autocast, grad, tuple([tuple(shape) for shape in shapes]))
    if name != key:
        caller = getattr(self, "_caller_" + name)
        inputs = caller.bind(args, kwargs)
    numbers = numbers_of(self._programs.number, name, state.version) if caller.has_numbers else ()
    inputs = [*inputs, *numbers]
    if torch.compiler.is_compiling():
        guard(caller.readers, read_now(self._programs.number, name, state.version))
        if caller.is_compared or state.is_lent:
            unchanged(tensors, self._programs.number, name, numbers)
    run = getattr(self, "_run_" + name)
    if not caller.autocast_devices or torch.compiler.is_compiling():
        outputs = run(*inputs)
    else:
        with restored_autocast(caller.autocast_devices):
            outputs = run(*inputs)
    if caller.assigned:
        caller.assign(self, outputs)
    return caller.result(outputs)


def _signature(original: Any) -> inspect.Signature:
    """Returns the signature of a method of the original, by which libraries choose the inputs that they pass."""
    signature = inspect.signature(original)
    this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    return signature.replace(parameters=[this, *signature.parameters.values()])


def _own_code(function: Any, name: str) -> Any:
    """Returns the function with a code object of its own: the cache of TorchDynamo and its limit belong to the code."""
    code = function.__code__
    code = code.replace(co_name=name, co_consts=(*code.co_consts, f"instance {next(_instances)}"))
    return types.FunctionType(code, function.__globals__, name, function.__defaults__, function.__closure__)
