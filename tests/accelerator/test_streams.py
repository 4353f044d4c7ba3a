"""Collectives run in a stream of their own: nothing they use may be overwritten, and the host waits for none of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from sdp_compile import NeuronPolicy, sdp_compile
from sdp_compile.planning.families import Masking
from sdp_compile.runtime.comm.groups import Groups
from sdp_compile.runtime.comm.streams import Begun, Pending, Step
from tests.distributed import run_workers
from tests.runtime.models import batch, build, loss_of


def with_nccl(rank: int, device: str) -> dict[str, Tensor]:
    """One process with NCCL: three steps of AdamW, in which the host never waits for the device after the first."""
    dist.destroy_process_group()
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    torch.cuda.set_device(torch.device(device, 0))
    dist.init_process_group("nccl", store=store, rank=0, world_size=1, device_id=torch.device(device, 0))
    model = build("transformer").float().to(device)
    batches = [batch("transformer", seed).to(device) for seed in range(4)]
    module = sdp_compile(model, NeuronPolicy(coverage=1.0), (batches[0],))
    return steps(module, batches)


def steps(module: nn.Module, batches: list[Tensor]) -> dict[str, Tensor]:
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3, foreach=True)
    for number, tokens in enumerate(batches):
        with no_waiting(number > 1):
            optimizer.zero_grad()
            loss_of("transformer", module(tokens), tokens).backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 0.5)
            optimizer.step()
    return {name: parameter.detach().cpu() for name, parameter in module.named_parameters()}


@contextmanager
def no_waiting(enabled: bool) -> Iterator[None]:
    """Any synchronisation of the host with the device is an error."""
    if not torch.cuda.is_available():
        yield
        return
    torch.cuda.set_sync_debug_mode("error" if enabled else "default")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_step_with_nccl_makes_the_host_wait_for_nothing(cuda: torch.device) -> None:
    (found,) = run_workers(with_nccl, 1, cuda.type, limit=120)
    batches = [batch("transformer", seed).to(cuda) for seed in range(4)]
    expected = steps(build("transformer").float().to(cuda), batches)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


def among_fake_peers(rank: int, device: str, masking: Masking) -> None:
    """One worker of eight, whose collectives send nothing and take no time."""
    dist.destroy_process_group()
    dist.init_process_group("fake", store=FakeStore(), rank=3, world_size=8)
    Groups.device = property(lambda groups: torch.device(device))  # type: ignore[method-assign,assignment]  # as NCCL
    model = build("transformer").float().to(device)
    batches = [batch("transformer", seed).to(device) for seed in range(4)]
    steps(sdp_compile(model, NeuronPolicy(coverage=0.5, masking=masking), (batches[0],)), batches)


@pytest.mark.parametrize("masking", ["forward", "backward"])
def test_a_worker_makes_the_host_wait_for_nothing(masking: Masking, device: torch.device) -> None:
    """Buckets of slices, the norm of the gradient, the comparison of owners and the refresh included."""
    run_workers(among_fake_peers, 1, device.type, masking, limit=120)


def test_memory_of_collectives_is_not_reused_too_early(cuda: torch.device) -> None:
    """A buffer that is dropped while its collective still waits for the device keeps its memory until the end."""
    size, rounds = 2**22, 20
    results = torch.zeros(rounds, device=cuda)
    waits = []
    for number in range(rounds):
        flat = torch.full((size,), float(number), device=cuda)

        def begin(flats: Sequence[Tensor], number: int = number) -> Begun:
            torch.cuda._sleep(20_000_000)  # about 10 ms
            results[number] = flats[0].sum() / size
            return Begun((), lambda: [results])

        waits.append(Pending(Step(number % 2, begin, nullcontext), [flat], cuda))
        del flat
        torch.full((size,), -1.0, device=cuda)  # takes the memory of the buffer, if the allocator has it
    for wait in waits:
        wait.results()
    assert results.tolist() == [float(number) for number in range(rounds)]
