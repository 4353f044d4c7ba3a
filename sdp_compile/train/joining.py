"""The workers of one attempt find each other in a store that earlier attempts may have used.

torchrun serves one store for all its restarts (PyTorch 2.15), and its agents may count restarts differently. What
workers that have ended left in the store would confuse their successors.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store

from sdp_compile.errors import DistributedError
from sdp_compile.runtime.waiting.words import workers_text

JOIN_SECONDS = 300.0
"""How long a worker waits for the others to start."""

_PAUSE = 0.05


def joined_store(rank: int, workers: int) -> Store:
    """Returns the store at ``MASTER_ADDR`` and ``MASTER_PORT``, under a name of this attempt's own. Collective.

    Args:
        rank: This worker.
        workers: The number of workers.

    Raises:
        DistributedError: If the store cannot be reached, or a worker does not start.
    """
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    if not address or not port.isdecimal():
        raise DistributedError(
            f"RANK and WORLD_SIZE are set, but MASTER_ADDR is {address!r} and MASTER_PORT is {port!r}. Start the "
            "workers with torchrun, or set all four."
        )
    is_served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    limit = timedelta(seconds=JOIN_SECONDS)
    try:
        store = dist.TCPStore(  # type: ignore[attr-defined]
            address,
            int(port),
            is_master=rank == 0 and not is_served,
            timeout=limit,
            wait_for_workers=False,
            multi_tenant=True,
        )
        return PrefixStore(f"sdp_compile/attempt {attempt(store, rank, workers)}", store)
    except (RuntimeError, OSError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise DistributedError(
            f"Worker {rank} cannot use the store of the workers at {address}:{port} ({first}). If an agent of torchrun "
            "has ended, start the agents with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1: otherwise they go on with the "
            "store of the agent that is gone."
        ) from error


def attempt(store: Store, rank: int, workers: int, limit: float = JOIN_SECONDS) -> str:
    """Returns a name that these processes share with each other and with none that came before. Collective.

    Each process counts the starts of its rank. Worker 0 offers the counts of all; each worker accepts an offer with its
    own count; worker 0 closes the offer that all have accepted.

    Args:
        store: The store, perhaps used before.
        rank: This worker.
        workers: The number of workers.
        limit: How long to wait, in seconds.

    Raises:
        DistributedError: If a worker does not start, or this process has a successor already.
    """
    starts = [f"sdp_compile/starts of {workers}/{worker}" for worker in range(workers)]
    offered, end = f"sdp_compile/offer to {workers}", time.monotonic() + limit
    mine = str(store.add(starts[rank], 1))
    while time.monotonic() < end:
        if rank == 0 and store.check(starts):
            counts = [count.decode() for count in store.multi_get(starts)]
            if counts[0] != mine:
                raise DistributedError("Worker 0 was started again while it still waited for the others.")
            store.set(offered, " ".join(counts))
        if store.check([offered]):
            offer = store.get(offered).decode()
            if offer.split()[rank] == mine:
                store.set(f"{offer} accepted by {rank}", "")
                if rank == 0 and store.check([f"{offer} accepted by {worker}" for worker in range(workers)]):
                    store.set(f"{offer} closed", "")
                if store.check([f"{offer} closed"]):
                    return offer
        time.sleep(_PAUSE)
    absent = [worker for worker, key in enumerate(starts) if not store.check([key])]
    missing = f"{workers_text(absent)} did not start" if absent else "the others did not join"
    raise DistributedError(
        f"Worker {rank} waited for {limit:.0f} s, but {missing}. Look at the output of the other workers and agents."
    )
