"""The count of sent bytes, compared with formulas written out by hand."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from sdp_compile.bench.counting import counted
from sdp_compile.errors import SDPError
from tests.bench.models import Residual
from tests.distributed import run_workers

pytestmark = pytest.mark.timeout(180)

WORKERS = 2


def collectives(rank: int) -> list[tuple[str, int, int]]:
    pair = dist.new_group([0])
    x, whole = torch.ones(6), torch.empty(12)
    with counted() as count:
        dist.all_reduce(x)
        dist.all_gather_into_tensor(whole, x)
        dist.reduce_scatter_tensor(x, whole)
        dist.all_gather(list(whole.chunk(2)), x)
        dist.broadcast(x, 0)
        dist.all_to_all_single(torch.empty(6), x)
        dist.barrier()
        if rank == 0:
            dist.all_reduce(x, group=pair)
    dist.all_reduce(x)  # outside the context
    return [(sent.kind, sent.payload, sent.members) for sent in count.counter.collectives]


def test_each_collective_counts_the_tensor_that_holds_all_parts() -> None:
    of_all = [
        ("all_reduce", 24, 2),
        ("all_gather", 48, 2),
        ("reduce_scatter", 48, 2),
        ("all_gather", 48, 2),
        ("broadcast", 24, 2),
        ("all_to_all", 24, 2),
    ]
    first, second = run_workers(collectives, WORKERS)
    assert first == [*of_all, ("all_reduce", 24, 1)]
    assert second == of_all


def uneven(rank: int) -> float:
    """Worker 0 keeps 1 row and sends 3, worker 1 keeps 2 and sends 2. A row has 8 bytes."""
    sizes = [[1, 3], [2, 2]]
    theirs = [sizes[peer][rank] for peer in range(WORKERS)]
    with counted() as count:
        dist.all_to_all_single(torch.empty(sum(theirs), 2), torch.ones(4, 2), theirs, sizes[rank])
        dist.all_to_all_single(torch.empty(4, 2), torch.ones(4, 2))
    return count.counter.nbytes


def test_an_all_to_all_sends_everything_except_the_workers_own_part() -> None:
    assert run_workers(uneven, WORKERS) == [pytest.approx(3 * 8 + 16), pytest.approx(2 * 8 + 16)]


def unknown(rank: int) -> str:
    with counted(), pytest.raises(SDPError) as caught:
        if rank:
            dist.send(torch.ones(1), 0)
        else:
            dist.recv(torch.ones(1), 1)
    return str(caught.value)


def test_what_cannot_be_counted_is_an_error() -> None:
    assert all("cannot count" in message for message in run_workers(unknown, WORKERS))


def functional(rank: int) -> tuple[float, float]:
    """The same collective in eager mode and compiled, where it is a different operator."""
    from torch.distributed._functional_collectives import all_reduce

    def exchange(x: torch.Tensor) -> Any:
        return all_reduce(x * 2, "sum", dist.group.WORLD)

    compiled = torch.compile(exchange, backend="aot_eager")
    compiled(torch.ones(5))
    with counted() as eager:
        exchange(torch.ones(5))
    with counted() as graph:
        compiled(torch.ones(5))
    return eager.counter.nbytes, graph.counter.nbytes


def test_compiled_collectives_count_alike() -> None:
    assert run_workers(functional, WORKERS) == [(20.0, 20.0)] * WORKERS  # 2 (n-1)/n of 5 float32


def libraries(rank: int) -> tuple[float, float]:
    batch = torch.randn(4, 16)
    parallel = DistributedDataParallel(nn.Sequential(Residual()), gradient_as_bucket_view=True)
    sharded = Residual()
    for block in sharded.blocks:
        fully_shard(block)
    fully_shard(sharded)
    counts = []
    for model in (parallel, sharded):
        for _ in range(2):  # DDP rebuilds its buckets in the second step
            model(batch).sum().backward()
        with counted() as count:
            model(batch).sum().backward()
        counts.append(count.counter.nbytes)
    return counts[0], counts[1]


def test_ddp_and_fsdp2_send_what_their_algorithms_say() -> None:
    model = Residual()
    of_blocks = sum(parameter.nbytes for parameter in model.blocks.parameters())
    whole = sum(parameter.nbytes for parameter in model.parameters())
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    # DDP: an all-reduce of all gradients and a broadcast of the buffers. FSDP2: gathers of blocks (twice) and of the
    # root, and a reduce-scatter. The head's 3 rows are padded to 4.
    padding = 4 * (16 + 1)
    expected = (whole + buffers / 2, (2 * of_blocks + (whole - of_blocks + padding) + whole + padding) / 2)
    assert run_workers(libraries, WORKERS) == [pytest.approx(expected)] * WORKERS
