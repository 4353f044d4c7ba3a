"""Gradients of gradients: a worker's are those of the original model with masked parameters, or masked gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from sdp_compile import BlockPolicy, NeuronPolicy, sdp_compile
from sdp_compile.policies import Policy
from tests.complex_models import MODELS as COMPLEX_MODELS
from tests.oracle import randomise, relative_error, scalar, tensors_of

BACKWARD = NeuronPolicy(coverage=0.5, masking="backward")
ALL_AXES = NeuronPolicy(axes="all", scope="all", replicas=3, masking="backward")
POLICIES: dict[str, Policy] = {
    "neuron": NeuronPolicy(coverage=0.5),
    "block": BlockPolicy(coverage=0.5),
    "backward": BACKWARD,
    "backward, all axes": ALL_AXES,
    "backward block": BlockPolicy(coverage=0.5, masking="backward"),
}


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(self.norm(x))))


class Residual(nn.Module):
    """Two branches of a layer norm and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second, self.head = nn.Linear(5, 6), Branch(), Branch(), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.first(x)
        return self.head(x + self.second(x))


class Critic(nn.Module):
    """Convolutions as in a critic with a gradient penalty: strided, depthwise and transposed, with norms."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 8, 3, stride=2, padding=1), nn.GroupNorm(4, 8)
        self.depthwise, self.batch_norm = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8)
        self.upwards, self.line = nn.ConvTranspose2d(8, 6, 2, stride=2), nn.Conv1d(6, 4, 3)
        self.head = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.softplus(self.norm(self.first(x)))
        x = F.silu(self.batch_norm(self.depthwise(x)))
        return self.head(torch.tanh(self.line(torch.tanh(self.upwards(x)).flatten(2))).mean(-1))


class Attention(nn.Module):
    """Attention by matrix products, and stored matrices in addmm, bmm and einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(5, 24), nn.Linear(8, 5)
        self.stored, self.offset = nn.Parameter(torch.randn(5, 8)), nn.Parameter(torch.randn(8))
        self.experts, self.mix = nn.Parameter(torch.randn(2, 8, 6)), nn.Parameter(torch.randn(2, 6, 5))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(1, -1, 3, 4, 2).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.out((torch.softmax(q @ k.mT, -1) @ v).transpose(1, 2).flatten(2))[0]
        h = torch.tanh(torch.addmm(self.offset, x, self.stored))
        return torch.einsum("eth,eho->to", torch.tanh(torch.bmm(h.expand(2, *h.shape), self.experts)), self.mix)


def _draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "residual": (Residual, _draw(3, 5)),
    "critic": (Critic, _draw(2, 2, 6, 6)),
    "attention": (Attention, _draw(3, 5)),
    **{f"complex {name}": pair for name, pair in COMPLEX_MODELS.items() if name != "table"},
}
WITH_BLOCKS = ("residual", "complex residual")

Run = Callable[[Tensor], Any]
Gradients = dict[str, Tensor]


def gradient_penalty(run: Run, x: Tensor, parameters: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Gradients:
    """Of a loss and the squared norm of its gradient with respect to the input."""
    x = x.clone().requires_grad_()
    loss = scalar(tensors_of(run(x)))
    (of_x,) = torch.autograd.grad(loss, x, create_graph=True)
    return gradients(loss + of_x.abs().square().sum(), parameters)


def sharpness(run: Run, x: Tensor, parameters: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Gradients:
    """Of the squared norm of the owned gradients, and of the input."""
    x = x.clone().requires_grad_()
    first = gradients(scalar(tensors_of(run(x))), parameters, create_graph=True)
    norm = torch.stack([(g.reshape(-1)[masks[name]]).abs().square().sum() for name, g in first.items()]).sum()
    return gradients(norm, {**parameters, "input": x})


def gradients(loss: Tensor, parameters: Mapping[str, Tensor], create_graph: bool = False) -> Gradients:
    found = torch.autograd.grad(
        loss, list(parameters.values()), create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    return dict(zip(parameters, found, strict=True))


@pytest.mark.parametrize("task", [gradient_penalty, sharpness])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", MODELS)
def test_second_derivatives(name: str, policy: str, task: Callable[..., Gradients]) -> None:
    if "block" in policy and name not in WITH_BLOCKS:
        return
    build, x = MODELS[name]
    torch.manual_seed(0)
    model = randomise(build().double())
    rank = 1
    module = sdp_compile(model, POLICIES[policy], (x,), workers=4, rank=rank)
    plan = module.plan
    masks = {name: plan.mask(name, rank) for name, _ in model.named_parameters()}
    whole = plan.masking == "backward"
    held = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    leaves = {name: (value if whole else value * masks[name]).requires_grad_() for name, value in held.items()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}

    expected = task(
        lambda x: functional_call(model, {**leaves, **buffers}, (x,)),
        x,
        leaves,
        {name: mask.reshape(-1) for name, mask in masks.items()},
    )
    mine = dict(module.named_parameters())
    found = task(module, x, mine, {name: slice(None) for name in mine})
    assert any(float(gradient.abs().max()) > 1e-6 for gradient in found.values())
    floor = 1e-5 * max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in found.items():
        wanted = expected[name] if name == "input" else expected[name][masks[name]]
        assert relative_error(gradient.reshape(-1), wanted.reshape(-1), floor) < 1e-9, name
