"""Explains why a model could not be captured, in terms of the user's own source."""

from __future__ import annotations

import linecache
import os
import traceback
from collections.abc import Sequence
from types import FrameType

import torch
from torch import nn

_TORCH = os.path.dirname(torch.__file__) + os.sep
_OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_DATA_DEPENDENT = ("data-dependent", "DynamicOutputShape", "DataDependent", "unbacked", "_local_scalar_dense")


def explain(model: nn.Module, error: BaseException) -> str:
    """Returns the message for a failed capture: the user's line, the error there and what to do."""
    name = type(model).__name__
    trace = error.__traceback__
    where = located(user_line(trace), _module_path([frame for frame, _ in traceback.walk_tb(trace)], type(model)))
    at = f" at {where}" if where else ""
    text = first_line(error)
    if is_data_dependent(error):
        return (
            f"{name} cannot be captured: its control flow or a shape depends on tensor values{at}. Compute both "
            "branches and choose with torch.where, use sizes that follow from shapes, or move this part out of the "
            f"model. ({text})"
        )
    if _in_distributed(error):
        return (
            f"{name} cannot be captured: it calls a collective of its own{at}. Workers exchange gradients only: "
            f"remove torch.distributed calls from the model. ({text})"
        )
    return (
        f"{name} cannot be captured: its forward raised {text}{at}. Check that model(*example_inputs) runs with these "
        "inputs, in the shapes and dtypes of training, and that no Python code in it needs tensor values."
    )


def user_line(trace: object) -> str | None:
    """Returns ``file:line: code`` of the innermost frame outside torch and this package, or None."""
    frames = traceback.extract_tb(trace)  # type: ignore[arg-type]
    return next((location(frame) for frame in reversed(frames) if is_user_file(frame.filename)), None)


def calling_line(kind: type[nn.Module]) -> str:
    """Returns ``file:line: code`` of the innermost user frame on the current stack, with the path of its module.

    Args:
        kind: The class of the model that the module path starts from.
    """
    line = next(
        (location(frame) for frame in reversed(traceback.extract_stack()) if is_user_file(frame.filename)), None
    )
    return located(line, _module_path([frame for frame, _ in traceback.walk_stack(None)][::-1], kind)) or "unknown line"


def located(line: str | None, module: str) -> str:
    """Returns a source line with the path of the module that runs it."""
    return f"{line or ''} (module {module!r})".strip() if module else line or ""


def _module_path(frames: Sequence[FrameType], kind: type[nn.Module]) -> str:
    """Returns the path, in the model of class ``kind``, of the module that the innermost of ``frames`` belongs to."""
    owners = [frame.f_locals.get("self") for frame in frames]
    modules = [owner for owner in owners if isinstance(owner, nn.Module)]
    model = next((module for module in modules if type(module) is kind), None)
    paths = {} if model is None else {id(module): path for path, module in model.named_modules()}
    return next((paths[id(module)] for module in reversed(modules) if id(module) in paths), "")


def is_user_file(filename: str) -> bool:
    """Whether ``filename`` is Python source outside torch and this package. Model libraries count as the user's."""
    return not filename.startswith(("<", _TORCH, _OWN)) and "importlib" not in filename


def location(frame: traceback.FrameSummary) -> str:
    """Returns ``file:line: code`` of a frame."""
    code = frame.line or linecache.getline(frame.filename, frame.lineno or 0).strip()
    return f"{frame.filename}:{frame.lineno}: {code}"


def is_data_dependent(error: BaseException) -> bool:
    """Whether capture failed because Python code or a shape needs the values of a tensor."""
    return _mentions(error, _DATA_DEPENDENT)


def _mentions(error: BaseException, words: tuple[str, ...]) -> bool:
    chain: BaseException | None = error
    while chain is not None:
        text = f"{type(chain).__name__} {chain}"
        if any(word in text for word in words):
            return True
        chain = chain.__cause__ or chain.__context__
    return False


def _in_distributed(error: BaseException) -> bool:
    inside = os.path.join(_TORCH, "distributed") + os.sep
    return any(frame.filename.startswith(inside) for frame in traceback.extract_tb(error.__traceback__))


def first_line(error: BaseException) -> str:
    """Returns the type and the first line of an error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
