"""Full states: assembled from the workers' slices, cut into them again, merged, and loaded into the original."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sdp_compile.errors import DistributedError, SDPError
from sdp_compile.runtime.comm.groups import Groups
from sdp_compile.runtime.module.connecting import connect
from sdp_compile.runtime.state.full_state import full_model, full_state_dict, load_full_state_dict
from sdp_compile.runtime.state.statistics import running_statistics
from tests.distributed import run_workers
from tests.runtime.stub import CYCLIC, SCATTERED, Net, Subnet, batch, capture_of, network, plan_of

pytestmark = pytest.mark.timeout(120)
WORKERS = 4


def subnet(
    rank: int, owners: list[tuple[int, ...]], seed: int = 0, lowering: str = "sliced", connected: bool = True
) -> Subnet:
    net = network(seed)
    capture = capture_of(net)
    module = Subnet(net, plan_of(capture, owners, WORKERS), rank, capture, lowering)
    if connected:
        connect(module, Groups())
    return module


def round_trip(rank: int, owners: list[tuple[int, ...]], lowering: str) -> Any:
    module = subnet(rank, owners, 0, lowering)
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


def statistics(rank: int) -> Any:
    module = subnet(rank, SCATTERED)
    for step in range(3 + rank):
        F.cross_entropy(module(batch(10 * rank + step)[0]), batch(10 * rank + step)[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = full_state_dict(module)
    own = {name: buffer.clone() for name, buffer in module.named_buffers()}
    return merged, own


def test_statistics_are_merged_over_the_owners_of_each_channel() -> None:
    found = run_workers(statistics, WORKERS)
    plan = plan_of(capture_of(network()), SCATTERED, WORKERS)
    for channel in range(16):
        owners = SCATTERED[channel // 2]
        positions = [int(plan.mask("norm.running_mean", rank)[:channel].sum()) for rank in owners]
        pairs = list(zip(owners, positions, strict=True))
        means = torch.stack([found[rank][1]["norm.running_mean"][at] for rank, at in pairs])
        variances = torch.stack([found[rank][1]["norm.running_var"][at] for rank, at in pairs])
        # The law of total variance for equally large samples.
        total = variances.mean() + means.var(correction=0)
        for merged, _ in found:
            torch.testing.assert_close(merged["norm.running_mean"][channel], means.mean(), rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(merged["norm.running_var"][channel], total, rtol=1e-12, atol=1e-14)
    for rank, (merged, own) in enumerate(found):
        assert merged["norm.num_batches_tracked"] == 6
        assert own["norm.num_batches_tracked"] == 3 + rank


def test_statistics_are_found_in_the_graph() -> None:
    found = running_statistics(capture_of(network()))
    assert found.means == ("norm.running_mean",)
    assert found.variances == (("norm.running_var", "norm.running_mean"),)
    assert found.counters == ("norm.num_batches_tracked",)


def disagree(rank: int) -> str:
    module = subnet(rank, CYCLIC)
    with pytest.raises(DistributedError) as raised:
        full_state_dict(module, rank0_only=rank == 1)
    return str(raised.value)


def test_ranks_that_call_different_things_are_told() -> None:
    found = run_workers(disagree, WORKERS)
    assert all("rank0_only=True" in text and "worker 1" in text for text in found)


def test_bad_states_name_keys_and_shapes() -> None:
    module = subnet(1, CYCLIC, connected=False)
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
    module = subnet(1, CYCLIC, connected=False)
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
