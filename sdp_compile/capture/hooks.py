"""The objects that forward hooks of a model keep what they collect in."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

from torch import nn
from torch.utils import _pytree as pytree


def hook_objects(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yields the objects, apart from modules, that the forward hooks of a model are methods of, with the hook's place.

    A function has none, but what it encloses, and a method of a module of the model works on that module.
    """
    for path, module in model.named_modules():
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            for value in _behind(hook):
                yield f"forward hook {f'of module {path!r}' if path else 'of the model'}", value


def holds_no_module(value: Any) -> bool:
    """Whether an object can be shared with a copy of the model: it refers to no module that the copy has of its own."""
    return not any(isinstance(item, nn.Module) for item in pytree.tree_leaves(list(vars(value).values())))


def _behind(hook: Any) -> Iterator[Any]:
    if isinstance(hook, partial):
        for value in (hook.func, *hook.args, *hook.keywords.values()):
            yield from _behind(value)
    elif isinstance(hook, MethodType):
        yield from _behind(hook.__self__)
    elif not isinstance(hook, (nn.Module, FunctionType, BuiltinFunctionType, type)) and hasattr(hook, "__dict__"):
        yield hook
