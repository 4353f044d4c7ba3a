"""torchtitan's own Trainer with `sdp_spec`, against a loop by hand, and against the original with masked parameters."""

from __future__ import annotations

from contextlib import nullcontext
from importlib.util import find_spec
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
from tests.integrations import titan
from tests.integrations.loops import SCHEDULE, assert_same
from tests.integrations.simulated import set_gradients
from tests.integrations.titan import (
    ACCUMULATED,
    BATCH,
    LENGTH,
    MAX_NORM,
    POLICY,
    RATE,
    SAVED_AT,
    SEED,
    STEPS,
    batch_of,
    config_of,
    original,
    spec_of,
    trainer_of,
)

pytestmark = [
    pytest.mark.timeout(500),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(
        find_spec("torchtitan") is None, reason="torchtitan is not installed: pip install 'sdp-compile[torchtitan]'"
    ),
]
Logged = list[tuple[float, float]]
"""The loss and the norm of the gradient, by step."""


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """torchtitan's own settings."""
    return torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)


def loss_of(call: Any, batch: Any, valid: Tensor) -> Tensor:
    """The sum over this batch's tokens, by the number of valid ones on all ranks."""
    inputs, labels = batch
    logits = call(inputs["input"], positions=inputs["positions"]).flatten(0, 1).float()
    return F.cross_entropy(logits, labels.flatten(), reduction="sum", ignore_index=-100) / valid


def batches_of(rank: int, step: int) -> list[Any]:
    return [batch_of(rank, ACCUMULATED * step + part) for part in range(ACCUMULATED)]


def valid_tokens(step: int) -> Tensor:
    every = [batch for rank in range(dist.get_world_size()) for batch in batches_of(rank, step)]
    return torch.stack([(labels != -100).sum() for _, labels in every]).sum()


def by_hand(
    rank: int, schedule: Any, dtype: str, kind: str = "llama3", steps: int = STEPS, policy: Any = POLICY
) -> tuple[sdp.SDPModule, Logged]:
    (inputs, _), logged = batch_of(0, 0), []
    example = {"tokens": inputs["input"], "positions": inputs["positions"]}
    model = sdp.compile(original(dtype, kind), policy, example, reduction="sum")
    optimizer = optimizer_of(model)
    (scheduler,) = schedule.build(optimizers=[optimizer], training_steps=STEPS)
    for step in range(steps):
        losses, valid = [], valid_tokens(step)
        if model.schedule is not None:
            model.advance(step, optimizer)
        for part, batch in enumerate(batches_of(rank, step)):
            with model.no_sync() if part < ACCUMULATED - 1 else nullcontext():
                losses.append(loss_of(model, batch, valid))
                losses[-1].backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        total = torch.stack(losses).detach().sum()
        dist.all_reduce(total)
        logged.append((float(total), float(norm)))
    return model, logged


def simulated(schedule: Any, plan: Any) -> tuple[nn.Module, torch.optim.Optimizer, list[float]]:
    """The original eager model with masked parameters, and the norms."""
    model, norms = original("float64"), []
    optimizer = optimizer_of(model)
    (scheduler,) = schedule.build(optimizers=[optimizer], training_steps=STEPS)
    for step in range(STEPS):
        # The mean over a unit's owners of N times their losses.
        valid = valid_tokens(step) / plan.workers
        batches = [batches_of(rank, step) for rank in range(plan.workers)]
        set_gradients(model, plan, lambda call, batch, valid=valid: loss_of(call, batch, valid), batches)
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)))
        optimizer.step()
        scheduler.step()
    return model, optimizer, norms


def dense(config: Any, step: int, seed: int) -> tuple[nn.Module, Any]:
    """What torchtitan loads from a checkpoint into a model and optimizers without subnetworks."""
    model: Any = original("float64", seed=seed)
    optimizers = config.optimizer.build(model_parts=[model])
    schedulers = config.lr_scheduler.build(optimizers=optimizers, training_steps=STEPS)
    config.checkpoint.exclude_from_loading = ["dataloader"]
    manager = config.checkpoint.build(
        dataloader=None,
        model_parts=[model],
        optimizers=optimizers,
        lr_schedulers=schedulers,
        states={},
        sd_adapter=None,
        base_folder=config.dump_folder,
    )
    assert manager.load(step=step)
    manager.close()
    return model, optimizers


def trains(rank: int, folder: Path) -> None:
    titan.on_cpu()
    with titan.in_float64():
        config = config_of(folder, "float64", enable=True)
        hand, expected = by_hand(rank, config.lr_scheduler, "float64")
        state = hand.full_state_dict()
        trainer, logged = trainer_of(config)
        trainer.train()
        trainer.close()
        (model,) = trainer.model_parts
        assert_same(model.state_dict(), state)
        assert logged == expected and all(norm > MAX_NORM for _, norm in expected)
        count = sum(parameter.numel() for parameter in original("float64").parameters())
        assert sum(parameter.numel() for parameter in model.parameters()) < 0.7 * count

        config = config_of(folder, "float64", enable=True, load_step=SAVED_AT, load_only=True)
        resumed, logged = trainer_of(config)
        resumed.train()
        resumed.close()
        assert logged == expected[SAVED_AT:]
        assert_same(resumed.model_parts[0].state_dict(), state)

        full, optimizers = dense(config, STEPS, seed=SEED + 1)
        assert_same(full.state_dict(), state)
        if rank == 0:
            model, optimizer, norms = simulated(config.lr_scheduler, hand.plan)
            torch.testing.assert_close([norm for _, norm in expected], norms, rtol=1e-9, atol=0)
            (loaded,) = optimizers
            for (name, parameter), own in zip(model.named_parameters(), full.parameters(), strict=True):
                torch.testing.assert_close(own, parameter, rtol=1e-7, atol=1e-9, msg=name)
                for key in ("exp_avg", "exp_avg_sq", "step"):
                    torch.testing.assert_close(
                        loaded.state[own][key], optimizer.state[parameter][key], rtol=1e-7, atol=1e-12
                    )
        dist.barrier()


def follows_a_schedule(rank: int, folder: Path) -> None:
    """Changes of plan, and a resume within the second phase."""
    titan.on_cpu()
    schedule = SCHEDULE.replace(steps=STEPS)
    with titan.in_float64():
        config = config_of(folder, "float64", policy=SCHEDULE, enable=True)
        hand, expected = by_hand(rank, config.lr_scheduler, "float64", policy=schedule)
        state = hand.full_state_dict()
        trainer, logged = trainer_of(config)
        trainer.train()
        trainer.close()
        assert trainer.model_parts[0].schedule == schedule  # the number of steps is the Trainer's
        assert logged == expected
        assert_same(trainer.model_parts[0].state_dict(), state)

        config = config_of(folder, "float64", policy=SCHEDULE, enable=True, load_step=SAVED_AT, load_only=True)
        resumed, logged = trainer_of(config)
        resumed.checkpointer.load(step=SAVED_AT)
        assert resumed.model_parts[0].plan.policy == schedule.policy_at(SAVED_AT).describe()
        resumed.train()
        resumed.close()
        assert logged == expected[SAVED_AT:]
        assert_same(resumed.model_parts[0].state_dict(), state)


def habits(rank: int, folder: Path, four: Path) -> None:
    """Other models and dtypes, asynchronous saving, and what other runs and torchtitan without subnetworks saved."""
    from safetensors.torch import load_file

    titan.on_cpu()
    for kind, dtype in (("llama3", "bfloat16"), ("qwen3", "float32")):
        as_in_hf = {"last_save_model_only": True, "last_save_in_hf": True}
        config = config_of(folder / kind, dtype, kind, 3, enable=True, interval=1, async_mode="async", **as_in_hf)
        hand, expected = by_hand(rank, config.lr_scheduler, dtype, kind, 3)
        trainer, logged = trainer_of(config)
        trainer.train()
        trainer.close()
        state = hand.full_state_dict()
        assert logged == expected
        assert_same(trainer.model_parts[0].state_dict(), state)
        exported = load_file(next((folder / kind / "checkpoint" / "step-3").glob("*.safetensors")))
        adapter = config.model_spec.state_dict_adapter(config.model_spec.model, None)
        assert_same(exported, {name: value.float() for name, value in adapter.to_hf(state).items()})

        config = config_of(folder / kind, dtype, kind, 3, enable=True, load_step=2, load_only=True)
        resumed, logged = trainer_of(config)
        resumed.train()
        resumed.close()
        assert logged == expected[2:]
        assert_same(resumed.model_parts[0].state_dict(), state)

    with titan.in_float64():
        # The checkpoint of four workers: the model and the optimizer, not the data.
        config = config_of(four, "float64", enable=True, load_only=True, exclude_from_loading=["dataloader"])
        other, _ = trainer_of(config)
        other.checkpointer.load()
        assert other.step == STEPS
        full, optimizers = dense(config, STEPS, SEED + 1)
        assert_same(other.model_parts[0].state_dict(), full.state_dict())
        found, expected = other.optimizers.state_dict(), optimizers.state_dict()
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(found[key], value) if isinstance(value, Tensor) else found[key] == value, key
        other.close()

        # What torchtitan saves of a model without subnetworks.
        config = config_of(folder / "seed", "float64", enable=True, create_seed_checkpoint=True)
        with torch.random.fork_rng():
            seed, _ = trainer_of(config)
        assert not isinstance(seed.model_parts[0], sdp.SDPModule)
        seed.checkpointer.save(curr_step=0, last_step=True)
        path = str(folder / "seed" / "checkpoint" / "step-0")
        config = config_of(folder / "next", "float64", enable=True, initial_load_path=path)
        config.debug.seed = SEED + 1
        started, _ = trainer_of(config)
        started.checkpointer.load()
        assert_same(started.model_parts[0].state_dict(), seed.model_parts[0].state_dict())


def two_workers(rank: int, folder: Path, four: Path) -> None:
    trains(rank, folder)
    habits(rank, folder, four)


def test_it_equals_the_loop_by_hand_and_the_original_with_masks(tmp_path: Path) -> None:
    run_workers(trains, 4, tmp_path / "four", limit=400)
    run_workers(two_workers, 2, tmp_path / "two", tmp_path / "four", limit=400)


@pytest.mark.parametrize("workers", [2, 4])
def test_it_follows_a_schedule(workers: int, tmp_path: Path) -> None:
    run_workers(follows_a_schedule, workers, tmp_path, limit=400)


def test_refuses_masks_that_the_trainer_makes_and_experts() -> None:
    titan.on_cpu()
    from torchtitan.models.llama3 import model_registry

    from sdp_compile.integrations.torchtitan import sdp_spec

    for backend, name in (("flex", "FlexAttention"), ("varlen", "VarlenAttention")):
        with pytest.raises(SDPError, match=rf"uses {name}.*ScaledDotProductAttention"):
            sdp_spec(model_registry("debugmodel", attn_backend=backend), POLICY)
    with pytest.raises(SDPError, match=r"has experts.*dense"):
        sdp_spec(spec_of("qwen3", "debugmodel_moe"), POLICY)


def settings(**changes: Any) -> Any:
    """Of the Trainer, in one object for all sections."""
    fine = {
        "tp": 1,
        "cp": 1,
        "ep": 1,
        "dp_replicate": 1,
        "dp_shard": 2,
        "dtype": "float32",
        "mixed_precision_param": "float32",
        "enable_cpu_offload": False,
        "disable_cuda_graphs": True,
        "enable": False,
        "components": ["model", "loss"],
        "local_batch_size": BATCH,
        "global_batch_size": -1,
        "seq_len": LENGTH,
    }
    return SimpleNamespace(**{**fine, **changes})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tp": 2}, "tensor_parallel_degree"),
        ({"cp": 2}, "tensor_parallel_degree"),
        ({"ep": 2}, "tensor_parallel_degree"),
        ({"mixed_precision_param": "bfloat16"}, 'mixed_precision_param="float32"'),
        ({"enable_cpu_offload": True}, "enable_cpu_offload=False"),
        ({"disable_cuda_graphs": False}, "disable_cuda_graphs=True"),
        ({"enable": True}, r'components=\["loss"\]'),
    ],
)
def test_refuses_what_it_would_not_follow(change: dict[str, Any], message: str) -> None:
    titan.on_cpu()
    from sdp_compile.integrations.torchtitan import sdp_spec

    given = settings(**change)
    with pytest.raises(SDPError, match=message):
        sdp_spec(spec_of(), POLICY).parallelize_fn(None, parallel_dims=given, training=given, compile_config=given)


def test_refuses_a_loss_that_calls_the_head_by_itself() -> None:
    titan.on_cpu()
    from sdp_compile.integrations.torchtitan import sdp_spec

    given = settings()
    spec = sdp_spec(spec_of(), POLICY, workers=2, rank=0)
    with torch.device("meta"):
        built = spec.model.build()
    model = spec.parallelize_fn(built, parallel_dims=given, training=given, compile_config=given)
    assert isinstance(model, sdp.SDPModule)
    with pytest.raises(SDPError, match=r"CrossEntropyLoss\.Config"):
        model._skip_lm_head = True
