"""A process group that is destroyed ends, with its threads and connections."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import gc, weakref
import torch
import torch.distributed as dist
from torch import nn

def train():
    import sdp_compile as sdp
    model = sdp.compile(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), "neuron", (torch.ones(2, 4),))
    model(torch.ones(2, 4)).sum().backward()

for _ in range(2):
    dist.init_process_group(store=dist.HashStore(), rank=0, world_size=1)
    group = weakref.ref(dist.group.WORLD)
    train()
    total = dist.nn.functional.all_reduce(torch.ones(1))
    dist.destroy_process_group()
    gc.collect()
    print(total.item(), group())
"""


def test_that_nothing_holds_a_group_after_its_end() -> None:
    """In a process that imports nothing of torch's compiler before the group exists, like most scripts."""
    found = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert found.stdout == "1.0 None\n" * 2, found.stderr
