"""Models for the inspector's tests, captured once each, analysed and planned."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

from sdp_compile.capture import capture
from sdp_compile.inspector import Subject
from sdp_compile.planning.making import make_plan
from sdp_compile.policies import resolve_policy
from sdp_compile.structure.analysis import Analysis, analyse
from tests.inspector.models import Hostile, Tiny
from tests.library_models import MODELS


def analysed(model: nn.Module, example: Any) -> Analysis:
    return analyse(capture(model, example))


def planned(analysis: Analysis, policy: str, workers: int, **fields: Any) -> Subject:
    return Subject(analysis, make_plan(analysis, resolve_policy(policy, **fields), workers))


@cache
def _tiny(layers: int) -> Analysis:
    return analysed(Tiny(layers), (torch.zeros(2, 5, dtype=torch.long),))


@cache
def _library(name: str) -> Analysis:
    model, args, kwargs = MODELS[name]()
    return analysed(model, kwargs or args)


def tiny(policy: str = "neuron", workers: int = 4, layers: int = 3, **fields: Any) -> Subject:
    return planned(_tiny(layers), policy, workers, **fields)


def library(name: str, policy: str, workers: int = 4, **fields: Any) -> Subject:
    return planned(_library(name), policy, workers, **fields)


@cache
def hostile() -> Subject:
    return planned(analysed(Hostile(), (torch.randn(2, 8),)), "neuron", 4)
