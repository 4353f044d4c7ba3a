"""Explains why a model could not be captured, in terms of the user's own source."""

from __future__ import annotations

import linecache
import os
import re
import traceback
from collections.abc import Sequence
from types import FrameType

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from sdp_compile.capture.sizes import SizesTooComplex

_TORCH = os.path.dirname(torch.__file__) + os.sep
_OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_UNKNOWN_OUTPUT = re.compile(r"Found <class '([^']+)'> in output, which is not a known type")
_REJECTED_INPUT = re.compile(r"Unsupported input type <class '([^']+)'>")
_TRANSFORMS = tuple(os.path.join("_functorch", name) for name in ("apis.", "eager_transforms.", "vmap."))
_NUMPY = ".numpy() is not supported for tensor subclasses"
_LOST_TENSOR = "We found a fake tensor in the exported program constant's list"
_DATA_DEPENDENT = ("data-dependent", "DynamicOutputShape", "DataDependent", "unbacked", "_local_scalar_dense")


class Resized(Exception):
    """Forward gives a buffer another shape or dtype. The text is the end of a sentence about the model."""


def explain(model: nn.Module, error: BaseException) -> str:
    """Returns the message for a failed capture: the user's line, the error there and what to do."""
    name = type(model).__name__
    trace = error.__traceback__
    where = located(user_line(trace), _module_path([frame for frame, _ in traceback.walk_tb(trace)], type(model)))
    at = f" at {where}" if where else ""
    text = first_line(error)
    if isinstance(error, Resized):
        return (
            f"{name} cannot be captured: {error}. Register the buffer in the shape and dtype that it keeps, and write "
            "into it: with copy_, with index_copy_ and a counter, or with torch.roll."
        )
    if isinstance(error, SizesTooComplex):
        return (
            f"{name} cannot be captured: {error}. Use sizes that follow from the shapes of the inputs, or move this "
            "part out of the model."
        )
    if _NUMPY in str(error):
        return (
            f"{name} cannot be captured: it turns a tensor into a NumPy array{at}, and a graph would not compute that "
            "again. Use torch's operators here, or move this part out of the model."
        )
    if any(isinstance(value, PackedSequence) for frame, _ in traceback.walk_tb(trace) for value in _locals(frame)):
        return (
            f"{name} cannot be captured: it computes with a PackedSequence{at}, whose sizes are the values of the "
            "lengths. Run the recurrent layer on the padded tensor, and mask the padding or gather the last steps. "
            f"({text})"
        )
    if is_data_dependent(error):
        return (
            f"{name} cannot be captured: its control flow or a shape depends on tensor values{at}. Compute both "
            "branches and choose with torch.where, use sizes that follow from shapes, or move this part out of the "
            f"model. ({text})"
        )
    if _frames_in(error, *_TRANSFORMS):
        return (
            f"{name} cannot be captured: it uses a transform of torch.func{at}. Write this part with batched operators "
            f"or ordinary tensor operators, or move it out of the model. ({text})"
        )
    rejected = _REJECTED_INPUT.search(str(error))
    if rejected is not None:
        return (
            f"{name} cannot be captured: example_inputs hold a {rejected[1]}, which is no input of a graph. Pass "
            "tensors, numbers, strings, None and containers of them, and give other objects to the model's constructor."
        )
    if _LOST_TENSOR in str(error):
        return (
            f"{name} cannot be captured: its forward computes a tensor where capture cannot follow, such as inside of "
            "torch.func.linearize or another tracer. Write this part with ordinary tensor operators."
        )
    unknown = _UNKNOWN_OUTPUT.search(str(error))
    if unknown is not None:
        kind = unknown[1].rpartition(".")[2]
        return (
            f"{name} cannot be captured: its forward returns a {unknown[1]}, which torch does not know as a container "
            f"of tensors. Return a tuple or dict, or call torch.export.register_dataclass({kind}) once, right after "
            "the class (for a class that is no dataclass, torch.utils._pytree.register_pytree_node)."
        )
    if _frames_in(error, os.path.join("distributed", "")):
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
    if filename.startswith("<"):
        return filename.startswith(("<ipython", "<stdin>"))
    return not filename.startswith((_TORCH, _OWN)) and "importlib" not in filename


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


def _frames_in(error: BaseException, *paths: str) -> bool:
    """Whether the error passed through files of torch whose paths begin so."""
    inside = tuple(_TORCH + path for path in paths)
    return any(frame.filename.startswith(inside) for frame in traceback.extract_tb(error.__traceback__))


def _locals(frame: FrameType) -> list[object]:
    return list(frame.f_locals.values())


def first_line(error: BaseException) -> str:
    """Returns the type and the first line of an error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
