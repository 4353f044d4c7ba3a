"""The graphs of one module: one per mode, and more for dtypes, sizes and settings that were not captured.

What a model computes depends on dtypes, sizes and Python values that its code reads, so a graph is valid only for the
dtypes and values that it was captured with, and for sizes that meet its guards. A call with others captures the model's
skeleton again, once and on this worker alone. The plan stays as it is.
"""

from __future__ import annotations

import itertools
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx
from torch.fx.graph_module import _forward_from_src

from sdp_compile.capture import recapture
from sdp_compile.capture.devices import retarget_devices
from sdp_compile.capture.originals import standing_for_copies
from sdp_compile.capture.precision import casts_of
from sdp_compile.errors import SDPError
from sdp_compile.ir.functions import Marks
from sdp_compile.ir.numbers import Place
from sdp_compile.ir.program import Capture, Precision, Program, copy_program
from sdp_compile.ir.reads import Read, changed_read, changed_reads
from sdp_compile.lowering import Lowered
from sdp_compile.passes.sync_gradients import by_rounds
from sdp_compile.runtime.gradients.compiled import with_launches
from sdp_compile.runtime.lowerings import Lowerings
from sdp_compile.runtime.module.calls import Caller, Shapes, Wanted, like_cause
from sdp_compile.runtime.module.changing import ChangingNumbers
from sdp_compile.runtime.module.recompute import executable
from sdp_compile.runtime.module.user_names import hidden_parts, reading_parts
from sdp_compile.runtime.python_state import PythonState
from sdp_compile.runtime.subnetwork import Subnetwork

_REMEMBERED = 1000  # calls whose program is looked up at once
_MANY = 8  # captures of one mode after which the user is told, as often as torch.compile compiles anew

_numbers = itertools.count()
_of_modules: weakref.WeakValueDictionary[int, Programs] = weakref.WeakValueDictionary()


class Programs:
    """Programs by name: the first of a mode and method has their key, later ones are ``train_1`` and so on.

    Each runs as the module's ``_run_NAME``, on the inputs that its ``_caller_NAME`` binds.
    """

    def __init__(
        self, module: Subnetwork, lowered: Lowered, state: PythonState, programs: Mapping[str, Program]
    ) -> None:
        """Copies ``programs``, because moving the module rewrites their device constants."""
        self.state = state
        self._module = weakref.ref(module)
        self.lowerings = Lowerings(lowered)
        self.programs = {name: copy_program(program) for name, program in programs.items()}
        self.device = lowered.analysis.capture.device
        self._sources: dict[str, str] = {}
        self._names = {key: key for key in lowered.programs}
        self._casts: tuple[tuple[torch.dtype | str, torch.dtype], ...] = ()
        self._chosen: dict[tuple[object, ...], str] = {}
        self._reads: dict[str, dict[str, list[Read]]] = {}
        self._seen: dict[str, int] = {}
        self._marks: dict[str, Marks] = {}
        self._marked: dict[str, list[object]] = {}
        self._numbers: dict[str, tuple[float, ...]] = {}
        self._changing = {key: ChangingNumbers() for key in lowered.programs}
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
    def current(self) -> dict[str, Program]:
        """The program of each mode and method, as it is or was last run."""
        return {key: self.programs[name] for key, name in self._names.items()}

    def replace_graph(self, key: str, graph: fx.Graph) -> None:
        """Replaces the current graph of a mode and method."""
        name = self._names[key]
        self.programs[name] = replace(self.programs[name], graph=graph)

    def name(self, key: str) -> str:
        """Returns the name of the current program of a mode and method."""
        return self._names[key]

    def source(self, key: str) -> str:
        """Returns the code of the current graph of a mode and method."""
        return self._sources[self._names[key]]

    def generate(self, names: tuple[str, ...] = ()) -> dict[str, fx.graph.PythonCode]:
        """Generates the module's methods from the graphs with these names; by default from all."""
        module, codes = self.module, {}
        for name in names or self.programs:
            program = self.programs[name]
            if not hidden_parts(program.graph, module):  # lint looks them up as attributes
                program.graph.owning_module = module  # type: ignore[assignment]  # SDPModule is a GraphModule
            graph, recomputed = executable(by_rounds(program).graph)
            codes[name] = code = graph.python_code(root_module="self")
            code.src = reading_parts(code.src, graph, module)
            # Every generated function has its own file name, and so its own code object.
            bound = with_launches(code.globals, self.number)
            setattr(type(module), f"_run_{name}", _forward_from_src(code.src, bound, {}))
            self._sources[name] = recomputed + code.src
            vars(module)[f"_caller_{name}"] = Caller(module.capture.skeleton, program)
            self._reads[name] = {kind: [] for kind in ("attribute", "switch", "marked", "other")}
            self.state.asked.update((read.owner, read.name) for read in program.reads if read.kind == "attribute")
            for places in () if program.numbers is None else program.numbers.places:
                self.state.asked.update((place.owner, place.name) for place in places if place.kind == "attribute")
            for read in program.reads:
                kind = "marked" if read.has_marks(module) else read.kind
                self._reads[name][kind if kind in self._reads[name] else "other"].append(read)
            self._marks[name] = Marks(read.getter() for read in self._reads[name]["marked"])
        return codes

    def choose(
        self,
        key: str,
        dtypes: tuple[torch.dtype, ...],
        autocast: torch.dtype | None,
        grad: tuple[int, ...],
        shapes: Shapes | None,
    ) -> str:
        """Returns the name of the program for a call; captures and lowers it if it does not exist yet.

        Args:
            key: The mode of the module and the method, as `key_of` returns.
            dtypes: The dtypes of the inputs that are tensors.
            autocast: The dtype of autocast; None if it is off.
            grad: For a model that asks: whether gradients are enabled, and `grad_answer` of each tensor input.
            shapes: The shapes of the inputs that are tensors; None for any that were captured.

        Raises:
            SDPError: If the model does not run like this, or does not fit the plan then.
        """
        wanted = (key, dtypes, autocast, grad, shapes, self.state.switches)
        name = self._chosen.get(wanted)
        if name is None or self._changed(name):
            call = Wanted(key, Precision(dtypes, autocast, self._casts), grad, shapes)
            name = self._found(call) or self._add(call)
            self._keep(name)
            if len(self._chosen) >= _REMEMBERED:
                self._chosen.clear()
            self._chosen[wanted] = name
        self._names[key] = name
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
        self._casts = casts_of(self.module.capture.state, tensors)
        self._chosen.clear()

    def _keep(self, name: str) -> None:
        """Notes what the call of a program keeps by key; raises `SDPError` if an earlier call kept something else."""
        program: Program = self.programs[name]
        entry = self.state.kept.differs(program.kept)
        if entry is not None:
            caller: Caller = getattr(self.module, f"_caller_{program.key}")
            raise SDPError(caller.kept_before(entry))
        self.state.kept.add(program.kept)

    def _found(self, call: Wanted) -> str | None:
        return next((name for name, program in self.programs.items() if not self._differs(call, name, program)), None)

    def _differs(self, call: Wanted, name: str, program: Program) -> str:
        """Returns in what a call differs from those that a program is right for, or ``""``."""
        if program.key != call.key or program.precision != call.precision:
            return f"it runs with {call.precision}"
        if program.asks_grad and call.grad and program.grad != call.grad:
            return "gradients are enabled or required where they were not, or the other way round"
        caller: Caller = getattr(self.module, f"_caller_{name}")
        switched = changed_read(self._reads[name]["switch"], self.state.skeleton)
        if switched is not None:
            return f"{switched} has changed"
        sizes = caller.mismatch(call.shapes) if call.shapes is not None else ""
        return sizes or self._changed(name)

    def _changed(self, name: str) -> str:
        """Returns what Python value has changed since a program was captured, or ``""``."""
        changed = changed_read(self._reads[name]["other"], self.module) or self._changed_mark(name)
        if changed is None and (self.state.is_lent or self._seen.get(name) != self.state.version):
            changed = changed_read(self._reads[name]["attribute"], self.state.skeleton)
            numbers = self.programs[name].numbers
            if changed is None and numbers is not None:
                values = numbers.now(self.state.skeleton)
                if values is None:
                    return "a number has a value for which the model takes another path"
                self._numbers[name] = values
                if numbers.has_globals:  # which change without notice
                    return ""
            if changed is None:
                self._seen[name] = self.state.version
        return "" if changed is None else f"{changed} has changed"

    def _changed_mark(self, name: str) -> Read | None:
        marks = self._marks[name].now()
        if marks == self._marked.get(name):
            return None
        changed = changed_read(self._reads[name]["marked"], self.module)
        if changed is None:
            self._marked[name] = marks
        return changed

    def check_unchanged(self, name: str, numbers: tuple[float, ...]) -> None:
        """Raises `SDPError` if compiled code runs a program that is not right for this call any more.

        The next call is compiled anew.

        Args:
            name: The name of the program.
            numbers: The numbers that the code gives it.
        """
        changed = self._changed(name)
        if not changed and self._numbers.get(name, ()) != numbers:
            changed = "a number has changed"
        if changed:
            self.state.version += 1
            caller: Caller = getattr(self.module, f"_caller_{name}")
            raise SDPError(caller.unseen(changed))

    def numbers(self, name: str) -> tuple[float, ...]:
        """Returns the numbers that a program takes after the inputs, for the call that it was chosen for."""
        return self._numbers[name]

    def _add(self, call: Wanted) -> str:
        module, key = self.module, call.key
        known = [program for program in self if program.key == key]
        try:
            program, tensors = self._captured_again(call)
        except SDPError as error:
            raise self._refusal(call, error) from error
        for name, tensor in tensors.items():
            module.register_buffer(name, tensor, persistent=False)
        name = self._free_name(key)
        self.programs[name] = program
        self.generate((name,))
        changed = self._changed(name)  # reads its numbers
        if changed:
            raise SDPError(getattr(module, f"_caller_{name}").not_seen(changed))
        if len(known) == _MANY:
            caller: Caller = getattr(module, f"_caller_{key}")
            warnings.warn(
                f"{caller.name} has been captured {len(known) + 1} times in {program.mode} mode for "
                "different dtypes, sizes or settings. Each takes time and memory. Pad the inputs to a few sizes, and "
                "pass numbers that change often as tensors.",
                stacklevel=5,
            )
        return name

    def _refusal(self, call: Wanted, error: SDPError) -> SDPError:
        """Returns the error for a call that the model cannot be captured for."""
        caller: Caller = getattr(self.module, f"_caller_{call.key}")
        switched = changed_read(self._reads[call.key]["switch"], self.state.skeleton)
        if switched is not None:
            message = f"{caller.name} cannot be captured again after a change of {switched}. {error}"
        elif self.programs[call.key].precision != call.precision:
            message = (
                f"{caller.name} was compiled for other dtypes and cannot be captured with {call.precision}. {error}"
            )
        else:
            message = caller.not_captured_again(self._difference(call), error)
        return like_cause(error, message)

    def _difference(self, call: Wanted) -> str:
        """Returns in what a call differs from those of the program that is closest to it."""
        found = [(1000, self._differs(call, call.key, self.programs[call.key]))]
        for name, program in self.programs.items():
            if program.key == call.key and program.precision == call.precision:
                caller: Caller = getattr(self.module, f"_caller_{name}")
                reads = changed_reads([*self._reads[name]["other"], *self._reads[name]["marked"]], self.module)
                own = [*self._reads[name]["switch"], *self._reads[name]["attribute"]]
                found.append(caller.difference(call.shapes, [*reads, *changed_reads(own, self.state.skeleton)]))
        return min((one for one in found if one[1]), default=found[0])[1]

    def _captured_again(self, call: Wanted) -> tuple[Program, dict[str, torch.Tensor]]:
        """Returns the worker's program for another call, and the constants that only this program has.

        Numbers that have changed become its inputs where that is possible.
        """
        changing, skeleton = self._changing[call.key], self.state.skeleton
        known = [program for program in self if program.key == call.key]
        places = changing.find(known, call.precision, skeleton)
        captured = self._recapture(call, places)
        numbers = captured.programs[call.key].numbers
        if places and (numbers is None or numbers.now(skeleton) is not None):
            changing.fix(places, numbers)
        elif places:  # a difference, say, is 0 at the moment
            captured = self._recapture(call)
        try:
            return self._lowered_again(call, captured)
        except SDPError:
            if captured.programs[call.key].numbers is None:
                raise
        changing.fix(places, None)  # the plan depends on their values
        return self._lowered_again(call, self._recapture(call))

    def _recapture(self, call: Wanted, places: Sequence[Place] = ()) -> Capture:
        base = replace(self.module.capture, skeleton=self.state.skeleton)
        values = {name: buffer for name, buffer in self.module.named_buffers() if buffer.numel() == 1}
        first = self.programs[call.key]
        with standing_for_copies(self.module):
            return recapture(
                base, first.mode, call.precision, self.device, call.shapes, call.grad, values, places, first.method
            )

    def _lowered_again(self, call: Wanted, captured: Capture) -> tuple[Program, dict[str, torch.Tensor]]:
        return self.lowerings.add(
            self._free_name(call.key), call.key, captured, call.precision, self.module, self.device
        )

    def _free_name(self, key: str) -> str:
        return next(name for name in (f"{key}_{number}" for number in itertools.count(1)) if name not in self.programs)

    def follow_plan(self, lowered: Lowered) -> dict[str, torch.Tensor]:
        """Takes over the programs of another plan. Returns the constants that only later programs have."""
        self.programs, constants = self.lowerings.follow(lowered, self.device)
        self._names = {key: name if name in self.programs else key for key, name in self._names.items()}
        self._chosen.clear()
        for seen in (self._seen, self._marked):
            seen.clear()
        self.state.version += 1  # code that was compiled for the programs before is not right any more
        return constants


def programs_of(number: int) -> Programs:
    """Returns the programs of a module, by the module's number."""
    return _of_modules[number]
