"""Watches what forward reads and changes outside its module: global and closure variables, environment, time."""

from __future__ import annotations

import importlib._bootstrap
import sys
from collections.abc import Callable, Iterable, Mapping
from types import BuiltinMethodType, CodeType, FrameType, ModuleType, TracebackType
from typing import Any

import torch
from torch import nn

from sdp_compile.capture.attributes import INTERNAL
from sdp_compile.capture.defaults import Defaults
from sdp_compile.capture.diagnosis import calling_line
from sdp_compile.capture.environment import VARIABLES, Environment
from sdp_compile.capture.functions import CONSTANT_MODULES, FunctionNotes, class_of_caller, is_users_scope, variable_at
from sdp_compile.capture.hooks import hook_objects
from sdp_compile.capture.masks import SkippedMasks
from sdp_compile.capture.originals import identities
from sdp_compile.capture.outside import OutsideTensors
from sdp_compile.capture.questions import COMPILING, question_of_capture
from sdp_compile.capture.quiet import random_states, uncollected
from sdp_compile.capture.traced import MATH
from sdp_compile.capture.undoing import CHANGES, undo_of
from sdp_compile.capture.users import is_asked_by_user, is_of_users, is_users
from sdp_compile.capture.variables import (
    attribute_of,
    cells_of,
    chains,
    has_tensors,
    is_capture_entry,
    is_function_variable,
    is_running,
    is_small,
)
from sdp_compile.ir.plain import MISSING, frozen, is_number
from sdp_compile.ir.reads import DEFAULTS, Read, owner_of, owner_of_class, tensors_of, torch_defaults, with_versions

_GRAD = {id(torch.is_grad_enabled), id(torch._C.is_grad_enabled)}
_IMPORT = importlib._bootstrap._find_and_load.__code__  # type: ignore[attr-defined]


class Surroundings:
    """Context manager around a run of forward that profiles the user's functions in it.

    Attributes:
        reads: The plain global variables, functions and settings of the process that they read.
        impure: Calls that return something else each time, and those that empty a container, with their lines.
        lines: Where methods changed containers, by what `changed` says of it.
        compiling: Where they ask whether the model is being compiled; None if they do not.
        grad: Where they ask whether gradients are enabled; None if they do not.
        functions: The functions of theirs that ran, with their global variables.
        calls_math: Whether they call functions of `math` themselves, which nothing could follow.
        asked: Where they ask for settings of the process.
        outside: The modules that they may reach and that are not the model's, by identity.
        tensors: The tensors that they read and that are not the model's.
    """

    def __init__(self, model: nn.Module, subject: nn.Module) -> None:
        """Watches a run of ``subject``, a copy of ``model``."""
        self.functions: dict[CodeType, dict[str, Any]] = {}
        self.calls_math = False
        self.reads: dict[tuple[str, str, str], Read] = {}
        self._note(DEFAULTS, "default dtype", torch_defaults.get("default dtype"))
        self.impure: dict[str, str] = {}
        self.lines: dict[str, str] = {}
        self.compiling: str | None = None
        self.grad: str | None = None
        self._kind, self._model, self._subject = type(model), model, subject
        self._imports = 0
        self._defaults, self._masks = Defaults(), SkippedMasks(type(model))
        self._users: dict[CodeType, bool] = {}
        self._enclosed: set[tuple[CodeType, str]] = set()
        self._kept: dict[int, tuple[str, Any, Any, Callable[[], object]]] = {}
        kinds = dict.fromkeys(kind for module in model.modules() for kind in type(module).__mro__)
        self._classes = [kind for kind in kinds if is_of_users(kind)]
        self._variables: dict[tuple[int, str], tuple[str, Mapping[str, Any], str, Any]] = {}
        self._inside = identities(subject)
        self.outside: dict[int, nn.Module] = {}
        self.tensors = OutsideTensors()
        self._names: set[str] = set()
        self._members = {kind: set(vars(kind)) for kind in self._classes}
        self._environment, self._functions = Environment(self._add, self._kind), FunctionNotes(self._add, model)
        self.asked, self._collector = self._environment.lines, uncollected()

    def __enter__(self) -> Surroundings:
        self._keep_module("the original model, which a hook or a function holds,", self._model)
        for place, value in hook_objects(self._subject):
            what = f"the {type(value).__name__} behind a {place}"
            self._keep(what, value)
            if is_of_users(type(value)) and id(value) not in self._kept:
                self._kept[id(value)] = (what, vars(value), frozen(vars(value)), undo_of(vars(value)) or int)
            for name, held in vars(value).items():
                self._keep(f"attribute {name!r} of {what}", held)
        for kind in list(self._classes):
            self._keep_class(kind)
        self._random = random_states()
        self._collector.__enter__()
        self._before = sys.getprofile()
        sys.setprofile(self._event)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.setprofile(self._before)
        self._collector.__exit__(kind, error, trace)

    def changed(self) -> list[str]:
        """Returns what forward changed outside its module."""
        found = [
            f"draws from {name}"
            for name, before, after in zip(
                ("Python's random", "numpy.random"), self._random, random_states(), strict=True
            )
            if before != after
        ]
        return found + self.changed_variables()

    def changed_variables(self) -> list[str]:
        """Returns which containers, objects and variables outside its module this or a later run changed."""
        found = [
            f"changes {what}"
            for what, value, before, _undo in self._kept.values()
            if frozen(value, is_capture_entry) != before
        ]
        found += [
            f"changes {what}"
            for what, scope, name, before in self._variables.values()
            if frozen(scope.get(name)) != before
        ]
        return found + [f"creates attribute {name!r} of class {kind.__name__}" for kind, name in self._new_members()]

    def _new_members(self) -> list[tuple[type, str]]:
        """Returns the attributes, other than functions, that classes of the model did not have before."""
        return [
            (kind, name)
            for kind, known in self._members.items()
            for name, value in vars(kind).items()
            if name not in known and not name.startswith("__") and not callable(value)
        ]

    def probe(self) -> Callable[[], Any]:
        """Returns a function that returns what `changed` compares; to be called after `restore`."""
        kept = [value for _what, value, _before, _undo in self._kept.values()]
        variables = [(scope, name) for _what, scope, name, _before in self._variables.values()]
        return lambda: (
            random_states(),
            [frozen(value) for value in kept],
            [frozen(scope.get(name)) for scope, name in variables],
            self._new_members(),
        )

    def restore(self) -> None:
        """Gives containers back what they held before the run, so that no tensor of it stays in them."""
        for kind, name in self._new_members():
            delattr(kind, name)
        for _what, value, before, undo in self._kept.values():
            if frozen(value) != before:
                undo()
        for _what, scope, name, before in self._variables.values():
            if frozen(scope.get(name)) != before:
                value = before[1] if isinstance(before, tuple) else before
                if isinstance(scope, dict):
                    scope[name] = value
                else:
                    for kind in self._classes:
                        if vars(kind) == scope:
                            setattr(kind, name, value)

    def _event(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if code is _IMPORT:  # modules that are imported while forward runs
            self._imports += {"call": 1, "return": -1}.get(event, 0)
        if self._imports:
            return
        if code.co_name.startswith("sdpa_"):
            self.impure.update(self._masks.see(frame, event, argument))
        if event == "call":
            known = self._users.get(code)
            if known is None:
                known = is_users(code.co_filename)
                if known and code.co_name == "<module>":  # an expression that is evaluated, perhaps by torch
                    known = self._asked_by_user(frame.f_back)
                self._users[code] = known
                if known:
                    self.functions[code] = frame.f_globals
                    self._globals(frame)
                    self._of_classes(frame)
                    self.impure.update([asked] if (asked := question_of_capture(code)) else [])
                    self._keep_defaults(frame)
            if known:
                if code.co_freevars:
                    self._closure(frame)
            elif impure := self._environment.impure(code, frame.f_back):
                self.impure.update(impure)
            elif code in COMPILING:
                if self.compiling is None and is_asked_by_user(frame.f_back):
                    self.compiling = f"{COMPILING[code]} at {calling_line(self._kind)}"
            elif code in VARIABLES:
                self._environment.variables(frame)
            else:
                self._environment.getters(frame)
        elif event == "c_call":
            if impure := self._environment.impure(argument, frame):
                self.impure.update(impure)
            elif argument.__name__ in CHANGES:
                self._note_change(frame, argument)
            elif id(argument) in _GRAD and self.grad is None and self._asked_by_user(frame):
                self.grad = calling_line(self._kind)
            elif id(argument) in MATH:
                self.calls_math = self.calls_math or self._asked_by_user(frame)
            else:
                self._environment.settings(frame, argument)

    def _note_change(self, frame: FrameType, method: Any) -> None:
        """Notes where the user's code calls a method that changes a container from outside of forward."""
        known = self._kept.get(id(getattr(method, "__self__", None)))
        if known is not None and self._asked_by_user(frame):
            self.lines.setdefault(f"changes {known[0]}", calling_line(self._kind))
            if method.__name__ == "clear":  # what is refilled with the same may be read and cleared by others
                self.impure.setdefault(f"clears {known[0]}", calling_line(self._kind))

    def _asked_by_user(self, frame: FrameType | None) -> bool:
        return frame is not None and is_users(frame.f_code.co_filename)

    def _globals(self, frame: FrameType) -> None:
        """Notes the global variables that a function reads, and those in modules of the user's that it reads from."""
        for chain in dict.fromkeys(chains(frame.f_code, frame.f_globals)):
            found = variable_at(frame, chain)
            if found is None:
                continue
            module, scope, name, rest = found
            self._functions.of_module(module, scope, name)
            if scope is not frame.f_globals and not is_users_scope(scope):
                if module not in CONSTANT_MODULES and isinstance(scope[name], (bool, int, float, str, list)):
                    self._note(owner_of(module, scope), name, scope[name])
                continue
            self._variable(f"global variable {name!r} of {module}", scope, name, module)
            self._attributes(owner_of(module, scope), name, scope[name], rest)

    def _attributes(self, owner: str, path: str, value: Any, names: Iterable[str]) -> None:
        """Notes what a function reads through a global variable that is too large to be compared as a whole."""
        for name in names:
            if is_small(value) or isinstance(value, torch.Tensor):
                return
            inner = attribute_of(value, name)
            if inner is MISSING:
                return
            self._note(f"{owner}:{path}", name, inner)
            self._keep(f"attribute {name!r} of {path}", inner)
            path, value = f"{path}.{name}", inner

    def _note(self, owner: str, name: str, value: Any) -> None:
        """Notes the value of a variable that functions read, if it can be compared."""
        if is_small(value) or is_function_variable(name, value):
            self._add(Read("global", owner, name, frozen(value)))
        elif has_tensors(value, self._inside):
            self._add(Read("tensors", owner, name, frozen(with_versions(value, mark=True))))
            self.tensors.found += tensors_of(value)

    def _add(self, read: Read) -> None:
        self.reads.setdefault((read.kind, read.owner, read.name), read)

    def _of_classes(self, frame: FrameType) -> None:
        """Notes the attributes of the model's classes, and of other objects, that a function may read."""
        code, caller = frame.f_code, class_of_caller(frame)
        names = {name for name in code.co_names if not name.startswith("__")} | {code.co_name}
        self._names |= names
        if caller is not None and caller not in self._classes:
            self._classes += [kind for kind in caller.__mro__ if is_of_users(kind) and kind not in self._classes]
            self._functions.add_leaf(caller)
            names = self._names
        for kind in self._classes:
            self._functions.of_class(kind, names)
            for name in names & vars(kind).keys():
                value = vars(kind)[name]
                if is_small(value) or has_tensors(value, self._inside):
                    self._note(owner_of_class(kind), name, value)

    def _closure(self, frame: FrameType) -> None:
        held = frame.f_locals
        for name in frame.f_code.co_freevars:
            if name not in held or name == "__class__" or is_running(frame.f_back, name, held[name]):
                continue
            what = f"variable {name!r} of an enclosing function"
            value = held[name]
            if (frame.f_code, name) not in self._enclosed and (is_small(value) or has_tensors(value, self._inside)):
                cells = cells_of(frame, name)
                if cells is not None:
                    self._note(owner_of(f"a function around {frame.f_code.co_name}()", cells), name, value)
            self._functions.enclosed(frame, name)
            self._enclosed.add((frame.f_code, name))
            self._keep(what, held[name])

    def _keep_defaults(self, frame: FrameType) -> None:
        for value in self._defaults.containers(frame):
            self._keep(f"a default argument of {frame.f_code.co_name}()", value)

    def _variable(self, what: str, scope: Mapping[str, Any], name: str, module: str) -> None:
        value = scope[name]
        self._note(owner_of(module, scope), name, value)
        if is_number(value):
            self._variables.setdefault((id(scope), name), (what, scope, name, frozen(value)))
        else:
            self._keep(what, value)

    def _keep(self, what: str, value: Any) -> None:
        """Notes what a container or an object holds, and how to give it back."""
        if isinstance(value, BuiltinMethodType):
            value = value.__self__  # such as the method append of a list
        if isinstance(value, nn.Module):
            self._keep_module(what, value)
        elif isinstance(value, type) and is_of_users(value):
            self._keep_class(value)
        if id(value) in self._kept or isinstance(value, (type, ModuleType, torch.Tensor, nn.Module)):
            return
        undo = undo_of(value)
        if undo is None:
            return
        self._kept[id(value)] = (what, value, frozen(value, is_capture_entry), undo)

    def _keep_module(self, what: str, root: nn.Module) -> None:
        """Notes the attributes of a module that is not the one that runs, but that a hook or a function may hold."""
        for path, module in root.named_modules():
            if id(module) in self._inside:
                continue
            self._inside.add(id(module))
            self.outside[id(module)] = module
            where = f"module {path!r} of {what}" if path else what
            for name, value in vars(module).items():
                if name not in INTERNAL and is_number(value):
                    attribute = f"attribute {name!r} of {where}"
                    self._variables[id(vars(module)), name] = (attribute, vars(module), name, frozen(value))
                elif name not in INTERNAL:
                    self._keep(f"attribute {name!r} of {where}", value)

    def _keep_class(self, kind: type) -> None:
        if kind not in self._classes:
            self._classes.append(kind)
        for name, value in vars(kind).items():
            what = f"attribute {name!r} of class {kind.__name__}"
            if is_number(value) and not name.startswith("__"):
                self._variables[id(kind), name] = (what, vars(kind), name, frozen(value))
            elif not name.startswith("__") and not isinstance(value, type):
                self._keep(what, value)
