"""Residual additions in many words, and models whose branches have several outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

Tensor = torch.Tensor
Style = Callable[["Net", Tensor], Any]


class Net(nn.Module):
    """A first layer ``c``, and one function of its output, with a few layers to use in it."""

    def __init__(self, style: Style) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d, self.e = (nn.Linear(6, 6) for _ in range(5))
        self.norm = nn.LayerNorm(6)
        self.scale = nn.Parameter(torch.ones(6))
        self.style = style

    def f(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))

    def h(self, x: Tensor) -> Tensor:
        return torch.relu(self.a(x))

    def forward(self, x: Tensor) -> Any:
        return self.style(self, self.c(x))


def in_place(operator: str, *rest: Any, **options: Any) -> Style:
    """``x.operator_(f)``, whose result is read through ``x``."""

    def style(net: Net, x: Tensor) -> Tensor:
        y = x.clone()
        getattr(y, operator)(*rest, net.f(x), **options)
        return y

    return style


def lerp_in_place(net: Net, x: Tensor) -> Tensor:
    y = x.clone()
    y.lerp_(net.f(x), 0.3)
    return y


def addmm_in_place(net: Net, x: Tensor) -> Tensor:
    y = x.clone()
    y.addmm_(net.h(x), net.b.weight, beta=0.5)
    return y


def addcmul_in_place(net: Net, x: Tensor) -> Tensor:
    y = x.clone()
    y.addcmul_(net.scale, net.f(x), value=-0.5)
    return y


def batched(net: Net, x: Tensor) -> Tensor:
    weight = net.b.weight.expand(x.shape[0], -1, -1)
    return torch.baddbmm(x.unsqueeze(1), net.h(x).unsqueeze(1), weight).squeeze(1)


def with_detached(net: Net, x: Tensor) -> Tensor:
    y = net.f(x)
    return x + y + y.detach() * 0.1


def twice(net: Net, x: Tensor) -> Tensor:
    y = net.f(x)
    return x + y + y


def one_after_another(net: Net, x: Tensor) -> Tensor:
    y = net.f(x)
    return x + y + net.d(y)


def squared(net: Net, x: Tensor) -> Tensor:
    y = net.f(x)
    return torch.addcmul(x, y, y)


def parallel(net: Net, x: Tensor) -> Tensor:
    y = net.norm(x)
    return x + net.a(y) + torch.tanh(net.b(y))


def two_streams(net: Net, x: Tensor) -> Any:
    y, h = net.e(x), net.h(x)
    return x - net.b(h), y + net.d(h)


def chunks(net: Net, x: Tensor) -> Any:
    y = net.e(x)
    first, second = net.b(net.h(x)).repeat(1, 2).chunk(2, -1)
    return x - first, y + second


def joint_attention(net: Net, x: Tensor) -> Any:
    y = net.e(x)
    mixed = torch.cat([net.a(x), net.norm(y)]).softmax(0)
    return x + net.b(mixed[:4]), y + net.d(mixed[4:])


def one_condition(net: Net, x: Tensor) -> Tensor:
    """Both branches, and nothing else, read what the norm gives; the skip path of the second does not feed it."""
    condition = torch.relu(net.norm(x.detach()))
    y = net.e(x)
    y = y + net.a(torch.relu(y) + condition)
    return y + net.b(torch.relu(y) * condition)


STYLES: Mapping[str, tuple[Style, list[set[str]]]] = {
    "add with alpha": (lambda n, x: torch.add(x, n.f(x), alpha=0.5), [{"a", "b"}]),
    "add_ with alpha": (in_place("add_", alpha=-1), [{"a", "b"}]),
    "method add": (lambda n, x: x.add(n.f(x), alpha=-1), [{"a", "b"}]),
    "number times branch": (lambda n, x: x + 3 * n.f(x), [{"a", "b"}]),
    "sub": (lambda n, x: x - n.f(x), [{"a", "b"}]),
    "sub_": (in_place("sub_"), [{"a", "b"}]),
    "isub": (in_place("__isub__"), [{"a", "b"}]),
    "sub with alpha": (lambda n, x: x.subtract(n.f(x), alpha=2), [{"a", "b"}]),
    "rsub": (lambda n, x: torch.rsub(n.f(x), x, alpha=3), [{"a", "b"}]),
    "minus the skip path": (lambda n, x: n.f(x) - x, [{"a", "b"}]),
    "minus the skip path, in place": (lambda n, x: n.f(x).sub_(x), [{"a", "b"}]),
    "minus a sum": (lambda n, x: x - (n.f(x) + n.d(x)), [{"d"}, {"a", "b"}]),
    "twice the skip path": (lambda n, x: x + (x - n.f(x)), [{"a", "b"}]),
    "lerp": (lambda n, x: torch.lerp(x, n.f(x), 0.3), [{"a", "b"}]),
    "lerp from the branch": (lambda n, x: torch.lerp(n.f(x), x, 0.3), [{"a", "b"}]),
    "lerp_": (lerp_in_place, [{"a", "b"}]),
    "lerp with a parameter": (lambda n, x: torch.lerp(x, n.f(x), n.scale), [{"a", "b"}]),
    "lerp_ from the branch, with a parameter": (lambda n, x: n.f(x).lerp_(x, n.scale), [{"a", "b"}]),
    "addcmul": (lambda n, x: torch.addcmul(x, n.scale, n.f(x)), [{"a", "b", "scale"}]),
    "addcmul_": (addcmul_in_place, [{"a", "b", "scale"}]),
    "addcmul with the skip path": (lambda n, x: torch.addcmul(x, x, n.f(x)), [{"a", "b"}]),
    "addcmul of a square": (squared, [{"a", "b"}]),
    "addmm": (lambda n, x: torch.addmm(x, n.h(x), n.b.weight.t()), [{"a", "b"}]),
    "addmm with beta": (lambda n, x: torch.addmm(x, n.h(x), n.b.weight, beta=0.5, alpha=2), [{"a", "b"}]),
    "addmm_ with beta": (addmm_in_place, [{"a", "b"}]),
    "addmm, projected": (lambda n, x: torch.addmm(n.f(x), x, n.d.weight), [{"a", "b"}]),
    "addmm_, projected": (lambda n, x: n.f(x).addmm_(x, n.d.weight), [{"a", "b"}]),
    "addmm, one factor": (lambda n, x: (h := n.h(x)) * torch.addmm(x, h, n.b.weight), [{"b"}]),
    "addr": (lambda n, x: torch.addr(x, x.sum(1), n.scale), [{"scale"}]),
    "baddbmm": (batched, [{"a", "b"}]),
    "stack and sum": (lambda n, x: torch.stack([x, n.f(x)]).sum(0), [{"a", "b"}]),
    "stack and sum at the end": (lambda n, x: torch.stack([n.f(x), x], -1).sum(-1), [{"a", "b"}]),
    "stack and sum of three": (lambda n, x: torch.stack([x, n.f(x), n.d(x)], 1).sum(dim=1), [{"d"}, {"a", "b"}]),
    "stack and mean": (lambda n, x: torch.stack([x, n.f(x)]).mean(0), [{"a", "b"}]),
    "stack and mean of three": (lambda n, x: torch.stack([x, n.f(x), n.d(x)]).mean(0), [{"d"}, {"a", "b"}]),
    "Python's sum": (lambda n, x: sum([x, n.f(x), n.d(x)]), [{"a", "b"}, {"d"}]),
    "where": (lambda n, x: x + torch.where(x > 0, n.f(x), torch.zeros_like(x)), [{"a", "b"}]),
    "a chain": (lambda n, x: torch.addcmul(torch.lerp(x, n.f(x), 0.2), n.scale, n.d(x)), [{"a", "b"}, {"d", "scale"}]),
    "with itself detached": (with_detached, [{"a", "b"}]),
    "twice the branch": (twice, [{"a", "b"}]),
    "one after another": (one_after_another, [{"a", "b", "d"}]),
    "parallel": (parallel, [{"a"}, {"b"}]),
    "two streams": (two_streams, [{"a", "b", "d"}]),
    "chunks": (chunks, [{"a", "b"}]),
    "joint attention": (joint_attention, [{"a", "b", "d", "norm"}]),
    "one condition": (one_condition, [{"a"}, {"b"}]),
}
"""Each style with the modules in each of its blocks."""


def third_reader(net: Net, x: Tensor) -> Any:
    y = net.f(x)
    return x - y, y.sum()


def read_twice(net: Net, x: Tensor) -> Tensor:
    both = torch.stack([x, net.f(x)])
    return both.sum(0) + both[0]


def interpolated_by_itself(net: Net, x: Tensor) -> Tensor:
    y = net.f(x)
    return torch.lerp(x, y, y)


def summand_and_factor(net: Net, x: Tensor) -> Tensor:
    y = net.f(x)
    return torch.addcmul(y, x, y)


def overwritten(net: Net, x: Tensor) -> Tensor:
    y = net.f(x)
    y[:, 0] += 1
    return x - y


def third_reader_of_two_outputs(net: Net, x: Tensor) -> Any:
    y, h = net.e(x), net.h(x)
    z = net.b(h)
    return x - z, y + z, z.cos()


NO_BLOCKS: Mapping[str, Style] = {
    "third reader": third_reader,
    "third reader of two outputs": third_reader_of_two_outputs,
    "concatenated": lambda n, x: torch.cat([x, n.f(x)], -1),
    "concatenated and projected": lambda n, x: F.linear(torch.cat([x, n.f(x)], -1), n.c.weight.repeat(1, 2)),
    "not zero": lambda n, x: x - torch.sigmoid(n.f(x)),
    "gate on the skip path": lambda n, x: torch.lerp(x, n.f(x), torch.sigmoid(n.d(x))),
    "product of a stack": lambda n, x: torch.stack([x, n.f(x)]).prod(0),
    "sum over another dimension": lambda n, x: torch.stack([x, n.f(x)]).sum(1),
    "stack that is read twice": read_twice,
    "skip path times 0": lambda n, x: torch.addmm(x, n.h(x), n.b.weight, beta=0),
    "weight of its own": interpolated_by_itself,
    "summand and factor": summand_and_factor,
    "broadcast": lambda n, x: torch.addcmul(n.f(x.mean(0, keepdim=True)), n.scale, x),
    "overwritten": overwritten,
}


class Forecaster(nn.Module):
    """N-BEATS: each block gives a backcast, which is subtracted, and a forecast."""

    def __init__(self, steps: int = 8, horizon: int = 3, width: int = 12, blocks: int = 5) -> None:
        super().__init__()
        self.f = nn.ModuleList(
            nn.Sequential(nn.Linear(steps, width), nn.ReLU(), nn.Linear(width, 8)) for _ in range(blocks)
        )
        self.register_buffer("back", torch.randn(4, steps))
        self.register_buffer("fore", torch.randn(4, horizon))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y: Any = 0
        for f in self.f:
            theta = f(x)
            x = x - theta[:, :4] @ self.back
            y = y + theta[:, 4:] @ self.fore
        return y, x


class WaveNet(nn.Module):
    """Each layer gives a residual and a skip output; the residual output of the last is not used."""

    def __init__(self, layers: int = 4, width: int = 6, stacked: bool = False) -> None:
        super().__init__()
        self.first, self.last = nn.Conv1d(2, width, 1), nn.Conv1d(width, 1, 1)
        self.gates = nn.ModuleList(nn.Conv1d(width, 2 * width, 3, padding=2**n, dilation=2**n) for n in range(layers))
        self.residual = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(layers))
        self.skip = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(layers))
        self.stacked = stacked

    def forward(self, x: Tensor) -> Tensor:
        x, skips = self.first(x), []
        for gate, residual, skip in zip(self.gates, self.residual, self.skip, strict=True):
            left, right = gate(x).chunk(2, 1)
            h = left.tanh() * right.sigmoid()
            x = (x + residual(h)) * 0.5**0.5
            skips.append(skip(h))
        return self.last(torch.relu(torch.stack(skips).sum(0) if self.stacked else sum(skips)))
