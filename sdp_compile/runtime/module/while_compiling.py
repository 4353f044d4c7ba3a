"""What a call of a compiled module asks of its programs while TorchDynamo traces it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch._library.effects import EffectType
from torch.library import custom_op

from sdp_compile.runtime.module.calls import Caller, Shapes
from sdp_compile.runtime.module.outside import Reader
from sdp_compile.runtime.module.programs import programs_of

_TAGS = [torch.Tag.flexible_layout, *filter(None, [getattr(torch.Tag, "cudagraph_unsafe", None)])]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def chosen_while_compiling(
    number: int,
    key: str,
    dtypes: tuple[torch.dtype, ...],
    autocast: torch.dtype | None,
    grad: tuple[int, ...],
    shapes: Shapes | None,
    settings: object,
) -> str:
    """Calls `Programs.choose` while TorchDynamo traces a call; the caller guards everything it depends on.

    It runs in a thread of its own, because a capture must not see the state of the trace that is in progress.

    Args:
        number: The module's number.
        key: See `Programs.choose`, as for the following.
        dtypes: The dtypes.
        autocast: The dtype of autocast.
        grad: Answers about gradients.
        shapes: The shapes.
        settings: The version of the module's plain attributes and its switches, so that TorchDynamo guards them.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(programs_of(number).choose, key, dtypes, autocast, grad, shapes).result()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def numbers_of(number: int, name: str, version: int) -> tuple[float, ...]:
    """Returns what `Programs.numbers` of a module says, also while TorchDynamo traces a call.

    Args:
        number: The module's number.
        name: The name of the program.
        version: The version of the module's plain attributes, so that TorchDynamo guards it.
    """
    return programs_of(number).numbers(name)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def read_now(number: int, name: str, version: int) -> tuple[Any, ...]:
    """Returns what the functions that read for a program return now, as constants while TorchDynamo traces a call.

    Args:
        number: The module's number.
        name: The name of the program.
        version: The version of the module's plain attributes, so that TorchDynamo guards it.
    """
    caller: Caller = getattr(programs_of(number).module, f"_caller_{name}")
    return tuple([read() for read in caller.readers])


def guard(readers: Sequence[Reader], values: Sequence[Any]) -> None:
    """Makes TorchDynamo trace again when functions return something else than they do now, by comparing it."""
    for read, value in zip(readers, values, strict=True):
        if read() != value:
            return


@custom_op("sdp_compile::unchanged", mutates_args=(), tags=tuple(_TAGS))
def unchanged(inputs: list[Tensor], module: int, name: str, numbers: list[float]) -> None:
    """Raises `SDPError` if a graph is no longer right for what it depends on outside of the model.

    Args:
        inputs: The inputs of the graph, which say when this is called.
        module: The module's number.
        name: The name of the program.
        numbers: The numbers that the graph takes after the inputs.
    """
    programs_of(module).check_unchanged(name, tuple(numbers))


@unchanged.register_fake
def _(inputs: list[Tensor], module: int, name: str, numbers: list[float]) -> None:
    return None


unchanged.register_effect(EffectType.ORDERED)
