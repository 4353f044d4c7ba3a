"""Compiled models trained by four processes, against the original eager model with masked parameters."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel

from sdp_compile import BlockPolicy, NeuronPolicy, clip_grad_norm_, sdp_compile
from sdp_compile.errors import SDPError
from sdp_compile.planning.holdings import SlicedHoldings
from sdp_compile.planning.plan import Plan
from tests.distributed import run_workers
from tests.runtime.models import batch, build, loss_of

pytestmark = pytest.mark.timeout(240)
WORKERS = 4
STEPS = 20
POLICIES: dict[str, Any] = {
    "neuron": lambda: NeuronPolicy(coverage=0.5),
    "replicas": lambda: NeuronPolicy(replicas=3),
    "block": lambda: BlockPolicy(coverage=0.5),
    "full": lambda: NeuronPolicy(coverage=1.0),
    "backward neuron": lambda: NeuronPolicy(coverage=0.5, masking="backward"),
    "backward block": lambda: BlockPolicy(coverage=0.5, masking="backward"),
    "backward all": lambda: NeuronPolicy(axes="all", scope="all", replicas=3, masking="backward"),
}
CASES = [
    ("cnn", "neuron"),
    ("cnn", "replicas"),
    ("cnn", "block"),
    ("cnn", "full"),
    ("transformer", "neuron"),
    ("transformer", "replicas"),
    ("transformer", "block"),
    ("transformer", "full"),
    ("cnn", "backward all"),
    ("cnn", "backward block"),
    ("transformer", "backward neuron"),
]


def masked_gradients(model: nn.Module, name: str, plan: Plan, seeds: dict[int, list[int]]) -> dict[str, Tensor]:
    """Each element's mean over its owners of the sums of the gradients on each worker's batches.

    The original eager model computes them, with the masks of the plan on its parameters (forward masking) or on their
    gradients only (backward masking).
    """
    parameters = dict(model.named_parameters())
    device = next(model.parameters()).device
    total = {key: torch.zeros_like(value) for key, value in parameters.items()}
    owners = {key: torch.zeros_like(value) for key, value in parameters.items()}
    for rank, own in seeds.items():
        masks = {key: plan.mask(key, rank).double().to(device) for key in parameters}
        leaves = {key: value.detach().clone().requires_grad_() for key, value in parameters.items()}
        for seed in own:
            x = batch(name, seed).to(device)
            buffers = {key: value.clone() for key, value in model.named_buffers()}
            masked = {key: leaves[key] * masks[key] for key in leaves} if plan.masking == "forward" else leaves
            output = functional_call(model, {**masked, **buffers}, (x,), tie_weights=True)
            loss_of(name, output, x).backward()
        for key, leaf in leaves.items():
            assert leaf.grad is not None
            total[key] += leaf.grad * masks[key]
            owners[key] += masks[key]
    return {key: total[key] / owners[key] for key in total}


def check_gradients(module: Any, expected: dict[str, Tensor]) -> None:
    for key, parameter in module.named_parameters():
        mask = module.plan.mask(key, module.rank)
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad.reshape(-1), expected[key][mask], rtol=1e-9, atol=1e-11)


def seed_of(rank: int, step: int) -> int:
    return 1000 * rank + step


def backward(module: nn.Module, name: str, seed: int) -> None:
    x = batch(name, seed).to(next(module.parameters()).device)
    loss_of(name, module(x), x).backward()


def everything(rank: int, name: str, policy: str, compiled: bool, device: str = "cpu") -> Any:
    warnings.simplefilter("ignore")
    model = build(name, seed=rank).to(device)  # other values on each rank: the start makes them equal
    module = sdp_compile(model, POLICIES[policy](), (batch(name, 0).to(device),))
    run = torch.compile(module, fullgraph=True, backend="aot_eager") if compiled else module
    plan = module.plan
    reference = build(name).to(device)
    reference.load_state_dict(module.full_state_dict(), strict=True)
    assert all(value.storage_offset() == 0 for value in model.parameters())

    everyone = {worker: [seed_of(worker, 0)] for worker in range(WORKERS)}
    expected = masked_gradients(reference, name, plan, everyone)
    backward(run, name, seed_of(rank, 0))
    check_gradients(module, expected)
    if policy == "full":
        replica = DistributedDataParallel(build(name, seed=rank).to(device))
        replica.module.load_state_dict(reference.state_dict())
        backward(replica, name, seed_of(rank, 0))
        for key, parameter in replica.module.named_parameters():
            torch.testing.assert_close(module.get_parameter(key).grad, parameter.grad, rtol=1e-9, atol=1e-12)

    for kind in (2.0, float("inf")):
        for key, parameter in reference.named_parameters():
            parameter.grad = expected[key].clone()
        oracle = nn.utils.clip_grad_norm_(reference.parameters(), 0.5, kind)
        torch.testing.assert_close(clip_grad_norm_(run, 0.5, kind), oracle, rtol=1e-9, atol=0)
        expected = {key: p.grad.clone() for key, p in reference.named_parameters() if p.grad is not None}
        check_gradients(module, expected)

    module.zero_grad()
    with module.no_sync():
        backward(run, name, seed_of(rank, 1))
        backward(run, name, seed_of(rank, 2))
    backward(run, name, seed_of(rank, 3))
    everyone = {worker: [seed_of(worker, step) for step in (1, 2, 3)] for worker in range(WORKERS)}
    check_gradients(module, masked_gradients(reference, name, plan, everyone))

    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3, weight_decay=0.05)
    dense = torch.optim.AdamW(reference.parameters(), lr=3e-3, weight_decay=0.05)
    for step in range(STEPS):
        optimizer.zero_grad()
        backward(run, name, seed_of(rank, step))
        optimizer.step()
        if rank == 0:  # the whole of SDP, simulated densely
            everyone = {worker: [seed_of(worker, step)] for worker in range(WORKERS)}
            for key, gradient in masked_gradients(reference, name, plan, everyone).items():
                reference.get_parameter(key).grad = gradient
            dense.step()
    full, state = module.full_state_dict(), module.full_optimizer_state_dict(optimizer)
    assert {value.device.type for value in full.values()} == {torch.device(device).type}
    build(name).load_state_dict(full, strict=True)
    torch.optim.AdamW(build(name).parameters()).load_state_dict(state)
    if rank == 0:
        for key, parameter in reference.named_parameters():
            torch.testing.assert_close(full[key], parameter.detach(), rtol=1e-6, atol=1e-8)
            torch.testing.assert_close(
                state["state"][key]["exp_avg"], dense.state[parameter]["exp_avg"], rtol=1e-6, atol=1e-8
            )
    for held in SlicedHoldings(plan, rank).held():  # what others own included, under backward masking
        if held.source in dict(reference.named_parameters()):
            tensor = {**dict(module.named_parameters()), **dict(module.named_buffers())}[held.name]
            assert torch.equal(tensor, held.region.read(full[held.source])), held.name
    values = {key: value.detach().clone() for key, value in module.named_parameters()}
    moments = {
        f"{key}:{entry}": optimizer.state[value][entry].clone()
        for key, value in module.named_parameters()
        for entry in ("exp_avg", "exp_avg_sq")
    }
    evaluated = module.full_model().eval()(batch(name, 7).to(device))
    dist.barrier()
    found = {key: value.cpu() for key, value in (values | moments).items()}
    return plan.to_json(), found, {key: value.cpu() for key, value in full.items()}, evaluated.cpu()


@pytest.mark.parametrize(("name", "policy"), CASES)
def test_training_equals_the_masked_original(name: str, policy: str) -> None:
    check_owners(run_workers(everything, WORKERS, name, policy, False, limit=220))


def check_owners(found: Any) -> None:
    """All owners have the same bits, and all workers assemble the same full model."""
    plan = Plan.from_json(found[0][0])
    for key in {key for _, tensors, _, _ in found for key in tensors}:
        fqn = key.split(":")[0]
        whole: dict[int, Tensor] = {}
        for rank, (_, tensors, _, _) in enumerate(found):
            if key in tensors:
                whole[rank] = torch.zeros(plan.state[fqn].shape, dtype=torch.float64)
                whole[rank][plan.mask(fqn, rank)] = tensors[key].reshape(-1)
        for piece in plan.pieces(fqn):
            grid = torch.meshgrid(*map(torch.from_numpy, piece.index), indexing="ij")
            assert all(torch.equal(whole[rank][grid], whole[piece.owners[0]][grid]) for rank in piece.owners)
    for _, _, full, evaluated in found[1:]:
        assert all(torch.equal(full[key], found[0][2][key]) for key in full)
        assert torch.equal(evaluated, found[0][3])


def test_training_under_torch_compile() -> None:
    run_workers(everything, WORKERS, "transformer", "neuron", True, limit=220)


def test_backward_masking_under_torch_compile() -> None:
    run_workers(everything, WORKERS, "transformer", "backward neuron", True, limit=220)


def disagreeing(rank: int) -> list[str]:
    texts = []
    wider = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8 if rank == 2 else 5))
    same = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 5))
    for model, coverage, inputs in (
        (wider, 0.5, (torch.randn(4, 6),)),
        (same, 0.75 if rank == 1 else 0.5, (torch.randn(4, 6),)),
        (same, 0.5, None if rank == 3 else (torch.randn(4, 6),)),
    ):
        with pytest.raises(SDPError) as raised:
            sdp_compile(model, NeuronPolicy(coverage=coverage), inputs)
        texts.append(f"{type(raised.value).__name__}: {raised.value}")
    return texts


def test_ranks_that_disagree_all_raise_and_name_each_other() -> None:
    shapes, policies, inputs = zip(*run_workers(disagreeing, WORKERS), strict=True)
    assert all("`2.weight: parameter float32[5, 16]" in text and "[8, 16]" in text for text in shapes)
    assert all("worker 2" in text for text in shapes)
    assert all("worker 1: " in text and "workers 0, 2, 3: " in text and "plan digest" in text for text in policies)
    assert all("worker 3" in text and "example" in text for text in inputs[:3]) and "example" in inputs[3]


@pytest.mark.parametrize("name", ["cnn", "transformer"])
def test_meta_models_are_materialised_in_slices(name: str) -> None:
    model, x = build(name), batch(name, 0)
    empty = build(name).to("meta")
    if name == "transformer":
        empty.head.weight = empty.embed.weight  # moving a module to the meta device unties it
    for rank in range(2):
        expected = sdp_compile(model, POLICIES["neuron"](), (x,), workers=WORKERS, rank=rank)
        module = sdp_compile(empty, POLICIES["neuron"](), (x.to("meta"),), workers=WORKERS, rank=rank)
        assert all(parameter.is_meta for parameter in module.parameters())
        module.materialize(model.state_dict())
        assert torch.equal(module(x), expected(x))
        again = sdp_compile(empty, POLICIES["neuron"](), (x.to("meta"),), workers=WORKERS, rank=rank).materialize()
        assert again(x).isfinite().all()
