"""The rules' promise: whatever a model does, a subnetwork equals the masked original; at worst it cuts less."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sdp_compile import CaptureError, NeuronPolicy, NothingToPartition, sdp_compile
from sdp_compile.capture import capture
from sdp_compile.structure.analysis import analyse
from sdp_compile.structure.operators import Context, Value, rule
from tests.oracle import assert_exact, randomise

Tensor = torch.Tensor


class Between(nn.Module):
    """A function of the hidden activations between two linear layers."""

    def __init__(self, function: Callable[[Tensor], Tensor], hidden: int = 12, out: int | None = None) -> None:
        super().__init__()
        self.up = nn.Linear(5, hidden)
        self.down = nn.Linear(out or hidden, 5)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.function(self.up(x)))


# What stands between the layers, and whether the hidden axis can still be cut.
CASES: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "gelu": (F.gelu, True),
    "sigmoid is not 0 at 0": (torch.sigmoid, True),
    "gate": (lambda h: h * torch.sigmoid(h), True),
    "in place": (lambda h: h.mul_(2).relu_(), True),
    "softmax": (lambda h: h.softmax(-1), False),
    "layer norm": (lambda h: F.layer_norm(h, (12,)), True),
    "layer norm of sigmoids": (lambda h: F.layer_norm(torch.sigmoid(h), (12,)), False),
    "mean over zeros": (lambda h: h - h.mean(-1, keepdim=True), True),
    "mean over sigmoids": (lambda h: h - torch.sigmoid(h).mean(-1, keepdim=True), False),
    "sum over zeros": (lambda h: h + h.sum(-1, keepdim=True), True),
    "sum over sigmoids": (lambda h: h * torch.sigmoid(h).sum(-1, keepdim=True), False),
    "norm": (lambda h: h / (1 + torch.linalg.vector_norm(h, dim=-1, keepdim=True)), True),
    "division by itself": (lambda h: (h + 1) / (h.abs() + 1), True),
    "view and back": (lambda h: h.view(*h.shape[:-1], 3, 4).flatten(-2), True),
    "transpose inside": (lambda h: h.view(*h.shape[:-1], 3, 4).transpose(-1, -2).flatten(-2), True),
    "halves swapped": (lambda h: torch.cat([h[..., 6:], h[..., :6]], -1), True),
    "chunks multiplied": (lambda h: torch.cat([h[..., :6] * h[..., 6:]] * 2, -1), True),
    "rolled": (lambda h: h.roll(1, -1), True),
    "one index picked": (lambda h: h * h[..., :1], True),
    "sorted": (lambda h: h.sort(-1).values, False),
    "cumulative": (lambda h: h.cumsum(-1), True),
    "a constant of full size": (lambda h: h * torch.arange(12, dtype=h.dtype), False),
    "expanded ones": (lambda h: h * torch.ones(1, dtype=h.dtype).expand(12), True),
    "zeros made from sizes": (lambda h: h + torch.zeros(h.shape[0], 12, dtype=h.dtype), True),
    "padded": (lambda h: F.pad(h, (0, 3))[..., :12], True),
    "outer product": (lambda h: (h.unsqueeze(-1) * h.unsqueeze(-2)).sum(-1), True),
    "contraction of sigmoids": (lambda h: torch.sigmoid(h) * (torch.sigmoid(h) @ torch.sigmoid(h).t()).sum(), False),
    "einsum": (lambda h: torch.einsum("bi,bi->b", h, torch.sigmoid(h)).unsqueeze(-1) * h, True),
    "logarithm": (lambda h: torch.log(h.abs() + 1), True),
    "group norm": (lambda h: F.group_norm(h, 4), True),
    "index": (lambda h: h[..., torch.arange(11, -1, -1)], True),
    "where": (lambda h: torch.where(h > 0, h, torch.zeros_like(h)), True),
    "masked fill": (lambda h: h.masked_fill(h > 0.5, 1.0), True),
    "glu": (lambda h: torch.cat([F.glu(h), F.glu(h)], -1), True),
    "stack and unbind": (lambda h: torch.stack([h, -h]).unbind(0)[1], True),
    "a mask over two dimensions": (lambda h: h + h[h > 0].sum(), False),
    "root mean square": (lambda h: h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6), True),
    "mean over heads and batch": (lambda h: h + h.view(-1, 3, 4).mean((0, 1)).repeat(3), True),
    "variance over it": (lambda h: h * h.var(-1, keepdim=True), False),
    "variance over the batch": (lambda h: h * h.std(0, keepdim=True), True),
    "reshaped like another": (lambda h: h.view(-1, 3, 4).sin().reshape_as(h), True),
    "hard swish": (F.hardswish, True),
    "where with numbers": (lambda h: torch.where(h > 0, h, 0.0) + torch.where(h > 0, 0.0, h), True),
    "repeat and take half": (lambda h: h.repeat(1, 2)[..., :12], True),
}


def cut_axes(model: nn.Module, inputs: tuple[Any, ...]) -> set[str]:
    structure = analyse(capture(model, inputs)).structure
    return {family.name for family in structure.families}


@pytest.mark.parametrize("case", CASES)
def test_what_stands_between_two_linear_layers(case: str) -> None:
    function, cuttable = CASES[case]
    model = randomise(Between(function).double())
    x = torch.randn(4, 5, dtype=torch.double)
    names = {name.partition("[")[0] for name in cut_axes(model, (x,))}
    assert ("up.weight" in names) == cuttable
    if not cuttable:
        with pytest.raises(NothingToPartition):
            sdp_compile(model, NeuronPolicy(replicas=1), (x,), workers=2, rank=0)
        return
    for rank in range(2):
        module = sdp_compile(model, NeuronPolicy(replicas=1), (x,), workers=2, rank=rank)
        assert_exact(module, model, module.plan, rank, (x,), {})


class Convolutions(nn.Module):
    def __init__(self, groups: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding="same")
        self.grouped = nn.Conv2d(8, 16, 3, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.up = nn.ConvTranspose2d(16, 8, 2, groups=groups)
        self.head = nn.Linear(8 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm(self.grouped(self.first(x))))
        x = F.adaptive_avg_pool2d(self.up(x), 2)
        return self.head(x.flatten(1))


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
@pytest.mark.parametrize("axes", ["disjoint", "all"])
def test_convolutions(groups: int, axes: Any) -> None:
    model = randomise(Convolutions(groups).double())
    x = torch.randn(2, 3, 6, 6, dtype=torch.double)
    policy = NeuronPolicy(replicas=3 if axes == "all" else 2, axes=axes)
    for rank in (0, 3):
        module = sdp_compile(model, policy, (x,), workers=4, rank=rank)
        assert module.plan.memory(rank).parameters < module.plan.memory().parameters
        assert_exact(module, model, module.plan, rank, (x,), {})


@torch.library.custom_op("sdp_tests::triple", mutates_args=())
def triple(x: Tensor) -> Tensor:
    return x * 3


@torch.library.custom_op("sdp_tests::quadruple", mutates_args=())
def quadruple(x: Tensor) -> Tensor:
    return x * 4


for operator, factor in ((triple, 3), (quadruple, 4)):
    operator.register_fake(torch.empty_like)
    operator.register_autograd(lambda ctx, gradient, factor=factor: gradient * factor)


def test_an_operator_without_a_rule_freezes_and_says_so() -> None:
    model = randomise(Between(lambda h: triple(h)).double())
    structure = analyse(capture(model, (torch.randn(4, 5, dtype=torch.double),))).structure
    assert not structure.axes
    frozen = next(f for f in structure.frozen if f.parameter == "up.weight" and f.dim == 0)
    assert "triple" in frozen.operator and "no rule" in frozen.reason
    assert "test_rules.py" in frozen.source


def test_a_user_adds_a_rule_with_the_decorator() -> None:
    @rule(torch.ops.sdp_tests.quadruple.default)
    def same(ctx: Context, x: Value, **_: Any) -> Value:
        return Value(x.dims, tuple(x.is_zero(d) for d in range(x.ndim)))

    model = randomise(Between(lambda h: quadruple(h)).double())
    x = torch.randn(4, 5, dtype=torch.double)
    module = sdp_compile(model, NeuronPolicy(replicas=1), (x,), workers=2, rank=1)
    assert module.plan.local_shape("up.weight", 1) == (6, 5)
    assert_exact(module, model, module.plan, 1, (x,), {})


class Tied(nn.Module):
    """One weight as an embedding and as the output layer: its vocabulary stays whole."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 6)
        self.body = Between(F.gelu)
        self.inner = nn.Linear(6, 5)
        self.outer = nn.Linear(5, 6)
        self.head = nn.Linear(6, 10, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.outer(self.body(self.inner(self.embedding(tokens)))))


def test_tied_parameters_are_one() -> None:
    model = randomise(Tied().double())
    tokens = torch.randint(0, 10, (2, 4))
    module = sdp_compile(model, NeuronPolicy(replicas=1, scope="all"), (tokens,), workers=2, rank=0)
    assert module.embedding.weight is module.head.weight
    assert torch.equal(module.plan.mask("head.weight", 0), module.plan.mask("embedding.weight", 0))
    assert_exact(module, model, module.plan, 0, (tokens,), {})


class Rescaled(nn.Module):
    """Divides its own weight in evaluation mode, as RWKV does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            with torch.no_grad():
                self.layer.weight.view(-1).div_(2)
        return self.layer(x)


def test_a_forward_that_changes_its_parameters_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"'layer\.weight' in place.*test_rules\.py"):
        sdp_compile(Rescaled(), NeuronPolicy(), (torch.randn(2, 4),), workers=2, rank=0)
