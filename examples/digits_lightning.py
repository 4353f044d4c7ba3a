"""Lightning's Trainer on scikit-learn's digits, stopped and resumed: torchrun --nproc-per-node 4 digits_lightning.py"""

import logging
import os

import lightning
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import sdp_compile as sdp
from sdp_compile.integrations.lightning import SDPStrategy

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
digits = load_digits()
data = TensorDataset(torch.tensor(digits.data / 16).float(), torch.tensor(digits.target))
train, test = torch.utils.data.random_split(data, [1500, 297], torch.Generator().manual_seed(0))


class Digits(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
        self.example_input_array = torch.zeros(8, 64)

    def training_step(self, batch, index):
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def validation_step(self, batch, index):  # self.model is the full model here
        accuracy = (self.model(batch[0]).argmax(1) == batch[1]).float().mean()
        self.log("accuracy", accuracy, sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def trainer(epochs):
    return lightning.Trainer(
        accelerator="cpu",
        devices=int(os.environ["LOCAL_WORLD_SIZE"]),
        strategy=SDPStrategy(sdp.NeuronPolicy(coverage=0.5)),
        gradient_clip_val=1.0,
        accumulate_grad_batches=2,
        max_epochs=epochs,
        default_root_dir="build/lightning",
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
    )


lightning.seed_everything(0, verbose=False)
first = trainer(epochs=10)
first.fit(Digits(), DataLoader(train, 16, shuffle=True))
checkpoint = first.checkpoint_callback.best_model_path  # the full model under its original names

second = trainer(epochs=20)
second.fit(Digits(), DataLoader(train, 16, shuffle=True), DataLoader(test, 75), ckpt_path=checkpoint)
if second.is_global_zero:
    print(f"accuracy of the full model, stopped and resumed: {second.callback_metrics['accuracy']:.3f}")
