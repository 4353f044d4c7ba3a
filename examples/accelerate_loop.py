"""A loop of Hugging Face Accelerate on subnetworks: torchrun --nproc-per-node 4 accelerate_loop.py FOLDER [EPOCHS]

Run again with more EPOCHS, it goes on from the state in FOLDER.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import sdp_compile as sdp
from sdp_compile.integrations.accelerate import SDPAccelerator

folder, epochs = Path(sys.argv[1]), int((sys.argv[2:3] or [4])[0])
accelerator = SDPAccelerator(cpu=not torch.cuda.is_available(), gradient_accumulation_steps=2)
digits = load_digits()
images, labels = torch.tensor(digits.data / 16).float(), torch.tensor(digits.target)
train, test = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).split([1500, 297])

torch.manual_seed(0)
network = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
model = sdp.compile(network.to(accelerator.device), sdp.NeuronPolicy(coverage=0.5), images[:2].to(accelerator.device))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
loader = DataLoader(TensorDataset(images[train], labels[train]), batch_size=16, shuffle=True)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

done = len(list(folder.glob("epoch-*")))
if done:
    accelerator.load_state(str(folder / f"epoch-{done}"))
for epoch in range(done, epochs):
    loader.set_epoch(epoch)
    for x, y in loader:
        with accelerator.accumulate(model):
            accelerator.backward(F.cross_entropy(model(x), y))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    accelerator.save_state(str(folder / f"epoch-{epoch + 1}"))

full = model.full_model().eval()
with torch.no_grad():
    right = (full(images[test].to(accelerator.device)).argmax(1).cpu() == labels[test]).float().mean()
accelerator.print(f"accuracy of the full model after {epochs} epochs: {right:.3f}")
accelerator.end_training()
