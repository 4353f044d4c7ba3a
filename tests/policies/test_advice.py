"""The advice of `NothingToPartition`: whoever follows it gets subnetworks, with a model for each piece of it."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable

import pytest
import torch
from torch import nn

from sdp_compile.capture import capture
from sdp_compile.errors import NothingToPartition
from sdp_compile.planning.making import make_plan
from sdp_compile.policies import AutoPolicy, BlockPolicy, NeuronPolicy, Policy
from sdp_compile.structure.analysis import analyse
from tests.structure.subnetworks import Network, exact_plan, share

Tensor = torch.Tensor
WORKERS = 4


class Recurrent(nn.Module):
    """The hidden axis meets itself in the recurrent weight."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.GRU(5, 12, batch_first=True), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x)[0])


def sequential() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3))


class Stream(nn.Module):
    """Only the axis along the residual stream can be cut; the branch is not 0 without its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.last = nn.Linear(5, 12), nn.Linear(12, 1), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x + x.sin() * self.gate(x).sigmoid())


def branches() -> nn.Module:
    """The inputs are added to what sorts its hidden units: no axis, but two blocks."""
    return Network(
        lambda self, x: self.second(self.first(x, self.one, self.two), self.three, self.four),
        one=nn.Linear(5, 8),
        two=nn.Linear(8, 5),
        three=nn.Linear(5, 8),
        four=nn.Linear(8, 5),
        first=Sorted(),
        second=Sorted(),
    )


class Sorted(nn.Module):
    def forward(self, x: Tensor, up: nn.Module, down: nn.Module) -> Tensor:
        return x + down(up(x).sort(-1).values)


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Policy, str]] = {
    "an axis that meets itself": (Recurrent, (4, 3, 5), NeuronPolicy(), "axes='all' with replicas=3"),
    "a residual stream": (Stream, (4, 5), NeuronPolicy(), "scope='all'"),
    "a residual stream, at any level": (Stream, (4, 5), AutoPolicy(), "scope='all'"),
    "branches alone": (branches, (4, 5), NeuronPolicy(), "BlockPolicy"),
    "no branches": (sequential, (4, 5), BlockPolicy(), "NeuronPolicy"),
    "rules that share all": (sequential, (4, 5), NeuronPolicy(rules={"*": "shared"}), "no rules"),
    "one layer": (lambda: nn.Linear(5, 3), (4, 5), NeuronPolicy(), "coverage=1.0 for data parallelism"),
    "one layer, at any level": (lambda: nn.Linear(5, 3), (4, 5), AutoPolicy(), "coverage=1.0 for data parallelism"),
}


def followed(policy: Policy, piece: str) -> Policy:
    """The policy that a piece of advice describes."""
    if piece in ("BlockPolicy", "NeuronPolicy"):
        return {"BlockPolicy": BlockPolicy, "NeuronPolicy": NeuronPolicy}[piece]()
    if piece == "no rules":
        return policy.replace(rules={})
    changes = dict(change.split("=") for change in re.findall(r"\w+=[\w.']+", piece))
    without_rules = {"rules": {}} if "without rules" in piece else {}
    return policy.replace(**{name: ast.literal_eval(value) for name, value in changes.items()}, **without_rules)


@pytest.mark.parametrize("case", CASES)
def test_advice_that_is_followed_works(case: str) -> None:
    build, shape, policy, expected = CASES[case]
    x = torch.randn(shape)
    analysis = analyse(capture(build(), (x,)))
    with pytest.raises(NothingToPartition) as raised:
        make_plan(analysis, policy, WORKERS)
    pieces = re.split(r", or |, ", str(raised.value).rpartition(" Use ")[2].removesuffix("."))
    assert expected in pieces
    assert str(raised.value).count(" Use ") == 1
    for piece in pieces:
        other = followed(policy, piece)
        if "data parallelism" in piece:
            assert not make_plan(analysis, other, WORKERS).families
        else:
            assert share(exact_plan(build(), (x,), other)) < 1
