"""The conditions on input sizes under which a graph is what the model does.

Tracing passes through Python code that compares sizes, and follows one of its paths. torch.export returns each
condition that decided. It says nothing of those that follow from a free size being at least 2, which it assumes, so
these limits become conditions too.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from sdp_compile.errors import CaptureError

_SIZE = re.compile(r"(L(?:\[[^\]]+\]|\.\w+(?!\())+)\.size\(\)\[(\d+)\]")
_PATH = re.compile(r"\bL[\[.]")
_FIXED = re.compile(r"L[^ ]+\.size\(\)\[\d+\] == \d+|\d+ == L[^ ]+\.size\(\)\[\d+\]")


def size_guards(
    model: nn.Module, exported: ExportedProgram, shapes: Mapping[int, tuple[str, torch.Size]]
) -> tuple[str, ...]:
    """Returns conditions such as ``x.shape[1] != 7`` that hold for every call that the graph is right for.

    Conditions that fix one size are left out: the shapes of the inputs say the same.

    Args:
        model: The model that was exported.
        exported: The result of torch.export.
        shapes: For each flat tensor input, by index, its name and its shape with free sizes.

    Raises:
        CaptureError: A condition is about something else than the size of an input.
    """
    count = exported.call_spec.in_spec.num_leaves
    args, kwargs = pytree.tree_unflatten(list(range(count)), exported.call_spec.in_spec)
    arguments = inspect.signature(model.forward).bind(*args, **kwargs).arguments

    def renamed(size: re.Match[str]) -> str:
        index = eval(size[1], {"L": arguments})
        return f"{shapes[index][0]}.shape[{size[2]}]"

    guards = []
    for guard in exported._guards_code or ():
        if _FIXED.fullmatch(guard):
            continue
        try:
            guards.append(_SIZE.sub(renamed, guard))
        except Exception:  # a path to something else than a tensor
            guards.append(guard)
        if _PATH.search(guards[-1]):
            raise CaptureError(
                f"{type(model).__name__} cannot be captured: it takes this path only if {guard}, which is no "
                "condition on the size of an input tensor. Compute the decision from the sizes of the inputs."
            )
    return (*dict.fromkeys(guards), *_limits(exported, shapes))


def _limits(exported: ExportedProgram, shapes: Mapping[int, tuple[str, torch.Size]]) -> list[str]:
    """Returns the least and greatest value of each free size; sizes with the same symbol once."""
    limits: dict[str, str] = {}
    for name, shape in shapes.values():
        for dim, size in enumerate(shape):
            symbol: Any = None if isinstance(size, int) else size.node.expr
            if symbol is None or not symbol.is_symbol or str(symbol) in limits:
                continue
            known = exported.range_constraints.get(symbol)
            lower, upper = (2, None) if known is None else (known.lower, known.upper)
            end = f" <= {int(upper)}" if upper is not None and upper.is_Integer else ""
            limits[str(symbol)] = f"{int(lower)} <= {name}.shape[{dim}]{end}"
    return list(limits.values())
