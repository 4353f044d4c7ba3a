"""All ranks go on together or raise together, whatever goes wrong on one of them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch.distributed as dist

from sdp_compile.errors import DistributedError, PolicyError, SDPError
from sdp_compile.runtime.comm.handshake import Handshake
from tests.distributed import run_workers

pytestmark = pytest.mark.timeout(120)


def attempt(statement: str, details: tuple[str, ...] = (), topic: str = "sdp.compile()", limit: float = 20) -> str:
    try:
        with Handshake(dist.group.WORLD, topic, limit) as handshake:
            if statement == "broken":
                raise PolicyError("coverage is 2")
            handshake.agree(statement, details)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "agreed"


def everything(rank: int) -> list[str]:
    odd = rank in (1, 3)
    lines = ("a: parameter float32[3]", "b: parameter float32[4]")
    results = [
        attempt("digest", lines),
        attempt("digest", (lines[0], "b: parameter float32[5]") if odd else lines),
        attempt("digest", lines[:1] if odd else lines),
        attempt("other" if odd else "digest", lines),
        attempt("broken" if rank == 2 else "digest", lines),
        attempt("broken" if rank == 0 else "digest", lines),
        attempt("", topic="full_state_dict()" if odd else "full_model()"),
        attempt("digest", lines),
    ]
    start = time.monotonic()
    results.append("" if rank == 2 else attempt("digest", lines, limit=2))
    assert time.monotonic() - start < 10
    time.sleep(4 if rank == 2 else 0)
    return results


def test_agreement_and_every_disagreement() -> None:
    found = run_workers(everything, 4)
    agreed, shape, shorter, digest, broken, first_broken, topic, again, missing = zip(*found, strict=True)
    assert set(agreed) == set(again) == {"agreed"}
    for texts, expected in (
        (shape, ["workers 0, 2 has `b: parameter float32[4]`", "workers 1, 3 has `b: parameter float32[5]`"]),
        (shorter, ["`b: parameter float32[4]`", "`nothing`"]),
        (digest, ["workers 0, 2: digest", "workers 1, 3: other", "plan digest"]),
        (topic, ["workers 0, 2: full_model()", "workers 1, 3: full_state_dict()"]),
    ):
        assert len(set(texts)) == 1
        assert texts[0].startswith("DistributedError")
        assert all(part in texts[0] for part in expected), texts[0]
    for rank, texts in ((2, broken), (0, first_broken)):
        assert texts[rank] == "PolicyError: coverage is 2"
        others = {text for other, text in enumerate(texts) if other != rank}
        assert len(others) == 1
        text = others.pop()
        assert text.startswith("DistributedError") and f"orker {rank}" in text and "PolicyError: coverage is 2" in text
    for rank in (0, 1, 3):
        assert "worker 2 did not reach sdp.compile()" in missing[rank]


def in_a_subgroup(rank: int) -> str:
    group = dist.new_group([1, 2])
    if rank == 0:
        return "outside"
    try:
        with Handshake(group, limit=20) as handshake:
            handshake.agree(f"digest {rank}")
    except DistributedError as error:
        return str(error)
    return "agreed"


def test_ranks_are_named_by_their_number_in_the_group() -> None:
    found = run_workers(in_a_subgroup, 3)
    assert "worker 0: digest 1; worker 1: digest 2" in found[1]
    assert found[1] == found[2]


def store_at_rank_0(rank: int, path: str) -> str:
    """Worker 0 serves the store itself, as without torchrun, and ends right after its error."""
    dist.destroy_process_group()
    if rank == 0:
        store = dist.TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
        Path(path).write_text(str(store.port))
    else:
        while not Path(path).exists() or not Path(path).read_text():
            time.sleep(0.05)
        store = dist.TCPStore("127.0.0.1", int(Path(path).read_text()), 2, is_master=False, wait_for_workers=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    try:
        with Handshake(dist.group.WORLD, limit=20) as handshake:
            if rank == 0:
                raise PolicyError("only here")
            time.sleep(1)
            handshake.agree("digest")
    except SDPError as error:
        return str(error)
    return "agreed"


def test_worker_0_lets_the_others_read_its_error_before_it_takes_the_store_away(tmp_path: Path) -> None:
    found = run_workers(store_at_rank_0, 2, str(tmp_path / "port"))
    assert found[0] == "only here"
    assert "only here" in found[1] and "orker 0" in found[1]


def test_without_a_process_group_nothing_happens() -> None:
    with Handshake(None) as handshake:
        handshake.agree("digest")
    with pytest.raises(PolicyError), Handshake(None):
        raise PolicyError("mine")
