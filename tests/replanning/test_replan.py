"""A run whose plan changes while it trains, against one that goes through a checkpoint, and against the original."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import sdp_compile as sdp
from sdp_compile.errors import SDPError
from tests.distributed import run_workers
from tests.runtime.models import batch, build, loss_of

pytestmark = [pytest.mark.timeout(400), pytest.mark.filterwarnings("ignore:.*calibrate")]

WORKERS = 4
STATES = {"adamw": 2, "momentum": 1, "sharded": 2}


def policy(station: str) -> sdp.Policy:
    return {
        "neuron": sdp.NeuronPolicy(coverage=0.5),
        "random": sdp.NeuronPolicy(coverage=0.5, design="random", seed=3),
        "all axes": sdp.NeuronPolicy(coverage=0.75, axes="all"),
        "block": sdp.BlockPolicy(coverage=0.5),
        "backward": sdp.NeuronPolicy(coverage=0.5, masking="backward"),
        "block backward": sdp.BlockPolicy(coverage=0.5, masking="backward"),
        "full": sdp.NeuronPolicy(coverage=1.0),
    }[station]


class Run:
    """One worker's run."""

    def __init__(self, name: str, station: str, kind: str, rank: int, lowering: str = "sliced", seed: int = 0) -> None:
        self.name, self.kind, self.rank, self.steps = name, kind, rank, 0
        self.original = build(name, seed)
        self.model = sdp.compile(self.original, policy(station), (batch(name, 0),), lowering=lowering)  # type: ignore[arg-type]
        groups = self.groups(self.model.named_parameters())
        if kind == "sharded":
            self.optimizer: Any = sdp.ShardedOptimizer(self.model, torch.optim.AdamW, groups, lr=1e-2)
        else:
            self.optimizer = self.plain(groups)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.9)

    def plain(self, groups: Any) -> torch.optim.Optimizer:
        if self.kind == "momentum":
            return torch.optim.SGD(groups, lr=1e-2, momentum=0.9)
        return torch.optim.AdamW(groups, lr=1e-2)

    @staticmethod
    def groups(named: Any) -> list[dict[str, Any]]:
        named = list(named)
        return [
            {"params": [one for name, one in named if "norm" not in name], "weight_decay": 0.1},
            {"params": [one for name, one in named if "norm" in name], "weight_decay": 0.0},
        ]

    def train(self, steps: int = 2) -> list[float]:
        losses = []
        for _ in range(steps):
            self.steps += 1
            x = batch(self.name, 1000 * self.rank + self.steps)
            loss = loss_of(self.name, self.model(x), x)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            losses.append(loss.item())
        return losses

    def state(self) -> dict[str, Any]:
        """The full state, on all workers the same; collective."""
        full = self.model.full_optimizer_state_dict(self.optimizer)
        result = {f"model {key}": value.clone() for key, value in self.model.full_state_dict().items()}
        for name, entries in full["state"].items():
            result.update({f"optimizer {name} {key}": value.clone() for key, value in entries.items()})
        result["groups"] = [{**group, "params": sorted(group["params"])} for group in full["param_groups"]]
        return result


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Equal bit by bit; but the mean of three equal numbers in float64 may be the next number."""
    assert one.keys() == other.keys()
    for key, value in one.items():
        if ".running_" in key:
            torch.testing.assert_close(value, other[key], rtol=1e-15, atol=1e-300)
            continue
        equal = torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]
        assert equal, key


def close(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(
                value, other[key], rtol=1e-9, atol=1e-11, msg=lambda text, key=key: f"{key}: {text}"
            )


def missing_bytes(old: sdp.Plan, new: sdp.Plan, rank: int, states: int) -> int:
    """What a worker lacks, element by element, in bytes."""
    total = 0
    for name, tensor in old.state.items():
        had, has = old.mask(name, rank), new.mask(name, rank)
        if tensor.kind != "constant":
            values_had = torch.ones_like(had) if old.masking == "backward" else had
            values_has = torch.ones_like(has) if new.masking == "backward" else has
            total += int((values_has & ~values_had).sum()) * tensor.dtype.itemsize
        if old.is_trainable(name):
            total += int((has & ~had).sum()) * tensor.dtype.itemsize * states
    return total


def check_slices(run: Run, state: dict[str, Any]) -> None:
    """Each worker holds the elements that its plan says, with the values of the full model."""
    plan = run.model.plan
    for name, parameter in run.model.named_parameters():
        kept, full = plan.kept(name, run.rank), state[f"model {name}"]
        if run.model.lowering == "masked":
            mask = plan.mask(name, run.rank)
            assert torch.equal(parameter[mask], full[mask])
            continue
        assert kept is not None
        expected = full[torch.meshgrid(*map(torch.from_numpy, kept), indexing="ij")] if kept else full
        assert torch.equal(parameter, expected), name
        if run.kind != "sharded" and run.optimizer.state[parameter]:
            for key, value in run.optimizer.state[parameter].items():
                whole = state[f"optimizer {name} {key}"]
                cut = whole[torch.meshgrid(*map(torch.from_numpy, kept), indexing="ij")] if whole.dim() else whole
                assert torch.equal(value, cut), (name, key)
    held = {id(one) for one in run.model.parameters()}
    assert {id(one) for group in run.optimizer.param_groups for one in group["params"]} == held


def travelled(rank: int, folder: Path, name: str, kind: str, lowering: str, stations: list[str]) -> None:
    run = Run(name, stations[0], kind, rank, lowering)
    run.train()
    parts = list(run.model.modules())
    for number, station in enumerate(stations[1:]):
        before, random, old = run.state(), torch.get_rng_state(), run.model.plan
        sdp.save_checkpoint(folder, run.model, run.optimizer, step=number, scheduler=run.scheduler)
        counted = run.model.peers.groups.traffic  # type: ignore[union-attr]
        counted.reset()
        sent = run.model.replan(policy(station), run.optimizer)
        assert counted.sent["replan"] == sent.sent(rank)
        new = run.model.plan
        assert new.policy == policy(station).describe()
        predicted = old.moves(new, STATES[kind], kind == "sharded")
        assert (predicted.nbytes == sent.nbytes).all() and str(predicted) == str(sent)
        if kind != "sharded":
            assert sent.received(rank) == missing_bytes(old, new, rank, STATES[kind]), station
        assert torch.equal(torch.get_rng_state(), random)
        assert all(one is other for one, other in zip(run.model.modules(), parts, strict=True))
        after = run.state()
        same(after, before)
        check_slices(run, after)

        resumed = Run(name, station, kind, rank, lowering, seed=5)
        sdp.load_checkpoint(folder, resumed.model, resumed.optimizer, scheduler=resumed.scheduler)
        resumed.steps = run.steps
        same(resumed.state(), after)
        expected = dense_step(run, after) if station == "full" and name == "transformer" else None
        for own, other in zip(run.train(1), resumed.train(1), strict=True):
            assert own == pytest.approx(other, rel=1e-9)
        if expected is not None:
            close({key: value for key, value in run.state().items() if key in expected}, expected)
        for own, other in zip(run.train(2), resumed.train(2), strict=True):
            assert own == pytest.approx(other, rel=1e-9)
        close(run.state(), resumed.state())
        assert [one["lr"] for one in run.optimizer.param_groups] == [
            one["lr"] for one in resumed.optimizer.param_groups
        ]
        del resumed


def dense_step(run: Run, state: dict[str, Any]) -> dict[str, Any]:
    """The next step of the original model on the batches of all workers, as data parallelism takes it."""
    original = build(run.name, 9)
    original.load_state_dict({key[6:]: value.clone() for key, value in state.items() if key.startswith("model ")})
    optimizer = run.plain(Run.groups(original.named_parameters()))
    for mine, own in zip(optimizer.param_groups, run.optimizer.param_groups, strict=True):
        mine["lr"] = own["lr"]
    for name, parameter in original.named_parameters():
        prefix = f"optimizer {name} "
        optimizer.state[parameter] = {
            key.removeprefix(prefix): value.clone() for key, value in state.items() if key.startswith(prefix)
        }
    losses = [loss_of(run.name, original(x), x) for x in (batch(run.name, 1000 * r + run.steps + 1) for r in range(4))]
    (sum(losses) / WORKERS).backward()  # type: ignore[union-attr]
    optimizer.step()
    return {f"model {name}": value for name, value in original.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "kind", "lowering", "stations"),
    [
        ("transformer", "adamw", "sliced", ["neuron", "random", "block", "backward", "full", "neuron"]),
        ("transformer", "sharded", "sliced", ["neuron", "random", "block", "backward", "full", "neuron"]),
        ("cnn", "momentum", "sliced", ["neuron", "random", "block", "block backward", "full", "all axes"]),
        ("cnn", "sharded", "sliced", ["all axes", "block backward", "neuron"]),
        ("transformer", "adamw", "masked", ["neuron", "backward", "block", "full"]),
    ],
)
def test_the_full_state_stays_and_training_goes_on(
    name: str, kind: str, lowering: str, stations: list[str], tmp_path: Path
) -> None:
    run_workers(travelled, WORKERS, tmp_path, name, kind, lowering, stations, limit=300)


def unstepped(rank: int) -> None:
    """Before the first step there is no state, and a group that one worker lacks parameters of gets them."""
    run = Run("transformer", "block", "adamw", rank)
    empty = [len(group["params"]) for group in run.optimizer.param_groups]
    run.model.replan(policy("neuron"), run.optimizer)
    assert not run.optimizer.state and [len(group["params"]) for group in run.optimizer.param_groups] >= empty
    before = run.model.plan.digest
    same_parameters = list(run.model.parameters())
    sent = run.model.replan(policy("neuron"), [run.optimizer])
    assert sent.total == 0 and run.model.plan.digest == before
    assert all(one is other for one, other in zip(run.model.parameters(), same_parameters, strict=True))
    alike = policy("neuron").replace(seed=7)  # cyclic owners do not depend on it
    assert run.model.replan(alike, run.optimizer).total == 0
    assert run.model.plan.digest == before and run.model.plan.policy == alike.describe()
    run.train(1)
    frozen = "layers.0.up.weight"
    run.model.get_parameter(frozen).requires_grad_(False)
    run.model.replan(policy("random"), run.optimizer)
    assert not run.model.get_parameter(frozen).requires_grad


def test_nothing_is_invented_before_the_first_step() -> None:
    run_workers(unstepped, WORKERS)


def failures(rank: int) -> dict[str, str]:
    run = Run("transformer", "neuron", "adamw", rank)
    model, optimizer = run.model, run.optimizer
    found: dict[str, str] = {}
    before = run.state()

    def attempt(what: str, call: Any) -> None:
        with pytest.raises(SDPError) as raised:
            call()
        found[what] = str(raised.value)

    x = batch("transformer", rank)
    with model.no_sync():
        loss_of("transformer", model(x), x).backward()
        attempt("within", lambda: model.replan(policy("block"), optimizer))
    attempt("pending", lambda: model.replan(policy("block"), optimizer))
    optimizer.zero_grad()
    few = sdp.plan(run.original, policy("neuron"), (x,), workers=4 if rank else 2)
    attempt("workers", lambda: model.replan(few, optimizer))
    cnn = sdp.plan(build("cnn"), policy("block"), (batch("cnn", 0),), workers=WORKERS)
    attempt("model", lambda: model.replan(cnn, optimizer))
    attempt("policies", lambda: model.replan(policy("block" if rank else "random"), optimizer))
    foreign = torch.optim.AdamW(run.original.parameters())
    attempt("foreign", lambda: model.replan(policy("block"), optimizer if rank else foreign))
    attempt("field", lambda: model.replan({"level": "neuron", "coverage": 2.0}, optimizer))
    handle = model.get_parameter("layers.0.up.weight").register_hook(lambda gradient: gradient)
    attempt("hook", lambda: model.replan(policy("block"), optimizer))
    handle.remove()
    fewer = torch.optim.AdamW(list(model.parameters())[:3] if rank else model.parameters())
    del fewer
    same(run.state(), before)
    run.train(1)
    model.replan(policy("block"))
    loss_of("transformer", model(x), x).backward()
    attempt("left behind", optimizer.step)
    return found


def test_what_cannot_be_is_an_error_on_all_workers() -> None:
    for rank, found in enumerate(run_workers(failures, WORKERS)):
        for what, words in {
            "within": "was called within no_sync()",
            "pending": "not synchronised",
            "workers": "for 2 workers, and there are 4",
            "model": "that of another model",
            "policies": "different plan or optimizers",
            "foreign": "not the module's",
            "field": "coverage",
            "hook": "has a hook",
            "left behind": "as it was before model.replan()",
        }.items():
            assert words in found[what], (rank, what, found[what])


def compiled(rank: int, stations: list[str]) -> list[str]:
    """Under torch.compile and beside it in eager mode."""
    run = Run("transformer", stations[0], "adamw", rank)
    eager = Run("transformer", stations[0], "adamw", rank)
    wrapped = torch.compile(run.model, backend="aot_eager", fullgraph=True)
    texts = []
    for station in [*stations[1:], None]:
        for _ in range(2):
            eager.train(1)
            run.steps += 1
            x = batch("transformer", 1000 * rank + run.steps)
            loss = loss_of("transformer", wrapped(x), x)
            run.optimizer.zero_grad()
            loss.backward()
            run.optimizer.step()
            run.scheduler.step()
        close(run.state(), eager.state())
        for one, model in ((run, wrapped), (eager, eager.model)):
            before = one.state()
            check_slices(one, before)  # all owners have taken the same steps, bit by bit
            if station is not None:
                model.replan(policy(station), one.optimizer)
                same(one.state(), before)
                check_slices(one, before)
        texts.append(run.model.code)
    return texts[:-1]


def test_compiled_code_follows() -> None:
    for texts in run_workers(compiled, WORKERS, ["neuron", "block", "backward", "neuron"], limit=300):
        assert len(set(texts)) == 3


def again(rank: int) -> None:
    run = Run("transformer", "neuron", "adamw", rank)
    plain = copy.deepcopy(run.original)
    x = batch("transformer", rank)
    run.model.eval()
    run.model.layers[0].norm1.eps = plain.layers[0].norm1.eps = 0.3  # type: ignore[union-attr,index]
    run.model(x)
    with torch.autocast("cpu", torch.bfloat16):  # graphs that were not captured at first
        run.model(x)
    known = set(run.model._programs.programs)
    assert len(known) == 4

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("captured again")

    torch.export.export, export = refuse, torch.export.export
    run.model.replan(policy("full"), run.optimizer)
    assert set(run.model._programs.programs) == known and not run.model.training
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(run.model(x), plain(x), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(run.model(x), plain.eval()(x), rtol=1e-9, atol=1e-11)
    run.model.replan(policy("neuron"), run.optimizer)
    torch.export.export = export
    dist.barrier()


def test_what_was_captured_is_not_captured_again() -> None:
    run_workers(again, 2)
