"""Single steps in one group: what owners get of each other's chunks, against plain tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from sdp_compile.runtime.comm.streams import Begun
from sdp_compile.runtime.comm.traffic import Traffic
from sdp_compile.runtime.levels.hops import Hop
from sdp_compile.runtime.levels.room import arranged_by_peers, arranged_in_order, room_of
from tests.distributed import run_workers

pytestmark = pytest.mark.timeout(120)
WORKERS = 4
EVERYONE = (0, 1, 2, 3)
OWNERS = [EVERYONE, (0, 2, 3), (1, 3), (2,)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
LENGTH = 5


def values(rank: int, owners: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """What a worker contributes: small integers, whose sums are exact in any dtype."""
    generator = torch.Generator().manual_seed(rank + 7 * len(owners))
    return torch.randint(-9, 9, (len(owners) * LENGTH,), generator=generator).to(dtype)


def finished(begun: Begun) -> list[Tensor]:
    for work, _ in begun.works:
        assert work is not None
        work.wait()
    return begun.end()


def done(begun: Begun) -> list[Tensor]:
    return [one.clone() for one in finished(begun)]  # not views of one buffer


def exchanged(rank: int) -> Any:
    world = dist.group.WORLD
    assert world is not None
    everyone = Hop(world, EVERYONE, rank, False, Traffic(), torch.device("cpu"))
    library = Hop(world, EVERYONE, rank, True, Traffic(), torch.device("cpu"))
    kinds = [(owners, dtype) for owners in OWNERS if rank in owners for dtype in DTYPES]
    own = [owners for owners, _ in kinds]
    flats = [values(rank, owners, dtype) for owners, dtype in kinds]
    of_all = [EVERYONE] * len(DTYPES)
    alike = [values(rank, EVERYONE, dtype) for dtype in DTYPES]
    found: dict[str, Any] = {}
    for operation in ("sum", "max"):
        for wide in (False, True):
            found[f"{operation} {wide}"] = done(
                everyone.scatter(room_of([flat.clone() for flat in flats], own), own, operation, "gradients", wide)
            )
        found[f"library {operation}"] = done(
            library.scatter(room_of(alike, of_all), of_all, operation, "gradients", False)
        )
        found[f"all {operation}"] = done(
            library.all_reduce(room_of([one.clone() for one in alike], of_all), operation, "gradients")
        )
    chunks = [flat[:LENGTH].clone() for flat in flats]
    found["gather"] = done(everyone.gather(chunks, own, "gradients"))
    homes = [torch.zeros_like(flat) for flat in flats]
    found["home"] = done(everyone.gather(chunks, own, "elsewhere", room_of(homes, own)))
    assert all(torch.equal(home, joined) for home, joined in zip(homes, found["gather"], strict=True))
    found["library gather"] = done(library.gather([one[:LENGTH].clone() for one in alike], of_all, "gradients"))
    homes = [torch.zeros_like(flat) for flat in alike]
    done(library.gather([one[:LENGTH].clone() for one in alike], of_all, "gradients", room_of(homes, of_all)))
    assert all(torch.equal(home, joined) for home, joined in zip(homes, found["library gather"], strict=True))
    return kinds, found, everyone.traffic.sent["gradients"]


def expected(rank: int, owners: tuple[int, ...], dtype: torch.dtype, operation: str) -> Tensor:
    rows = torch.stack([values(owner, owners, dtype).double() for owner in owners])
    whole = rows.sum(0) if operation == "sum" else rows.amax(0)
    return whole.view(len(owners), -1)[owners.index(rank)]


def test_each_owner_gets_its_chunk_of_sums_and_maxima_and_all_chunks() -> None:
    for rank, (kinds, found, nbytes) in enumerate(run_workers(exchanged, WORKERS)):
        for operation in ("sum", "max"):
            for wide in (False, True):
                for (owners, dtype), chunk in zip(kinds, found[f"{operation} {wide}"], strict=True):
                    assert torch.equal(chunk.double(), expected(rank, owners, dtype, operation))
                    is_wide = wide and dtype == torch.bfloat16 and len(owners) > 1
                    assert chunk.dtype == (torch.float32 if is_wide else dtype)
            for dtype, chunk, flat in zip(
                DTYPES, found[f"library {operation}"], found[f"all {operation}"], strict=True
            ):
                assert torch.equal(chunk.double(), expected(rank, EVERYONE, dtype, operation))
                whole = torch.cat([expected(owner, EVERYONE, dtype, operation) for owner in EVERYONE])
                assert torch.equal(flat.double(), whole) and flat.dtype == dtype
        for (owners, dtype), flat in zip(kinds, found["gather"], strict=True):
            rows = [values(owner, owners, dtype)[:LENGTH] for owner in owners]
            assert torch.equal(flat, torch.cat(rows))
        for dtype, flat in zip(DTYPES, found["library gather"], strict=True):
            assert torch.equal(flat, torch.cat([values(owner, EVERYONE, dtype)[:LENGTH] for owner in EVERYONE]))
        peers = sum(len(owners) - 1 for owners, _ in kinds) // len(DTYPES)
        assert nbytes == 5 * peers * (48 + 32 + 16)  # rows of several dtypes begin at multiples of 16 bytes


def there_and_back_in_a_room(rank: int) -> Any:
    world = dist.group.WORLD
    assert world is not None
    hop = Hop(world, EVERYONE, rank, False, Traffic(), torch.device("cpu"))
    kinds = [(owners, dtype) for owners in OWNERS if rank in owners for dtype in DTYPES]
    result = []
    for chosen in (kinds, [kind for kind in kinds if kind[1] == torch.float32]):
        own, dtypes = [owners for owners, _ in chosen], [dtype for _, dtype in chosen]
        flats = [values(rank, *kind) for kind in chosen]
        room = arranged_by_peers(EVERYONE, rank, own, [len(flat) for flat in flats], dtypes).room(torch.device("cpu"))
        for stretches, flat in zip(room.stretches, flats, strict=True):
            for stretch, chunk in zip(stretches, flat.split(LENGTH), strict=True):
                stretch.copy_(chunk)
        packed = room.memory[0].data_ptr()
        sums = finished(hop.scatter(room, own, "sum", "gradients", False))
        back = finished(hop.gather(sums, own, "gradients", room))
        assert [one.data_ptr() for one in back] == [packed] and room.spare is None
        result.append((chosen, [one.clone() for one in sums], [torch.cat(list(one)) for one in room.stretches]))
    return result


def test_averages_come_back_to_where_gradients_were_packed() -> None:
    for rank, found in enumerate(run_workers(there_and_back_in_a_room, WORKERS)):
        for kinds, sums, joined in found:
            for kind, own, whole in zip(kinds, sums, joined, strict=True):
                assert torch.equal(own.double(), expected(rank, *kind, "sum"))
                assert torch.equal(whole.double(), torch.cat([expected(owner, *kind, "sum") for owner in kind[0]]))


def joined_in_place(rank: int) -> Any:
    world = dist.group.WORLD
    assert world is not None
    hop = Hop(world, EVERYONE, rank, True, Traffic(), torch.device("cpu"))
    dtypes = [torch.float32, torch.float32, torch.float64]
    lengths = [4 * LENGTH, 8 * LENGTH, 4 * LENGTH]
    room = arranged_in_order([EVERYONE] * 3, lengths, dtypes).room(torch.device("cpu"))
    for number, flat in enumerate(room.flats):
        flat.fill_(rank + 10.0 * number)
    sums = finished(hop.all_reduce(room, "sum", "gradients"))
    assert all(one.is_set_to(flat) for one, flat in zip(sums, room.flats, strict=True))
    return [one.tolist() for one in sums]


def test_tensors_side_by_side_are_added_up_where_they_lie() -> None:
    for found in run_workers(joined_in_place, WORKERS):
        assert found == [[6.0 + 40 * number] * length for number, length in enumerate((20, 40, 20))]
