"""What an emulation is to its user: a module with the original's names, values and errors that say what to do."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sdp_compile as sdp
from sdp_compile.errors import PlanError, PolicyError, SDPError
from sdp_compile.policies import NeuronPolicy
from tests.distributed import run_workers
from tests.runtime.models import batch, build, loss_of

WORKERS = 4


def loss_fn(model: nn.Module, x: Tensor) -> Tensor:
    return loss_of("cnn" if x.dim() == 4 else "transformer", model(x), x)


def emulate(name: str = "transformer", policy: Any = "neuron", **options: Any) -> sdp.Emulation:
    return sdp.emulate(build(name), policy, (batch(name, 0),), workers=WORKERS, **options)


def batches(name: str = "transformer", step: int = 0) -> list[Tensor]:
    return [batch(name, 100 * step + worker) for worker in range(WORKERS)]


def masked_gradients(
    original: nn.Module, plan: sdp.Plan, some: list[Tensor], weights: list[float]
) -> dict[str, Tensor]:
    """The oracle: the original with masked parameters on each worker's batch, averaged over owners by weight."""
    sums = {name: torch.zeros_like(one) for name, one in original.named_parameters()}
    shares = {name: torch.zeros_like(one) for name, one in original.named_parameters()}
    for worker, x in enumerate(some):
        values = {name: one.detach().clone().requires_grad_() for name, one in original.named_parameters()}
        masks = {name: plan.mask(name, worker).double() for name in values}
        masked = {name: value * masks[name] for name, value in values.items()}
        loss = loss_of("transformer", torch.func.functional_call(original, masked, (x,)), x)
        loss.backward()  # type: ignore[no-untyped-call]
        for name, value in values.items():
            assert value.grad is not None
            sums[name] += weights[worker] * value.grad * masks[name]
            shares[name] += weights[worker] * masks[name]
    return {name: sums[name] / shares[name] for name in sums}


@pytest.mark.parametrize("reduction", ["mean", "tokens", "sum"])
def test_that_gradients_are_the_oracles(reduction: Any) -> None:
    original, tokens = build("transformer"), [3.0, 0.0, 5.0, 2.0]
    model = emulate(policy=NeuronPolicy(coverage=0.5), reduction=reduction)
    weights = tokens if reduction == "tokens" else [1.0] * WORKERS
    model.backward(batches(), loss_fn, tokens=tokens if reduction == "tokens" else None)
    factor = WORKERS if reduction == "sum" else 1
    for name, expected in masked_gradients(original, model.plan, batches(), weights).items():
        found = model.get_parameter(name).grad
        torch.testing.assert_close(
            found, expected * factor, rtol=1e-9, atol=1e-12, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_that_backward_accumulates() -> None:
    model, other = emulate(), emulate()
    model.backward(batches(step=0), loss_fn)
    model.backward(batches(step=1), loss_fn)
    first = other.backward(batches(step=0), loss_fn)
    before = {name: one.grad for name, one in other.named_parameters()}
    other.zero_grad()
    other.backward(batches(step=1), loss_fn)
    assert first.shape == (WORKERS,) and not first.requires_grad
    for name, one in other.named_parameters():
        torch.testing.assert_close(model.get_parameter(name).grad, before[name] + one.grad, rtol=1e-12, atol=0)


def test_that_names_values_and_calls_are_the_originals() -> None:
    original = build("cnn")
    model = emulate("cnn")
    assert list(model.state_dict()) == list(original.state_dict())
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in original.named_parameters()]
    assert isinstance(model.branches[0].norm1, nn.BatchNorm2d)
    x = batch("cnn", 3)
    original.eval(), model.eval()
    torch.testing.assert_close(model(x), original(x))
    original.load_state_dict(model.state_dict(), strict=True)


def test_that_the_original_and_random_numbers_stay_as_they_are() -> None:
    original = build("cnn")
    before, numbers = copy.deepcopy(original.state_dict()), torch.get_rng_state()
    model = sdp.emulate(original, "neuron", (batch("cnn", 0),), workers=WORKERS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.step(batches("cnn"), loss_fn, optimizer)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert all(torch.equal(value, before[name]) for name, value in original.state_dict().items())
    assert not torch.equal(model.state_dict()["stem.weight"], before["stem.weight"])


def test_that_slices_take_no_memory_of_their_own() -> None:
    model = emulate(policy=NeuronPolicy(coverage=0.5))
    full = {one.untyped_storage().data_ptr() for one in model.parameters()}
    model.backward(batches(), loss_fn)
    scratch = {one.untyped_storage().data_ptr() for one in model._scratch.values()}
    held = {one.untyped_storage().data_ptr() for station in model._stations for one in station.module.parameters()}
    assert len(model._stations) == WORKERS and held <= full | scratch
    most = max(sum(one.numel() for one in station.module.parameters()) for station in model._stations)
    assert sum(one.numel() for one in model._scratch.values()) <= most


def test_that_a_cast_reaches_the_workers() -> None:
    model = emulate("cnn").float()
    optimizer = torch.optim.AdamW(model.parameters())
    loss = model.step([x.float() for x in batches("cnn")], loss_fn, optimizer)
    assert loss.dtype == torch.float32
    assert all(one.dtype == torch.float32 for one in model.state_dict().values() if one.is_floating_point())


def test_that_loading_reaches_the_workers() -> None:
    model, other = emulate("cnn"), emulate("cnn")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        model.step(batches("cnn", step), loss_fn, optimizer)
    other.load_state_dict(model.state_dict())
    model.load_state_dict(model.state_dict())  # running statistics are merged for all workers
    first, second = (one.backward(batches("cnn", 3), loss_fn) for one in (model, other))
    assert torch.equal(first, second)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


def test_that_the_full_model_is_a_copy() -> None:
    model = emulate("cnn")
    full = model.full_model()
    model.step(batches("cnn"), loss_fn, torch.optim.SGD(model.parameters(), lr=1.0))
    assert type(full) is type(build("cnn"))
    assert not torch.equal(full.state_dict()["stem.weight"], model.state_dict()["stem.weight"])


class Clashing(nn.Module):
    """Its parts are named as attributes of emulations are."""

    def __init__(self) -> None:
        super().__init__()
        self.plan, self.step, self.workers = nn.Linear(4, 8), nn.Linear(8, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.workers(self.step(torch.relu(self.plan(x))))


def test_that_parts_may_have_the_names_of_attributes() -> None:
    model = sdp.emulate(Clashing(), "neuron", (torch.randn(2, 4),), workers=2)
    assert "plan.weight" in model.state_dict() and model.workers == 2
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.step([torch.randn(3, 4)] * 2, lambda worker, x: worker(x).square().mean(), optimizer)
    model.replan(NeuronPolicy(coverage=1.0))
    assert model.plan.coverage().mean == 2


def test_that_errors_say_what_to_do() -> None:
    model = emulate()
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(SDPError, match="one entry for each of 4 workers, got 3"):
        model.step(batches()[:3], loss_fn, optimizer)
    with pytest.raises(SDPError, match=r"loss_fn\(model, batch\)"):
        model.step(batches(), F.cross_entropy, optimizer)
    with pytest.raises(SDPError, match=r"loss_fn\(model, batch\)"):
        model.step(batches(), nn.CrossEntropyLoss(), optimizer)
    with pytest.raises(SDPError, match="must return the loss"):
        model.step(batches(), lambda worker, x: worker(x), optimizer)
    with pytest.raises(SDPError, match="without a gradient"):
        model.step(batches(), lambda worker, x: torch.zeros(()), optimizer)
    with pytest.raises(SDPError, match="tokens= is for"):
        model.step(batches(), loss_fn, optimizer, tokens=[1.0] * 4)
    with pytest.raises(SDPError, match="LBFGS"):
        model.step(batches(), loss_fn, torch.optim.LBFGS(model.parameters()))
    with pytest.raises(PolicyError, match="coverage"):
        model.replan({"policy": "neuron", "coverage": 2.0})
    with pytest.raises(PlanError, match="original"):
        sdp.emulate(model.__class__, workers=2)  # type: ignore[arg-type]
    with pytest.raises(SDPError, match="meta"):
        sdp.emulate(build("cnn").to("meta"), "neuron", (batch("cnn", 0),), workers=2)
    with pytest.raises(PlanError, match="positive integer"):
        sdp.emulate(build("cnn"), "neuron", (batch("cnn", 0),), workers=0)


def unused(rank: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = sdp.compile(TwoHeads(), NeuronPolicy(coverage=0.5), (torch.randn(2, 6, dtype=torch.float64),))
    first_head(model, torch.full((2, 6), rank + 1.0, dtype=torch.float64)).backward()  # type: ignore[no-untyped-call]
    return {name: None if one.grad is None else one.grad.clone() for name, one in model.named_parameters()}


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)
        self.double()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.up(x))
        return self.one(h), self.two(h)


def first_head(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)[0].square().sum()


def test_that_a_parameter_without_a_gradient_gets_zeros_as_in_a_process_group() -> None:
    real = run_workers(unused, WORKERS)
    torch.manual_seed(0)
    model = sdp.emulate(
        TwoHeads(), NeuronPolicy(coverage=0.5), (torch.randn(2, 6, dtype=torch.float64),), workers=WORKERS
    )
    model.backward([torch.full((2, 6), rank + 1.0, dtype=torch.float64) for rank in range(WORKERS)], first_head)
    for name, parameter in model.named_parameters():
        for rank in range(WORKERS):
            expected, mask = real[rank][name], model.plan.mask(name, rank)
            assert (expected is None) == (parameter.grad is None), name
            if expected is not None and parameter.grad is not None:
                torch.testing.assert_close(parameter.grad[mask], expected.reshape(-1), rtol=1e-12, atol=1e-14)
