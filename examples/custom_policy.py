"""A policy of one's own, in eight lines: torchrun --nproc-per-node 4 custom_policy.py"""

from collections.abc import Collection, Mapping, Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import sdp_compile as sdp


@sdp.register_policy("core")
class CorePolicy(sdp.Policy):
    """A share of each axis belongs to all workers; every other unit to one of them alone, without communication."""

    core: float = 0.25

    def partition(self, structure: sdp.Structure, workers: int) -> Mapping[str, Sequence[Collection[int]]]:
        def owners(unit: int, units: int) -> Collection[int]:
            return range(workers) if unit < self.core * units else {unit % workers}

        return {axis.name: [owners(unit, axis.units) for unit in range(axis.units)] for axis in structure.axes}


dist.init_process_group()
digits = load_digits()
images, labels = torch.tensor(digits.data / 16).float(), torch.tensor(digits.target)
train, test = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).split([1500, 297])

torch.manual_seed(0)
mlp = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
model = sdp.compile(mlp, "core", example_inputs=(images[:8],))  # by name, or CorePolicy(core=0.5)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
torch.manual_seed(dist.get_rank())
for _ in range(200):
    batch = train[torch.randint(len(train), (32,))]
    optimizer.zero_grad()
    F.cross_entropy(model(images[batch]), labels[batch]).backward()
    optimizer.step()

full_model = model.full_model().eval()
with torch.no_grad():
    accuracy = (full_model(images[test]).argmax(1) == labels[test]).float().mean()
if dist.get_rank() == 0:
    owned, hidden = len(model.get_parameter("0.bias")), len(mlp[0].bias)
    print(f"each worker trains {owned} of {hidden} hidden units; accuracy of the full model: {accuracy:.3f}")
dist.destroy_process_group()
