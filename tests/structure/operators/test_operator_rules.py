"""Each operator between two layers: is its hidden axis cut where it can be, and does the result equal the original?

All programs of one kind are branches of one model, which is captured once; each is held against the masked original.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sdp_compile import NeuronPolicy
from sdp_compile.capture import capture
from sdp_compile.compiler import assemble
from sdp_compile.lowering import lower
from sdp_compile.planning.making import make_plan
from sdp_compile.structure.analysis import analyse
from tests.oracle import assert_exact, randomise

Tensor = torch.Tensor
Function = Callable[[Tensor], Tensor]


class Vector(nn.Module):
    """(4, 5) to (4, 12) hidden units, and what the function makes of them to 3 outputs."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.up = nn.Linear(5, 12)
        self.function = function
        with torch.no_grad():
            width = function(torch.zeros(4, 12)).shape[-1]
        self.down = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.function(self.up(x)))


class Image(nn.Module):
    """Images (2, 3, 6, 6) to 8 channels, and what the function makes of them to 2 channels."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.up = nn.Conv2d(3, 8, 3, padding=1)
        self.function = function
        with torch.no_grad():
            channels = function(torch.zeros(2, 8, 6, 6)).shape[1]
        self.down = nn.Conv2d(channels, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.function(self.up(x)))


class Branches(nn.Module):
    def __init__(self, branches: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleDict(branches)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [branch(x) for branch in self.branches.values()]


def line(h: Tensor) -> Tensor:
    """The channels of an image over one dimension."""
    return h.flatten(2)


def plane(h: Tensor) -> Tensor:
    """The reverse of `line`."""
    return h.unflatten(2, (-1, 1))


def index(*numbers: int) -> Tensor:
    return torch.tensor(numbers)


ELEMENTWISE: dict[str, Function] = {
    "multiply": lambda h: torch.multiply(h, torch.negative(h)),
    "aliases": lambda h: torch.divide(torch.absolute(h), torch.true_divide(torch.subtract(h, 9), 2)),
    "maximum of zeros": lambda h: torch.maximum(h, h.sin()) + torch.minimum(h, h.tanh()),
    "threshold": lambda h: F.threshold(h, 0.1, 0.5),
    "softplus": F.softplus,
    "logit with a bound": lambda h: torch.logit(h, eps=0.1),
    "rrelu": lambda h: F.rrelu(h, 0.2, 0.2),
    "lerp": lambda h: torch.lerp(h, h.sin(), 0.3),
    "addcmul": lambda h: torch.addcmul(h, h, h.cos()),
    "addcdiv": lambda h: torch.addcdiv(h, h.sin(), h.cos() + 2),
    "comparison": lambda h: h * torch.greater(h, 0),
    "where with bounds": lambda h: torch.where(torch.less(h, 0.3), h, 0.0),
    "erfinv": lambda h: torch.erfinv(h.tanh() * 0.5),
    "complex": lambda h: (torch.complex(h, h.sin()) * torch.polar(h, h.cos())).imag,
    "view as real": lambda h: torch.view_as_real(torch.complex(h, h.sin()) * 1j).sum(-1),
    "rotation": lambda h: torch.view_as_real(
        torch.view_as_complex(h.view(-1, 6, 2)) * torch.polar(torch.ones(1, 1).to(h), torch.ones(1, 1).to(h))
    ).flatten(1),
    "native dropout": lambda h: torch.native_dropout(h, 0.0, True)[0],
    "like another": lambda h: torch.full_like(h, 2.0) * h,
}

MATRIX: dict[str, Function] = {
    "outer": lambda h: torch.stack([torch.outer(r, r.sin()).sum(0) for r in h.unbind(0)]),
    "inner": lambda h: torch.inner(h, h.sin()) @ h,
    "vdot": lambda h: torch.vdot(h[0], h[1]) * h,
    "tensordot": lambda h: torch.tensordot(h, h.cos(), ([1], [1])) @ h,
    "kron": lambda h: torch.kron(h[:1], h[1:2].cos()).expand(4, -1),
    "cross": lambda h: torch.linalg.cross(h.view(-1, 3, 4), h.view(-1, 3, 4).cos(), dim=1).flatten(1),
    "cdist": lambda h: torch.cdist(h, h.sin() * 2 + h) @ h,
    "cosine similarity": lambda h: F.cosine_similarity(h.unsqueeze(0), h.sin().unsqueeze(1), dim=-1) @ h,
    "addr": lambda h: torch.addr(h[:1] * torch.ones(12, 1).to(h), h[0], h[1].cos()).sum(0, keepdim=True).expand(4, -1),
    "addbmm": lambda h: torch.addbmm(h[:, :3], h.view(4, 4, 3), h.view(4, 3, 4).sin().transpose(1, 2)[:, :3]),
    "addmv": lambda h: torch.addmv(h[:, 0], h, h[1]).unsqueeze(1) * h,
    "einsum of a diagonal": lambda h: torch.einsum("nii->ni", h.view(4, 2, 6)[:, :, :2]) @ torch.ones(2, 12).to(h) + h,
    "einsum with an implied result": lambda h: torch.einsum("ni,im", h, h.t().cos()) @ h,
    "einsum over leading dimensions": lambda h: torch.einsum("...i,...i->...", h, h.cos()).unsqueeze(-1) * h,
    "norms": lambda h: h * (h.norm(dim=1, keepdim=True) + h.norm(p=1, dim=1, keepdim=True) + 1).log(),
}

PLACES: dict[str, Function] = {
    "gather": lambda h: h.gather(0, index(1, 0, 1, 3).unsqueeze(1).expand(-1, h.shape[1])),
    "gather along it": lambda h: h.gather(1, h.argsort(1)),
    "take along": lambda h: torch.take_along_dim(h, index(2, 1).unsqueeze(1), 0).repeat(2, 1),
    "scatter": lambda h: torch.scatter(h, 0, index(1, 3).unsqueeze(1).expand(-1, h.shape[1]), h[:2].cos()),
    "scatter add": lambda h: torch.zeros_like(h).scatter_add_(0, index(1, 1, 0, 2)[:, None].expand_as(h), h.sin()),
    "index add": lambda h: torch.zeros_like(h).index_add_(0, index(1, 1, 0, 2), h).sum(1, keepdim=True) + h,
    "index copy": lambda h: h.clone().index_copy(0, index(1, 0), h[2:].cos()),
    "index fill": lambda h: h.index_fill(0, index(1, 0), 2.0),
    "index put": lambda h: h.index_put((index(1, 2),), h[:2].cos()),
    "index put in place": lambda h: torch.zeros_like(h).index_put_((index(1, 2),), h[:2], accumulate=True),
    "max and argmax over rows": lambda h: h.max(0).values * h + h.argmax(0) * h,
    "topk of rows": lambda h: h.topk(2, 0).values.repeat(2, 1) * h,
    "sort of rows": lambda h: h.sort(0, descending=True).values + h,
    "cumulative over zeros": lambda h: h.cumsum(1),
    "triangle": lambda h: (
        torch.tril(h.view(2, 2, 12).transpose(1, 2).unsqueeze(-1) * torch.ones(2, 2).to(h)).sum((-1, -2)).repeat(2, 1)
        * h
    ),
    "one hot": lambda h: (F.one_hot((h.detach() > 0).long(), 2).to(h) * h.unsqueeze(-1)).sum(-1),
    "bucketize": lambda h: torch.bucketize(h.detach(), torch.tensor([0.0, 0.5]).to(h)) * h,
    "diff of rows": lambda h: h.diff(dim=0, prepend=h[:1]),
    "windows of rows": lambda h: h.unfold(0, 2, 1).sum(-1).repeat(2, 1)[:4] + h,
    "fft of rows": lambda h: torch.fft.fft(h, dim=0).real + torch.fft.fftshift(h, dim=0),
    "fft along it": lambda h: torch.fft.rfft(h, dim=1).abs(),
    "diagonal": lambda h: torch.diagonal(h.view(2, 2, 12)).sum(-1) * h,
    "flips": lambda h: torch.flipud(h) * h.view(2, 2, 12).rot90(2, (0, 1)).flatten(0, 1),
}

PARTS: dict[str, Function] = {
    "zeros around": lambda h: F.pad(h, (2, 4)),
    "ones around": lambda h: F.pad(h, (0, 5), value=1.0),
    "zeros around and added": lambda h: F.pad(h[:, :7], (2, 3)) + h,
    "every second": lambda h: torch.cat([h[:, ::2] * h[:, 1::2], h[:, 1::2]], 1),
    "tensor split": lambda h: torch.cat(list(reversed(h.tensor_split(5, 1))), 1),
    "hsplit": lambda h: torch.cat([part.sin() for part in h.hsplit([3, 8])], 1),
    "narrow": lambda h: h.narrow(1, 3, 6),
    "hstack": lambda h: torch.hstack([h, h.sin()]),
    "vstack": lambda h: torch.vstack([h[:2], h[:2].sin()]),
    "column stack": lambda h: torch.column_stack([h, h.cos()]),
    "tile": lambda h: torch.tile(h, (1, 2)),
    "repeat interleave": lambda h: h.repeat_interleave(2, 1),
    "repeat interleave to a size": lambda h: torch.repeat_interleave(h, 2, 1, output_size=24),
    "repeated interleaved scalar": lambda h: h * h.sum(1, keepdim=True).repeat_interleave(12, 1),
    "repeat interleave by numbers": lambda h: h.repeat_interleave(index(1, 0, 2, 1), 0, output_size=4),
    "repeated scalar": lambda h: h * h.sum(1, keepdim=True).repeat(1, 12),
    "meshgrid": lambda h: torch.meshgrid(h[0], h[1], indexing="ij")[0] * torch.ones(12, 12).to(h),
    "movedim": lambda h: h.view(4, 3, 4).moveaxis(1, 2).flatten(1),
    "broadcast to": lambda h: h.broadcast_to(2, 4, 12).sum(0),
    "channel shuffle": lambda h: F.channel_shuffle(h.unsqueeze(-1).unsqueeze(-1), 3).flatten(1),
    "outermost factor": lambda h: h.view(4, 6, 2).cumsum(1).flatten(1),
    "after a pad": lambda h: F.pad(h, (1, 1))[:, 1:-1],
}

POOLS: dict[str, Function] = {
    "avg_pool1d": lambda h: plane(F.avg_pool1d(line(h), 3)),
    "max_pool1d": lambda h: plane(F.max_pool1d(line(h), 3)),
    "adaptive_avg_pool1d": lambda h: plane(F.adaptive_avg_pool1d(line(h), 4)),
    "adaptive_max_pool1d": lambda h: plane(F.adaptive_max_pool1d(line(h), 4)),
    "max_pool2d": lambda h: F.max_pool2d(h, 2),
    "max_pool2d with indices": lambda h: F.max_pool2d(h, 2, return_indices=True)[0],
    "adaptive_max_pool2d": lambda h: F.adaptive_max_pool2d(h, 2),
    "lp_pool2d": lambda h: F.lp_pool2d(h.exp(), 2, 2),
    "avg_pool3d": lambda h: F.avg_pool3d(h.unsqueeze(2), (1, 2, 2)).squeeze(2),
    "max_pool3d": lambda h: F.max_pool3d(h.unsqueeze(2), (1, 2, 2)).squeeze(2),
    "adaptive_avg_pool3d": lambda h: F.adaptive_avg_pool3d(h.unsqueeze(2), (1, 2, 2)).squeeze(2),
    "adaptive_max_pool3d": lambda h: F.adaptive_max_pool3d(h.unsqueeze(2), (1, 2, 2)).squeeze(2),
    "nearest": lambda h: F.interpolate(h, scale_factor=2),
    "nearest 1d": lambda h: plane(F.interpolate(line(h), size=20)),
    "linear": lambda h: plane(F.interpolate(line(h), size=20, mode="linear")),
    "bilinear": lambda h: F.interpolate(h, size=(9, 4), mode="bilinear", align_corners=True),
    "bilinear antialias": lambda h: F.interpolate(h, size=(3, 4), mode="bilinear", antialias=True),
    "bicubic": lambda h: F.interpolate(h, size=(9, 4), mode="bicubic"),
    "nearest exact": lambda h: F.interpolate(h, size=(9, 4), mode="nearest-exact"),
    "area": lambda h: F.interpolate(h, size=(3, 3), mode="area"),
    "trilinear": lambda h: F.interpolate(h.unsqueeze(2), size=(2, 4, 4), mode="trilinear").sum(2),
    "reflect": lambda h: F.pad(h, (1, 1, 2, 0), mode="reflect"),
    "replicate": lambda h: F.pad(h, (1, 1, 2, 0), mode="replicate"),
    "circular": lambda h: F.pad(h, (1, 1, 2, 0), mode="circular"),
    "unfold": lambda h: F.unfold(h, 2).unsqueeze(-1),
    "fold": lambda h: F.fold(F.unfold(h, 2, stride=2).relu(), (6, 6), 2, stride=2),
    "pixel shuffle": lambda h: F.pixel_shuffle(h, 2),
    "pixel unshuffle": lambda h: F.pixel_unshuffle(h, 2),
    "grid sample": lambda h: F.grid_sample(h, torch.zeros(2, 3, 3, 2).to(h), align_corners=False),
    "local response norm": lambda h: F.local_response_norm(h, 3),
    "instance norm": lambda h: F.instance_norm(h),
    "window partition": lambda h: (
        h.roll((1, 1), (2, 3))
        .view(2, 8, 2, 3, 2, 3)
        .permute(0, 2, 4, 1, 3, 5)
        .reshape(8, 8, 3, 3)
        .square()
        .view(2, 2, 2, 8, 3, 3)
        .permute(0, 3, 1, 4, 2, 5)
        .reshape(2, 8, 6, 6)
    ),
    "channel attention": lambda h: h * torch.sigmoid(h.mean((2, 3), keepdim=True)),
    "zero padded shortcut": lambda h: F.pad(h[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)),
}

WHOLE = {
    "gather along it",
    "fft along it",
    "kron",
    "addr",
    "addbmm",
    "addmv",
    "meshgrid",
    "local response norm",
}
"""Where something needs the whole hidden axis, or all that it could be cut into."""

KINDS: dict[str, tuple[dict[str, Function], type[nn.Module], tuple[int, ...]]] = {
    "elementwise": (ELEMENTWISE, Vector, (4, 5)),
    "matrix": (MATRIX, Vector, (4, 5)),
    "places": (PLACES, Vector, (4, 5)),
    "parts": (PARTS, Vector, (4, 5)),
    "pools": (POOLS, Image, (2, 3, 6, 6)),
}


def check(model: nn.Module, inputs: tuple[Any, ...], policy: NeuronPolicy) -> set[str]:
    """Holds one worker of four against the original; the parameters that were cut."""
    model = randomise(model.double())
    analysis = analyse(capture(model, inputs))
    plan = make_plan(analysis, policy, 4)
    module = assemble(lower(analysis, plan, 1), model)
    assert_exact(module, model, plan, 1, inputs, {})
    return {name for name, _ in model.named_parameters() if not plan.mask(name, 1).all()}


@pytest.mark.parametrize("kind", KINDS)
def test_operators_between_two_layers(kind: str) -> None:
    cases, branch, shape = KINDS[kind]
    model = Branches({name: branch(function) for name, function in cases.items()})
    cut = check(model, (torch.randn(shape, dtype=torch.double),), NeuronPolicy())
    whole = {name for name in cases if f"branches.{name}.up.weight" not in cut}
    assert whole == WHOLE & set(cases)
