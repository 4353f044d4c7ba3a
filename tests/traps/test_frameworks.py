"""Frameworks that wrap a model in DistributedDataParallel are stopped before they change a value of a compiled one."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from lightning.fabric import Fabric
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import sdp_compile as sdp
from tests.distributed import run_workers
from tests.traps.small import compiled, raised

pytestmark = pytest.mark.timeout(300)


def gpt2() -> tuple[Any, list[dict[str, Any]]]:
    torch.manual_seed(0)
    sizes = {"n_layer": 1, "n_embd": 32, "n_head": 4, "vocab_size": 64, "n_positions": 32}
    model = GPT2LMHeadModel(GPT2Config(**sizes, use_cache=False, bos_token_id=0, eos_token_id=0))
    ids = torch.randint(0, 64, (4, 16))
    data = [{"input_ids": row, "labels": row} for row in torch.randint(0, 64, (16, 16))]
    return sdp.compile(model, sdp.NeuronPolicy(coverage=0.5), {"input_ids": ids, "labels": ids}), data


def frameworks(rank: int, folder: str) -> dict[str, tuple[str, bool]]:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="1", TORCHELASTIC_RUN_ID="test", GROUP_RANK="0")
    os.environ.update(LOCAL_WORLD_SIZE="2", TORCHELASTIC_RESTART_COUNT="0")
    found = {}

    def check(name: str, module: Any, call: Any) -> None:
        before = module.full_state_dict()
        error, after = raised(call), module.full_state_dict()
        found[name] = error, all(torch.equal(after[key], value) for key, value in before.items())

    module = compiled()
    optimizer = torch.optim.AdamW(module.parameters())
    check("accelerate", module, lambda: Accelerator(cpu=True).prepare(module, optimizer))
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
    fabric = Fabric(accelerator="cpu", devices=2)
    fabric.launch()
    check("fabric", module, lambda: fabric.setup(module, optimizer))
    model, data = gpt2()
    arguments = TrainingArguments(
        folder, max_steps=1, use_cpu=True, report_to=[], disable_tqdm=True, ddp_backend="gloo", save_strategy="no"
    )
    check("trainer", model, lambda: Trainer(model=model, train_dataset=data, args=arguments).train())
    return found


def test_plain_frameworks_are_refused(tmp_path: Any) -> None:
    for found in run_workers(frameworks, 2, str(tmp_path), limit=250):
        assert found.keys() == {"accelerate", "fabric", "trainer"}
        for name, (error, is_unchanged) in found.items():
            assert "DistributedDataParallel cannot take a module from sdp.compile()" in error, name
            assert is_unchanged, name
