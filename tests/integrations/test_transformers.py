"""SDPTrainer against a loop written by hand, bit by bit, and against the original with masked parameters."""

from __future__ import annotations

import os
import warnings
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import sdp_compile as sdp
from tests.distributed import run_workers
from tests.integrations.loops import SCHEDULE
from tests.integrations.simulated import set_gradients

pytestmark = pytest.mark.timeout(400)
STEPS, SAVED, CLIP, DECAY = 20, 10, 0.25, 0.1
POLICY = sdp.NeuronPolicy(coverage=0.5)


def launched(workers: int) -> None:
    """What torchrun sets and run_workers does not."""
    os.environ.update(LOCAL_WORLD_SIZE=str(workers), MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")


def exact_loss(logits: Tensor, labels: Tensor, vocab_size: int, num_items_in_batch: Any = None, **_: Any) -> Tensor:
    """The library's loss of a causal model, but for a cast to float32."""
    logits, labels = logits[:, :-1].reshape(-1, vocab_size), labels[:, 1:].reshape(-1)
    if num_items_in_batch is None:
        return nn.functional.cross_entropy(logits, labels)
    return nn.functional.cross_entropy(logits, labels, reduction="sum") / num_items_in_batch


@cache
def kind() -> Any:
    """A small model of the library's kind, tied weights and a LayerNorm included. The import takes seconds."""
    from transformers import PretrainedConfig, PreTrainedModel
    from transformers.modeling_outputs import CausalLMOutput

    class SmallConfig(PretrainedConfig):
        model_type = "small"
        dropout: float = 0.0

    class SmallForCausalLM(PreTrainedModel):
        config_class = SmallConfig
        _tied_weights_keys: ClassVar[dict[str, str]] = {"head.weight": "embedding.weight"}

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.embedding, self.head = nn.Embedding(32, 16), nn.Linear(16, 32, bias=False)
            self.up, self.down, self.last = nn.Linear(16, 24), nn.Linear(24, 16), nn.LayerNorm(16)
            self.dropout = nn.Dropout(config.dropout)
            self.loss_function = exact_loss
            self.post_init()

        def forward(self, input_ids: Tensor, labels: Any = None, **kwargs: Any) -> Any:
            x = self.embedding(input_ids)
            x = x + self.dropout(self.down(nn.functional.gelu(self.up(x))))
            logits = self.head(self.last(x.cumsum(1)))
            loss = None if labels is None else self.loss_function(logits, labels, 32, **kwargs)
            return CausalLMOutput(loss=loss, logits=logits)

        def get_input_embeddings(self) -> Any:
            return self.embedding

        def get_output_embeddings(self) -> Any:
            return self.head

        def _init_weights(self, module: nn.Module) -> None:
            """Keeps those of the layers."""

    return SmallForCausalLM


def build(dropout: float = 0.0) -> Any:
    torch.manual_seed(0)
    config = kind().config_class(dropout=dropout, tie_word_embeddings=True)
    model = kind()(config).double()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def texts(count: int) -> list[dict[str, Any]]:
    """Texts of which uneven parts count, with a column that the model does not take."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for number, ids in enumerate(torch.randint(0, 32, (count, 10), generator=generator)):
        labels = ids.clone()
        labels[: number % 7] = -100
        rows.append({"input_ids": ids, "labels": labels, "topic": number})
    return rows


def trainer(folder: Path, model: Any, **options: Any) -> Any:
    from transformers import TrainerCallback, TrainingArguments

    from sdp_compile.integrations.transformers import SDPTrainer

    class Recorder(TrainerCallback):
        """Keeps the norms that the Trainer reports."""

        def __init__(self) -> None:
            self.norms: list[float] = []

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            self.norms += [logs["grad_norm"]] if "grad_norm" in logs else []

    class Recording(SDPTrainer):
        """Keeps the batches that the Trainer trains with."""

        def training_step(self, module: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
            self.batches = [*getattr(self, "batches", []), (dict(inputs), num_items_in_batch)]
            self.policies = [*getattr(self, "policies", []), self.compiled.plan.policy]
            assert getattr(module, "_orig_mod", module) is self.compiled
            assert all(parameter.is_meta for parameter in self.model.parameters())  # nobody reads outdated values
            result: Tensor = super().training_step(module, inputs, num_items_in_batch)
            return result

    settings = {
        "max_steps": STEPS,
        "save_steps": SAVED,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 3,
        "learning_rate": 3e-3,
        "weight_decay": DECAY,
        "max_grad_norm": CLIP,
        "logging_steps": 1,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
    }
    names = ("policy", "masking", "scheduled_rate", "compute_loss_func", "optimizers")
    own = {key: options.pop(key) for key in names if key in options}
    arguments = TrainingArguments(str(folder), **{**settings, **options})
    result = Recording(model, arguments, train_dataset=texts(70), eval_dataset=texts(8), **{"policy": POLICY, **own})
    result.recorder = Recorder()
    result.add_callback(result.recorder)
    return result


def optimizer_of(model: Any, decayed: set[str]) -> torch.optim.Optimizer:
    named = list(model.named_parameters())
    groups = [
        {"params": [value for name, value in named if (name in decayed) == decays], "weight_decay": DECAY * decays}
        for decays in (True, False)
    ]
    return torch.optim.AdamW(groups, lr=3e-3, fused=True)


def schedule_of(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, (STEPS - step) / STEPS))


def by_hand(batches: list[Any], decayed: set[str], policy: Any = POLICY) -> tuple[dict[str, Tensor], list[float]]:
    """The loop that a user would write with ``sdp.compile``."""
    inputs, items = batches[0]
    module = sdp.compile(build(), policy, {**inputs, "num_items_in_batch": items})
    module.train()
    optimizer = optimizer_of(module, decayed)
    schedule, norms = schedule_of(optimizer), []
    if module.schedule is not None:
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, module.schedule.rate)
    for step in range(STEPS):
        if module.schedule is not None:
            module.advance(step, optimizer)
        for number, (inputs, items) in enumerate(batches[2 * step : 2 * step + 2]):
            loss = module(**inputs, num_items_in_batch=items)["loss"] * dist.get_world_size()
            if number == 0:
                with module.no_sync():
                    loss.backward()
            else:
                loss.backward()
        norms.append(float(sdp.clip_grad_norm_(module, CLIP)))
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return module.full_state_dict(), norms


def simulated(plan: Any, batches: list[list[Any]], decayed: set[str]) -> tuple[Any, Any, list[float]]:
    """All of it in one process, from the original eager model."""
    model, norms = build(), []
    optimizer = optimizer_of(model, decayed)
    schedule = schedule_of(optimizer)

    def loss(call: Any, batch: Any) -> Tensor:
        inputs, items = batch
        result: Tensor = call(**inputs, num_items_in_batch=items).loss * len(batches)
        return result

    for step in range(STEPS):
        set_gradients(model, plan, loss, [own[2 * step : 2 * step + 2] for own in batches])
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), CLIP)))
        optimizer.step()
        schedule.step()
    return model, optimizer, norms


def decayed_names() -> set[str]:
    """The weights of all layers but LayerNorm, which the name ``last`` does not tell."""
    return {"embedding.weight", "up.weight", "down.weight"}


def trained(rank: int, workers: int, folder: Path) -> None:
    warnings.simplefilter("ignore")
    launched(workers)
    first = trainer(folder, build())
    first.train()
    state = {key: value.clone() for key, value in first.model.state_dict().items()}
    decayed = decayed_names()

    hand, norms = by_hand(first.batches, decayed)
    assert first.recorder.norms == norms and min(norms) > CLIP  # every step is clipped
    assert all(torch.equal(state[key], hand[key]) for key in hand)
    assert {int(items) for _, items in first.batches} != {int(first.batches[0][1])}  # uneven numbers of tokens

    everyone: list[Any] = [None] * workers
    dist.all_gather_object(everyone, first.batches)
    if rank == 0:
        model, optimizer, norms = simulated(first.compiled.plan, everyone, decayed)
        torch.testing.assert_close(first.recorder.norms, norms, rtol=1e-6, atol=0)
        for key, value in model.state_dict().items():
            torch.testing.assert_close(state[key], value, rtol=1e-6, atol=1e-8)
        saved = torch.load(folder / f"checkpoint-{STEPS}" / "optimizer.pt", weights_only=True)
        assert [set(group["params"]) for group in saved["param_groups"]] == [
            decayed,
            set(dict(model.named_parameters())) - decayed,
        ]
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(
                saved["state"][name]["exp_avg"], optimizer.state[parameter]["exp_avg"], rtol=1e-6, atol=1e-8
            )
        optimizer.load_state_dict(saved)  # that of the original model takes it too

    # Another process would start like this.
    second = trainer(folder, build())
    second.train(resume_from_checkpoint=str(folder / f"checkpoint-{SAVED}"))
    assert len(second.batches) == len(first.batches) // 2
    assert second.recorder.norms == first.recorder.norms[SAVED:]
    assert all(torch.equal(second.model.state_dict()[key], state[key]) for key in state)

    loaded = kind().from_pretrained(folder / f"checkpoint-{STEPS}", dtype=torch.float64).eval()
    assert all(torch.equal(loaded.state_dict()[key], state[key]) for key in state)
    rows = {key: torch.stack([row[key] for row in texts(8)]) for key in ("input_ids", "labels")}
    with torch.no_grad():
        expected = loaded(**rows, num_items_in_batch=rows["labels"][:, 1:].ne(-100).sum()).loss
    assert second.evaluate()["eval_loss"] == pytest.approx(float(expected), rel=1e-9)
    if workers == 2:
        relatives(folder, state)


def relatives(folder: Path, state: dict[str, Tensor]) -> None:
    """Dropout and resuming; training twice; options that change the model's inputs; and what is refused."""
    from sdp_compile.integrations.transformers import SDPTrainer

    options: dict[str, Any] = {"max_steps": 4, "save_steps": 2, "lr_scheduler_type": "constant", "masking": "backward"}
    options |= {"eval_strategy": "steps", "eval_steps": 1}
    whole = trainer(folder / "dropout", build(0.3), **options)
    whole.train()
    half = trainer(folder / "dropout", build(0.3), **options)
    half.train(resume_from_checkpoint=str(folder / "dropout" / "checkpoint-2"))
    wanted = whole.model.state_dict()
    assert all(torch.equal(half.model.state_dict()[key], wanted[key]) for key in wanted)
    whole.model.load_state_dict(state)  # between two calls the original is the user's
    whole.args.max_steps = 1
    for group in whole.optimizer.param_groups:
        group["lr"] = group["initial_lr"] = 0.0
    whole.train()
    assert all(torch.equal(whole.model.state_dict()[key], state[key]) for key in state)

    causal = type("GPT2LMHeadModel", (kind(),), {})  # labels are shifted for classes of known names
    gpt2 = causal(build().config).double().eval()
    smooth = trainer(folder / "smooth", gpt2, label_smoothing_factor=0.1, policy=sdp.NeuronPolicy(coverage=1.0))
    batch = {key: torch.stack([row[key] for row in texts(3)]) for key in ("input_ids", "labels")}
    items = torch.tensor(20.0)
    dense = smooth.compute_loss(smooth.model, dict(batch), num_items_in_batch=items)
    smooth.create_optimizer()
    found = smooth.compute_loss(smooth.compiled, dict(batch), num_items_in_batch=items)
    torch.testing.assert_close(found, dense, rtol=1e-9, atol=0)

    with pytest.raises(sdp.SDPError, match="Pass the original model"):
        SDPTrainer(half.compiled)
    with pytest.raises(sdp.SDPError, match="optimizer_cls_and_kwargs"):
        trainer(folder / "refused", build(), optimizers=(torch.optim.AdamW(build().parameters()), None))
    with pytest.raises(sdp.SDPError, match="per_device_train_batch_size"):
        trainer(folder / "refused", build(), auto_find_batch_size=True)


def follows_a_schedule(rank: int, workers: int, folder: Path) -> None:
    """Changes of plan, evaluation in between, a resume within the second phase, and a second training."""
    warnings.simplefilter("ignore")
    launched(workers)
    schedule = SCHEDULE.replace(steps=STEPS)
    options: dict[str, Any] = {"policy": SCHEDULE, "scheduled_rate": True, "eval_strategy": "steps", "eval_steps": 6}
    first = trainer(folder, build(), **options)
    first.train()
    assert first.compiled.schedule == schedule  # the number of steps is the Trainer's
    assert first.policies[::2] == [schedule.policy_at(step).describe() for step in range(STEPS)]
    state = {key: value.clone() for key, value in first.model.state_dict().items()}
    hand, norms = by_hand(first.batches, decayed_names(), schedule)
    assert first.recorder.norms == norms and min(norms) > CLIP
    assert all(torch.equal(state[key], hand[key]) for key in hand)

    second = trainer(folder, build(), **options)
    second.train(resume_from_checkpoint=str(folder / f"checkpoint-{SAVED}"))
    assert second.policies == first.policies[2 * SAVED :]
    assert second.recorder.norms == first.recorder.norms[SAVED:]
    assert all(torch.equal(second.model.state_dict()[key], state[key]) for key in state)

    second.args.max_steps, second.policies = 8, []
    second.train()
    shorter = SCHEDULE.replace(steps=8)
    assert second.policies[::2] == [shorter.policy_at(step).describe() for step in range(8)]

    with pytest.raises(sdp.SDPError, match="phases of the schedule"):
        trainer(folder, build(), policy=SCHEDULE, masking="backward")
    with pytest.raises(sdp.SDPError, match="needs a schedule"):
        trainer(folder, build(), scheduled_rate=True)


@pytest.mark.parametrize("workers", [2, 4])
def test_it_follows_a_schedule(workers: int, tmp_path: Path) -> None:
    run_workers(follows_a_schedule, workers, workers, tmp_path, limit=300.0)


@pytest.mark.parametrize("workers", [2, 4])
def test_it_equals_the_loop_by_hand_and_the_original_with_masks(workers: int, tmp_path: Path) -> None:
    run_workers(trained, workers, workers, tmp_path, limit=300.0)
