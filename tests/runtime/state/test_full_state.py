"""Full states: assembled from the workers' slices, cut into them again, and loaded into the original."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sdp_compile as sdp
from sdp_compile.errors import DistributedError, SDPError
from sdp_compile.runtime.state.full_state import full_model, full_state_dict, load_full_state_dict
from tests.distributed import run_workers
from tests.runtime.connected import WORKERS, connected, subnet
from tests.runtime.stub import CYCLIC, SCATTERED, Net, Subnet, batch, capture_of, network, plan_of

pytestmark = pytest.mark.timeout(120)


def round_trip(rank: int, owners: list[tuple[int, ...]], lowering: str) -> Any:
    module = connected(rank, owners, lowering)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        first = full_state_dict(module)
        full_state_dict(module)
    messages = [str(warning.message) for warning in caught if "calibrate" in str(warning.message)]
    assert len(messages) == (1 if rank == 0 else 0)
    only = full_state_dict(module, rank0_only=True, cpu_offload=True)
    assert rank == 0 or only == {}
    other = network(1)
    result = load_full_state_dict(module, other.state_dict())
    assert not result.missing_keys and not result.unexpected_keys
    model = full_model(module.eval())
    assert not model.training and model.tied is model.down.bias and not model.frozen.requires_grad
    return first, only or first, full_state_dict(module), model(batch(0)[0])


@pytest.mark.parametrize("owners", [CYCLIC, SCATTERED], ids=["cyclic", "scattered"])
@pytest.mark.parametrize("lowering", ["sliced", "masked"])
def test_full_state_is_the_originals(owners: list[tuple[int, ...]], lowering: str) -> None:
    original, other = network(0), network(1)
    for first, only, second, output in run_workers(round_trip, WORKERS, owners, lowering):
        for state, net in ((first, original), (only, original), (second, other)):
            expected = net.state_dict()
            assert list(state) == list(expected)
            assert all(torch.equal(state[key], expected[key]) for key in expected)
            Net().double().load_state_dict(state, strict=True)
        torch.testing.assert_close(output, other.eval()(batch(0)[0]))


class Average(nn.Module):
    """Keeps the mean of its hidden layer in a buffer, in one outside ``state_dict()`` and in a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 16), nn.Linear(16, 5)
        self.register_buffer("kept", torch.zeros(16))
        self.register_buffer("held", torch.zeros(16), persistent=False)
        self.plain = torch.zeros(16)
        self.scales = torch.arange(16.0)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)
        for average in (self.kept, self.held, self.plain):
            average.copy_(h.detach().mean(0))
        return self.down((h - self.kept - self.held - self.plain) * self.scales)


def averages(rank: int, masking: str) -> Any:
    torch.manual_seed(0)
    module = sdp.compile(Average(), sdp.NeuronPolicy(coverage=0.5, masking=masking), (torch.zeros(4, 6),))
    module(torch.ones(4, 6))
    model = module.full_model()
    return module.plain.shape, list(module.full_state_dict()), dict(model.named_buffers()), model.plain, model.scales


@pytest.mark.parametrize(("masking", "held"), [("forward", 8), ("backward", 16)])
def test_full_model_has_the_tensors_that_are_not_in_the_state(masking: str, held: int) -> None:
    torch.manual_seed(0)
    original = Average()
    original(torch.ones(4, 6))
    for shape, keys, buffers, plain, scales in run_workers(averages, 2, masking):
        assert tuple(shape) == (held,)
        assert keys == list(original.state_dict())
        for tensor in (buffers["kept"], buffers["held"], plain):
            torch.testing.assert_close(tensor, original.plain)
        assert torch.equal(scales, original.scales)


def disagree(rank: int) -> str:
    module = connected(rank, CYCLIC)
    with pytest.raises(DistributedError) as raised:
        full_state_dict(module, rank0_only=rank == 1)
    return str(raised.value)


def test_ranks_that_call_different_things_are_told() -> None:
    found = run_workers(disagree, WORKERS)
    assert all("rank0_only=True" in text and "worker 1" in text for text in found)


def test_bad_states_name_keys_and_shapes() -> None:
    module = subnet(1, CYCLIC)
    state = network(1).state_dict()
    with pytest.raises(SDPError, match=r"missing keys: norm\.weight"):
        load_full_state_dict(module, {key: value for key, value in state.items() if key != "norm.weight"})
    with pytest.raises(SDPError, match=r"unexpected keys: other"):
        load_full_state_dict(module, {**state, "other": torch.zeros(1)})
    with pytest.raises(SDPError, match=r"up\.weight: \[16, 7\] instead of \[16, 6\]"):
        load_full_state_dict(module, {**state, "up.weight": torch.zeros(16, 7)}, strict=False)
    before = module.up.weight.clone()
    result = load_full_state_dict(module, {"down.bias": torch.full((5,), 3.0), "other": 1}, strict=False)
    assert "up.weight" in result.missing_keys and "tied" not in result.missing_keys
    assert result.unexpected_keys == ["other"]
    assert torch.equal(module.up.weight, before) and (module.tied == 3).all()


def test_without_peers_the_collectives_say_what_to_do() -> None:
    module = subnet(1, CYCLIC)
    for call in (full_state_dict, full_model):
        with pytest.raises(DistributedError, match="torchrun"):
            call(module)


def test_one_worker_needs_no_process_group() -> None:
    net = network()
    capture = capture_of(net)
    module = Subnet(net, plan_of(capture, [(0,)] * 8, 1), 0, capture)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = full_state_dict(module)
    assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())
    with torch.no_grad():
        state["up.weight"].zero_()
    assert not (module.up.weight == 0).any()
    result: Tensor = full_model(module)(batch(0)[0])
    torch.testing.assert_close(result, net(batch(0)[0]))
