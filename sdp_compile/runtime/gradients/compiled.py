"""Launches reductions from inside a compiled backward, where autograd's hooks come too late.

TorchDynamo sees the marks of a graph as an autograd function, the identity in forward. Its backward calls an operator
of which compilers know only that its calls must happen. It hands the gradients to the module's gradient engine, which
issues what is ready in the same order as in eager mode: no compiler option can change the order of collectives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch._library.effects import EffectType
from torch.library import Library

from sdp_compile import ops


class Launching(Protocol):
    """What compiled graphs hand gradients to: a gradient engine."""

    def launch(self, number: int, gradients: Sequence[Tensor]) -> None:
        """Called by a compiled backward with the gradients of the parameters in round ``number``."""


_engines: WeakValueDictionary[int, Launching] = WeakValueDictionary()
"""The engines by the number of their module, which compiled code contains."""


def launched_by(module: int, engine: Launching) -> None:
    """Lets the graphs of the module with this number launch reductions of ``engine``."""
    _engines[module] = engine


def _launch(gradients: list[Tensor], module: int, number: int) -> None:
    engine = _engines.get(module)
    # A replayed CUDA graph would repeat the copies and collectives of one call, and the engine would not hear of it.
    if engine is not None and not _is_recorded(gradients):
        engine.launch(number, gradients)


def _is_recorded(gradients: list[Tensor]) -> bool:
    """Whether what is called now becomes part of a CUDA graph. Then gradients are averaged after backward."""
    return any(one.is_cuda for one in gradients) and torch.cuda.is_current_stream_capturing()


# `torch.library.custom_op` wraps the function several times, for derivatives that this operator does not have. Any
# layout will do: a copy would not be the tensor that autograd gets.
_NAME = "sdp_compile::launch"
_library = Library("sdp_compile", "FRAGMENT")
_TAGS = (torch.Tag.flexible_layout, torch.Tag.pt2_compliant_tag)
_library.define("launch(Tensor[] gradients, int module, int round) -> ()", tags=_TAGS)
# Disabled, so that a backward inside of a compiled function does not compile the engine.
_library.impl("launch", torch.compiler.disable(_launch), "CompositeExplicitAutograd")
torch.library.register_fake(_NAME, lambda gradients, module, round: None, lib=_library)
_library._register_effectful_op(_NAME, EffectType.ORDERED)


class _Mark(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, module: int, number: int, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.module, ctx.number = module, number
        return tuple(parameter.view_as(parameter) for parameter in parameters)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        torch.ops.sdp_compile.launch(list(gradients), ctx.module, ctx.number)
        return (None, None, *gradients)


def with_launches(names: Mapping[str, Any], module: int) -> dict[str, Any]:
    """Returns the global names of a graph's code, with marks that launch reductions of ``module`` when compiled."""
    mark = _mark(module)
    return {name: mark if value is ops.complete_round else value for name, value in names.items()}


def _mark(module: int) -> Callable[..., tuple[Tensor, ...]]:
    def complete_round(*parameters: Tensor, round: int) -> tuple[Tensor, ...]:
        if torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting() and torch.is_grad_enabled():
            result: tuple[Tensor, ...] = _Mark.apply(module, round, *parameters)
            return result
        return ops.complete_round(*parameters, round=round)

    return complete_round
