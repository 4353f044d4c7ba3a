"""SDPAccelerator against a loop written by hand, bit by bit, and against the original with masked parameters."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import sdp_compile as sdp
from tests.distributed import run_workers
from tests.integrations.loops import SCHEDULE
from tests.integrations.simulated import set_gradients

pytestmark = pytest.mark.timeout(400)
STEPS, SAVED, CLIP = 20, 10, 0.05
POLICY = sdp.NeuronPolicy(coverage=0.5)


def network(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 5)).double()


def compiled(dropout: float = 0.0, policy: Any = POLICY) -> sdp.SDPModule:
    return sdp.compile(network(dropout), policy, torch.randn(4, 6).double())


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)


def schedule_of(optimizer: torch.optim.Optimizer, model: Any = None) -> Any:
    """The scheduler of the learning rate; the rate is that of the model's schedule if it has one."""
    own = getattr(model, "schedule", None)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, (lambda step: 0.95**step) if own is None else own.rate)


def data(workers: int) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    rows = 4 * 2 * STEPS * workers
    x, y = (torch.randn(rows, size, generator=generator).double() for size in (6, 5))
    return DataLoader(TensorDataset(x, y), batch_size=4)


def prepared(accelerator: Any, dropout: float = 0.0, policy: Any = POLICY) -> Any:
    """The model, the optimizer, the data and the schedule, as every script of Accelerate prepares them."""
    model = compiled(dropout, policy)
    optimizer = optimizer_of(model)
    # Prepared schedules step once for each process.
    accelerator.step_scheduler_with_optimizer = False
    return accelerator.prepare(model, optimizer, data(dist.get_world_size()), schedule_of(optimizer, model))


def train(accelerator: Any, parts: Any, first: int, last: int) -> tuple[list[Any], list[float]]:
    """The steps from ``first`` to ``last``; the batches and the norms."""
    model, optimizer, loader, schedule = parts
    batches, norms = [], []
    for number, (x, y) in enumerate(accelerator.skip_first_batches(loader, 2 * first)):
        if number == 2 * (last - first):
            break
        batches.append((x, y))
        with accelerator.accumulate(model):
            accelerator.backward(F.mse_loss(model(x), y))
            if accelerator.sync_gradients:
                norms.append(float(accelerator.clip_grad_norm_(model.parameters(), CLIP)))
            optimizer.step()
            if accelerator.sync_gradients:
                schedule.step()
            optimizer.zero_grad()
    return batches, norms


def by_hand(batches: list[Any], policy: Any = POLICY) -> tuple[dict[str, Tensor], list[float]]:
    model, norms = compiled(policy=policy), []
    optimizer = optimizer_of(model)
    schedule = schedule_of(optimizer, model)
    for step in range(STEPS):
        if model.schedule is not None:
            model.advance(step, optimizer)
        (x, y), (u, v) = batches[2 * step : 2 * step + 2]
        with model.no_sync():
            (F.mse_loss(model(x), y) / 2).backward()
        (F.mse_loss(model(u), v) / 2).backward()
        norms.append(float(sdp.clip_grad_norm_(model, CLIP)))
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.full_state_dict(), norms


def simulated(plan: Any, batches: list[list[Any]]) -> tuple[nn.Module, torch.optim.Optimizer, list[float]]:
    model, norms = network(), []
    optimizer = optimizer_of(model)
    schedule = schedule_of(optimizer)
    for step in range(STEPS):
        own = [worker[2 * step : 2 * step + 2] for worker in batches]
        set_gradients(model, plan, lambda call, batch: F.mse_loss(call(batch[0]), batch[1]) / 2, own)
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), CLIP)))
        optimizer.step()
        schedule.step()
    return model, optimizer, norms


def same(first: Any, second: Any) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def trained(rank: int, workers: int, folder: Path, earlier: Path | None) -> None:
    os.environ.update(LOCAL_WORLD_SIZE=str(workers), MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")
    from safetensors.torch import load_file

    from sdp_compile.integrations.accelerate import SDPAccelerator

    accelerator = SDPAccelerator(cpu=True, gradient_accumulation_steps=2)
    parts = prepared(accelerator)
    assert type(parts[0]).__name__ == "SDPModule"
    batches, norms = train(accelerator, parts, 0, SAVED)
    accelerator.save_state(str(folder / "half"))
    more = train(accelerator, parts, SAVED, STEPS)
    batches, norms = batches + more[0], norms + more[1]
    state = accelerator.get_state_dict(parts[0])
    accelerator.save_state(str(folder / "end"))

    hand, expected = by_hand(batches)
    assert same(hand, state) and norms == expected and min(norms) > CLIP
    everyone: list[Any] = [None] * workers
    dist.all_gather_object(everyone, batches)
    full = parts[1].state_dict()
    if rank == 0:
        model, optimizer, expected = simulated(parts[0].plan, everyone)
        torch.testing.assert_close(norms, expected, rtol=1e-9, atol=0)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(state[name], parameter.detach(), rtol=1e-7, atol=1e-9)
            for key in ("exp_avg", "exp_avg_sq"):
                torch.testing.assert_close(
                    full["state"][name][key], optimizer.state[parameter][key], rtol=1e-7, atol=1e-9
                )
        assert same(load_file(folder / "end" / "model.safetensors"), state)

    accelerator.free_memory()
    resumed = prepared(accelerator)
    accelerator.load_state(str(folder / "half"))
    assert train(accelerator, resumed, SAVED, STEPS)[1] == norms[SAVED:]
    assert same(accelerator.get_state_dict(resumed[0]), state)

    if earlier is not None:  # the state of another number of workers
        accelerator.load_state(str(earlier / "end"))
        assert same(accelerator.get_state_dict(resumed[0]), load_file(earlier / "end" / "model.safetensors"))
        loaded = torch.load(earlier / "end" / "optimizer.bin", weights_only=True)["state"]
        found = resumed[1].state_dict()["state"]
        assert all(same(found[name], loaded[name]) for name in loaded)
        relatives(accelerator, folder)


def relatives(accelerator: Any, folder: Path) -> None:
    """Dropout and resuming beside a second model; mixed precision; and plain Accelerate, which is refused."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    from sdp_compile.integrations.accelerate import SDPAccelerator

    def both() -> tuple[Any, Any]:
        accelerator.free_memory()
        parts, critic = prepared(accelerator, 0.3), accelerator.prepare(nn.Linear(5, 1))
        return parts, critic

    parts, critic = both()
    assert type(critic).__name__ == "DistributedDataParallel"
    train(accelerator, parts, 0, 2)
    accelerator.save_state(str(folder / "two"), safe_serialization=False)
    norms, weight = train(accelerator, parts, 2, 4)[1], critic.module.weight.detach().clone()
    parts, critic = both()
    with torch.no_grad():
        critic.module.weight.zero_()
    accelerator.load_state(str(folder / "two"))
    assert train(accelerator, parts, 2, 4)[1] == norms
    assert torch.equal(critic.module.weight, weight)

    with pytest.raises(sdp.SDPError, match="Use SDPAccelerator"):
        Accelerator(cpu=True).prepare(compiled())

    AcceleratorState._reset_state()
    half = SDPAccelerator(cpu=True, mixed_precision="bf16")
    model = half.prepare(sdp.compile(network().float(), POLICY, torch.randn(4, 6)))
    result = model(torch.randn(4, 6))
    assert result.dtype == torch.float32 and torch.equal(result, result.bfloat16().float())
    half.backward(result.sum())


def test_it_equals_the_loop_by_hand_and_the_original_with_masks(tmp_path: Path) -> None:
    run_workers(trained, 4, 4, tmp_path / "four", None, limit=150.0)
    run_workers(trained, 2, 2, tmp_path / "two", tmp_path / "four", limit=150.0)


def follows_a_schedule(rank: int, workers: int, folder: Path) -> None:
    """Changes of plan between steps, and a resume within the second phase."""
    os.environ.update(LOCAL_WORLD_SIZE=str(workers), MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")
    from sdp_compile.integrations.accelerate import SDPAccelerator

    schedule = SCHEDULE.replace(steps=STEPS)
    accelerator = SDPAccelerator(cpu=True, gradient_accumulation_steps=2)
    parts = prepared(accelerator, policy=schedule)
    batches, norms = train(accelerator, parts, 0, SAVED)
    accelerator.save_state(str(folder))
    assert parts[0].plan.policy == schedule.policy_at(SAVED).describe()
    more = train(accelerator, parts, SAVED, STEPS)
    batches, norms = batches + more[0], norms + more[1]
    assert parts[0].plan.policy == schedule.policy_at(STEPS).describe()
    state = accelerator.get_state_dict(parts[0])
    hand, expected = by_hand(batches, schedule)
    assert same(hand, state) and norms == expected and min(norms) > CLIP

    accelerator.free_memory()
    resumed = prepared(accelerator, policy=schedule)
    accelerator.load_state(str(folder))
    assert resumed[0].plan.policy == schedule.policy_at(SAVED).describe()
    assert train(accelerator, resumed, SAVED, STEPS)[1] == norms[SAVED:]
    assert same(accelerator.get_state_dict(resumed[0]), state)

    # Two optimizers of one model: a step is done when both have stepped.
    accelerator.free_memory()
    model = compiled(policy=schedule)
    first, last = (
        torch.optim.AdamW(part.parameters(), lr=1e-2) for part in (model.get_submodule("0"), model.get_submodule("3"))
    )
    model, first, last, loader = accelerator.prepare(model, first, last, data(workers))
    reference = compiled(policy=schedule)
    whole = torch.optim.AdamW(reference.parameters(), lr=1e-2)
    for step, (x, y) in zip(range(7), loader, strict=False):
        accelerator.backward(F.mse_loss(model(x), y))
        reference.advance(step, whole)
        (F.mse_loss(reference(x), y) / 2).backward()  # as backward() does for accumulation over two
        assert model.plan.policy == reference.plan.policy
        for optimizer in (first, last, whole):
            optimizer.step()
            optimizer.zero_grad()
    assert same(model.full_state_dict(), reference.full_state_dict())


@pytest.mark.parametrize("workers", [2, 4])
def test_it_follows_a_schedule(workers: int, tmp_path: Path) -> None:
    run_workers(follows_a_schedule, workers, workers, tmp_path, limit=150.0)
