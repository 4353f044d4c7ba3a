"""Turns the user's example inputs into the positional and keyword arguments of one call."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from sdp_compile.capture.kinds import special_kind
from sdp_compile.errors import CaptureError


@dataclass(frozen=True)
class Call:
    """The arguments of one call of the model."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def map_tensors(self, function: Callable[[torch.Tensor], Any]) -> Call:
        """Returns the call with ``function`` applied to every tensor, also inside containers."""
        args, kwargs = pytree.tree_map_only(torch.Tensor, function, (self.args, self.kwargs))
        return Call(args, kwargs)

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All tensors, also those inside containers, in the order of the arguments."""
        return [leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(leaf, torch.Tensor)]

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """The dtypes of `tensors`."""
        return tuple(tensor.dtype for tensor in self.tensors)


def example_call(model: nn.Module, example_inputs: Any, method: str = "forward") -> Call:
    """Returns the call that ``example_inputs`` stand for.

    Args:
        model: The model whose method they are for.
        example_inputs: A tuple or list of positional arguments, a mapping of keyword arguments, one tensor, or None
            for a method without required arguments.
        method: The name of the method.

    Raises:
        CaptureError: The inputs do not fit the method's signature; the error names the parameter.
    """
    signature = inspect.signature(getattr(model, method))
    name = type(model).__name__
    source = "example_inputs" if method == "forward" else f"methods[{method!r}]"
    if example_inputs is None:
        example_inputs = ()
        if _required(signature):
            raise CaptureError(
                f"{name} cannot be captured without example inputs: {method}{signature} needs "
                f"{', '.join(map(repr, _required(signature)))}. Pass {source}=(tensor, ...) for positional or "
                f"{source}={{'name': tensor}} for keyword arguments, with the shapes and dtypes of training."
            )
    if isinstance(example_inputs, torch.Tensor):
        call = Call((example_inputs,), {})
    elif isinstance(example_inputs, Mapping):
        # Tokenizers return mappings other than dict.
        call = Call((), dict(example_inputs))
    elif isinstance(example_inputs, (tuple, list)):
        call = Call(tuple(example_inputs), {})
    else:
        raise CaptureError(
            f"{source} for {name} must be a tuple of positional arguments, a mapping of keyword arguments or one "
            f"tensor, not {type(example_inputs).__name__}."
        )
    if any(not isinstance(key, str) for key in call.kwargs):
        raise CaptureError(f"The keywords of {source} for {name} must be strings, got {list(call.kwargs)}.")
    try:
        signature.bind(*call.args, **call.kwargs)
    except TypeError as error:
        raise CaptureError(
            f"{source} do not fit {name}.{method}{signature}: {error}. "
            f"{_given(call)}. Pass exactly the arguments of one training call."
        ) from None
    for leaf in pytree.tree_leaves((call.args, call.kwargs), is_leaf=lambda value: isinstance(value, PackedSequence)):
        remedy = _remedy(leaf)
        if remedy is not None:
            raise CaptureError(f"{source} for {name} hold a {remedy}")
    return call


def _remedy(leaf: Any) -> str | None:
    """Returns what is wrong with an argument and what to do; None for one that can be captured."""
    if isinstance(leaf, torch.Tensor):
        kind = special_kind(leaf)
        if kind == "nested tensor":
            return f"{kind}, which a graph cannot take. Pass a padded tensor and the lengths or a mask."
        if kind is not None and kind.startswith("tensor of"):
            return f"{kind}, whose own behaviour a graph would lose. Pass a plain tensor, as_subclass(torch.Tensor)."
        if kind not in (None, "sparse_coo tensor"):
            return f"{kind}, which a graph cannot take. Pass a dense tensor, or to_sparse_coo() of it."
    elif isinstance(leaf, PackedSequence):
        return (
            "PackedSequence, whose sizes are the values of the lengths. Pass the padded tensor and the lengths, and "
            "mask the padding."
        )
    elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
        return (
            f"{type(leaf).__qualname__}, a dataclass in which torch does not look for tensors. Call "
            f"torch.export.register_dataclass({type(leaf).__name__}) once, right after the class, or pass a dict or "
            "tuple."
        )
    elif isinstance(leaf, nn.Module):
        return f"module, {type(leaf).__name__}, which a graph cannot take. Give it to the model's constructor."
    return None


def with_batch(call: Call) -> Call | None:
    """Returns ``call`` with a batch of size 1 repeated to 2, or None if its batch is larger.

    Capture specialises dimensions of size 1, and the graph would then run for that size only. The first tensor's
    leading dimension is the batch. A leading 1 beside a larger batch is a broadcast dimension and stays.
    """
    batched = [tensor for tensor in call.tensors if tensor.ndim > 0]
    if not batched or batched[0].shape[0] != 1:
        return None
    return call.map_tensors(
        lambda tensor: tensor.repeat(2, *([1] * (tensor.ndim - 1))) if tensor.ndim and tensor.shape[0] == 1 else tensor
    )


def grad_answer(tensor: torch.Tensor) -> int:
    """Returns what a tensor answers to questions about gradients: 0 if it requires none, 1 as a leaf, 2 as a result."""
    return int(tensor.requires_grad) + int(not tensor.is_leaf)


def requiring(call: Call, grad: Sequence[int]) -> Call:
    """Returns ``call`` with tensors that give the answers after the first in ``grad``; see `grad_answer`."""
    wanted = iter(grad[1:])
    return call.map_tensors(lambda tensor: answering(tensor, next(wanted)))


def answering(tensor: torch.Tensor, answer: int) -> torch.Tensor:
    """Returns a tensor like ``tensor`` that gives this answer; see `grad_answer`."""
    leaf = tensor.detach().requires_grad_(answer > 0)
    with torch.enable_grad():
        return leaf.clone() if answer > 1 else leaf


def describe(value: Any) -> str:
    """Returns a short text for one argument: dtype and shape of a tensor, the parts of a container, or the value."""
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {describe(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(map(describe, value)) + ")"
    text = repr(value)
    return text if len(text) <= 60 else f"<{type(value).__name__}>"


def _given(call: Call) -> str:
    parts = [describe(value) for value in call.args]
    parts += [f"{key}={describe(value)}" for key, value in call.kwargs.items()]
    return f"Given: ({', '.join(parts)})"


def _required(signature: inspect.Signature) -> list[str]:
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [
        name
        for name, parameter in signature.parameters.items()
        if parameter.default is inspect.Parameter.empty and parameter.kind not in variadic
    ]
