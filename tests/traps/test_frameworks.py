"""Frameworks that wrap a model in DistributedDataParallel are stopped before they change a value of a compiled one."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from lightning.fabric import Fabric
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

import sdp_compile as sdp
from tests.distributed import run_workers
from tests.traps.small import compiled, raised


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.last(self.first(x).relu())
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


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
    torch.manual_seed(0)
    data = [{"x": x, "labels": torch.tensor(0)} for x in torch.randn(16, 8)]
    inputs = {"x": torch.randn(6, 8), "labels": torch.zeros(6, dtype=torch.int64)}
    model = sdp.compile(Classifier(), sdp.NeuronPolicy(coverage=0.5), inputs)
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
