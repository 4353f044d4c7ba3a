"""A transformers Llama from its configuration: torchrun --nproc-per-node 4 llama.py [STEPS]"""

import argparse
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

import sdp_compile as sdp

steps = int((sys.argv[1:2] or [40])[0])
dist.init_process_group()
text = torch.frombuffer(bytearray(Path(argparse.__file__).read_bytes()), dtype=torch.uint8).long()

torch.manual_seed(0)
llama = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=256,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,  # grouped queries: two heads of queries share one of keys and values
        use_cache=False,
    )
)
model = sdp.compile(llama, sdp.NeuronPolicy(coverage=0.5), example_inputs={"input_ids": text[None, :64].repeat(2, 1)})
if dist.get_rank() == 0:
    print(model.plan.report())

optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
torch.manual_seed(dist.get_rank())
for _ in range(steps):
    tokens = torch.stack([text[start : start + 65] for start in torch.randint(len(text) - 65, (8,))])
    loss = F.cross_entropy(model(input_ids=tokens[:, :-1]).logits.flatten(0, 1), tokens[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()

state = model.full_state_dict()
llama.load_state_dict(state)  # strict: the original model takes every key
with torch.no_grad():
    tokens = text[: 8 * 65].view(8, 65)
    loss = F.cross_entropy(llama(input_ids=tokens[:, :-1]).logits.flatten(0, 1), tokens[:, 1:].flatten())
if dist.get_rank() == 0:
    print(f"loss of the full Llama after {steps} steps: {loss:.3f}")
dist.destroy_process_group()
