"""Memory of a model in training, measured on its tensors."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sdp_compile.runtime.sharding.gradient import held_gradients


@dataclass(frozen=True)
class TrainingState:
    """What one worker holds: the number of parameter elements, and bytes of storage."""

    parameters: int
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int

    @property
    def state_bytes(self) -> int:
        """Bytes of parameters, gradients and optimizer state together."""
        return self.parameter_bytes + self.gradient_bytes + self.optimizer_bytes


def measure(model: nn.Module, optimizer: torch.optim.Optimizer) -> TrainingState:
    """Measures a model and its optimizer after a step, while gradients and optimizer state exist."""
    parameters = list(model.parameters())
    rests = list(getattr(model, "unowned", {}).values())  # of a compiled model under backward masking
    return TrainingState(
        parameters=sum(tensor.numel() for tensor in (*parameters, *rests)),
        parameter_bytes=_storage_bytes((*parameters, *rests)),
        gradient_bytes=_storage_bytes(gradient for parameter in parameters for gradient in held_gradients(parameter)),
        optimizer_bytes=_storage_bytes(
            value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)
        ),
    )


def measure_dense(model: nn.Module, optimizer_type: type[torch.optim.AdamW]) -> TrainingState:
    """Measures what the whole model would hold, by one step of a copy with gradients of zero."""
    model = copy.deepcopy(model)
    optimizer = optimizer_type(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return measure(model, optimizer)


def _storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Returns the bytes of the storages behind ``tensors``, each counted once. A view holds its whole storage."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
