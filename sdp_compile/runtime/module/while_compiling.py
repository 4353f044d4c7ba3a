"""What a call of a compiled module asks of its programs while TorchDynamo traces it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from sdp_compile.runtime.module.programs import Shapes, programs_of


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
