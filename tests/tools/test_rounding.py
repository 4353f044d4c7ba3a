"""What the fuzzer accepts as rounding, and that faults of the same size are still found."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import sdp_compile as sdp
from tools.fuzz.comparison import Verdict, compare
from tools.fuzz.differences import Difference, differences, largest
from tools.fuzz.rounding import Moved

MODEL = """
import torch
from torch import nn
import torch.nn.functional as F


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(5, 16), nn.Linear(16, 3)
        {parts}

    def forward(self, x):
        h = self.up(x)
        {line}
        return self.down(h)


def build():
    return Model(), (torch.randn(8, 5),)


DTYPE = '{dtype}'
POLICY = {{"policy": "neuron", "coverage": 0.5}}
READ = {read}
STEPS = (("train",), ("call", "example"), ("sgd",), ("call", "example"))
"""


def noisy(dtype: str = "float64") -> str:
    """A module with a gradient that is zero but for rounding, which a small deviation makes large."""
    parts = "self.norm = nn.BatchNorm1d(16, eps=1e-30)"
    return MODEL.format(parts=parts, line="h = F.gelu(self.norm(h * 1e-6 + 10))", dtype=dtype, read=())


def judge(text: str, folder: Path, change: Callable[[Any], None] = lambda module: None) -> Verdict:
    """Compares a compiled module, changed after it was compiled, with its original."""

    def compiler(*args: Any, **kwargs: Any) -> Any:
        module = sdp.compile(*args, **kwargs)
        change(module)
        return module

    return compare(text, folder, compiler)


def add_to_gradient(name: str, size: float) -> Callable[[Any], None]:
    def change(module: Any) -> None:
        module.get_parameter(name).register_hook(lambda grad: grad + size * grad.abs().max())

    return change
