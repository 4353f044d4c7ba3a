"""The sum over all workers, shards, half precision, optimizer steps, and what is refused on all workers."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

from sdp_compile import NeuronPolicy, ShardedOptimizer, clip_grad_norm_, sdp_compile
from sdp_compile.errors import PlanError, SDPError
from sdp_compile.runtime.peers import weighted
from tests.distributed import run_workers
from tests.runtime.connected import connected
from tests.runtime.contract.oracle import check, micro_batch, oracle, sum_of, token_mean, tokens, total_loss
from tests.runtime.contract.test_tokens import POLICIES, Case, batches
from tests.runtime.models import build
from tests.runtime.stub import CYCLIC, SCATTERED, network


def sums(rank: int, workers: int) -> None:
    warnings.simplefilter("ignore")
    cases: list[tuple[str, Any, nn.Module]] = []
    for name, policy in (("transformer", "neuron"), ("cnn", "block"), ("transformer", "backward"), ("cnn", "full")):
        inputs = (micro_batch(name, 0, 4)[0],)
        cases.append((name, sdp_compile(build(name), POLICIES[policy](), inputs, reduction="sum"), build(name)))
    if workers == 4:
        cases.append(("stub", connected(rank, SCATTERED, reduction="sum"), network()))
    for name, module, reference in cases:
        for seed, (no_sync, count) in enumerate(((True, 1), (True, 2), (False, 2), (False, 1))):
            module.zero_grad(set_to_none=seed % 2 == 0)
            used = batches(name, workers, count, seed)
            everything = sum(tokens(batch) for own in used.values() for batch in own)
            for number, batch in enumerate(used[rank]):
                with module.peers.no_sync() if no_sync and number + 1 < count else nullcontext():
                    (total_loss(module(batch[0]), batch) / everything).backward()
            expected = oracle(reference, module.plan, used, sum_of(everything))
            check(module, expected, f"{name}, {count} micro-batches, no_sync {no_sync}")
            loss = total_loss(module(used[rank][0][0]), used[rank][0])
            torch.autograd.grad(
                loss, [p for p in module.parameters() if p.requires_grad], allow_unused=True
            )  # leaves .grad as it is
            check(module, expected, f"{name} after torch.autograd.grad")


@pytest.mark.parametrize("workers", [2, 4])
def test_the_sum_over_all_workers_is_estimated_by_the_owners(workers: int) -> None:
    run_workers(sums, workers, workers, limit=180)


def loops_of_steps(rank: int) -> Any:
    """Steps with ShardedOptimizer, clipping, and micro-batches averaged one by one, against the plain optimizer."""
    result = []
    for kind in ("tokens", "sum"):
        for sharded in (False, True):
            module: Any = connected(rank, SCATTERED, reduction=kind, bucket_bytes=64)
            optimizer: Any = torch.optim.AdamW
            options = {"lr": 1e-2, "eps": 1e-4}
            optimizer = (
                ShardedOptimizer(module, optimizer, module.parameters(), **options)
                if sharded
                else optimizer(module.parameters(), **options)
            )
            norms = []
            for step in range(4):
                for number, batch in enumerate(batches("stub", 4, 3, step)[rank]):
                    with module.peers.no_sync() if (number + step) % 3 == 0 and number < 2 else nullcontext():
                        loss = total_loss(module(batch[0]), batch)
                        with weighted(module.peers, tokens(batch)) if kind == "tokens" else nullcontext():
                            (loss / (tokens(batch) if kind == "tokens" else 40)).backward()
                norms.append(clip_grad_norm_(module, 0.2))
                optimizer.step()
                optimizer.zero_grad(set_to_none=step % 2 == 0)
            values = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
            result.append((norms, values))
    return result


def test_steps_are_the_same_with_shards() -> None:
    for plain, sharded, plain_sum, sharded_sum in run_workers(loops_of_steps, 4, limit=100):
        for one, other in ((plain, sharded), (plain_sum, sharded_sum)):
            torch.testing.assert_close(one[0], other[0], rtol=1e-9, atol=0)
            torch.testing.assert_close(one[1], other[1], rtol=1e-9, atol=1e-11)


def large_weights(rank: int) -> None:
    """A million tokens per token: weights that float16 cannot hold."""
    for reduction_dtype in (torch.float16, torch.bfloat16):
        module: Any = connected(rank, SCATTERED, reduction="tokens", comm_dtype=reduction_dtype)
        for step in range(2):
            module.zero_grad()
            used = batches("stub", 4, 2, step)
            for number, batch in enumerate(used[rank]):
                with (
                    weighted(module.peers, 1_000_003 * tokens(batch)),
                    module.peers.no_sync() if not number else nullcontext(),
                ):
                    (total_loss(module(batch[0]), batch) / tokens(batch)).backward()
            expected = oracle(network(), module.plan, used, token_mean)
            for name, parameter in module.named_parameters():
                if parameter.grad is not None and name in ("up.weight", "down.weight"):
                    mask = module.plan.mask(name, rank)
                    tolerance = 0.01 if reduction_dtype == torch.float16 else 0.05
                    torch.testing.assert_close(
                        parameter.grad.reshape(-1), expected[name][mask], rtol=tolerance, atol=tolerance
                    )


def test_large_weights_in_half_precision() -> None:
    run_workers(large_weights, 4)


def refusals(rank: int) -> dict[str, str]:
    module: Any = connected(rank, CYCLIC, reduction="tokens")
    batch = micro_batch("stub", rank, 5)
    case = Case("stub", module, network())

    def backward(weight: Any) -> None:
        with nullcontext() if weight is None else weighted(module.peers, weight):
            (total_loss(module(batch[0]), batch) / tokens(batch)).backward()

    def zeroed_in_part() -> None:
        backward(3)
        module.up.weight.grad = None
        backward(4)

    def accumulated() -> None:
        with module.peers.no_sync():
            backward(None if rank == 3 else 2)
        backward(2)

    attempts: dict[str, Callable[[], None]] = {
        "missing": lambda: backward(None if rank == 2 else 3),
        "missing on all": lambda: backward(None),
        "missing in accumulation": accumulated,
        "negative": lambda: backward(-3 if rank == 1 else 3),
        "nan": lambda: backward(math.nan if rank < 2 else torch.tensor(2.5)),
        "infinite": lambda: backward(math.inf if rank == 0 else 1),
        "no owner": lambda: backward(0 if rank in (0, 3) else 3),
        "nobody": lambda: backward(0),
        "in part": zeroed_in_part,
        "text": lambda: backward("many"),
        "bool": lambda: backward(True),
        "shape": lambda: backward(torch.ones(2)),
    }
    found = {}
    for round_ in range(2):  # before and after the first reduction
        for what, attempt in attempts.items():
            with pytest.raises(SDPError) as raised:
                attempt()
            found[what] = str(raised.value)
            module.zero_grad(set_to_none=round_ == 1)
        used = case.micro(1)  # nothing is left behind
        case.accumulate(used[rank])
        case.check(used, f"after errors, round {round_}")
        module.zero_grad()
    plain: Any = connected(rank, CYCLIC)
    with pytest.raises(SDPError) as raised:
        weighted(plain.peers, 3)
    found["mean"] = str(raised.value)
    with pytest.raises(SDPError) as raised:
        weighted(None, 3)
    found["alone"] = str(raised.value)
    return found


def test_what_is_refused_is_refused_on_all_workers() -> None:
    found = run_workers(refusals, 4, timeout=30)
    assert all(own == found[0] for own in found)
    expected = {
        "missing": r": worker 2 ran a backward outside `with model.weighted\(tokens\):`\. Run each",
        "missing on all": "worker 0 ran a backward outside .* worker 3 ran",
        "missing in accumulation": ": worker 3 ran a backward outside",
        "negative": r"worker 1 passed -3.0 to model.weighted\(\)",
        "nan": r"worker 0 passed nan .* worker 1 passed nan",
        "infinite": "worker 0 passed inf to",
        "no owner": r"units of 'up.weight' that workers 0, 3 own would be a mean over 0 tokens\. Give",
        "nobody": "would be a mean over 0 tokens",
        "in part": "zeroed the gradients of some parameters and not of others",
        "text": "takes the number of tokens of a micro-batch, got 'many'",
        "bool": "got True",
        "shape": r"got a tensor of shape \[2\] and torch.float32",
        "mean": "compiled with reduction='mean', for which weights mean nothing",
        "alone": "communicates with nobody",
    }
    for what, text in expected.items():
        assert re.search(text, found[0][what]), (what, found[0][what])


def failing(rank: int) -> str:
    """A backward fails on all workers, then on worker 1 only, in the middle of the reduction."""
    module: Any = connected(rank, CYCLIC, reduction="tokens", bucket_bytes=64)
    case = Case("stub", module, network())

    def fail(gradient: torch.Tensor) -> None:
        raise ValueError("the user's hook")

    def failed(used: Any) -> None:
        handle = module.up.bias.register_hook(fail)
        with pytest.raises(ValueError, match="the user's hook"):
            case.mean_backward(used[rank][0])
        handle.remove()

    for _ in range(2):  # before and after the first reduction
        failed(case.micro(1))
        for set_to_none in (True, False):
            module.zero_grad(set_to_none)
            used = case.micro(2)
            case.accumulate(used[rank])
            case.check(used, "after a failed backward")
        module.zero_grad()
    used, text = case.micro(1), ""
    if rank == 1:
        failed(used)
    else:
        with pytest.raises(SDPError) as raised:
            case.mean_backward(used[rank][0])
        text = str(raised.value)
    module.zero_grad()
    used = case.micro(1)
    case.mean_backward(used[rank][0])
    case.check(used, "after a backward that failed on one worker")
    return text


def test_a_failed_backward_leaves_nothing_behind() -> None:
    found = run_workers(failing, 4, timeout=30)
    assert all("worker 1 had an error in a backward" in text for rank, text in enumerate(found) if rank != 1)


def test_options_are_checked_at_compile() -> None:
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)), (torch.randn(2, 4),)
    with pytest.raises(PlanError, match=r"reduction must be 'mean' .* got 'max'"):
        sdp_compile(model, NeuronPolicy(), x, workers=2, rank=0, reduction="max")  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="reduction='tokens' needs the workers' process group"):
        sdp_compile(model, NeuronPolicy(), x, workers=2, rank=0, reduction="tokens")
    module = sdp_compile(model, NeuronPolicy(), x, workers=2, rank=0, reduction="sum")
    with pytest.raises(SDPError, match="communicates with nobody"):
        module.weighted(3)


def other_ranks_disagree(rank: int) -> str:
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)), (torch.randn(2, 4),)
    with pytest.raises(SDPError) as raised:
        sdp_compile(model, NeuronPolicy(), x, reduction="sum" if rank else "mean")
    return str(raised.value)


def test_workers_with_different_contracts() -> None:
    assert all("reduction: sum" in text for text in run_workers(other_ranks_disagree, 2))
