"""Blocks in other words and with several outputs through the whole compiler, against the masked original."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from sdp_compile import BlockPolicy
from sdp_compile.capture import capture
from sdp_compile.structure.analysis import analyse
from tests.block_styles import STYLES, Forecaster, Net, WaveNet
from tests.exactness import Example
from tests.oracle import assert_exact, randomise, relative_error, run_compiled

Tensor = torch.Tensor

# Those whose branch is `f` and only `f`.
ALONE = ("add with alpha", "sub", "rsub", "lerp", "lerp_", "twice the branch", "stack and mean", "with itself detached")


class Stack(nn.Module):
    """One layer for each style, without their first layers."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 3)
        self.layers = nn.ModuleList(Net(STYLES[name][0]) for name in names)
        for layer in self.layers:
            layer.c = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = layer(x)
        return self.last(x)  # type: ignore[no-any-return]


def prepared(model: nn.Module, *shape: int) -> Example:
    randomise(model.double())
    args = (torch.randn(*shape, dtype=torch.double),)
    return Example(model, args, {}, analyse(capture(model, args)))


MODELS: dict[str, Callable[[], Example]] = {
    "styles": lambda: prepared(Stack(("addcmul", "addmm", "baddbmm", "lerp", "stack and mean", "sub")), 4, 5),
    "forecaster": lambda: prepared(Forecaster(), 4, 8),
    "wavenet": lambda: prepared(WaveNet(layers=5), 2, 2, 16),
}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", MODELS)
def test_each_worker_equals_the_masked_original(name: str) -> None:
    subject = MODELS[name]()
    inside = {fqn for block in subject.analysis.blocks.blocks for fqn in block.parameters}
    for policy in (BlockPolicy(coverage=0.5), BlockPolicy(coverage=0.5, masking="backward")):
        plan = subject.plan(policy, 4)
        for rank in range(4):
            module = subject.compiled(plan, rank)
            assert_exact(module, subject.model, plan, rank, subject.args, {})
            held = sum(p.numel() for p in module.parameters())
            cut = sum(p.numel() for fqn, p in subject.model.named_parameters() if fqn in inside)
            total = sum(p.numel() for p in subject.model.parameters())
            assert held <= total - 0.4 * cut, "about half of what lies in blocks is another worker's"


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", MODELS)
def test_sliced_equals_masked(name: str) -> None:
    subject = MODELS[name]()
    plan = subject.plan(BlockPolicy(coverage=0.5), 4)
    for training in (True, False):
        modules = [subject.compiled(plan, 1, lowering).train(training) for lowering in ("sliced", "masked")]
        small, full = (run_compiled(module, subject.args, {}) for module in modules)
        for a, b in zip(small.outputs, full.outputs, strict=True):
            assert relative_error(a, b) < 1e-9
        floor = 1e-5 * max(float(g.abs().max()) for g in full.gradients.values())
        for fqn, gradient in small.gradients.items():
            assert relative_error(gradient.reshape(-1), full.gradients[fqn][plan.mask(fqn, 1)], floor) < 1e-9, fqn


def doubled(_: nn.Module, __: Any, output: Any) -> Any:
    return output * 2


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", [*ALONE, "wavenet"])
def test_rescale_equals_hooks_on_the_eager_model(name: str) -> None:
    """N / owners = 2 on each output of a block; those that are dropped are 0 anyway."""
    subject = MODELS["wavenet"]() if name == "wavenet" else prepared(Stack((name,) * 4), 4, 5)
    plan = subject.plan(BlockPolicy(coverage=0.5, rescale=True), 4)
    outputs = [
        module
        for path, module in subject.model.named_modules()
        if path.endswith(".b") or (path.startswith(("residual.", "skip.")) and not path.endswith("4"))
    ]
    for rank in range(4):
        module = subject.compiled(plan, rank)
        masked = {fqn: p * plan.mask(fqn, rank) for fqn, p in subject.model.named_parameters()}
        for training in (True, False):
            handles = [output.register_forward_hook(doubled) for output in outputs if training]
            expected = torch.func.functional_call(subject.model.train(training), masked, subject.args)
            assert relative_error(module.train(training)(*subject.args), expected) < 1e-9
            for handle in handles:
                handle.remove()
