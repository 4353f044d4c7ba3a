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
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import fx
from torch.fx.graph_module import _forward_from_src

from sdp_compile.capture import recapture
from sdp_compile.capture.precision import autocast_of
from sdp_compile.errors import LoweringError, SDPError
from sdp_compile.ir.program import Capture, Mode, Precision, Program
from sdp_compile.passes import Lowering, lower
from sdp_compile.planning.families import layouts_of_state
from sdp_compile.planning.plan import Plan
from sdp_compile.planning.unowned import with_rests
from sdp_compile.runtime.gradients.compiled import with_launches
from sdp_compile.runtime.module.calls import Caller
from sdp_compile.runtime.module.recompute import executable
from sdp_compile.runtime.state.initialisation import slice_tensors
from sdp_compile.structure.analysis import analyse
from sdp_compile.structure.families import Structure

if TYPE_CHECKING:
    from sdp_compile.runtime.module.sdp_module import SDPModule

_numbers = itertools.count()
_modules: weakref.WeakValueDictionary[int, SDPModule] = weakref.WeakValueDictionary()


class Variants:
    """Programs by name: a mode's own is called like the mode, later ones ``train_1`` and so on.

    Each runs as the module's ``_run_NAME``, on what its ``_caller_NAME`` binds. ``current`` is what each mode runs, or
    ran last.
    """

    def __init__(self, module: SDPModule, programs: Mapping[str, Program]) -> None:
        self._module = weakref.ref(module)
        self.programs = dict(programs)
        self._sources: dict[str, str] = {}
        self._names: dict[Mode, str] = {"train": "train", "eval": "eval"}
        self._casts: tuple[tuple[torch.dtype | str, torch.dtype], ...] = ()
        self.number = next(_numbers)
        _modules[self.number] = module

    def __iter__(self) -> Iterator[Program]:
        return iter(self.programs.values())

    @property
    def module(self) -> SDPModule:
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
            program.graph.owning_module = module
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

    def follow_dtypes(self) -> None:
        """Takes note of the dtypes that the module's tensors have now."""
        module, captured = self.module, self.module.capture.state
        tensors = {name: tensor for name, tensor in module._tensors().items() if name in captured}
        now = {name: tensor.dtype for name, tensor in tensors.items() if captured[name].kind != "constant"}
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
            program, tensors = _lowered(module, mode, precision)
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


def _lowered(module: SDPModule, mode: Mode, precision: Precision) -> tuple[Program, dict[str, torch.Tensor]]:
    """The worker's program in other dtypes, and the constants that only it has."""
    base, plan, device = module.capture, module.plan, module._device
    captured = recapture(base, mode, precision, device)
    structure, blocks = analyse(captured)
    new = {name: tensor for name, tensor in captured.state.items() if name not in base.state}
    own_plan = _plan(plan, captured, structure)
    _check(plan, own_plan, structure, module.rank)
    described = with_rests(captured, own_plan, module.rank) if module.lowering == "sliced" else captured
    context = Lowering(described, structure, own_plan, module.rank, module.lowering, blocks)
    with autocast_of(precision, device):
        program = lower(captured.programs[mode], context, module.passes)
    tensors = slice_tensors(replace(captured, state=new), own_plan, module.rank, {}, device, module.lowering)
    constants = {name: captured.constants[name] for name in new}
    module.capture = replace(base, state={**base.state, **new}, constants={**base.constants, **constants})
    return program, tensors


def _plan(plan: Plan, captured: Capture, structure: Structure) -> Plan:
    """The plan with the layouts of another capture, its constants included."""
    cut = frozenset(family.name for family in plan.families)
    layouts = layouts_of_state(captured.state, structure, cut, plan.masking)
    new = {name: tensor for name, tensor in captured.state.items() if name not in plan.state}
    return replace(plan, state={**plan.state, **new}, layouts=layouts)


def _check(plan: Plan, own: Plan, structure: Structure, rank: int) -> None:
    """Raises where the model, in these dtypes, needs all of something that the plan cuts."""
    for name in plan.state:
        before, now = plan.kept(name, rank), own.kept(name, rank)
        same = (before is None) == (now is None) and all(map(np.array_equal, before or (), now or ()))
        if not same:
            raise _differs(f"all of {name!r}, which the plan cuts")
    members = structure.members.get(plan.block_family, {}) if plan.block_family is not None else {}
    if {name: unit for name, unit in members.items() if name in plan.members} != plan.members:
        raise _differs("other residual blocks than the plan's")


def _differs(what: str) -> LoweringError:
    return LoweringError(
        f"In these dtypes the model needs {what}. Compile it as it will be trained: convert the model first, pass "
        "example inputs of the dtypes of training, or call sdp_compile() under torch.autocast."
    )


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def chosen_while_compiling(
    number: int, mode: Mode, inputs: tuple[torch.dtype, ...], autocast: torch.dtype | None
) -> str:
    """`Variants.choose` when TorchDynamo traces a call; what it depends on is guarded by the caller.

    In a thread of its own, because a capture must not see the state of the one that TorchDynamo is in the middle of.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_modules[number]._variants.choose, mode, inputs, autocast).result()
