"""torchtitan's own Trainer with `sdp_spec`, against a loop written by hand; on the CPU, which it has to be told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import sdp_compile as sdp
from sdp_compile.errors import SDPError
from tests.distributed import run_workers
from tests.integrations.loops import assert_same

STEPS, SAVED_AT, ACCUMULATED, BATCH, LENGTH, VOCABULARY = 6, 4, 2, 2, 16, 2048
MAX_NORM, RATE, SEED = 0.5, 1e-3, 7
POLICY = sdp.NeuronPolicy(coverage=0.5)

pytestmark = [pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore")]


def on_cpu() -> Any:
    """torchtitan, which takes CUDA for granted, with the CPU as its accelerator; None if it is not installed."""
    import torch._utils

    before = torch._utils._get_available_device_type, torch._utils._get_device_module
    torch._utils._get_available_device_type = lambda: "cpu"
    torch._utils._get_device_module = lambda _kind: _Processor
    try:
        import torchtitan.trainer as titan
    except ImportError:
        return None
    finally:
        torch._utils._get_available_device_type, torch._utils._get_device_module = before
    return titan


class _Processor:
    """What `torch.cpu` lacks of `torch.cuda`."""

    set_device = synchronize = reset_peak_memory_stats = empty_cache = staticmethod(lambda *_args: None)
    current_device = staticmethod(lambda: 0)
    device_count = staticmethod(lambda: 1)
    get_device_name = staticmethod(lambda *_args: "CPU")
    get_device_properties = staticmethod(lambda *_args: SimpleNamespace(total_memory=2**30))
    memory_stats = staticmethod(lambda *_args: {})


def batch_of(rank: int, number: int) -> tuple[dict[str, Tensor], Tensor]:
    """Tokens, positions and labels; the ranks have different numbers of valid tokens."""
    random = torch.Generator().manual_seed(1000 * rank + number)
    tokens = torch.randint(VOCABULARY, (BATCH, LENGTH + 1), generator=random)
    labels = tokens[:, 1:].clone()
    labels[:, : 2 + 3 * rank + number % 2] = -100
    positions = torch.arange(LENGTH).expand(BATCH, LENGTH).contiguous()
    return {"input": tokens[:, :-1].contiguous(), "positions": positions}, labels


def spec_of() -> Any:
    from torchtitan.models.common.attention import ScaledDotProductAttention
    from torchtitan.models.llama3 import model_registry

    spec = model_registry("debugmodel")
    spec.model.layers = spec.model.layers[:1]
    for layer in spec.model.layers:
        layer.attention.inner_attention = ScaledDotProductAttention.Config()
    return spec


def config_of(folder: Path, **changes: Any) -> Any:
    titan = on_cpu()
    from torchtitan.components.checkpointer import CheckpointManager
    from torchtitan.components.dataloader import BaseDataLoader
    from torchtitan.components.loss import CrossEntropyLoss
    from torchtitan.components.metrics import MetricsProcessor
    from torchtitan.components.optimizer import LRSchedulersContainer, default_adamw
    from torchtitan.components.tokenizer import BaseTokenizer
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

    class NoTokenizer(BaseTokenizer):
        @dataclass(kw_only=True, slots=True)
        class Config(BaseTokenizer.Config):
            pass

        def __init__(self, config: Any, **_options: Any) -> None:
            super().__init__()

        def encode(self, *_args: Any, **_kwargs: Any) -> list[int]:
            raise NotImplementedError

        def decode(self, *_args: Any, **_kwargs: Any) -> str:
            raise NotImplementedError

        def get_vocab_size(self) -> int:
            return VOCABULARY

    options: dict[str, Any] = {
        "model_spec": sdp_spec(spec_of(), POLICY),
        "dump_folder": str(folder),
        "loss": CrossEntropyLoss.Config(),
        "optimizer": default_adamw(lr=RATE),
        "lr_scheduler": LRSchedulersContainer.Config(warmup_steps=2, total_steps=STEPS),
        "training": TrainingConfig(
            local_batch_size=BATCH,
            global_batch_size=BATCH * ACCUMULATED * dist.get_world_size(),
            seq_len=LENGTH,
            max_norm=MAX_NORM,
            steps=STEPS,
            mixed_precision_param="float32",
            disable_cuda_graphs=True,
        ),
        "dataloader": Batches.Config(),
        "tokenizer": NoTokenizer.Config(),
        "metrics": MetricsProcessor.Config(log_freq=1),
        "checkpoint": CheckpointManager.Config(enable=True, interval=SAVED_AT, last_save_model_only=False),
        **changes,
    }
    config = titan.Trainer.Config(**options)
    config.optimizer.implementation = "for-loop"
    config.debug.seed = SEED
    return config


def original() -> nn.Module:
    model: Any = spec_of().model.build()
    torch.manual_seed(SEED)
    with torch.no_grad():
        model.init_weights(buffer_device=None)
    return model


def by_hand(rank: int, schedule: Any) -> dict[str, Tensor]:
    """Trains, and returns the full model's state."""
    example, _ = batch_of(0, 0)
    model = sdp.compile(
        original(), POLICY, {"tokens": example["input"], "positions": example["positions"]}, reduction="sum"
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    (scheduler,) = schedule.build(optimizers=[optimizer], training_steps=STEPS)
    for step in range(STEPS):
        batches = [batch_of(rank, ACCUMULATED * step + part) for part in range(ACCUMULATED)]
        valid = sum((labels != -100).sum() for _, labels in batches)
        assert isinstance(valid, Tensor)
        dist.all_reduce(valid)
        for inputs, labels in batches:
            logits = model(inputs["input"], positions=inputs["positions"])
            loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum", ignore_index=-100)
            (loss / valid).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        assert norm > MAX_NORM  # clipping matters
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return model.full_state_dict()


def trains(rank: int, folder: Path) -> None:
    from torch.distributed.checkpoint import FileSystemReader

    titan = on_cpu()
    config = config_of(folder)
    expected = by_hand(rank, config.lr_scheduler)
    trainer = titan.Trainer(config)
    trainer.train()
    (model,) = trainer.model_parts
    assert any(one.shape != model.state_dict()[name].shape for name, one in model.named_parameters())
    assert_same(model.state_dict(), expected)

    config = config_of(folder)
    config.checkpoint.load_step, config.checkpoint.load_only = SAVED_AT, True
    resumed = titan.Trainer(config)
    resumed.checkpointer.load(step=SAVED_AT)
    assert resumed.step == SAVED_AT
    assert resumed.dataloader.number == SAVED_AT * ACCUMULATED
    resumed.train()
    assert_same(resumed.model_parts[0].state_dict(), expected)

    saved = FileSystemReader(folder / "checkpoint" / f"step-{SAVED_AT}").read_metadata().state_dict_metadata
    for name, parameter in original().named_parameters():
        for key in (name, f"optimizer.state.{name}.exp_avg"):
            assert saved[key].size == parameter.shape, key


@pytest.fixture(scope="module")
def titan() -> Any:
    found = on_cpu()
    if found is None:
        pytest.skip("torchtitan is not installed: its dependencies, such as datasets and wandb, are not those of dev")
    return found


def test_trains_stops_and_resumes_as_by_hand(titan: Any, tmp_path: Path) -> None:
    run_workers(trains, 2, tmp_path, limit=280)


def test_refuses_masks_that_the_trainer_makes(titan: Any) -> None:
    from torchtitan.models.llama3 import model_registry

    from sdp_compile.integrations.torchtitan import sdp_spec

    with pytest.raises(SDPError, match=r"uses FlexAttention.*ScaledDotProductAttention"):
        sdp_spec(model_registry("debugmodel"), POLICY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tp": 2}, "tensor_parallel_degree"),
        ({"mixed_precision_param": "bfloat16"}, 'mixed_precision_param="float32"'),
        ({"enable_cpu_offload": True}, "enable_cpu_offload=False"),
        ({"disable_cuda_graphs": False}, "disable_cuda_graphs=True"),
        ({"enable": True}, r'components=\["loss"\]'),
    ],
)
def test_refuses_what_it_would_not_follow(titan: Any, change: dict[str, Any], message: str) -> None:
    from sdp_compile.integrations.torchtitan import sdp_spec

    fine = {
        "tp": 1,
        "cp": 1,
        "ep": 1,
        "dtype": "float32",
        "mixed_precision_param": "float32",
        "enable_cpu_offload": False,
        "disable_cuda_graphs": True,
        "enable": False,
        "components": ["model", "loss"],
    }
    settings = SimpleNamespace(**{**fine, **change})
    spec = sdp_spec(spec_of(), POLICY)
    with pytest.raises(SDPError, match=message):
        spec.parallelize_fn(None, parallel_dims=settings, training=settings, compile_config=settings)


def test_refuses_a_loss_that_calls_the_head_by_itself(titan: Any) -> None:
    from sdp_compile.integrations.torchtitan import sdp_spec

    fine = SimpleNamespace(tp=1, cp=1, ep=1, enable=False)
    training = SimpleNamespace(
        dtype="float32",
        mixed_precision_param="float32",
        enable_cpu_offload=False,
        disable_cuda_graphs=True,
        local_batch_size=BATCH,
        seq_len=LENGTH,
    )
    spec = sdp_spec(spec_of(), POLICY, workers=2, rank=0)
    with torch.device("meta"):
        built = spec.model.build()
    model = spec.parallelize_fn(built, parallel_dims=fine, training=training, compile_config=fine)
    assert isinstance(model, sdp.SDPModule)
    with pytest.raises(SDPError, match=r"CrossEntropyLoss\.Config"):
        model._skip_lm_head = True
