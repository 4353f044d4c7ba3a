"""Steps with a closure are checked by the gradients that the closure computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sdp_compile.errors import DistributedError
from tests.distributed import run_workers
from tests.runtime.connected import WORKERS, connected, loss_of
from tests.runtime.stub import SCATTERED


def closures(rank: int) -> None:
    module = connected(rank, SCATTERED)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)

    def closure(step: int, accumulates: bool = False, factor: float = 1.0) -> Any:
        def compute() -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(module, 100 * rank + step)
            if accumulates:
                with module.peers.no_sync():  # type: ignore[union-attr]
                    loss.backward()
            else:
                loss.backward()
            for parameter in module.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)
            return loss.detach()

        return compute

    # What was accumulated before the closure is averaged within it.
    with module.peers.no_sync():  # type: ignore[union-attr]
        loss_of(module, 50 + rank).backward()
    optimizer.zero_grad(set_to_none=False)
    first = optimizer.step(closure(0))
    assert first is not None and torch.equal(first, closure(0)()) is False  # it has stepped
    optimizer.step(closure=closure(1))

    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    with pytest.raises(DistributedError, match="no_sync"):
        optimizer.step(closure(2, accumulates=True))
    module.peers.sync_gradients()  # type: ignore[union-attr]
    fresh = torch.optim.AdamW(module.parameters(), lr=1e-2)  # its first step compares everything
    with pytest.raises(DistributedError, match="gradient"):
        fresh.step(closure(3, factor=0.5 if rank == 1 else 1.0))
    assert all(torch.equal(value, before[name]) for name, value in module.named_parameters())


def test_gradients_of_a_closure_are_compared() -> None:
    run_workers(closures, WORKERS)
