"""Lightning Fabric with SDPStrategy, against a loop written by hand and the original eager model with masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import sdp_compile as sdp
from sdp_compile.errors import SDPError
from tests.distributed import run_workers
from tests.integrations.loops import (
    ACCUMULATED,
    MAX_NORM,
    POLICY,
    SAVED_AT,
    SCHEDULE,
    STEPS,
    as_under_torchrun,
    assert_same,
    batch_of,
    by_hand,
    compiled,
    loss,
    optimizer_of,
    original,
    plans_of,
    simulated,
)

pytest.importorskip("lightning")
pytestmark = [pytest.mark.timeout(400), pytest.mark.filterwarnings("ignore")]


def fabric_of(**options: Any) -> Any:
    from lightning.fabric import Fabric

    from sdp_compile.integrations.fabric import SDPStrategy

    strategy = SDPStrategy(options.pop("policy", POLICY), options.pop("example_inputs", (batch_of(0, 0),)))
    fabric = Fabric(accelerator="cpu", devices=dist.get_world_size(), strategy=strategy, **options)
    fabric.launch()
    return fabric


def train(
    fabric: Any,
    model: Any,
    optimizer: Any,
    start: int = 0,
    stop: int = STEPS,
    save: Path | None = None,
    scheduler: Any = None,
) -> Any:
    for step in range(start, stop):
        for part in range(ACCUMULATED):
            with fabric.no_backward_sync(model, enabled=part < ACCUMULATED - 1):
                x = batch_of(fabric.global_rank, ACCUMULATED * step + part)
                fabric.backward(loss(model, x) / ACCUMULATED)
        fabric.clip_gradients(model, optimizer, max_norm=MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
        if scheduler is not None:
            scheduler.step()
        if save is not None and step == SAVED_AT - 1:
            fabric.save(save, {"model": model, "optimizer": optimizer, "step": step + 1})
    if scheduler is not None:
        assert model.plan.policy == SCHEDULE.phases[-1].policy.describe()
    return model.full_state_dict()


def made(fabric: Any, make: Any = optimizer_of, dtype: torch.dtype = torch.float64) -> Any:
    model = original(dtype)
    return fabric.setup(model, make(model.parameters()))


def stops_and_resumes(rank: int, folder: Path) -> None:
    as_under_torchrun()
    fabric, path = fabric_of(), folder / "checkpoint.pt"
    reference = compiled()
    expected = by_hand(rank, reference)
    assert_same(train(fabric, *made(fabric), save=path), expected)

    model, optimizer = made(fabric)
    state = {"model": model, "optimizer": optimizer, "step": 0}
    fabric.load(path, state)
    assert state["step"] == SAVED_AT
    assert_same(train(fabric, model, optimizer, start=SAVED_AT), expected)

    if rank == 0:
        dense = simulated([reference.plan] * STEPS)
        for key, value in dense.items():
            torch.testing.assert_close(expected[key], value, rtol=1e-9, atol=1e-9)
        saved = torch.load(path, weights_only=True)
        plain = original()
        plain.load_state_dict(saved["model"], strict=True)
        optimizer_of(plain.parameters()).load_state_dict(saved["optimizer"])
        shapes = [state["exp_avg"].shape for state in saved["optimizer"]["state"].values()]
        assert shapes == [parameter.shape for parameter in plain.parameters()]
    dist.barrier()


def follows_a_schedule(rank: int, folder: Path) -> None:
    """Changes of plan between steps, with plain and sharded optimizers, and a resume within the second phase."""
    as_under_torchrun()
    schedule, path = SCHEDULE.replace(steps=STEPS), folder / "scheduled.pt"
    fabric = fabric_of(policy=schedule)
    expected = by_hand(rank, compiled(policy=schedule))

    def begun(make: Any = optimizer_of) -> Any:
        model = original()
        model, optimizer = fabric.setup(model, make(model.parameters()))
        return model, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, model.schedule.rate)

    model, optimizer, scheduler = begun()
    assert_same(train(fabric, model, optimizer, save=path, scheduler=scheduler), expected)
    for first in ("model", "optimizer"):  # whichever is loaded first
        model, optimizer, scheduler = begun()
        state = {"model": model, "optimizer": optimizer}
        fabric.load(path, {first: state.pop(first), **state}, strict=False)
        scheduler.last_epoch = SAVED_AT - 1
        scheduler.step()
        assert model.plan.policy == schedule.policy_at(SAVED_AT).describe()
        assert_same(train(fabric, model, optimizer, start=SAVED_AT, scheduler=scheduler), expected)

    model = fabric.setup_module(original())
    parts = fabric.setup_optimizers(sdp.ShardedOptimizer(model, torch.optim.AdamW, lr=3e-3, weight_decay=0.05))
    train(fabric, model, parts, stop=SAVED_AT)
    fabric.save(path, {"model": model, "optimizer": parts})
    resumed = fabric.setup_module(original())
    others = fabric.setup_optimizers(sdp.ShardedOptimizer(resumed, torch.optim.AdamW, lr=3e-3, weight_decay=0.05))
    fabric.load(path, {"model": resumed, "optimizer": others})
    assert resumed.plan.policy == model.plan.policy == schedule.policy_at(SAVED_AT).describe()
    assert_same(train(fabric, resumed, others, start=SAVED_AT), train(fabric, model, parts, start=SAVED_AT))

    if rank == 0:
        dense = simulated(plans_of(schedule, dist.get_world_size()), schedule)
        for key, value in dense.items():
            torch.testing.assert_close(expected[key], value, rtol=1e-9, atol=1e-9)
    dist.barrier()


def in_bfloat16(rank: int) -> None:
    halved = fabric_of(precision="bf16-mixed")
    expected = by_hand(rank, compiled(torch.float32), steps=3, autocast=torch.autocast("cpu", torch.bfloat16))
    assert_same(train(halved, *made(halved, dtype=torch.float32), stop=3), expected)


class Net(nn.Module):
    """A model with settings, methods and an example of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 4)
        self.scale, self.config = 1.0, {"width": 32}
        self.example_input_array = torch.randn(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.down(torch.relu(self.up(x)))

    def training_loss(self, x: Tensor) -> Tensor:
        return F.mse_loss(self(x), x[:, :4])

    def embed(self, x: Tensor) -> Tensor:
        return self.up(x)


def regression(model: nn.Module, rank: int, step: int) -> Tensor:
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(100 * rank + step))
    return F.mse_loss(model(x), x[:, :4])


def habits(rank: int, folder: Path) -> None:
    """What people do with Fabric, models and optimizers."""
    fabric = fabric_of(example_inputs=None)

    def adagrad(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adagrad(parameters, lr=1e-2, initial_accumulator_value=0.5)  # has state before it steps

    def trained(model: Any, optimizer: Any, steps: int = 3) -> dict[str, Tensor]:
        for step in range(steps):
            fabric.backward(regression(model, rank, step))
            optimizer.step()
            optimizer.zero_grad()
        return model.full_state_dict()

    def expected(make: Any) -> dict[str, Tensor]:
        module = sdp.compile(Net(), POLICY, Net().example_input_array)
        return trained(module, make(module.parameters()))

    net = Net()
    assert_same(trained(*fabric.setup(net, adagrad(net.parameters()))), expected(adagrad))
    wanted = expected(optimizer_of)
    net = Net()
    before = optimizer_of(net.named_parameters())
    model = fabric.setup_module(net)
    assert_same(trained(model, fabric.setup_optimizers(before)), wanted)
    assert before.param_groups[0]["param_names"] == [name for name, _ in Net().named_parameters()]
    model = fabric.setup_module(Net())
    assert_same(trained(model, fabric.setup_optimizers(optimizer_of(model.parameters()))), wanted)
    own = sdp.compile(Net(), POLICY, Net().example_input_array)
    assert_same(trained(*fabric.setup(own, optimizer_of(own.parameters()))), wanted)
    again = torch.compile(Net(), backend="eager")
    assert_same(trained(*fabric.setup(again, optimizer_of(again.parameters()))), wanted)

    sharded = fabric.setup_module(Net())
    parts = fabric.setup_optimizers(sdp.ShardedOptimizer(sharded, torch.optim.AdamW, lr=3e-3, weight_decay=0.05))
    assert_same(trained(sharded, parts), wanted)
    fabric.save(folder / "sharded.pt", {"model": sharded, "optimizer": parts})
    net = Net()
    model, optimizer = fabric.setup(net, optimizer_of(net.parameters()))
    fabric.load(folder / "sharded.pt", {"model": model, "optimizer": optimizer})
    fabric.load(folder / "sharded.pt", {"model": sharded, "optimizer": parts})
    assert_same(trained(sharded, parts), trained(model, optimizer))

    # A state of the original's optimizer, loaded before and after.
    dense = Net()
    stepped = optimizer_of(dense.parameters())
    regression(dense, 0, 0).backward()
    stepped.step()
    net, other = Net(), Net()
    before, after = optimizer_of(net.parameters()), optimizer_of(other.parameters())
    before.load_state_dict(stepped.state_dict())
    net, before = fabric.setup(net, before)
    other, after = fabric.setup(other, after)
    after.load_state_dict(stepped.state_dict())
    for module, optimizer in ((net, before), (other, after)):
        full = module.full_optimizer_state_dict(optimizer.optimizer)["state"]
        for name, parameter in dense.named_parameters():
            assert torch.equal(full[name]["exp_avg"], stepped.state[parameter]["exp_avg"])

    # The model stays what it was, and runs the subnetwork.
    net = Net()
    net.register_forward_hook(lambda module, args, output: 3 * output)
    model = fabric.setup(net)
    assert model.module is net and isinstance(net, Net) and model.config == {"width": 32}
    assert tuple(model.up.weight.shape) == (16, 8) and len(list(model.parameters())) == 4
    x = net.example_input_array
    once = model(x)
    hidden = torch.relu(F.linear(x, model.up.weight, model.up.bias))
    torch.testing.assert_close(once, 3 * F.linear(hidden, model.down.weight, model.down.bias))
    model.scale = 2.0
    assert torch.equal(model(x), 2 * once) and torch.equal(net(x), 2 * once)
    assert torch.equal(model.training_loss(x), F.mse_loss(2 * once, x[:, :4]))
    with pytest.raises(SDPError, match="full_model"):
        model.embed(x)
    model.eval()
    assert not net.up.training
    assert model.load_state_dict(model.state_dict()).missing_keys == []
    with pytest.raises(SDPError, match="load_full_state_dict"):
        model.load_state_dict(Net().state_dict())
    model.load_full_state_dict(Net().state_dict())
    assert sdp.clip_grad_norm_(model, 1.0) == 0

    layers = fabric_of(example_inputs=(x,)).setup(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)))
    assert len(layers.module) == 3 and [type(layer).__name__ for layer in layers.module] == ["Linear", "ReLU", "Linear"]
    assert tuple(layers.module[0].weight.shape) == (16, 8)
    frozen = Net().requires_grad_(False)
    assert type(fabric.setup_module(frozen).module) is Net

    with pytest.raises(SDPError, match=r"SDPStrategy\(example_inputs=...\)"):
        fabric.setup(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)))
    from lightning.fabric import Fabric

    usual = Fabric(accelerator="cpu", devices=dist.get_world_size(), strategy="ddp")
    usual.launch()
    with pytest.raises(SDPError, match="SDPStrategy"):
        usual.setup(compiled())


def two_workers(rank: int, folder: Path) -> None:
    stops_and_resumes(rank, folder)
    in_bfloat16(rank)
    habits(rank, folder)


def test_four_workers_stop_and_resume(tmp_path: Path) -> None:
    run_workers(stops_and_resumes, 4, tmp_path, limit=350)


def test_two_workers_stop_and_resume_and_what_people_do(tmp_path: Path) -> None:
    run_workers(two_workers, 2, tmp_path, limit=350)


@pytest.mark.parametrize("workers", [2, 4])
def test_it_follows_a_schedule(workers: int, tmp_path: Path) -> None:
    run_workers(follows_a_schedule, workers, tmp_path, limit=350)


def test_unknown_options_are_refused() -> None:
    from sdp_compile.integrations.fabric import SDPStrategy

    with pytest.raises(SDPError, match=r"no 'bucket'.*bucket_bytes"):
        SDPStrategy("neuron", compile_options={"bucket": 1})
    with pytest.raises(SDPError, match="no 'policy'"):
        SDPStrategy("neuron", compile_options={"policy": "block"})
