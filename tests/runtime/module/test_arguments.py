"""Arguments of every kind of parameter of forward, and inputs that are no plain tensors."""

from __future__ import annotations

import dataclasses
import enum
from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from sdp_compile import NeuronPolicy, sdp_compile
from sdp_compile.errors import SDPError
from tests.oracle import assert_exact, randomise
from tests.runtime.module.small import compiled


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Linear(5, 16), nn.Linear(4, 16), nn.Linear(16, 2)

    def both(self, x: Any, y: Any) -> torch.Tensor:
        return self.o((self.a(x) + self.b(y)).relu())


class Rest(Layers):
    def forward(self, *inputs: Any) -> torch.Tensor:
        return self.both(*inputs)


class NamedAndRest(Layers):
    def forward(self, x: Any, *L: Any, scale: float = 2.0) -> torch.Tensor:
        return self.both(x, L[0]) * scale


class Keywords(Layers):
    def forward(self, **named: Any) -> torch.Tensor:
        return self.both(named["x"], named["L"])


class KeywordOnly(Layers):
    def forward(self, *, x: Any, args: Any, scale: float = 2.0) -> torch.Tensor:
        return self.both(x, args) * scale


class PositionalOnly(Layers):
    def forward(self, x: Any, /, y: Any = None, **rest: Any) -> torch.Tensor:
        return self.both(x, y)


CALLS = {
    "rest": (Rest, ("x", "y"), ()),
    "named and rest": (NamedAndRest, ("x", "y"), ()),
    "keywords": (Keywords, (), ("x", "L")),
    "keyword only": (KeywordOnly, (), ("x", "args")),
    "positional only": (PositionalOnly, ("x", "y"), ()),
}


def tensors(rows: int, names: tuple[str, ...]) -> list[torch.Tensor]:
    return [torch.randn(rows, 5 if name == "x" else 4, dtype=torch.float64) for name in names]


@pytest.mark.parametrize("name", CALLS)
def test_every_kind_of_parameter(name: str) -> None:
    kind, positional, keywords = CALLS[name]

    model = randomise(kind().double())
    inputs: Any = dict(zip(keywords, tensors(3, keywords), strict=True)) if keywords else tensors(3, positional)
    module = sdp_compile(model, NeuronPolicy(coverage=0.5), inputs, workers=2, rank=1)
    for rows in (3, 7):
        args, kwargs = tuple(tensors(rows, positional)), dict(zip(keywords, tensors(rows, keywords), strict=True))
        assert_exact(module, model, module.plan, 1, args, dict(reversed(kwargs.items())))
    with pytest.raises(SDPError, match="called differently than captured"):
        module(*args, torch.ones(1), **kwargs)
    with pytest.raises(SDPError, match="called differently than captured"):
        module(*args[:-1], **dict(list(kwargs.items())[:-1]))
    with pytest.raises(SDPError, match="'unknown' was not part of the capture"):
        module(*args, **kwargs, unknown=1)


def test_sizes_of_the_rest_must_agree() -> None:
    class Sum(nn.Linear):
        def forward(self, *rows: torch.Tensor) -> torch.Tensor:
            return super().forward(torch.stack(rows).sum(0)) if rows[0].shape[0] > 2 else rows[0]

    module = compiled(Sum(6, 6), [torch.randn(4, 6)] * 3)
    assert module(*[torch.randn(5, 6)] * 3).shape == (5, 6)
    with pytest.raises(SDPError, match="must equal"):
        module(torch.randn(5, 6), torch.randn(4, 6), torch.randn(5, 6))
    rows = torch.randn(2, 6)
    assert torch.equal(module(rows, rows, rows), rows), "the other path"


@dataclasses.dataclass
class Batch:
    x: torch.Tensor
    y: torch.Tensor


@dataclasses.dataclass
class Result:
    loss: torch.Tensor
    logits: torch.Tensor


Pair = namedtuple("Pair", "x y")


@pytest.mark.parametrize("kind", [Batch, Pair])
def test_registered_dataclasses_and_named_tuples_go_in_and_come_out(kind: Any) -> None:
    class Model(Layers):
        def forward(self, batch: Any) -> Any:
            logits = self.both(batch.x, batch.y)
            return Result(logits.square().mean(), logits)

    for one in (Batch, Result):
        if one not in pytree.SUPPORTED_NODES:
            torch.export.register_dataclass(one)
    model = randomise(Model().double())
    module = sdp_compile(model, NeuronPolicy(coverage=0.5), (kind(*tensors(3, ("x", "y"))),), workers=2, rank=0)
    inputs = (kind(*tensors(6, ("x", "y"))),)
    assert type(module(*inputs)) is Result
    assert_exact(module, model, module.plan, 0, inputs, {})


class Kind(enum.Enum):
    ONE = 1
    TWO = 2


def test_a_member_of_an_enum_is_fixed() -> None:
    class Model(Layers):
        def forward(self, x: torch.Tensor, y: torch.Tensor, kind: Kind) -> torch.Tensor:
            return self.both(x, y) * (1 if kind is Kind.ONE else 3)

    model = randomise(Model().double())
    module = compiled(model, (*tensors(3, ("x", "y")), Kind.ONE))
    inputs = tensors(3, ("x", "y"))
    assert torch.equal(module(*inputs, Kind.ONE), model(*inputs, Kind.ONE))
    with pytest.raises(SDPError, match=r"Kind\.TWO.* where .*Kind\.ONE.* was captured"):
        module(*inputs, Kind.TWO)


def test_a_sparse_input_multiplies_what_is_cut() -> None:
    class Graph(Layers):
        def forward(self, x: torch.Tensor, adjacency: torch.Tensor) -> torch.Tensor:
            return adjacency @ self.o(torch.sparse.mm(adjacency, self.a(x)).relu())

    model = randomise(Graph().double())
    links = torch.eye(6, dtype=torch.float64)
    module = sdp_compile(model, NeuronPolicy(coverage=0.5), (*tensors(6, ("x",)), links.to_sparse()), workers=2, rank=1)
    assert "a.weight[0]" in {family.name for family in module.plan.families}
    for density in (0.1, 0.9):
        adjacency = (torch.rand(6, 6, dtype=torch.float64) < density).double().to_sparse()
        assert_exact(module, model, module.plan, 1, (*tensors(6, ("x",)), adjacency), {})


@pytest.mark.parametrize("policy", [NeuronPolicy(coverage=0.5), NeuronPolicy(coverage=0.5, masking="backward")])
def test_tensors_without_elements(policy: NeuronPolicy) -> None:
    class Model(Layers):
        def __init__(self) -> None:
            super().__init__()
            self.dummy, self.rows = nn.Parameter(torch.empty(0)), nn.Parameter(torch.empty(0, 5))
            self.none = nn.Linear(5, 0)
            self.register_buffer("buffer", torch.empty(2, 0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            wide = torch.cat([self.a(x.to(self.dummy.device)).relu(), self.none(x)], 1)
            return self.o(wide) + (self.rows @ x.t()).sum()

    model = randomise(Model().double())
    for rank in range(2):
        module = sdp_compile(model, policy, tensors(3, ("x",)), workers=2, rank=rank)
        assert module.plan.families and list(module.state_dict()) == list(model.state_dict())
        assert_exact(module, model, module.plan, rank, tuple(tensors(4, ("x",))), {})
