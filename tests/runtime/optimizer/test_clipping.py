"""The norm of the full gradient counts every element once, however many owners it has."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sdp_compile.errors import SDPError
from sdp_compile.runtime.optimizer.clipping import clip_grad_norm_
from tests.distributed import run_workers
from tests.runtime.connected import WORKERS, connected, loss_of
from tests.runtime.stub import SCATTERED, batch, capture_of, network, oracle_gradients, plan_of

pytestmark = pytest.mark.timeout(120)


def norms(rank: int) -> Any:
    module = connected(rank, SCATTERED)
    loss_of(module, rank).backward()
    returned = [clip_grad_norm_(module, 1e9, kind) for kind in (2.0, 1.0, 3.0, float("inf"))]
    returned.append(clip_grad_norm_(torch.nn.Sequential(module)[0], 0.01))
    returned.append(clip_grad_norm_(module, 1e9))
    with pytest.raises(SDPError, match="norm_type"):
        clip_grad_norm_(module, 1.0, 0.0)
    with pytest.raises(SDPError, match="Linear"):
        clip_grad_norm_(torch.nn.Linear(1, 1), 1.0)
    return returned


def test_norm_counts_every_element_once() -> None:
    found = run_workers(norms, WORKERS)
    net = network()
    expected = oracle_gradients(
        net, plan_of(capture_of(net), SCATTERED, WORKERS), {rank: [batch(rank)] for rank in range(WORKERS)}
    )
    for name, parameter in net.named_parameters():
        parameter.grad = expected[name] if parameter.requires_grad else None
    kinds = (2.0, 1.0, 3.0, float("inf"))
    oracle = [torch.nn.utils.clip_grad_norm_(net.parameters(), 1e9, kind) for kind in kinds]
    oracle += [oracle[0], torch.tensor(0.01, dtype=torch.float64)]
    for own in found:
        torch.testing.assert_close(torch.stack(own[:5]), torch.stack(oracle[:5]), rtol=1e-12, atol=0)
        torch.testing.assert_close(own[5], oracle[5], rtol=1e-4, atol=0)
        assert all(torch.equal(a, b) for a, b in zip(own, found[0], strict=True))
