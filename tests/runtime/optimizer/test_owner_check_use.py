"""Training that is right never fails the check of owners; what lies outside the compiled model is noticed."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import sdp_compile as sdp
from sdp_compile.errors import DistributedError, SDPError
from sdp_compile.runtime.owners import comparison
from tests.distributed import run_workers

WORKERS, STEPS = 4, 20


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(x)))


class Tied(nn.Module):
    """Residual blocks between an embedding and its transpose; the scale is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(10, 8)
        self.blocks = nn.ModuleList([Block() for _ in range(4)])
        self.head = nn.Linear(8, 10, bias=False)
        self.head.weight = self.tokens.weight
        self.scale = nn.Parameter(torch.ones(8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x * self.scale)


def compiled(policy: Any = None, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    torch.manual_seed(0)
    policy = sdp.NeuronPolicy(coverage=0.5) if policy is None else policy
    return sdp.sdp_compile(Tied().to(dtype), policy, (torch.zeros(3, 5, dtype=torch.int64),), **options)


def loss_of(model: Callable[[Tensor], Tensor], rank: int, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * rank + step)
    x = torch.randint(10, (3, 6), generator=generator)
    return F.cross_entropy(model(x[:, :-1]).float().flatten(0, 1), x[:, 1:].flatten())


def train(rank: int, model: Any, optimizers: list[torch.optim.Optimizer], kind: str = "", steps: int = STEPS) -> None:
    """Trains, with all that a correct program may do."""
    scaler = sdp.GradScaler("cpu", init_scale=8.0, growth_interval=2) if kind == "scaler" else None
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizers[0], steps)
    for step in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        if kind == "accumulate":
            with model.no_sync():
                loss_of(model, rank, 500 + step).backward()
        loss = loss_of(model, rank, step)
        if scaler is not None:
            if (step, rank) == (3, 2):
                loss = loss * float("inf")
            scaler.scale(loss).backward()
            scaler.unscale_(optimizers[0])
        else:
            loss.backward()
        if kind != "several":
            sdp.clip_grad_norm_(model, 0.5)
        if kind == "freezes" and step == 5:
            for name, parameter in model.named_parameters():
                if name.startswith("blocks.1."):
                    parameter.requires_grad_(False)
        for optimizer in optimizers:
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
                scaler.update()
        scheduler.step()


AdamW, SGD = torch.optim.AdamW, torch.optim.SGD
BACKWARD = sdp.NeuronPolicy(coverage=0.5, masking="backward")
BLOCKS = sdp.BlockPolicy(coverage=0.5)


def of_blocks() -> Any:
    return compiled(BLOCKS)


KINDS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "adamw": (compiled, lambda m: AdamW(m.parameters(), lr=1e-2)),
    "groups": (
        of_blocks,
        lambda m: AdamW([{"params": [p], "lr": 1e-2 * p.dim()} for p in m.parameters()]),
    ),
    "momentum": (compiled, lambda m: SGD(m.parameters(), lr=1e-2, momentum=0.9)),
    "foreach": (compiled, lambda m: torch.optim.Adam(m.parameters(), lr=1e-2, foreach=True)),
    "tensor": (compiled, lambda m: AdamW(m.parameters(), lr=torch.tensor(1e-2), foreach=False)),
    "fused": (compiled, lambda m: AdamW(m.parameters(), lr=1e-2, fused=True)),
    "sharded": (compiled, lambda m: sdp.ShardedOptimizer(m, AdamW, lr=1e-2)),
    "scaler": (compiled, lambda m: AdamW(m.parameters(), lr=1e-2)),
    "bfloat16": (lambda: compiled(dtype=torch.bfloat16), lambda m: AdamW(m.parameters(), lr=1e-2)),
    "comm_dtype": (lambda: compiled(comm_dtype=torch.bfloat16), lambda m: SGD(m.parameters(), lr=1e-2)),
    "backward": (lambda: compiled(BACKWARD), lambda m: AdamW(m.parameters(), lr=1e-2)),
    "masked": (lambda: compiled(lowering="masked"), lambda m: AdamW(m.parameters(), lr=1e-2)),
    "accumulate": (of_blocks, lambda m: AdamW(m.parameters(), lr=1e-2)),
    "freezes": (of_blocks, lambda m: AdamW(m.parameters(), lr=1e-2)),
}


def correct(rank: int, late: bool) -> None:
    warnings.simplefilter("ignore")
    comparison.LATE = late
    models: dict[Any, Any] = {}
    for kind, (make, optimizer) in KINDS.items():
        model = models.setdefault(make, None) or make()  # compiling takes most of the time
        models[make] = model
        before = model.full_state_dict()
        train(rank, model, [optimizer(model)], kind)
        after = model.full_state_dict()
        assert not torch.equal(before["tokens.weight"], after["tokens.weight"]), kind


@pytest.mark.parametrize("late", [False, True])
def test_training_that_is_right_raises_nothing(late: bool) -> None:
    run_workers(correct, WORKERS, late)


def several(rank: int) -> list[int]:
    """One optimizer per parameter, although workers hold different blocks; two models; an average of weights."""
    model, other = compiled(BLOCKS), compiled()
    average = copy.deepcopy(other)
    optimizers: list[torch.optim.Optimizer] = [AdamW([p], lr=1e-2) for p in model.parameters() if p.requires_grad]
    train(rank, model, optimizers, "several", 10)
    both = AdamW([*model.parameters(), *other.parameters()], lr=1e-2)
    for step in range(5):
        both.zero_grad()
        (loss_of(model, rank, step) + loss_of(other, rank, step)).backward()
        both.step()
        with torch.no_grad():
            for mean, new in zip(average.parameters(), other.parameters(), strict=True):
                mean.lerp_(new, 0.1)
    average.full_state_dict()
    return [len(optimizers)]


def test_a_worker_need_not_step_what_it_does_not_hold() -> None:
    counts = run_workers(several, WORKERS)
    assert len({count for (count,) in counts} | {0}) > 1


def heads(rank: int) -> list[str]:
    """The errors of heads outside the compiled model: one that nobody averages, and some that are right."""
    found = []
    for kind in ("alone", "ddp", "own optimizer", "frozen"):
        model = compiled()
        torch.manual_seed(1)
        head: Any = nn.Linear(10, 10)
        if kind == "ddp":
            head = DistributedDataParallel(head)
        if kind == "frozen":
            head.requires_grad_(False)
        params = [[*model.parameters(), *head.parameters()]]
        if kind == "own optimizer":
            params = [list(model.parameters()), list(head.parameters())]
        optimizers = [AdamW(some, lr=1e-2) for some in params]
        try:
            for step in range(10):
                for optimizer in optimizers:
                    optimizer.zero_grad()
                loss_of(lambda x, model=model, head=head: head(model(x)), rank, step).backward()
                for optimizer in optimizers:
                    optimizer.step()
            found.append("")
        except DistributedError as error:
            found.append(f"{step}: {error}")
    return found


def test_a_head_that_nobody_averages_is_found_at_the_first_step() -> None:
    results = run_workers(heads, WORKERS)
    assert all(own == results[0] for own in results)
    alone, *others = results[0]
    assert alone.startswith("0: The gradient of parameter 0 of shape [10, 10] outside the compiled model differs")
    assert "DistributedDataParallel" in alone
    assert others == ["", "", ""]


def before_compile(rank: int) -> None:
    torch.manual_seed(0)
    original = Tied()
    optimizer = AdamW(original.parameters(), lr=1e-2)
    model = sdp.sdp_compile(original, sdp.NeuronPolicy(coverage=0.5), (torch.zeros(3, 5, dtype=torch.int64),))
    loss_of(model, rank, 0).backward()
    with pytest.raises(SDPError, match=r"parameters of the original model, .* Build it after sdp\.compile"):
        optimizer.step()
    loss_of(original, rank, 0).backward()
    optimizer.step()  # the original may be trained too


def test_an_optimizer_built_before_compile_is_refused() -> None:
    run_workers(before_compile, 2)


def under_compile(rank: int) -> list[str]:
    model = compiled()
    optimizer = AdamW(model.parameters(), lr=torch.tensor(1e-2))
    step = torch.compile(optimizer.step, backend="eager")
    before, found = model.full_state_dict(), []
    for number in range(3):
        optimizer.zero_grad()
        loss_of(model, rank, number).backward()
        if (number, rank) == (2, 1):
            optimizer.param_groups[0]["lr"].fill_(0.5)
        try:
            step()
        except DistributedError as error:
            found.append(f"{number}: {error}")
    assert not torch.equal(before["tokens.weight"], model.full_state_dict()["tokens.weight"])
    optimizer.param_groups[0]["lr"].fill_(1e-2)
    torch.compiler.reset()  # what was compiled with graph breaks
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"compile optimizer\.step without fullgraph=True"):
        torch.compile(optimizer.step, backend="eager", fullgraph=True)()
    return found


def test_a_compiled_optimizer_is_checked_too() -> None:
    first, second = run_workers(under_compile, 2)
    assert first == second and len(first) == 1
    assert first[0].startswith("2: The workers would step") and "0.5 on worker 1" in first[0]


def ends(rank: int) -> list[str]:
    """Errors after the last step, and of a step that one worker skips."""
    found = []
    model = compiled()
    train(rank, model, [AdamW(model.parameters(), lr=1e-2)], steps=2)
    with torch.no_grad():
        model.get_parameter("blocks.0.up.bias").add_(float(rank == 0))
    try:
        model.full_state_dict()
    except DistributedError as error:
        found.append(str(error))
    model = compiled()
    optimizer = AdamW(model.parameters(), lr=1e-2)
    try:
        for step in range(3):
            optimizer.zero_grad()
            loss = loss_of(model, rank, step)
            loss.backward()
            if (step, rank) != (1, 1):  # as a script that skips bad batches does
                optimizer.step()
    except DistributedError as error:
        found.append(str(error))
    model = compiled()  # the workers can go on
    train(rank, model, [AdamW(model.parameters(), lr=1e-2)], steps=2)
    return found


def test_differences_after_the_last_step_and_skipped_steps_are_found() -> None:
    results = run_workers(ends, WORKERS)
    assert all(own == results[0] for own in results)
    value, skipped = results[0]
    assert value.startswith("The value of 'blocks.0.up.bias'[") and "worker 0" in value
    assert "in an optimizer's step" in skipped and "sdp.GradScaler" in skipped
