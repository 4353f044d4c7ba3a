"""What the tests of repairs share: runs on four workers, and single bits that flip on one owner."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import sdp_compile as sdp
from tests.runtime.models import batch, build, loss_of

WORKERS = 4


class Run:
    """One worker's training. ``replicas`` is the number of owners of each cut unit; all four share the rest."""

    def __init__(self, rank: int, level: str, masking: str, replicas: int, lowering: str = "sliced") -> None:
        self.rank, self.seed, self.replicas = rank, 0, replicas
        self.name = "cnn" if level == "block" else "transformer"
        cls = {"neuron": sdp.NeuronPolicy, "block": sdp.BlockPolicy}[level]
        policy = cls(replicas=replicas, masking=masking)
        self.model: Any = sdp.compile(build(self.name), policy, (batch(self.name, 0),), lowering=lowering)
        self.optimizer: Any = torch.optim.AdamW(self.model.parameters(), lr=1e-2)

    def train(self, steps: int = 1) -> None:
        for _ in range(steps):
            self.seed += 1
            x = batch(self.name, 1000 * self.rank + self.seed)
            self.optimizer.zero_grad()
            loss_of(self.name, self.model(x), x).backward()
            self.optimizer.step()

    def save(self, folder: Any, step: int, **options: Any) -> Any:
        return sdp.save_checkpoint(folder, self.model, self.optimizer, step=step, **options)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All that this worker holds of parameters and optimizer states."""
        for name, parameter in self.model.named_parameters():
            yield name, parameter.detach()
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    yield f"{name} {key}", value

    def bits(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.tensors()}

    def tensor(self, name: str, state: str = "") -> Tensor:
        parameter = self.model.get_parameter(name)
        return self.optimizer.state[parameter][state] if state else parameter.detach()

    def piece(self, name: str, owners: int | None = None) -> Any:
        """A piece of a parameter with so many owners."""
        wanted = self.replicas if owners is None else owners
        return next(piece for piece in self.model.plan.pieces(name) if len(piece.owners) == wanted)

    def flip(
        self, name: str, state: str = "", at: int = 0, owner: int = 0, bit: int = 3, owners: int | None = None
    ) -> int:
        """Flips a bit of an element of the first such piece on one of its owners. Returns the owner."""
        piece = self.piece(name, owners)
        worker: int = piece.owners[owner]
        if self.rank == worker:
            tensor, region = self.tensor(name, state), self.model.holdings.region(piece)
            values = region.read(tensor).reshape(-1).clone()
            values.view(torch.int64)[at] ^= 1 << bit
            region.write(tensor, values)
        return worker

    def set(self, name: str, value: float, state: str = "", owners: int | None = None) -> None:
        """Sets the first element of such a piece on all of its owners."""
        piece = self.piece(name, owners)
        if self.rank in piece.owners:
            tensor, region = self.tensor(name, state), self.model.holdings.region(piece)
            values = region.read(tensor).reshape(-1).clone()
            values[0] = value
            region.write(tensor, values)


def equal_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether both hold the same bits, also of NaN."""
    return one.keys() == other.keys() and all(
        torch.equal(value.reshape(-1).view(torch.uint8), other[key].reshape(-1).view(torch.uint8))
        for key, value in one.items()
    )


def message_of(call: Any) -> str:
    """The text of the `DamagedState` that a call raises; empty if it raises none."""
    try:
        call()
    except sdp.DamagedState as error:
        return str(error)
    return ""
