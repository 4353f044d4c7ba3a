"""What compiled code does about variables outside of the model, which may change without notice.

TorchDynamo guards numbers that are global variables or attributes of classes, since the code that it traces reads them.
All else is compared when the code runs: an operator raises an error if the graph is not the right one any more.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any

import torch

from sdp_compile.ir.plain import is_number
from sdp_compile.ir.reads import DEFAULTS, Read

Reader = Callable[[], Any]
_NAMES = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def readers_of(reads: Iterable[Read]) -> list[Reader]:
    """Returns functions that read numbers outside of the model, in code that TorchDynamo can trace and guard."""
    return [reader for read in reads if (reader := _reader(read)) is not None]


def is_compared(reads: Iterable[Read]) -> bool:
    """Whether something is read that has no function of `readers_of`, and may change without notice."""
    return any(read.kind not in ("attribute", "switch", "function") and _reader(read) is None for read in reads)


def _reader(read: Read) -> Reader | None:
    module, _, path = read.owner.partition(":")
    text = f"{path}.{read.name}" if path else read.name
    if read.kind != "global" or not is_number(read.now(None)):  # type: ignore[arg-type]  # needs no model
        return None
    if read.owner == DEFAULTS:
        return torch.get_default_dtype
    if module not in sys.modules or not _NAMES.fullmatch(text) or sys.modules[module].__name__ != module:
        return None
    code = compile(f"lambda: {text}", f"<{read}>", "eval").co_consts[0]
    return FunctionType(code, vars(sys.modules[module]))
