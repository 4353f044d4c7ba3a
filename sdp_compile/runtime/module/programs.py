"""The graphs of one module: one per mode, and more where tensors, inputs or autocast have other dtypes than captured.

What a model computes depends on dtypes that its code reads, so a graph holds for those that it was captured with. A
call in others captures the model's skeleton again, once, on this worker alone: the plan stays as it is.
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
from sdp_compile.runtime.state.initialisation import slice_tensors
from sdp_compile.runtime.subnetwork import Subnetwork
from sdp_compile.structure.analysis import analyse

_numbers = itertools.count()
_of_modules: weakref.WeakValueDictionary[int, Programs] = weakref.WeakValueDictionary()


class Programs:
    """Programs by name: a mode's own is called like the mode, later ones ``train_1`` and so on.

    Each runs as the module's ``_run_NAME``, on what its ``_caller_NAME`` binds. ``current`` is what each mode runs, or
    ran last.
    """

    def __init__(self, module: Subnetwork, lowered: Lowered, programs: Mapping[str, Program]) -> None:
        """Takes copies of ``programs``, since moving the module rewrites their device constants."""
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
        """Puts another graph in the place of a mode's current one."""
        name = self._names[mode]
        self.programs[name] = replace(self.programs[name], graph=graph)

    def name(self, mode: Mode) -> str:
        """The name of a mode's current program."""
        return self._names[mode]

    def source(self, mode: Mode) -> str:
        """The code of a mode's current graph."""
        return self._sources[self._names[mode]]

    def generate(self, names: tuple[str, ...] = ()) -> dict[str, fx.graph.PythonCode]:
        """Makes the module's methods of the graphs ``names``; of all by default."""
        module, codes = self.module, {}
        for name in names or self.programs:
            program = self.programs[name]
            program.graph.owning_module = module  # type: ignore[assignment]  # SDPModule is a GraphModule
            graph, recomputed = executable(program.graph)
            codes[name] = code = graph.python_code(root_module="self")
            # Every generated function has a file name, and so a code object, of its own.
            bound = with_launches(code.globals, self.number)
            setattr(type(module), f"_run_{name}", _forward_from_src(code.src, bound, {}))
            self._sources[name] = recomputed + code.src
            setattr(module, f"_caller_{name}", Caller(module.capture.skeleton, program))
        return codes

    def choose(self, mode: Mode, inputs: tuple[torch.dtype, ...], autocast: torch.dtype | None) -> str:
        """The name of the program for a call; captured and lowered now where there is none yet."""
        precision = Precision(inputs, autocast, self._casts)
        name = self._names[mode]
        if self.programs[name].precision != precision:
            found = (
                key for key, program in self.programs.items() if (program.mode, program.precision) == (mode, precision)
            )
            self._names[mode] = name = next(found, "") or self._add(mode, precision)
        return name

    def follow_device(self, device: torch.device) -> bool:
        """Makes the graphs' device constants those of the module's tensors; whether that changed a graph."""
        if device.type == "meta" or device == self.device:  # the meta device has nothing to run
            return False
        for program in self:
            retarget_devices(program.graph, self.device, device)
        self.device = device
        return True

    def follow_dtypes(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes note of the dtypes that the module's tensors, given by name, have now."""
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
                f"{type(module.capture.skeleton).__name__} was compiled for other dtypes and cannot follow to "
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
    """The worker's program in other dtypes, and the constants that only it has."""
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
    """`Programs.choose` when TorchDynamo traces a call; what it depends on is guarded by the caller.

    In a thread of its own, because a capture must not see the state of the one that TorchDynamo is in the middle of.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_of_modules[number].choose, mode, inputs, autocast).result()
