"""All workers start from the values of one rank, from each unit's first owner's, or from what materialize() gives."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sdp_compile import NeuronPolicy, sdp_compile
from sdp_compile.errors import DistributedError, PlanError
from sdp_compile.runtime.comm import transfer
from sdp_compile.runtime.comm.groups import Groups
from sdp_compile.runtime.comm.handshake import fingerprint
from sdp_compile.runtime.module.connecting import connect
from sdp_compile.runtime.tensors import local_tensors
from tests.distributed import run_workers
from tests.runtime.connected import WORKERS, subnet
from tests.runtime.stub import CYCLIC, SCATTERED, Net, capture_of, network, plan_of

SOLO = [(unit % WORKERS,) for unit in range(8)]


def tensors_of(net: nn.Module) -> dict[str, Tensor]:
    return {**dict(net.named_parameters()), **dict(net.named_buffers())}


def started(rank: int) -> Any:
    transfer.batches.__defaults__ = (200,)  # small, so that several batches travel
    found = []
    for owners in (CYCLIC, SCATTERED, SOLO):
        for lowering in ("sliced", "masked"):
            for source in (0, 2, None):
                module = subnet(rank, owners, lowering, seed=10 + rank)
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    connect(module, Groups(), broadcast_from=source, values=tensors_of(network(10 + rank)))
                texts = [str(one.message) for one in caught]
                found.append(((owners, lowering, source), dict(local_tensors(module)), texts))
    # Only one rank differs; then none.
    for seed in (11 if rank == 3 else 10, 10):
        module = subnet(rank, SOLO, seed=seed)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            connect(module, Groups(), broadcast_from=0, values=tensors_of(network(seed)))
        found.append(((SOLO, "sliced", 0), dict(local_tensors(module)), [str(one.message) for one in caught]))
    return found


@pytest.mark.timeout(180)
def test_all_workers_start_from_one_rank() -> None:
    values = [tensors_of(network(10 + rank)) for rank in range(WORKERS)]
    random = [name for name, value in values[0].items() if not torch.equal(value, values[1][name])]
    for rank, found in enumerate(run_workers(started, WORKERS)):
        for number, ((owners, lowering, source), tensors, texts) in enumerate(found):
            plan = plan_of(capture_of(network()), owners, WORKERS)
            for name in plan.state:
                mask = plan.mask(name, rank)
                first = torch.stack([plan.mask(name, other) for other in range(WORKERS)]).int().argmax(0)
                choice = torch.full_like(first, source) if source is not None else first
                everyone = torch.stack([one[name] for one in values])
                wanted = everyone.gather(0, choice[None])[0]
                mine = tensors[name] if lowering == "masked" else tensors[name].reshape(-1)
                assert torch.equal(mine[mask] if lowering == "masked" else mine, wanted[mask]), (number, name)
            is_last = number >= len(found) - 2
            expects = rank == source and number != len(found) - 1
            assert len(texts) == expects, (number, texts)
            if expects and not is_last:
                assert f"{len(random)} of {len(plan.state)} " in texts[0]
                assert repr(random[0]) in texts[0] and f"rank {source} now" in texts[0]


def small(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))


def compiled(rank: int) -> Any:
    x = torch.randn(4, 6)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module = sdp_compile(small(10 + rank), NeuronPolicy(coverage=0.5, masking="backward"), x)
    texts = [str(one.message) for one in caught if one.filename == __file__]
    assert (module(x) - small(10)(x)).abs().max() < 1e-6, "also the values of others"
    errors = []
    for error, model, options in (
        (DistributedError, small(0), {"broadcast_from": 0 if rank else None}),
        (DistributedError, small(0).to("meta") if rank else small(0), {}),
        (PlanError, small(0), {"broadcast_from": 2}),
        (PlanError, small(0), {"broadcast_from": True}),
    ):
        with pytest.raises(error) as raised:
            sdp_compile(model, "neuron", x, **options)
        errors.append(str(raised.value))
    # Partly on the meta device: what has a value is rank 0's, materialize() gives the rest.
    model = small(10 + rank)
    model[0].to("meta")
    module_2 = sdp_compile(model, "neuron", x)
    given = {name: value for name, value in small(7).state_dict().items() if name.startswith("0.")}
    state = module_2.materialize(given).full_state_dict()
    return module.full_state_dict(), texts, errors, state


def test_compile_takes_the_option() -> None:
    wanted = small(10).state_dict()
    for rank, (state, texts, errors, partly) in enumerate(run_workers(compiled, 2, limit=250)):
        assert all(torch.equal(state[name], value) for name, value in wanted.items())
        assert len(texts) == (rank == 0)
        assert "broadcast_from: None" in errors[0] and "worker 0" in errors[0]
        assert "on the meta device" in errors[1]
        assert errors[2] == "broadcast_from must be an integer from 0 to 1, got 2."
        assert "got True" in errors[3]
        assert all(
            torch.equal(value, (small(7) if name.startswith("0.") else small(10)).state_dict()[name])
            for name, value in partly.items()
        )


def test_the_fingerprint_says_what_is_on_the_meta_device() -> None:
    net = network()
    before = fingerprint(capture_of(net), tensors_of(net))
    with torch.device("meta"):
        meta = Net()
    after = fingerprint(capture_of(net), {**tensors_of(net), "up.weight": meta.up.weight})
    assert before == fingerprint(capture_of(net))
    assert [line for line in after if line not in before] == [
        "up.weight: parameter float64[16, 6] requires_grad on the meta device"
    ]
