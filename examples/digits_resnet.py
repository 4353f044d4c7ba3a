"""A torchvision ResNet on scikit-learn's digits: torchrun --nproc-per-node 4 digits_resnet.py [COVERAGE [STEPS]]"""

import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torchvision.models import resnet18

import sdp_compile as sdp

coverage, steps = float((sys.argv[1:2] or [0.5])[0]), int((sys.argv[2:3] or [100])[0])
dist.init_process_group()
digits = load_digits()
images = F.interpolate(torch.tensor(digits.images / 16).float()[:, None].expand(-1, 3, -1, -1), scale_factor=2)
labels = torch.tensor(digits.target)
train, test = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).split([1297, 500])

torch.manual_seed(0)
model = sdp.compile(resnet18(num_classes=10), sdp.NeuronPolicy(coverage=coverage), example_inputs=(images[:8],))
optimizer = torch.optim.AdamW(model.parameters())
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
torch.manual_seed(dist.get_rank())  # from here on every worker draws its own batches
for _ in range(steps):
    batch = train[torch.randint(len(train), (32,))]
    optimizer.zero_grad()
    F.cross_entropy(model(images[batch]), labels[batch]).backward()
    optimizer.step()
    schedule.step()

full_model = model.full_model()  # the whole ResNet, assembled from all workers
sdp.calibrate(full_model, [images[batch] for batch in train.split(250)])  # its own BatchNorm statistics
with torch.no_grad():
    accuracy = (full_model.eval()(images[test]).argmax(1) == labels[test]).float().mean()
if dist.get_rank() == 0:
    print(f"coverage {coverage}: accuracy of the full model after {steps} steps: {accuracy:.3f}")
dist.destroy_process_group()
