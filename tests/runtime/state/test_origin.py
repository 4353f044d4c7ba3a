"""A state is loaded only where the same slices are held, and says what to do elsewhere."""

from __future__ import annotations

import copy
import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict

from sdp_compile import NeuronPolicy, SDPModule, sdp_compile
from sdp_compile.errors import DistributedError, SDPError
from tests.distributed import run_workers

pytestmark = pytest.mark.timeout(120)


class Mine(nn.Module):
    """A user's module that holds a compiled one."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.first, self.body = nn.Linear(6, 6), body

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.body(self.first(x))
        return result


def original(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16)), nn.ReLU(), nn.Linear(16, 5))


def worker(rank: int, seed: int = 0, coverage: float = 0.5, workers: int = 4, **options: Any) -> SDPModule:
    policy = NeuronPolicy(coverage=coverage, **options)
    return sdp_compile(original(seed), policy, torch.randn(4, 6), workers=workers, rank=rank)


@pytest.fixture(scope="module")
def modules() -> dict[str, SDPModule]:
    """Workers 0 and 1 of four with shapes that are equal, worker 0 with other values, and of another plan."""
    return {
        "0": worker(0),
        "1": worker(1),
        "0 again": worker(0, seed=1),
        "other": worker(0, design="random", seed=3),
        "whole 0": worker(0, coverage=1.0),
        "whole 1": worker(1, seed=1, coverage=1.0),
    }


def values(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def saved(value: Any, weights_only: bool = True) -> Any:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=weights_only)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(value, b.state_dict()[name]) for name, value in values(a).items())


WAYS: dict[str, Callable[[Any], Any]] = {
    "as it is": lambda state: state,
    "saved": saved,
    "saved among others": lambda state: saved({"model": state, "step": 3})["model"],
    "pickled": lambda state: pickle.loads(pickle.dumps(state)),
    "deep copy": copy.deepcopy,
}


@pytest.mark.parametrize("way", WAYS)
def test_the_mark_survives(way: str, modules: dict[str, SDPModule]) -> None:
    state = WAYS[way](modules["0"].state_dict())
    assert list(state) == list(original().state_dict()), "the keys are the original's"
    target = modules["0 again"]
    assert not same(target, modules["0"])
    result = target.load_state_dict(state)
    assert not result.missing_keys and not result.unexpected_keys and same(target, modules["0"])
    with torch.no_grad():
        target.get_parameter("2.bias").add_(1)
    for other in ("1", "other"):
        before = values(modules[other])
        for strict in (True, False):
            with pytest.raises(SDPError, match=r"worker 0 of 4 \(plan \w{12}\).*load_full_state_dict\(\)"):
                modules[other].load_state_dict(state, strict=strict)
        assert all(torch.equal(value, before[name]) for name, value in values(modules[other]).items())


def test_without_the_mark_only_what_is_not_cut_is_loaded(modules: dict[str, SDPModule], tmp_path: Path) -> None:
    module = modules["0 again"]
    state = values(module)
    save_file(state, tmp_path / "slices.safetensors")
    plain: list[Any] = [state, OrderedDict(module.state_dict()), load_file(tmp_path / "slices.safetensors")]
    for one in plain:
        for load in (module.load_state_dict, lambda one, strict=True: module.load_state_dict(one, strict, assign=True)):
            with pytest.raises(
                SDPError, match=r"does not say which worker's.*'0\.0\.(weight|bias)'.*deepcopy.*full_state_dict"
            ):
                load(one)
    with pytest.raises(SDPError, match=r"original model \('0\.0\.weight' is \[16, 6\]\).*load_full_state_dict"):
        module.load_state_dict(original().state_dict())
    with pytest.raises(SDPError, match="does not say which"):
        module.get_submodule("0").load_state_dict(values(module.get_submodule("0")))
    part = {"2.bias": torch.full((5,), 2.0)}
    assert module.load_state_dict(part, strict=False).missing_keys
    assert (module.get_parameter("2.bias") == 2).all()
    with pytest.raises(SDPError, match="does not say which"):
        module.load_state_dict({**part, "0.0.bias": state["0.0.bias"]}, strict=False)


def test_a_state_that_takes_values_of_others_loses_its_mark(modules: dict[str, SDPModule]) -> None:
    module = modules["0"]
    for other in (saved(modules["1"].state_dict()), values(modules["1"])):
        state = module.state_dict()
        state.update(other)
        with pytest.raises(SDPError, match="does not say which"):
            modules["0 again"].load_state_dict(state)
    state = module.state_dict()
    state.update(saved(modules["0 again"].state_dict()))
    module.load_state_dict(state)


def test_where_nothing_is_cut_every_state_fits(modules: dict[str, SDPModule]) -> None:
    one, other = modules["whole 0"], modules["whole 1"]
    assert type(one.state_dict()) is OrderedDict
    for state, source in ((one.state_dict(), one), (values(one), one), (original(7).state_dict(), original(7))):
        other.load_state_dict(state)
        assert same(other, source)
        other.load_state_dict(original(8).state_dict())


def test_nested_and_compiled(modules: dict[str, SDPModule]) -> None:
    wrap: list[Callable[[SDPModule], nn.Module]] = [
        Mine,
        lambda module: torch.compile(module, backend="eager"),  # type: ignore[return-value]
        lambda module: Mine(torch.compile(module, backend="eager")),  # type: ignore[arg-type]
        lambda module: module.get_submodule("0"),
    ]
    for around in wrap:
        state = saved(around(modules["0"]).state_dict())
        target = modules["0 again"]
        target.load_full_state_dict(original(3).state_dict())
        around(target).load_state_dict(state)
        assert torch.equal(target.get_parameter("0.0.weight"), modules["0"].get_parameter("0.0.weight"))
        with pytest.raises(SDPError, match="worker 0 of 4"):
            around(modules["1"]).load_state_dict(state)
        with pytest.raises(SDPError, match="does not say which"):
            around(modules["1"]).load_state_dict(dict(state))


def test_copies_and_assignment_keep_the_rules(modules: dict[str, SDPModule]) -> None:
    state = copy.deepcopy(modules["0"].state_dict())
    twin = copy.deepcopy(modules["0 again"])
    twin.load_state_dict(state, assign=True)
    assert twin.get_parameter("0.0.weight").data_ptr() == state["0.0.weight"].data_ptr()
    for other in (copy.deepcopy(modules["1"]), pickle.loads(pickle.dumps(modules["1"])), copy.copy(modules["1"])):
        with pytest.raises(SDPError, match="worker 0 of 4"):
            other.load_state_dict(state, assign=True)
    part = copy.deepcopy(modules["1"].get_submodule("0"))
    with pytest.raises(SDPError, match="worker 0 of 4"):
        part.load_state_dict(modules["0"].get_submodule("0").state_dict())


class App:
    """What a user hands to torch.distributed.checkpoint."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])


def test_distributed_checkpoints_of_slices_are_refused(modules: dict[str, SDPModule], tmp_path: Path) -> None:
    module = modules["0"]
    before = values(module)
    dcp.save({"model": modules["whole 0"].state_dict()}, checkpoint_id=tmp_path / "whole", no_dist=True)
    for what in (
        {"model": module.state_dict()},
        module.state_dict(),
        {"model": module},
        {"mine": Mine(module)},
        {"app": App(Mine(module))},
        {"app": App(torch.compile(module, backend="eager"))},  # type: ignore[arg-type]
    ):
        for call in (
            lambda one: dcp.save(one, checkpoint_id=tmp_path / "slices", no_dist=True),
            lambda one: dcp.load(one, checkpoint_id=tmp_path / "whole", no_dist=True),
        ):
            with pytest.raises(SDPError, match=r"Call sdp\.save_checkpoint\(\)"):
                call(what)
    with pytest.raises(dcp.api.CheckpointException, match=r"Call sdp\.save_checkpoint\(\)"):
        dcp.save({"a": {"b": module.state_dict()}}, checkpoint_id=tmp_path / "slices", no_dist=True)
    for model in (module, Mine(module)):
        with pytest.raises(SDPError, match=r"Call sdp\.save_checkpoint\(\)"):
            get_model_state_dict(model)
    assert all(torch.equal(value, before[name]) for name, value in values(module).items())


def connected(rank: int, folder: str) -> Any:
    module = sdp_compile(original(), NeuronPolicy(replicas=1), torch.randn(4, 6))
    x = torch.randn(4, 6)
    backward = lambda one: one(x).square().sum().backward()  # noqa: E731
    optimizer = torch.optim.AdamW(module.parameters(), 0.1)
    plain = optimizer.state_dict()
    backward(module), optimizer.step()
    assert "sdp_compile" not in optimizer.param_groups[0] and "sdp_compile" not in plain["param_groups"][0]
    full, full_state = module.full_optimizer_state_dict(optimizer), module.full_state_dict()
    assert type(full_state) is dict and not hasattr(full_state, "_metadata")
    assert list(full_state) == list(original().state_dict())
    original().load_state_dict(full_state, strict=True)
    torch.save({"module": module, "optimizer": optimizer.state_dict()}, f"{folder}/{rank}.pt")
    own = torch.load(f"{folder}/{rank}.pt", weights_only=False)
    torch.distributed.barrier()
    foreign = torch.load(f"{folder}/0.pt", weights_only=False)["optimizer"]

    # The optimizer's state: one that has stepped says no at once, a new one before its first step.
    fresh = torch.optim.AdamW(module.parameters(), 0.1)
    before = values(module)
    if rank == 1:
        with pytest.raises(SDPError, match=r"AdamW loads is that of worker 0 of 2.*load_full_optimizer_state_dict"):
            optimizer.load_state_dict(foreign)
        fresh.load_state_dict(foreign)
        for _ in range(2):
            with pytest.raises(SDPError, match="worker 0 of 2"):
                fresh.step()
    assert all(torch.equal(value, before[name]) for name, value in values(module).items())
    fresh.load_state_dict(own["optimizer"])
    again = module.full_optimizer_state_dict(fresh)
    assert again["param_groups"] == full["param_groups"]
    assert torch.equal(again["state"]["0.0.weight"]["exp_avg"], full["state"]["0.0.weight"]["exp_avg"])
    backward(module), fresh.step()
    assert "sdp_compile" not in fresh.param_groups[0]
    module.load_full_optimizer_state_dict(fresh, full)

    # An unpickled module has no peers: it computes, but does not train.
    loaded = own["module"]
    torch.testing.assert_close(loaded.eval()(x), copy.deepcopy(loaded)(x))
    for orphan in (loaded, copy.deepcopy(loaded), copy.copy(loaded), saved(loaded, weights_only=False)):
        for _ in range(2):
            with pytest.raises(DistributedError, match=r"was unpickled.*sdp\.compile\(\)"):
                backward(orphan.train())
            orphan.load_state_dict(copy.deepcopy(loaded.state_dict()), assign=True)
    module.load_state_dict(loaded.state_dict())
    twin = copy.deepcopy(module)
    backward(twin)
    assert all(parameter.grad is not None for parameter in twin.parameters())
    return True


def test_optimizers_and_unpickled_modules(tmp_path: Path) -> None:
    assert run_workers(connected, 2, str(tmp_path)) == [True, True]


def test_a_module_compiled_alone_trains_after_pickling(modules: dict[str, SDPModule]) -> None:
    alone = pickle.loads(pickle.dumps(modules["0"]))
    alone(torch.randn(4, 6)).sum().backward()
    assert alone.get_parameter("0.0.weight").grad is not None
