"""Workers that are started again in a store with traces of earlier attempts find each other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import HashStore, Store

from sdp_compile.errors import DistributedError
from sdp_compile.train.joining import attempt, joined_store

pytestmark = pytest.mark.timeout(60)


def together(store: Store, workers: int) -> str:
    with ThreadPoolExecutor(workers) as pool:
        names = list(pool.map(lambda rank: attempt(store, rank, workers, 20), reversed(range(workers))))
    assert len(set(names)) == 1
    return names[0]


def test_each_attempt_has_a_name_of_its_own() -> None:
    store = HashStore()
    names = [together(store, workers) for workers in (3, 3, 2, 3, 1, 1)]
    assert names[0] != names[1] != names[3] and names[4] != names[5]


def test_workers_that_were_started_in_vain_do_not_matter() -> None:
    """Worker 2 and worker 0 were started once more than the others, at different moments."""
    store = HashStore()
    for rank in (2, 0):
        with pytest.raises(DistributedError, match="did not start"):
            attempt(store, rank, 3, 0.3)
    together(store, 3)
    with pytest.raises(DistributedError, match="the others did not join"):
        attempt(store, 1, 3, 0.3)
    together(store, 3)


def test_a_worker_0_with_a_successor_gives_up() -> None:
    store = HashStore()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(attempt, store, 0, 2, 20)
        while not store.check(["sdp_compile/starts of 2/0"]):
            pass
        store.add("sdp_compile/starts of 2/0", 1)
        store.add("sdp_compile/starts of 2/1", 1)
        with pytest.raises(DistributedError, match="started again"):
            first.result(20)


def test_an_environment_without_an_address_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(DistributedError, match="MASTER_ADDR is ''"):
        joined_store(0, 2)
