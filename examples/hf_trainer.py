"""Hugging Face's Trainer on subnetworks: torchrun --nproc-per-node 4 hf_trainer.py FOLDER [STEPS]

Run again with more STEPS, it goes on from the last checkpoint in FOLDER.
"""

import argparse
import sys
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

import sdp_compile as sdp
from sdp_compile.integrations.transformers import SDPTrainer

folder, steps = Path(sys.argv[1]), int((sys.argv[2:3] or [40])[0])
text = torch.frombuffer(bytearray(Path(argparse.__file__).read_bytes()), dtype=torch.uint8).long()
rows = [{"input_ids": part, "labels": part} for part in text[: len(text) // 64 * 64].view(-1, 64)]

gpt = GPT2LMHeadModel(
    GPT2Config(vocab_size=256, n_positions=64, n_embd=128, n_layer=2, n_head=8, bos_token_id=0, eos_token_id=0)
)
trainer = SDPTrainer(
    gpt,
    TrainingArguments(
        str(folder),
        max_steps=steps,
        save_steps=20,
        per_device_train_batch_size=8,
        learning_rate=2e-3,
        lr_scheduler_type="constant",
        use_cpu=not torch.cuda.is_available(),
        report_to=[],
        disable_tqdm=True,
    ),
    train_dataset=rows[64:],
    eval_dataset=rows[:64],
    policy=sdp.NeuronPolicy(coverage=0.5),
)
trainer.train(resume_from_checkpoint=get_last_checkpoint(folder) if folder.exists() else None)
loss = trainer.evaluate()["eval_loss"]  # of the full model, like everything that is saved
trainer.save_model(str(folder / "final"))
if trainer.is_world_process_zero():
    print(f"loss of the full GPT-2 after {trainer.state.global_step} steps: {loss:.3f}")
torch.distributed.destroy_process_group()
