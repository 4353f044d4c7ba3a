"""Bits that flip on one owner: no checkpoint is written, and the other owners repair them."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sdp_compile as sdp
from sdp_compile.runtime.owners import comparison
from sdp_compile.runtime.owners.copies import not_finite
from sdp_compile.runtime.owners.majority import vote
from tests.distributed import run_workers
from tests.repairing.faults import WORKERS, Run, equal_bits, message_of
from tests.runtime.models import batch, build

pytestmark = pytest.mark.filterwarnings("ignore:.*calibrate")


def names_of(level: str) -> tuple[str, str]:
    """A parameter that is cut, and one that all workers share."""
    return ("layers.0.up.weight", "norm.weight") if level == "neuron" else ("branches.1.conv1.weight", "stem.weight")


def three_owners(rank: int, folder: Path, level: str, masking: str, lowering: str) -> None:
    run, (cut, shared) = Run(rank, level, masking, 3, lowering), names_of(level)
    run.train(2)
    first = run.save(folder, 2)
    good = run.bits()

    def refused(*words: str) -> None:
        text = message_of(lambda: run.save(folder, 3))
        assert all(word in text for word in (*words, "Nothing was saved", str(first))), text
        assert [path.name for path in folder.iterdir() if path.name[0] != "."] == [first.name]

    def repaired(*expected: tuple[str, str, tuple[int, ...], int]) -> None:
        done = run.model.repair(run.optimizer)
        found = [(one.parameter, one.state, one.workers, one.elements) for one in done.repaired]
        assert sorted(found) == sorted(expected), done
        assert equal_bits(run.bits(), good)
        assert all(one.parameter in one.what for one in done.repaired) and not done.without_copies

    repaired()  # nothing to do
    for name, owners in ((cut, None), (shared, WORKERS)):
        for state, at, bit in (("", 0, 0), ("exp_avg", 2, 63), ("exp_avg_sq", 1, 40)):
            worker = run.flip(name, state, at, 1, bit, owners)
            refused(name, f"{'worker ' + str(worker)}", state or "The value of")
            repaired((name, state, (worker,), 1))

    # Several at once: two states and two values, on other owners each.
    one = run.flip(cut, "exp_avg", 0, 0)
    two = run.flip(cut, "", 1, 1)
    three = run.flip(shared, "exp_avg_sq", 0, 3, owners=WORKERS)
    refused("differs between")
    repaired((cut, "exp_avg", (one,), 1), (cut, "", (two,), 1), (shared, "exp_avg_sq", (three,), 1))

    # Two of three owners are damaged, in different elements: each has a majority.
    one, two = run.flip(cut, "", 0, 0), run.flip(cut, "", 3, 2)
    repaired((cut, "", tuple(sorted((one, two))), 2))

    # In the same element: nobody knows, and what could be repaired stays, too.
    run.flip(cut, "", 0, 0, bit=5)
    run.flip(cut, "", 0, 2, bit=6)
    run.flip(shared, "", 0, 2, owners=WORKERS)
    damaged = run.bits()
    text = message_of(lambda: run.model.repair(run.optimizer))
    assert re.search(rf"{re.escape(cut)}.* no value of 1 of its elements", text) and "Nothing was changed" in text, text
    assert equal_bits(run.bits(), damaged)
    run.flip(cut, "", 0, 0, bit=5)
    run.flip(cut, "", 0, 2, bit=6)
    run.flip(shared, "", 0, 2, owners=WORKERS)
    assert equal_bits(run.bits(), good)

    # A count of steps belongs to all owners of any part.
    holders = sorted({owner for piece in run.model.plan.pieces(cut) for owner in piece.owners})
    for worker, name in ((2, shared), *((worker, cut) for worker in holders)):
        if rank == worker:
            run.tensor(name, "step").add_(4)
        refused("'step'", name, f"worker {worker}")
        repaired((name, "step", (worker,), 1))

    # Infinite on one owner, and on all.
    worker = run.flip(cut, "exp_avg_sq", 0, 1, bit=62)
    refused(cut)
    repaired((cut, "exp_avg_sq", (worker,), 1))
    for name, state in ((cut, ""), (shared, "exp_avg")):
        owners = None if name == cut else WORKERS
        kept = run.bits()
        run.set(name, math.nan, state, owners)
        refused("Not finite", name, state or "the value of", "workers ")
        text = message_of(lambda: run.model.repair(run.optimizer))
        assert "nothing to repair it from" in text and name in text
        for key, tensor in run.tensors():
            tensor.copy_(kept[key])

    run.train(2)  # finds no difference, though one was reported
    run.save(folder, 4)
    expected = Run(rank, level, masking, 3, lowering)
    expected.train(4)
    assert equal_bits(run.bits(), expected.bits())
    if level == "neuron":
        late(run, cut)


def late(run: Run, cut: str) -> None:
    """On an accelerator a step compares what the one before has left: after a repair, that is void."""
    comparison.LATE = True
    run.train(2)
    worker = run.flip(cut, "", 0, 1)
    assert "differs between" in message_of(lambda: run.train(20))
    done = run.model.repair(run.optimizer).repaired
    assert {one.workers for one in done} == {(worker,)} and {one.parameter for one in done} >= {cut}
    run.train(2)
    assert run.model.repair(run.optimizer).repaired == ()


@pytest.mark.parametrize(
    ("level", "masking", "lowering"),
    [("neuron", "forward", "sliced"), ("neuron", "backward", "masked"), ("block", "backward", "sliced")],
)
def test_most_of_the_owners_repair_the_others(level: str, masking: str, lowering: str, tmp_path: Path) -> None:
    run_workers(three_owners, WORKERS, tmp_path, level, masking, lowering, limit=250)


def two_owners(rank: int, folder: Path) -> None:
    run, (cut, shared) = Run(rank, "neuron", "forward", 2), names_of("neuron")
    run.train(2)
    assert "worker" not in message_of(lambda: run.save(folder, 2))
    good = run.bits()
    for state in ("", "exp_avg"):
        run.flip(cut, state, 0, 1)
        worker = run.flip(shared, state, 1, 2, owners=WORKERS)
        damaged = run.bits()
        text = message_of(lambda: run.save(folder, 3))
        assert "step-00000002" in text and "differs between" in text
        text = message_of(lambda: run.model.repair(run.optimizer))
        assert "with two owners nothing tells who is right" in text and cut in text and "(units " in text, text
        owners = ", ".join(map(str, run.piece(cut).owners))
        assert f"workers {owners}" in text and equal_bits(run.bits(), damaged)
        run.flip(cut, state, 0, 1)  # only what all four have in common is left, and that has a majority
        done = run.model.repair(run.optimizer)
        assert [(one.parameter, one.state, one.workers) for one in done.repaired] == [(shared, state, (worker,))]
        assert "1 element on worker" in str(done.repaired[0]) and equal_bits(run.bits(), good)
    run.flip(cut)
    assert sdp.load_checkpoint(run.save(folder, 4, verify=False), run.model, run.optimizer).step == 4  # as asked


def no_false_alarms(rank: int, folder: Path) -> None:
    """What may differ or be infinite: masks, running statistics, parameters that are not trained, other optimizers."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = build("cnn")
            self.register_buffer("mask", torch.tensor([0.0, -math.inf, 0, 0, 0], dtype=torch.float64))
            self.frozen = nn.Parameter(torch.tensor([math.inf, 1], dtype=torch.float64), requires_grad=False)
            self.unused = nn.Parameter(torch.zeros(3, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return torch.softmax(self.inner(x) + self.mask, -1) * self.frozen[1]  # type: ignore[operator]

    torch.manual_seed(0)
    optimizers: tuple[Callable[[Any], Any], ...] = (
        lambda model: torch.optim.AdamW(model.parameters(), fused=True, amsgrad=True),
        lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        lambda model: torch.optim.NAdam(model.parameters(), foreach=False),
        lambda model: sdp.ShardedOptimizer(model, torch.optim.AdamW),
    )
    for lowering in ("masked", "sliced"):
        policy = sdp.NeuronPolicy(replicas=3, masking="backward")
        model: Any = sdp.compile(Masked(), policy, (batch("cnn", 0),), lowering=lowering)
        for number, make in enumerate(optimizers if lowering == "sliced" else optimizers[:1]):
            optimizer = make(model)
            sdp.save_checkpoint(folder / f"{lowering}-{number}", model, optimizer, step=0)  # without state
            for seed in range(2):
                optimizer.zero_grad()
                model(batch("cnn", 10 * rank + seed)).square().sum().backward()
                optimizer.step()
            sdp.save_checkpoint(folder / f"{lowering}-{number}", model, optimizer, step=2)
            assert model.repair(optimizer).repaired == ()
    # A state of a ShardedOptimizer has one holder.
    done = model.repair(optimizer)
    assert "inner.head.weight" in done.without_copies
    for state in optimizer.state.values() if rank == 1 else ():
        state["exp_avg"].fill_(math.nan)
    text = message_of(lambda: sdp.save_checkpoint(folder / "sharded", model, optimizer, step=3))
    assert "'exp_avg'" in text and "on worker 1" in text and "has no checkpoint yet" in text, text
    assert "ShardedOptimizer has one holder" in message_of(lambda: model.repair(optimizer))


def test_two_owners_are_no_majority(tmp_path: Path) -> None:
    run_workers(two_owners, WORKERS, tmp_path, limit=250)


def test_what_may_differ_or_be_infinite_is_no_damage(tmp_path: Path) -> None:
    run_workers(no_false_alarms, WORKERS, tmp_path, limit=250)


def alone(rank: int, folder: Path) -> None:
    run = Run(rank, "neuron", "forward", 1)
    run.train(1)
    run.save(folder, 1)
    run.set("norm.weight", math.nan, "", 1)
    assert "Not finite" in message_of(lambda: run.save(folder, 2))


def test_a_group_of_one_refuses_what_is_not_finite(tmp_path: Path) -> None:
    run_workers(alone, 1, tmp_path, limit=100)


def test_one_process_refuses_what_is_not_finite(tmp_path: Path) -> None:
    model = build("transformer")
    optimizer = torch.optim.AdamW(model.parameters())
    sdp.save_checkpoint(tmp_path, model, optimizer, step=1)
    with torch.no_grad():
        model.get_parameter("norm.weight")[2] = math.inf
    text = message_of(lambda: sdp.save_checkpoint(tmp_path, model, optimizer, step=2))
    assert "the value of 'norm.weight'" in text and "step-00000001" in text
    sdp.save_checkpoint(tmp_path, model, optimizer, step=2, verify=False)


def test_each_element_has_its_own_majority() -> None:
    copies = torch.tensor([[1, 2, 3, 4], [1, 5, 3, 6], [7, 2, 8, 9]])
    winners, is_clear = vote(copies)
    assert winners[:3].tolist() == [1, 2, 3] and is_clear.tolist() == [True, True, True, False]
    assert not vote(torch.tensor([[1], [1], [2], [2]]))[1].any()
    generator = torch.Generator().manual_seed(0)
    for count in range(3, 8):  # against counting by hand
        rows = torch.randint(3, (count, 50), generator=generator)
        winners, is_clear = vote(rows)
        for column, winner, clear in zip(rows.T.tolist(), winners.tolist(), is_clear.tolist(), strict=True):
            value, number = Counter(column).most_common(1)[0]
            assert clear == (number * 2 > count) and (not clear or winner == value)


def test_not_finite_is_told_by_sums() -> None:
    large = torch.full((10,), 6e4, dtype=torch.float16)
    tensors = [large, torch.tensor([1e308, 1e308], dtype=torch.float64), torch.tensor(math.nan), torch.tensor([3])]
    tensors += [torch.tensor([1 + 1j, complex(0, math.inf)]), torch.zeros(0), torch.tensor([math.inf, -math.inf])]
    tensors += [torch.tensor([1.0, math.nan]).to(torch.float8_e4m3fn), torch.tensor([1.0]).to(torch.float8_e5m2)]
    assert not_finite(tensors) == [2, 4, 6, 7]
