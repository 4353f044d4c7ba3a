"""The graphs of one module: one per mode, and more for dtypes of tensors, inputs or autocast that were not captured.

What a model computes depends on dtypes that its code reads, so a graph is valid only for the dtypes that it was
captured with. A call with others captures the model's skeleton again, once and on this worker alone. The plan stays as
it is.
"""

from __future__ import annotations

import itertools
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch
from torch import Tensor, fx
from torch.fx.graph_module import _forward_from_src

from sdp_compile.capture import recapture
from sdp_compile.capture.devices import retarget_devices
from sdp_compile.capture.precision import autocast_of
from sdp_compile.errors import SDPError
from sdp_compile.ir.program import Mode, Precision, Program, copy_program
from sdp_compile.lowering import Lowered, lower
from sdp_compile.planning.making import refitted
from sdp_compile.runtime.gradients.compiled import with_launches
from sdp_compile.runtime.module.calls import Caller
from sdp_compile.runtime.module.recompute import executable
from sdp_compile.runtime.module.user_names import hidden_parts, reading_parts
from sdp_compile.runtime.state.initialisation import slice_tensors
from sdp_compile.runtime.subnetwork import Subnetwork
from sdp_compile.structure.analysis import analyse

_numbers = itertools.count()
_of_modules: weakref.WeakValueDictionary[int, Programs] = weakref.WeakValueDictionary()


class Programs:
    """Programs by name: the first of a mode has the name of the mode, later ones are ``train_1`` and so on.

    Each runs as the module's ``_run_NAME``, on the inputs that its ``_caller_NAME`` binds.
    """

    def __init__(self, module: Subnetwork, lowered: Lowered, programs: Mapping[str, Program]) -> None:
        """Copies ``programs``, because moving the module rewrites their device constants."""
        self._module = weakref.ref(module)
        self._lowered = lowered
        self.programs = {name: copy_program(program) for name, program in programs.items()}
        self.device = lowered.analysis.capture.device
        self._sources: dict[str, str] = {}
        self._names: dict[Mode, str] = {"train": "train", "eval": "eval"}
        self._casts: tuple[tuple[torch.dtype | str, torch.dtype], ...] = ()
        self.number = next(_numbers)
        _of_modules[self.number] = self

    def __iter__(self) -> Iterator[Program]:
        return iter(self.programs.values())

    @property
    def module(self) -> Subnetwork:
        """The module whose graphs these are."""
        module = self._module()
        assert module is not None
        return module

    @property
    def current(self) -> dict[Mode, Program]:
        """The program of each mode, as it is or was last run."""
        return {mode: self.programs[name] for mode, name in self._names.items()}

    def replace_graph(self, mode: Mode, graph: fx.Graph) -> None:
        """Replaces the current graph of a mode."""
        name = self._names[mode]
        self.programs[name] = replace(self.programs[name], graph=graph)

    def name(self, mode: Mode) -> str:
        """Returns the name of a mode's current program."""
        return self._names[mode]

    def source(self, mode: Mode) -> str:
        """Returns the code of a mode's current graph."""
        return self._sources[self._names[mode]]

    def generate(self, names: tuple[str, ...] = ()) -> dict[str, fx.graph.PythonCode]:
        """Generates the module's methods from the graphs with these names; by default from all."""
        module, codes = self.module, {}
        for name in names or self.programs:
            program = self.programs[name]
            if not hidden_parts(program.graph, module):  # lint looks them up as attributes
                program.graph.owning_module = module  # type: ignore[assignment]  # SDPModule is a GraphModule
            graph, recomputed = executable(program.graph)
            codes[name] = code = graph.python_code(root_module="self")
            code.src = reading_parts(code.src, graph, module)
            # Every generated function has its own file name, and so its own code object.
            bound = with_launches(code.globals, self.number)
            setattr(type(module), f"_run_{name}", _forward_from_src(code.src, bound, {}))
            self._sources[name] = recomputed + code.src
            vars(module)[f"_caller_{name}"] = Caller(module.capture.skeleton, program)
        return codes

    def choose(self, mode: Mode, inputs: tuple[torch.dtype, ...], autocast: torch.dtype | None) -> str:
        """Returns the name of the program for a call; captures and lowers it if it does not exist yet.

        Args:
            mode: The mode of the module.
            inputs: The dtypes of the inputs that are tensors.
            autocast: The dtype of autocast; None if it is off.

        Raises:
            SDPError: If the model does not run with these dtypes, or does not fit the plan then.
        """
        precision = Precision(inputs, autocast, self._casts)
        name = self._names[mode]
        if self.programs[name].precision != precision:
            found = (
                key for key, program in self.programs.items() if (program.mode, program.precision) == (mode, precision)
            )
            self._names[mode] = name = next(found, "") or self._add(mode, precision)
        return name

    def follow_device(self, device: torch.device) -> bool:
        """Sets the device constants of the graphs to ``device``. Returns whether they were on another device."""
        if device.type == "meta" or device == self.device:  # nothing runs on the meta device
            return False
        for program in self:
            retarget_devices(program.graph, self.device, device)
        self.device = device
        return True

    def follow_dtypes(self, tensors: Mapping[str, Tensor]) -> None:
        """Notes the current dtypes of the module's tensors, given by name."""
        captured = self.module.capture.state
        now = {
            name: tensor.dtype
            for name, tensor in tensors.items()
            if name in captured and captured[name].kind != "constant"
        }
        counts = Counter((captured[name].dtype, dtype) for name, dtype in now.items())
        usual: dict[torch.dtype, torch.dtype] = {}
        for (before, after), _count in counts.most_common():
            usual.setdefault(before, after)
        casts: list[tuple[torch.dtype | str, torch.dtype]] = [(old, new) for old, new in usual.items() if old != new]
        casts += [(name, dtype) for name, dtype in now.items() if dtype != usual[captured[name].dtype]]
        self._casts = tuple(casts)

    def _add(self, mode: Mode, precision: Precision) -> str:
        module = self.module
        try:
            program, tensors = _captured_again(module, self._lowered, mode, precision, self.device)
        except SDPError as error:
            error.args = (
                f"{type(module.capture.skeleton).__name__} was compiled for other dtypes and cannot be captured with "
                f"{precision}. {error}",
            )
            raise
        for name, tensor in tensors.items():
            module.register_buffer(name, tensor, persistent=False)
        name = f"{mode}_{sum(known.mode == mode for known in self)}"
        self.programs[name] = program
        self.generate((name,))
        return name


def _captured_again(
    module: Subnetwork, lowered: Lowered, mode: Mode, precision: Precision, device: torch.device
) -> tuple[Program, dict[str, torch.Tensor]]:
    """Returns the worker's program for other dtypes, and the constants that only this program has."""
    base = module.capture
    captured = recapture(base, mode, precision, device)
    analysis = analyse(captured)
    plan = refitted(lowered.plan, analysis, lowered.rank)
    with autocast_of(precision, device):
        again = lower(analysis, plan, lowered.rank, lowered.passes, (mode,))
    new = {name: tensor for name, tensor in captured.state.items() if name not in base.state}
    tensors = slice_tensors(again.holdings, replace(captured, state=new), {}, device)
    constants = {name: captured.constants[name] for name in new}
    module.capture = replace(base, state={**base.state, **new}, constants={**base.constants, **constants})
    return again.programs[mode], tensors


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def chosen_while_compiling(
    number: int, mode: Mode, inputs: tuple[torch.dtype, ...], autocast: torch.dtype | None
) -> str:
    """Calls `Programs.choose` while TorchDynamo traces a call; the caller guards everything it depends on.

    It runs in a thread of its own, because a capture must not see the state of the trace that is in progress.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_of_modules[number].choose, mode, inputs, autocast).result()
