"""torchtitan's Trainer on subnetworks, a GPU each: torchrun --nproc-per-node 4 titan_llama.py FOLDER [STEPS]

Run again with more STEPS, it goes on from the last checkpoint in FOLDER.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torchtitan.components.checkpointer import CheckpointManager
from torchtitan.components.dataloader import BaseDataLoader
from torchtitan.components.loss import CrossEntropyLoss
from torchtitan.components.optimizer import LRSchedulersContainer, default_adamw
from torchtitan.components.tokenizer import BaseTokenizer
from torchtitan.config import TrainingConfig
from torchtitan.models.common.attention import ScaledDotProductAttention
from torchtitan.models.llama3 import model_registry
from torchtitan.trainer import Trainer

import sdp_compile as sdp
from sdp_compile.integrations.torchtitan import sdp_spec

folder, steps = sys.argv[1], int((sys.argv[2:3] or [40])[0])


class Bytes(BaseTokenizer):
    @dataclass(kw_only=True, slots=True)
    class Config(BaseTokenizer.Config):
        pass

    def __init__(self, config, **_):
        super().__init__()

    def encode(self, text):
        return list(text.encode())

    def decode(self, tokens):
        return bytes(tokens).decode()

    def get_vocab_size(self):
        return 256


class Text(BaseDataLoader):
    """Random parts of a Python file, by the number of the batch, which is all that is saved."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseDataLoader.Config):
        pass

    def __init__(self, config, *, dp_rank, tokenizer, seq_len, local_batch_size, **_):
        self.text = torch.tensor(tokenizer.encode(Path(argparse.__file__).read_text()))
        self.rank, self.length, self.rows, self.number = dp_rank, seq_len, local_batch_size, 0

    def __iter__(self):
        while True:
            generator = torch.Generator().manual_seed(1_000_000 * self.rank + self.number)
            self.number += 1
            starts = torch.randint(len(self.text) - self.length, (self.rows,), generator=generator)
            tokens = torch.stack([self.text[start : start + self.length + 1] for start in starts])
            positions = torch.arange(self.length).repeat(self.rows, 1)
            yield {"input": tokens[:, :-1], "positions": positions}, tokens[:, 1:]

    def state_dict(self):
        return {"number": self.number}

    def load_state_dict(self, state):
        self.number = state["number"]


spec = model_registry("debugmodel")
spec.model.layers = spec.model.layers[:2]
spec.model.vocab_size = spec.model.tok_embeddings.num_embeddings = spec.model.lm_head.out_features = 256
for layer in spec.model.layers:
    layer.attention.inner_attention = ScaledDotProductAttention.Config()

trainer = Trainer(
    Trainer.Config(
        model_spec=sdp_spec(spec, sdp.NeuronPolicy(coverage=0.5)),
        dump_folder=folder,
        tokenizer=Bytes.Config(),
        dataloader=Text.Config(),
        loss=CrossEntropyLoss.Config(),
        optimizer=default_adamw(lr=2e-3),
        lr_scheduler=LRSchedulersContainer.Config(warmup_steps=2, total_steps=1000),
        training=TrainingConfig(
            local_batch_size=8,
            seq_len=64,
            steps=steps,
            max_norm=1.0,
            mixed_precision_param="float32",
            disable_cuda_graphs=True,
        ),
        checkpoint=CheckpointManager.Config(enable=True, interval=20, last_save_model_only=False),
    )
)
trainer.train()

full = trainer.model_parts[0].full_model().eval()  # collective, like everything that is saved
text = torch.tensor(list(Path(argparse.__file__).read_bytes())).to(trainer.device)
tokens = text[: 64 * 65].view(64, 65)
with torch.no_grad():
    loss = F.cross_entropy(full(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
if dist.get_rank() == 0:
    print(f"loss of the full Llama after {trainer.step} steps: {loss:.3f}")
trainer.close()
dist.destroy_process_group()
