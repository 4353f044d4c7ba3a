"""Emulated workers against real ones: 20 steps with clipping, weight decay, a schedule and changes of plan."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sdp_compile as sdp
from tests.distributed import run_workers
from tests.runtime.models import ResidualNet, Transformer

pytestmark = pytest.mark.filterwarnings("ignore:.*calibrate")

WORKERS, STEPS, SEED = 4, 20, 5


def phases(*policies: sdp.Policy, **fields: Any) -> sdp.Schedule:
    return sdp.Schedule([sdp.Phase(one, share=1 / len(policies), **fields) for one in policies], steps=STEPS)


HALF, BACKWARD = sdp.NeuronPolicy(coverage=0.5), sdp.NeuronPolicy(coverage=0.5, masking="backward")

SCHEDULES: dict[str, sdp.Schedule] = {
    "neuron grows": phases(HALF, sdp.NeuronPolicy(coverage=0.75), sdp.NeuronPolicy(coverage=1.0)),
    "block, then backward": phases(sdp.BlockPolicy(coverage=0.5), BACKWARD),
    "drawn again": phases(HALF.replace(design="random"), HALF.replace(design="rolling"), resample_every=4),
    "one owner each": phases(sdp.NeuronPolicy(coverage=0.25), sdp.BlockPolicy(coverage=0.25, rescale=True)),
    "alternating": phases(HALF, alternate=BACKWARD, alternate_every=3),
    "rates by owners": phases(HALF, BACKWARD, sdp.NeuronPolicy(coverage=1.0)).replace(rate_by_owners=0.5),
}


class Dropping(nn.Module):
    """A transformer with dropout, whose output layer has a spectral norm."""

    def __init__(self) -> None:
        super().__init__()
        self.base = Transformer()
        self.hidden = nn.utils.parametrizations.spectral_norm(nn.Linear(13, 24))
        self.last = nn.Linear(24, 13)

    def forward(self, tokens: Tensor) -> Tensor:
        x = F.dropout(self.base(tokens), 0.3, self.training)
        return self.last(F.dropout(torch.relu(self.hidden(x)), 0.2, self.training))


def build(name: str) -> nn.Module:
    torch.manual_seed(SEED)
    model = {"cnn": ResidualNet, "transformer": Transformer, "dropping": Dropping}[name]().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def batch(name: str, rank: int, step: int) -> tuple[Tensor, Tensor]:
    """The inputs and labels of one worker; those of each have another size."""
    generator = torch.Generator().manual_seed(1000 * rank + step)
    size = 3 + rank
    if name == "cnn":
        return (
            torch.randn(size, 1, 6, 6, dtype=torch.float64, generator=generator),
            torch.randint(0, 5, (size,), generator=generator),
        )
    tokens = torch.randint(0, 13, (size, 8), generator=generator)
    return tokens[:, :-1], tokens[:, 1:]


def loss_fn(model: nn.Module, one: tuple[Tensor, Tensor]) -> Tensor:
    output = model(one[0])
    return F.cross_entropy(output.flatten(0, -2), one[1].flatten())


def optimizer_for(model: nn.Module) -> torch.optim.Optimizer:
    norms = [one for name, one in model.named_parameters() if "norm" in name]
    others = [one for name, one in model.named_parameters() if "norm" not in name]
    return torch.optim.AdamW([{"params": others}, {"params": norms, "weight_decay": 0.0}], lr=3e-3, weight_decay=0.1)


def rate(step: int) -> float:
    return min(1.0, (step + 1) / 5) * (1.0 if step < 15 else 0.5)


def in_processes(rank: int, name: str, kind: str) -> dict[str, Any]:
    losses = []
    model = sdp.compile(build(name), SCHEDULES[kind], (batch(name, 0, 0)[0],))
    optimizer = optimizer_for(model)
    torch.manual_seed(SEED + rank)
    for step in range(STEPS):
        model.advance(step, optimizer)
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * rate(step)
        loss = loss_fn(model, batch(name, rank, step))
        optimizer.zero_grad()
        loss.backward()
        model.clip_grad_norm_(0.5)
        optimizer.step()
        losses.append(loss.item())
    states = model.full_optimizer_state_dict(optimizer)["state"]
    held = {name: one.detach().clone() for name, one in model.named_parameters()}
    state = {name: optimizer.state[one]["exp_avg"].clone() for name, one in model.named_parameters()}
    masks = {name: model.plan.mask(name, rank) for name in held}
    return {
        "held": held,
        "moments": state,
        "masks": masks,
        "losses": losses,
        "state": dict(model.full_state_dict()),
        "optimizer": states,
    }


def emulated(name: str, kind: str) -> tuple[sdp.Emulation, torch.optim.Optimizer, list[Tensor]]:
    losses = []
    model = sdp.emulate(build(name), SCHEDULES[kind], (batch(name, 0, 0)[0],), workers=WORKERS, seed=SEED)
    optimizer = optimizer_for(model)
    for step in range(STEPS):
        model.advance(step)
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * rate(step)
        batches = [batch(name, rank, step) for rank in range(WORKERS)]
        losses.append(model.step(batches, loss_fn, optimizer, max_norm=0.5))
    return model, optimizer, losses


def check_owners(real: list[dict[str, Any]]) -> None:
    """All owners of an element hold the same bits of its value and of its optimizer state."""
    for what in ("held", "moments"):
        seen: dict[str, tuple[Tensor, Tensor]] = {}
        for one in real:
            for name, value in one[what].items():
                mask = one["masks"][name]
                full, known = seen.setdefault(name, (torch.zeros(mask.shape).double(), torch.zeros_like(mask)))
                mine = torch.zeros_like(full)
                mine[mask] = value.reshape(-1)
                assert torch.equal(full[mask & known], mine[mask & known]), name
                full[mask], known[mask] = mine[mask], True
        assert all(known.all() for _, known in seen.values())


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("name", ["cnn", "transformer", "dropping"])
def test_that_emulated_workers_train_as_processes_do(name: str, kind: str) -> None:
    real = run_workers(in_processes, WORKERS, name, kind, limit=200)
    check_owners(real)
    model, optimizer, losses = emulated(name, kind)
    by_worker = torch.tensor([one["losses"] for one in real], dtype=torch.float64).T
    torch.testing.assert_close(torch.stack(losses), by_worker, rtol=1e-9, atol=1e-9)
    state = model.state_dict()
    assert list(state) == list(real[0]["state"])
    for key, expected in real[0]["state"].items():
        torch.testing.assert_close(
            state[key], expected, rtol=1e-9, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}"
        )
    names = dict(model.named_parameters())
    for key, entries in real[0]["optimizer"].items():
        for what, expected in entries.items():
            found = optimizer.state[names[key]][what]
            torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype), rtol=1e-9, atol=1e-12)
