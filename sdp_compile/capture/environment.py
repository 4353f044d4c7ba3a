"""What functions ask of the process: settings of torch, which may change, and clocks and files, which no graph asks."""

from __future__ import annotations

import functools
import genericpath
import os
import pathlib
import re
import secrets
import sys
import time
import traceback
import types
import uuid
from collections.abc import Callable, Mapping
from types import CodeType, FrameType
from typing import Any

import torch
import torch.random
from torch import nn

from sdp_compile.capture.diagnosis import calling_line, location
from sdp_compile.capture.users import is_users
from sdp_compile.errors import CaptureError
from sdp_compile.ir.plain import frozen, is_number
from sdp_compile.ir.reads import Read, answer_of

_CLOCKS = (
    "time time_ns perf_counter perf_counter_ns monotonic monotonic_ns process_time process_time_ns thread_time ctime "
    "localtime gmtime strftime"
).split()
_IMPURE: dict[int, str] = {id(getattr(time, name)): f"time.{name}()" for name in _CLOCKS} | {
    id(os.urandom): "os.urandom()",
    id(open): "open()",
    id(os.open): "os.open()",
    id(os.stat): "os.stat()",
    id(os.listdir): "os.listdir()",
    id(os.scandir): "os.scandir()",
    id(torch._C._cuda_memoryStats) if hasattr(torch._C, "_cuda_memoryStats") else 0: "torch.cuda.memory_stats()",
}
_NAMES = {"now", "utcnow", "today", "get_state"}
_OF_CLASSES = {"datetime.now", "datetime.utcnow", "datetime.today", "date.today", "Generator.get_state"}

_OF_PATHS = ("exists", "is_file", "is_dir", "stat", "open", "iterdir", "read_text", "read_bytes")
_CODES: dict[CodeType, str] = {
    function.__code__: f"{function.__module__.replace('genericpath', 'os.path')}.{function.__qualname__}()"
    for function in (
        *(getattr(genericpath, name) for name in ("exists", "isfile", "isdir", "getsize", "getmtime")),
        *(getattr(pathlib.Path, name) for name in _OF_PATHS),
        *(uuid.uuid1, uuid.uuid4, secrets.token_bytes, secrets.token_hex, secrets.randbelow, secrets.choice),
        *(torch.random.get_rng_state, torch.random.seed),
    )
    if isinstance(function, types.FunctionType)
}
"""Functions in Python that return something else at each call."""

_NO_SETTINGS = (
    "compil export script onnx capturing default_dtype grad autocast trac dispatch function mode_stack".replace(
        " ", "|"
    )
)
_GETTER = re.compile(rf"_?(get|is|are|has|initial|current|device)_(?!.*({_NO_SETTINGS}))")
_SETTINGS: dict[int, tuple[str, str]] = {
    id(function): (torch._C.__name__, name)
    for name, function in vars(torch._C).items()
    if _GETTER.match(name) and isinstance(function, types.BuiltinFunctionType)
} | {
    id(function): (module.__name__, name)
    for module, name in ((os, "getcwd"), (os, "cpu_count"), (os, "getpid"), (sys, "getrecursionlimit"))
    if isinstance(function := getattr(module, name), types.BuiltinFunctionType)
}
_BACKENDS = os.path.join(os.path.dirname(torch.__file__), "backends", "")
_TORCH = os.path.join(os.path.dirname(torch.__file__), "")


_VARIABLE = type(os.environ).__getitem__.__code__
_ALL_VARIABLES = {getattr(type(os.environ), name).__code__ for name in ("__len__", "__iter__", "copy")}
VARIABLES = frozenset({_VARIABLE, *_ALL_VARIABLES})
"""The code of methods of `os.environ`."""


class Environment:
    """Notes what functions of the user ask of the process.

    Args:
        note: What is called with each answer; it is asked for again at each call.
        kind: The class of the model.

    Attributes:
        lines: Where each answer was asked for.
    """

    def __init__(self, note: Callable[[Read], None], kind: type[nn.Module]) -> None:
        self.lines: dict[Read, str] = {}
        self._note_read, self._kind = note, kind
        self._getters: dict[CodeType, bool] = {}

    def impure(self, called: Any, caller: FrameType | None) -> dict[str, str]:
        """Returns that a call returns something else each time, with its line, if so.

        Args:
            called: The C function that is called, or the code of the function in Python.
            caller: The frame that calls it.
        """
        if isinstance(called, CodeType):
            found = _CODES.get(called)
        else:
            found = _IMPURE.get(id(called))
            if found is None and called.__name__ in _NAMES and called.__qualname__ in _OF_CLASSES:
                found = f"{called.__qualname__}()"
        if found is None or caller is None or not _is_of_user(caller):
            return {}
        return {f"calls {found}": location(traceback.extract_stack(caller, 1)[0])}

    def settings(self, frame: FrameType, called: Any) -> None:
        """Notes a call of a C function if it is a question of the user's, itself or as a flag of `torch.backends`."""
        place = _SETTINGS.get(id(called))
        if place is not None:
            asking = frame.f_back if frame.f_code.co_filename.startswith(_BACKENDS) else frame
            if _is_of_user(asking):
                self._note(*place)

    def getters(self, frame: FrameType) -> None:
        """Notes the call of a Python function of torch that begins in a frame, if it is such a question."""
        code = frame.f_code
        known = self._getters.get(code)
        if known is None:
            known = _is_getter(code, frame.f_globals)
            self._getters[code] = known
        if known and _is_of_user(frame.f_back):
            self._note(frame.f_globals["__name__"], code.co_name)

    def variables(self, frame: FrameType) -> None:
        """Notes the environment variable that is asked for in a frame of `os.environ`, or all of them."""
        if frame.f_code in _ALL_VARIABLES and _is_of_user(frame.f_back):
            self._note(__name__, environment.__name__)
        outer = frame.f_back if frame.f_code is _VARIABLE else None
        for _ in range(3):
            if _is_of_user(outer):
                name = frame.f_locals["key"]
                if isinstance(name, str):
                    self._note_read(Read("environment", "", name, frozen(os.environ.get(name))))
                return
            outer = None if outer is None else outer.f_back

    def _note(self, module: str, name: str) -> None:
        value = answer_of(module, name)
        if is_number(value) or isinstance(value, tuple):
            read = Read("answer", module, name, frozen(value))
            self._note_read(read)
            self.lines.setdefault(read, calling_line(self._kind))


def check_answers(subject: nn.Module, lines: Mapping[Read, str]) -> None:
    """Makes forward raise `CaptureError` where settings are not what they are in eager execution.

    `torch.export` turns some off, so that no operators of single backends are captured.

    Args:
        subject: The copy of the model that is captured.
        lines: What forward asks, and where.
    """
    if not lines:
        return
    forward = subject.forward

    @functools.wraps(forward)
    def checking(*args: Any, **kwargs: Any) -> Any:
        for read, line in lines.items():
            if frozen(read.now(subject)) != read.value:
                raise CaptureError(
                    f"{type(subject).__name__} cannot be captured: its forward asks for {read} at {line}, and the "
                    "answer differs while a model is captured. Ask before compiling, and keep the answer as an "
                    "attribute of the model."
                )
        return forward(*args, **kwargs)

    vars(subject)["forward"] = checking  # a part of the model may have this name too


def environment() -> tuple[tuple[str, str], ...]:
    """Returns all environment variables."""
    return tuple(os.environ.items())


def _is_getter(code: CodeType, scope: dict[str, Any]) -> bool:
    """Whether a function of torch returns a setting, so that calling it changes nothing."""
    if code.co_argcount or code.co_kwonlyargcount or not code.co_filename.startswith(_TORCH):
        return False
    function = scope.get(code.co_name)
    asks = code.co_name.endswith(("_enabled", "_available", "_count", "_seed")) or _GETTER.match(code.co_name)
    return bool(asks) and getattr(function, "__code__", None) is code and code not in _CODES


def _is_of_user(frame: FrameType | None) -> bool:
    return frame is not None and is_users(frame.f_code.co_filename)
