"""torchtitan on the CPU, which it has to be told: its Trainer's configuration, synthetic batches, and small models.

As a script, it runs another one with torchtitan on the CPU.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch._utils
import torch.distributed as dist
from torch import Tensor, nn

import sdp_compile as sdp

STEPS, SAVED_AT, ACCUMULATED, BATCH, LENGTH, VOCABULARY = 20, 10, 2, 2, 16, 128
MAX_NORM, RATE, SEED = 0.5, 1e-3, 7
POLICY = sdp.NeuronPolicy(coverage=0.5)


class _Processor:
    """What `torch.cpu` lacks of `torch.cuda`."""

    set_device = synchronize = reset_peak_memory_stats = empty_cache = staticmethod(lambda *_args: None)
    current_device = staticmethod(lambda: 0)
    device_count = staticmethod(lambda: 1)
    get_device_name = staticmethod(lambda *_args: "CPU")
    get_device_properties = staticmethod(lambda *_args: SimpleNamespace(total_memory=2**30))
    memory_stats = staticmethod(lambda *_args: {})


def on_cpu() -> Any:
    """The module of torchtitan's Trainer, with the CPU for the accelerator that torchtitan takes for granted."""
    with (
        patch.object(torch._utils, "_get_available_device_type", lambda: "cpu"),
        patch.object(torch._utils, "_get_device_module", lambda _kind: _Processor),
    ):
        import torchtitan.trainer

    return torchtitan.trainer


@contextmanager
def in_float64() -> Iterator[None]:
    """Trains in float64: torchtitan names no such dtype, and calls ``float()`` in its loss and rotary positions."""
    from torchtitan.config import TORCH_DTYPE_MAP

    with (
        patch.dict(TORCH_DTYPE_MAP, {"float64": torch.float64}),
        patch.object(Tensor, "float", Tensor.double),
    ):
        yield


def batch_of(rank: int, number: int) -> tuple[dict[str, Tensor], Tensor]:
    """Tokens, positions and labels; the ranks have different numbers of valid tokens."""
    random = torch.Generator().manual_seed(1000 * rank + number)
    tokens = torch.randint(VOCABULARY, (BATCH, LENGTH + 1), generator=random)
    labels = tokens[:, 1:].clone()
    labels[:, : 2 + 3 * rank + number % 2] = -100
    positions = torch.arange(LENGTH).expand(BATCH, LENGTH).contiguous()
    return {"input": tokens[:, :-1].contiguous(), "positions": positions}, labels


def spec_of(kind: str = "llama3", flavor: str = "debugmodel") -> Any:
    """torchtitan's smallest model of a kind, made smaller, with the attention that can be compiled."""
    from torchtitan.models.common.attention import ScaledDotProductAttention

    spec = import_module(f"torchtitan.models.{kind}").model_registry(flavor)
    model = spec.model
    model.layers = model.layers[:1]
    model.vocab_size = model.tok_embeddings.num_embeddings = model.lm_head.out_features = VOCABULARY
    for layer in model.layers:
        layer.attention.inner_attention = ScaledDotProductAttention.Config()
    return spec


def original(dtype: str, kind: str = "llama3", seed: int = SEED) -> nn.Module:
    """The model as the Trainer initialises it."""
    from torchtitan.config import TORCH_DTYPE_MAP
    from torchtitan.tools.utils import set_default_dtype

    with set_default_dtype(TORCH_DTYPE_MAP[dtype]):
        model: Any = spec_of(kind).model.build()
    torch.manual_seed(seed)
    with torch.no_grad():
        model.init_weights(buffer_device=None)
    return model


def config_of(
    folder: Path, dtype: str, kind: str = "llama3", steps: int = STEPS, policy: Any = POLICY, **checkpoint: Any
) -> Any:
    """A configuration as a user writes it, with batches by number."""
    titan = on_cpu()
    from torchtitan.components.checkpointer import CheckpointManager
    from torchtitan.components.dataloader import BaseDataLoader
    from torchtitan.components.loss import CrossEntropyLoss
    from torchtitan.components.metrics import MetricsProcessor
    from torchtitan.components.optimizer import LRSchedulersContainer, default_adamw
    from torchtitan.config import TrainingConfig

    from sdp_compile.integrations.torchtitan import sdp_spec

    class Batches(BaseDataLoader):
        """Batches by number, which is the state."""

        @dataclass(kw_only=True, slots=True)
        class Config(BaseDataLoader.Config):
            pass

        def __init__(self, config: Any, *, dp_rank: int, **_options: Any) -> None:
            self.rank, self.number = dp_rank, 0

        def __iter__(self) -> Iterator[Any]:
            while True:
                self.number += 1
                yield batch_of(self.rank, self.number - 1)

        def state_dict(self) -> dict[str, Any]:
            return {"number": self.number}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.number = state["number"]

    config = titan.Trainer.Config(
        model_spec=sdp_spec(spec_of(kind), policy),
        dump_folder=str(folder),
        loss=CrossEntropyLoss.Config(),
        optimizer=default_adamw(lr=RATE),
        lr_scheduler=LRSchedulersContainer.Config(warmup_steps=2, total_steps=STEPS),
        training=TrainingConfig(
            local_batch_size=BATCH,
            global_batch_size=BATCH * ACCUMULATED * dist.get_world_size(),
            seq_len=LENGTH,
            max_norm=MAX_NORM,
            steps=steps,
            dtype=dtype,
            mixed_precision_param=dtype,
            disable_cuda_graphs=True,
        ),
        dataloader=Batches.Config(),
        tokenizer=SimpleNamespace(build=lambda **_options: None),
        metrics=MetricsProcessor.Config(log_freq=1),
        checkpoint=CheckpointManager.Config(**{"last_save_model_only": False, "interval": SAVED_AT, **checkpoint}),
    )
    config.optimizer.implementation = "for-loop"
    config.debug.seed = SEED
    return config


def trainer_of(config: Any) -> tuple[Any, list[tuple[float, float]]]:
    """The Trainer, and the loss and the norm of the gradient that it will log at each step."""
    trainer = on_cpu().Trainer(config)
    logged: list[tuple[float, float]] = []
    trainer.metrics_processor.log = lambda _step, loss, _worst, norm, **_more: logged.append((loss, norm))
    return trainer, logged


if __name__ == "__main__":
    on_cpu()
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
