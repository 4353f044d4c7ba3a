"""Twenty steps of a worker with one optimizer, for the tests of what owners hold afterwards."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from sdp_compile import GradScaler, NeuronPolicy, ShardedOptimizer, sdp_compile
from sdp_compile.runtime.module.sdp_module import SDPModule
from tests.runtime.models import batch, build, loss_of

STEPS = 20
CASES: dict[str, dict[str, Any]] = {
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "sharded": {"sharded": True},
    "sharded fused": {"sharded": True, "fused": True},
    "backward": {"masking": "backward"},
    "scaled": {"scaled": True},
    "clipped by torch": {"clipped": True, "foreach": True},
}


def run_case(rank: int, case: str, device: torch.device) -> tuple[Any, ...]:
    """What `check_owners` of the end-to-end tests compares, and the first and the last loss."""
    warnings.simplefilter("ignore")
    options = dict(CASES[case])
    masking, scaled = options.pop("masking", "forward"), options.pop("scaled", False)
    sharded, clipped = options.pop("sharded", False), options.pop("clipped", False)
    model = build("transformer", seed=rank).float().to(device)
    tokens = batch("transformer", rank).to(device)
    module = sdp_compile(model, NeuronPolicy(coverage=0.5, masking=masking), (tokens,))
    optimizer = _optimizer(module, sharded, options)
    scaler = GradScaler(device.type, enabled=scaled)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        tokens = batch("transformer", 100 * rank + step % 2).to(device)
        with torch.autocast(device.type, torch.float16, enabled=scaled):
            loss = loss_of("transformer", module(tokens), tokens)
        scaler.scale(loss).backward()
        if scaled:
            scaler.unscale_(optimizer)
        if clipped:
            torch.nn.utils.clip_grad_norm_(module.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    values = {key: value.detach().double().cpu() for key, value in module.named_parameters()}
    full = {key: value.cpu() for key, value in module.full_state_dict().items()}
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    module.load_full_state_dict(full)
    again = module.full_state_dict()
    assert all(torch.equal(again[key].cpu(), full[key]) for key in full)
    evaluated = module.full_model().eval()(batch("transformer", 7).to(device)).cpu()
    return module.plan.to_json(), values, full, evaluated, sum(losses[:2]), sum(losses[-2:])


def _optimizer(module: SDPModule, sharded: bool, options: dict[str, Any]) -> torch.optim.Optimizer:
    if sharded:
        return ShardedOptimizer(module, torch.optim.AdamW, lr=3e-3, **options)
    return torch.optim.AdamW(module.parameters(), lr=3e-3, **options)
