"""Lightning's Trainer with SDPStrategy, against a loop written by hand and the original eager model with masks."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import sdp_compile as sdp
from sdp_compile.errors import SDPError
from tests.distributed import run_workers
from tests.integrations.loops import (
    ACCUMULATED,
    BATCHES,
    MAX_NORM,
    POLICY,
    SAVED_AT,
    SCHEDULE,
    STEPS,
    as_under_torchrun,
    assert_same,
    batch_of,
    by_hand,
    compiled,
    loss,
    optimizer_of,
    original,
    plans_of,
    simulated,
)

lightning = pytest.importorskip("lightning")
pytestmark = [pytest.mark.timeout(400), pytest.mark.filterwarnings("ignore")]


class Batches(Dataset[Tensor]):
    def __init__(self, rank: int, count: int) -> None:
        self.rank, self.count = rank, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Tensor:
        return batch_of(self.rank, number)


def batches(rank: int, count: int = BATCHES) -> Any:
    return DataLoader(Batches(rank, count), batch_size=None)


class Lit(lightning.LightningModule):
    """An ordinary LightningModule."""

    def __init__(self, model: nn.Module | None = None) -> None:
        super().__init__()
        self.model = original() if model is None else model
        self.example_input_array = batch_of(0, 0)
        self.evaluated: list[tuple[str, bool]] = []
        self.trained: list[tuple[str, bool]] = []

    def training_step(self, x: Tensor, index: int) -> Tensor:
        self.trained.append((type(self.model).__name__, self.model.training))
        return loss(self.model, x)

    def validation_step(self, x: Tensor, index: int) -> None:
        self.evaluated.append((type(self.model).__name__, self.model.training))
        self.log("loss", loss(self.model, x), sync_dist=True, batch_size=1)

    def predict_step(self, x: Tensor, index: int) -> Tensor:
        return self.model(x)

    def configure_optimizers(self) -> Any:
        return optimizer_of(self.parameters())


def trainer_of(steps: int = STEPS, strategy: Any = None, **options: Any) -> Any:
    from sdp_compile.integrations.lightning import SDPStrategy

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    settings = {
        "accelerator": "cpu",
        "devices": dist.get_world_size(),
        "strategy": strategy or SDPStrategy(POLICY),
        "max_steps": steps,
        "gradient_clip_val": MAX_NORM,
        "accumulate_grad_batches": ACCUMULATED,
        "use_distributed_sampler": False,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return lightning.Trainer(**{**settings, **options})


def stops_and_resumes(rank: int, folder: Path) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    as_under_torchrun()
    reference = compiled()
    expected = by_hand(rank, reference)
    module = Lit()
    saving = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=SAVED_AT, save_top_k=-1)
    trainer = trainer_of(callbacks=[saving], enable_checkpointing=True)
    trainer.fit(module, batches(rank), batches(rank, 2))
    assert_same(module.model.full_state_dict(), expected)
    assert set(module.evaluated) == {("Transformer", False)} and {mode for _, mode in module.trained} == {True}
    assert isinstance(module.model, sdp.SDPModule) and module.model is trainer.strategy.compiled

    path = folder / f"step={SAVED_AT}.ckpt"
    resumed = Lit()
    trainer_of().fit(resumed, batches(rank), ckpt_path=path)
    assert len(resumed.trained) == ACCUMULATED * (STEPS - SAVED_AT)
    assert_same(resumed.model.full_state_dict(), expected)

    full = module.model.full_model().eval()
    with torch.no_grad():
        mean = sum(loss(full, batch_of(rank, number)) for number in range(2)) / 2
    dist.all_reduce(mean)
    evaluator = trainer_of()
    (found,) = evaluator.validate(module, batches(rank, 2), verbose=False)
    assert found["loss"] == pytest.approx(float(mean) / dist.get_world_size(), rel=1e-12)
    (predicted,) = evaluator.predict(module, batches(rank, 1))
    assert torch.equal(predicted, full(batch_of(rank, 0)))

    if rank == 0:
        for key, value in simulated([reference.plan] * STEPS).items():
            torch.testing.assert_close(expected[key], value, rtol=1e-9, atol=1e-9)
        saved = torch.load(folder / f"step={STEPS}.ckpt", weights_only=False)
        plain = Lit()
        plain.load_state_dict(saved["state_dict"], strict=True)
        assert_same(plain.model.state_dict(), expected)
        plain.configure_optimizers().load_state_dict(saved["optimizer_states"][0])
    dist.barrier()


def in_bfloat16(rank: int) -> None:
    module = Lit(original(torch.float32))
    trainer_of(3, precision="bf16-mixed").fit(module, batches(rank))
    expected = by_hand(rank, compiled(torch.float32), steps=3, autocast=torch.autocast("cpu", torch.bfloat16))
    assert_same(module.model.full_state_dict(), expected)


def in_float16(rank: int) -> None:
    """One worker's overflow makes all of them skip the step."""
    from lightning.pytorch.plugins import MixedPrecision

    class Overflows(Lit):
        def training_step(self, x: Tensor, index: int) -> Tensor:
            return super().training_step(x, index) * (float("inf") if rank == 1 and index == 0 else 1.0)

    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    module = Overflows(original(torch.float32))
    trainer = trainer_of(3, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    trainer.fit(module, batches(rank))
    assert trainer.strategy.precision_plugin.scaler.get_scale() == 512.0
    assert all(value.isfinite().all() for value in module.model.full_state_dict().values())


class Compiled(Lit):
    """Compiles its network itself."""

    def configure_model(self) -> None:
        if not isinstance(self.model, sdp.SDPModule):
            self.model = sdp.compile(self.model, POLICY, self.example_input_array)


class Manual(Lit):
    """Steps its optimizer itself."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, x: Tensor, index: int) -> None:
        value = loss(self.model, x) / ACCUMULATED
        if index % ACCUMULATED < ACCUMULATED - 1:
            with self.model.no_sync():
                self.manual_backward(value)
            return
        self.manual_backward(value)
        optimizer = self.optimizers()
        self.clip_gradients(optimizer, gradient_clip_val=MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()


class Scheduled(Lit):
    """Follows the learning rate of its schedule, and notes the policies of its steps."""

    def training_step(self, x: Tensor, index: int) -> Tensor:
        self.policies = [*getattr(self, "policies", []), self.model.plan.policy]
        return super().training_step(x, index)

    def configure_optimizers(self) -> Any:
        optimizer = optimizer_of(self.parameters())
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.model.schedule.rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class ScheduledManual(Manual):
    """Does the same by manual optimization."""

    def training_step(self, x: Tensor, index: int) -> None:
        super().training_step(x, index)
        if index % ACCUMULATED == ACCUMULATED - 1:
            self.lr_schedulers().step()

    configure_optimizers = Scheduled.configure_optimizers


def follows_a_schedule(rank: int, folder: Path) -> None:
    """Changes of plan, validation in between, and a resume within the second phase."""
    from lightning.pytorch.callbacks import ModelCheckpoint

    from sdp_compile.integrations.lightning import SDPStrategy

    as_under_torchrun()
    schedule = SCHEDULE.replace(steps=STEPS)
    expected = by_hand(rank, compiled(policy=schedule))
    module = Scheduled()
    saving = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=SAVED_AT, save_top_k=-1)
    # The number of steps is the Trainer's: two epochs.
    trainer = trainer_of(
        -1, SDPStrategy(SCHEDULE), max_epochs=2, callbacks=[saving], enable_checkpointing=True, val_check_interval=6
    )
    trainer.fit(module, batches(rank), batches(rank, 2))
    assert module.model.schedule == schedule
    assert module.policies[::ACCUMULATED] == [schedule.policy_at(step).describe() for step in range(STEPS)]
    assert_same(module.model.full_state_dict(), expected)

    resumed = Scheduled()
    path = folder / f"step={SAVED_AT}.ckpt"
    trainer_of(strategy=SDPStrategy(SCHEDULE)).fit(resumed, batches(rank), ckpt_path=path)
    assert resumed.policies == module.policies[ACCUMULATED * SAVED_AT :]
    assert_same(resumed.model.full_state_dict(), expected)

    by_itself = ScheduledManual()
    strategy = SDPStrategy(schedule)
    trainer_of(strategy=strategy, gradient_clip_val=None, accumulate_grad_batches=1).fit(by_itself, batches(rank))
    assert_same(by_itself.model.full_state_dict(), expected)

    if rank == 0:
        for key, value in simulated(plans_of(schedule, dist.get_world_size()), schedule).items():
            torch.testing.assert_close(expected[key], value, rtol=1e-9, atol=1e-9)
    dist.barrier()


class Nested(Lit):
    """Has its network elsewhere, and something frozen beside it."""

    def __init__(self) -> None:
        super().__init__(nn.ModuleDict({"net": original()}))
        self.teacher = nn.Linear(2, 2).requires_grad_(False)

    def training_step(self, x: Tensor, index: int) -> Tensor:
        return loss(self.model["net"], x)


class WithHead(Lit):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)


class Twice(Lit):
    """Has two names for its network."""

    def __init__(self) -> None:
        super().__init__()
        self.net = self.model


def habits(rank: int, folder: Path) -> None:
    """Other LightningModules, and what is refused."""
    from sdp_compile.integrations.lightning import SDPStrategy

    expected = by_hand(rank, compiled())
    module: Any = Compiled()
    trainer_of().fit(module, batches(rank), ckpt_path=folder / f"step={SAVED_AT}.ckpt")
    assert_same(module.model.full_state_dict(), expected)

    module = Manual()
    trainer_of(gradient_clip_val=None, accumulate_grad_batches=1).fit(module, batches(rank))
    assert_same(module.model.full_state_dict(), expected)

    module = Nested()
    trainer = trainer_of(strategy=SDPStrategy(POLICY, module="model.net"))
    trainer.fit(module, batches(rank))
    assert_same(module.model["net"].full_state_dict(), expected)
    trainer.save_checkpoint(folder / "nested.ckpt")
    if rank == 0:
        state = torch.load(folder / "nested.ckpt", weights_only=False)["state_dict"]
        assert state.keys() == Nested().state_dict().keys()
    dist.barrier()
    trainer.strategy.load_model_state_dict(torch.load(folder / "nested.ckpt", weights_only=False))

    without = Lit()
    without.example_input_array = None
    for wrong, strategy, message in (
        (WithHead(), None, r"WithHead.head.weight would be trained.*self.model"),
        (Twice(), None, r"Twice.net.embed.weight would be trained"),
        (Lit(), SDPStrategy(POLICY, module="net"), r"no module 'net'.*it holds: model"),
        (without, None, r"SDPStrategy\(example_inputs=...\)"),
        (Lit(compiled()), "ddp", "SDPStrategy"),
    ):
        with pytest.raises(SDPError, match=message):
            trainer_of(strategy=strategy).fit(wrong, batches(rank))
    with pytest.raises(SDPError, match="sync_batchnorm"):
        trainer_of(sync_batchnorm=True).fit(Lit(), batches(rank))


def two_workers(rank: int, folder: Path) -> None:
    stops_and_resumes(rank, folder)
    in_bfloat16(rank)
    in_float16(rank)
    habits(rank, folder)


def test_four_workers_stop_and_resume(tmp_path: Path) -> None:
    run_workers(stops_and_resumes, 4, tmp_path, limit=350)


@pytest.mark.parametrize("workers", [2, 4])
def test_it_follows_a_schedule(workers: int, tmp_path: Path) -> None:
    run_workers(follows_a_schedule, workers, tmp_path, limit=350)


def test_two_workers_stop_and_resume_and_what_people_do(tmp_path: Path) -> None:
    run_workers(two_workers, 2, tmp_path, limit=350)
