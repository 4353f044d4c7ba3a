"""What the inspector's tests look at: models captured, analysed and planned, each captured once."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

from sdp_compile.capture import capture
from sdp_compile.inspector import Subject
from sdp_compile.ir.program import Capture
from sdp_compile.planning.plan import make_plan
from sdp_compile.policies import resolve_policy
from sdp_compile.structure.analysis import analyse
from sdp_compile.structure.blocks.finding import Blocks
from sdp_compile.structure.families import Structure
from tests.inspector.models import Hostile, Tiny
from tests.models import MODELS

Analysed = tuple[Capture, Structure, Blocks]


def analysed(model: nn.Module, example: Any) -> Analysed:
    captured = capture(model, example)
    return captured, *analyse(captured)


def planned(found: Analysed, policy: str, workers: int, **fields: Any) -> Subject:
    captured, structure, _ = found
    return Subject(*found, make_plan(captured, structure, resolve_policy(policy, **fields), workers))


@cache
def _tiny(layers: int) -> Analysed:
    return analysed(Tiny(layers), (torch.zeros(2, 5, dtype=torch.long),))


@cache
def _library(name: str) -> Analysed:
    model, args, kwargs = MODELS[name]()
    return analysed(model, kwargs or args)


def tiny(policy: str = "neuron", workers: int = 4, layers: int = 3, **fields: Any) -> Subject:
    return planned(_tiny(layers), policy, workers, **fields)


def library(name: str, policy: str, workers: int = 4, **fields: Any) -> Subject:
    return planned(_library(name), policy, workers, **fields)


@cache
def hostile() -> Subject:
    return planned(analysed(Hostile(), (torch.randn(2, 8),)), "neuron", 4)
