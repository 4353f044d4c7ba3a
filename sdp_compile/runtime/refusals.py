"""Refuses changes of a compiled model that its graphs would not see: new layers, other shapes, other functions."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sdp_compile.capture.attributes import FUNCTIONS, INTERNAL, Alias, has_tensor
from sdp_compile.errors import SDPError
from sdp_compile.ir.parts import submodule
from sdp_compile.ir.plain import MISSING
from sdp_compile.runtime.python_state import PythonState

_REMEDY = "Change the original model and compile it again."


def refuse_change(module: nn.Module, state: PythonState, path: str, name: str, value: Any) -> None:
    """Raises `SDPError` if an attribute of a part is code or structure of the original, which graphs hold as it was.

    Args:
        module: The part whose attribute is about to be set.
        state: The original's attributes.
        path: The path of the part.
        name: The name of the attribute.
        value: Its new value.
    """
    owner = submodule(state.skeleton, path)
    where = f"{path}.{name}".lstrip(".")
    if name == "qconfig":  # torch.ao sets it on every part, and then finds no layer whose class it knows
        raise SDPError(
            f"{where!r} cannot be set: quantization replaces layers of a model, which the graph of a compiled model "
            "holds. Quantize model.full_model(), which all workers call after training."
        )
    if name in owner._modules:
        if value is not module._modules.get(name):
            raise SDPError(
                f"Part {where!r} of a compiled model cannot be replaced, because its graph holds it. {_REMEDY}"
            )
    elif name in owner._parameters or name in owner._buffers:
        held = module._parameters.get(name, module._buffers.get(name))
        if isinstance(value, torch.Tensor) and type(value) not in (torch.Tensor, nn.Parameter, type(held)):
            raise SDPError(
                f"{where!r} cannot become a {type(value).__name__}: the graph of a compiled model was captured with "
                "plain tensors. Quantize or convert model.full_model(), which all workers call after training."
            )
        if value is not held and (held is None or not isinstance(value, torch.Tensor) or value.shape != held.shape):
            raise SDPError(f"{where!r} cannot become a {_kind(value)}: {_why_not(owner, name, value, held)}")
    elif isinstance(vars(owner).get(name), Alias):
        alias: Alias = vars(owner)[name]
        raise SDPError(
            f"{where!r} cannot become a {_kind(value)}, because it is {f'{alias.path}.{alias.name}'.lstrip('.')!r} of "
            f"the original model without its gradient, and its graph computes with that. {_REMEDY}"
        )
    elif (isinstance(value, nn.Module) or has_tensor(value)) and (path, name) in state.asked:
        what = "" if isinstance(value, (torch.Tensor, nn.Module)) else " with tensors"
        raise SDPError(
            f"{where!r} cannot become a {type(value).__name__}{what}, because its graph was captured without it. "
            "Register it in the original model and compile it again."
        )
    elif name in ("__class__", "forward") and (path or name != "forward"):
        raise SDPError(f"{where!r} cannot be set: the code of a compiled model is a graph already. {_REMEDY}")
    elif name not in INTERNAL and _is_code(owner, name, value):
        raise SDPError(f"{where!r} is code of the original model, which its graph holds as it was. {_REMEDY}")


def _why_not(owner: nn.Module, name: str, value: Any, held: torch.Tensor | None) -> str:
    """Returns why a tensor of a worker cannot become another value, and what to do.

    Args:
        owner: The original's module.
        name: The name of the tensor in it.
        value: The value.
        held: What the worker holds of the tensor.
    """
    if held is None:
        return (
            "there is no such tensor, because this worker holds nothing of it, or because it was removed, as pruning "
            "and weight norms do. Prune or parametrize the original model, and compile it again."
        )
    full: Any = owner._parameters.get(name, owner._buffers.get(name))
    shape = list(held.shape)
    if full is not None and full.shape != held.shape:
        whole = f"this worker holds a part {shape} of the full {list(full.shape)}. "
        if name in owner._non_persistent_buffers_set:
            return whole + f"{_REMEDY} The worker's own part may be assigned, too."
        return whole + "Load whole values with load_full_state_dict()."
    if not isinstance(value, torch.Tensor):
        return f"its graph computes with a tensor {shape} there. Assign a tensor of this shape. Otherwise: {_REMEDY}"
    return f"its graph was captured with the shape {shape}. Assign a tensor of this shape. Otherwise: {_REMEDY}"


def _kind(value: Any) -> str:
    return f"tensor {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__


def refuse_removal(state: PythonState, path: str, name: str) -> None:
    """Raises `SDPError` if an attribute that is about to be removed belongs to the original."""
    owner = submodule(state.skeleton, path)
    registered = name in owner._modules or name in owner._parameters or name in owner._buffers
    if registered or (path, name) in state.asked:
        where = f"{path}.{name}".lstrip(".")
        raise SDPError(f"{where!r} of a compiled model cannot be removed, because its graph may hold it. {_REMEDY}")


def fixed_tree(path: str) -> SDPError:
    """Returns the error for adding modules to a part, or removing them."""
    where = f"Part {path!r}" if path else "The tree"
    return SDPError(f"{where} of a compiled model cannot get or lose modules, because its graph is fixed. {_REMEDY}")


def _is_code(owner: nn.Module, name: str, value: Any) -> bool:
    """Whether a graph holds what an attribute does, and does not notice another value."""
    if name in vars(owner):
        held = vars(owner)[name]
        return callable(held) and not isinstance(held, FUNCTIONS) and held is not value
    held = getattr(type(owner), name, MISSING)
    return isinstance(held, property) or callable(held)
