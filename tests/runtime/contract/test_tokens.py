"""Uneven tokens over workers and micro-batches equal one process, in all loops that people write."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from sdp_compile import BlockPolicy, NeuronPolicy, sdp_compile
from sdp_compile.runtime.peers import weighted
from tests.distributed import run_workers
from tests.runtime.connected import connected
from tests.runtime.contract.oracle import (
    Batch,
    check,
    micro_batch,
    oracle,
    token_mean,
    tokens,
    total_loss,
)
from tests.runtime.models import build
from tests.runtime.stub import CYCLIC, SCATTERED, network

POLICIES: dict[str, Any] = {
    "neuron": lambda: NeuronPolicy(coverage=0.5),
    "block": lambda: BlockPolicy(coverage=0.5),
    "one owner": lambda: NeuronPolicy(replicas=1),
    "full": lambda: NeuronPolicy(coverage=1.0),
    "backward": lambda: NeuronPolicy(coverage=0.5, masking="backward"),
}


def batches(name: str, workers: int, count: int, seed: int = 0) -> dict[int, list[Batch]]:
    """Micro-batches of every worker, no two of the same number of tokens on purpose."""
    return {
        rank: [micro_batch(name, 100 * seed + 10 * rank + k, 2 + (3 * rank + 2 * k + seed) % 5) for k in range(count)]
        for rank in range(workers)
    }


class Case:
    """One compiled model, and the loops that people write around it."""

    def __init__(self, name: str, module: Any, reference: nn.Module, run: Any = None, masked: bool = False) -> None:
        self.name, self.module, self.reference, self.masked = name, module, reference, masked
        self.run, self.rank, self.workers = module if run is None else run, module.rank, module.workers
        self.seed = 0

    def micro(self, count: int) -> dict[int, list[Batch]]:
        self.seed += 1
        return batches(self.name, self.workers, count, self.seed)

    def mean_backward(self, batch: Batch) -> None:
        with weighted(self.module.peers, tokens(batch)):
            (total_loss(self.run(batch[0]), batch) / tokens(batch)).backward()

    def accumulate(self, own: list[Batch], no_sync: bool = True) -> None:
        for number, batch in enumerate(own):
            last = number + 1 == len(own)
            with nullcontext() if last or not no_sync else self.module.peers.no_sync():
                self.mean_backward(batch)

    def check(self, used: dict[int, list[Batch]], what: str) -> None:
        expected = oracle(self.reference, self.module.plan, used, token_mean)
        check(self.module, expected, what, self.masked)

    def loops(self) -> None:
        """Each loop starts with what the one before has left."""
        for set_to_none in (True, False):
            for count in (1, 3):
                for no_sync in (True, False):
                    self.module.zero_grad(set_to_none)
                    used = self.micro(count)
                    self.accumulate(used[self.rank], no_sync)
                    self.check(used, f"{count} micro-batches, no_sync {no_sync}, set_to_none {set_to_none}")
            # What was accumulated is dropped.
            self.module.zero_grad(set_to_none)
            with self.module.peers.no_sync():
                self.mean_backward(self.micro(1)[self.rank][0])
            self.module.zero_grad(set_to_none)
            used = self.micro(2)
            self.accumulate(used[self.rank])
            self.check(used, f"after a dropped micro-batch, set_to_none {set_to_none}")
        self.module.zero_grad()
        used = self.micro(2)
        with self.module.peers.no_sync():
            for batch in used[self.rank]:
                self.mean_backward(batch)
        self.module.peers.sync_gradients()
        self.check(used, "sync_gradients()")
        self.two_losses()
        self.nothing_to_learn()

    def two_losses(self) -> None:
        """Of the same tokens, in two backward passes that both reduce; afterwards comes another micro-batch."""
        self.module.zero_grad()
        used = self.micro(2)
        first, second = used[self.rank]
        with weighted(self.module.peers, tokens(first)):
            for share in (0.3, 0.7):
                (share * total_loss(self.run(first[0]), first) / tokens(first)).backward()
        self.check({rank: own[:1] for rank, own in used.items()}, "two losses")
        self.mean_backward(second)
        self.check(used, "two losses and another micro-batch")

    def nothing_to_learn(self) -> None:
        """Workers have micro-batches without tokens, whose mean is 0/0."""
        self.module.zero_grad()
        used = self.micro(3)
        for number, batch in enumerate(used[self.rank]):
            with self.module.peers.no_sync() if number < 2 else nullcontext():
                if number == self.rank % 3:
                    with weighted(self.module.peers, 0):
                        (total_loss(self.run(batch[0]), batch) * float("nan")).backward()
                else:
                    self.mean_backward(batch)
        for rank, own in used.items():
            del own[rank % 3]
        self.check(used, "micro-batches without tokens")

    def one_without_tokens(self) -> None:
        """Worker 1 has no token in the whole step; every unit has another owner."""
        self.module.zero_grad()
        used: dict[int, list[Batch]] = {rank: [] for rank in range(self.workers)}
        for number in range(2):  # the second on top of the first
            for rank, own in self.micro(1).items():
                used[rank] += own
            if self.rank == 1:
                with weighted(self.module.peers, torch.tensor(0)):
                    (total_loss(self.run(used[1][0][0]), used[1][0]) / 0).backward()
            else:
                self.mean_backward(used[self.rank][number])
            self.check({**used, 1: []}, f"a worker without tokens, reduction {number}")


def compiled_case(rank: int, workers: int, name: str, policy: str, torch_compile: bool = False) -> Case:
    warnings.simplefilter("ignore")
    x = micro_batch(name, 0, 4)[0]
    module = sdp_compile(build(name), POLICIES[policy](), (x,), reduction="tokens")
    run = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=True) if torch_compile else None
    return Case(name, module, build(name), run)


def compiled_models(rank: int, workers: int, names: list[tuple[str, str]]) -> None:
    for name, policy in names:
        case = compiled_case(rank, workers, name, policy)
        case.loops()
        if case.module.plan.coverage().min > 1:
            case.one_without_tokens()


def test_uneven_tokens_equal_one_process() -> None:
    names = [("transformer", "neuron"), ("cnn", "block"), ("cnn", "backward"), ("transformer", "one owner")]
    run_workers(compiled_models, 4, 4, names, limit=280)


def test_one_worker() -> None:
    run_workers(compiled_models, 1, 1, [("transformer", "neuron")])


def test_two_workers() -> None:
    names = [("transformer", "neuron"), ("cnn", "full"), ("transformer", "backward")]
    run_workers(compiled_models, 2, 2, names, limit=280)


def under_torch_compile(rank: int) -> None:
    case = compiled_case(rank, 4, "transformer", "neuron", torch_compile=True)
    engine = case.module.peers.engine
    during = []
    launch = engine._progress.launch
    engine._progress.launch = lambda *args: (during.append(args[0]), launch(*args))[1]
    case.loops()
    case.one_without_tokens()
    assert during and engine._launches.graphs_launch


def test_torch_compile() -> None:
    run_workers(under_torch_compile, 4, limit=280)


def by_hand(rank: int) -> None:
    """Units with one owner beside others in one parameter, full-size parameters, and the exchange among all."""
    for owners, lowering in ((SCATTERED, "sliced"), (SCATTERED, "masked"), (CYCLIC, "sliced")):
        module: Any = connected(rank, owners, lowering, reduction="tokens", bucket_bytes=64)
        case = Case("stub", module, network(), masked=lowering == "masked")
        case.loops()


def test_units_of_one_owner_and_other_reductions() -> None:
    run_workers(by_hand, 4, limit=200)
