"""Lightning Fabric on scikit-learn's digits, with a stop: torchrun --nproc-per-node 4 digits_fabric.py [STEPS]"""

import os
import sys
import tempfile

import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from sklearn.datasets import load_digits
from torch import nn

import sdp_compile as sdp
from sdp_compile.integrations.fabric import SDPStrategy

steps = int((sys.argv[1:2] or [100])[0])
digits = load_digits()
images, labels = torch.tensor(digits.data / 16).float(), torch.tensor(digits.target)
train, test = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).split([1500, 297])

strategy = SDPStrategy(sdp.NeuronPolicy(coverage=0.5), example_inputs=(images[:8],))
fabric = Fabric(accelerator="cpu", devices=int(os.environ["LOCAL_WORLD_SIZE"]), strategy=strategy)
fabric.launch()
checkpoint = os.path.join(fabric.broadcast(tempfile.mkdtemp()), "checkpoint.pt")


def run(start, stop):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model, optimizer = fabric.setup(model, optimizer)  # from here on this worker's subnetwork
    state = {"model": model, "optimizer": optimizer}
    if start:
        fabric.load(checkpoint, state)
    for step in range(start, stop):
        generator = torch.Generator().manual_seed(1000 * fabric.global_rank + step)
        for micro in range(2):  # two batches per step
            batch = train[torch.randint(len(train), (32,), generator=generator)]
            with fabric.no_backward_sync(model, enabled=micro == 0):
                fabric.backward(F.cross_entropy(model(images[batch]), labels[batch]) / 2)
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
    fabric.save(checkpoint, state)  # the full model under its original names
    return model


run(0, steps // 2)
full_model = run(steps // 2, steps).full_model().eval()
with torch.no_grad():
    accuracy = (full_model(images[test]).argmax(1) == labels[test]).float().mean()
fabric.print(f"accuracy of the full model after {steps} steps, stopped and resumed: {accuracy:.3f}")
