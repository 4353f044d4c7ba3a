"""The work that all variants do: the same model, weights and loss, and the same data on each rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from sdp_compile.bench.settings import GPT, BenchSettings
from sdp_compile.capture.inputs import Call, example_call
from sdp_compile.errors import SDPError
from sdp_compile.models import gpt
from sdp_compile.models.configuration import FACTORY, Configuration
from sdp_compile.models.spec import check_inputs, load

GPT_CONFIG = gpt.GPTConfig(layers=6, width=512, heads=8, hidden=2048, vocabulary=512, sequence=128)
GPT_BATCH = 4
"""Samples per worker of the default model."""


@dataclass(frozen=True)
class Work:
    """A model with the inputs of one rank.

    Attributes:
        model: The model to train.
        call: Its inputs: the batch of this rank.
        loss_of: Returns the loss of the model's outputs.
        samples: Samples in the batch.
        tokens: Tokens in the batch; None if the model has none.
    """

    model: nn.Module
    call: Call
    loss_of: Callable[[Any], Tensor]
    samples: int
    tokens: int | None = None
    configuration: Configuration = FACTORY

    @property
    def example_inputs(self) -> Any:
        """The inputs in the form that `sdp_compile` takes."""
        return self.call.kwargs if self.call.kwargs else self.call.args

    def loss(self, model: Callable[..., Any]) -> Tensor:
        """Runs ``model``, which is called like the original, and returns the loss."""
        return self.loss_of(model(*self.call.args, **self.call.kwargs))


def make_work(settings: BenchSettings, rank: int, device: torch.device | str) -> Work:
    """Returns the work of ``rank``. Weights depend on the seed, data on the seed and the rank.

    On the meta device the model has no weights, unless its constructor needs values.
    """
    torch.manual_seed(settings.seed)
    weights = torch.device(device).type != "meta"
    work = _gpt(settings, rank) if settings.model == GPT else _named(settings, weights)
    if not weights:
        return replace(work, model=work.model.train())
    call = work.call.map_tensors(lambda tensor: tensor.to(device))
    return replace(work, model=work.model.to(device).train(), call=call)


def _gpt(settings: BenchSettings, rank: int) -> Work:
    """Next-token prediction on random tokens; the cost of a step does not depend on them."""
    model, batch = gpt.GPT(GPT_CONFIG), settings.batch or GPT_BATCH
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + rank)
    window = torch.randint(GPT_CONFIG.vocabulary, (batch, GPT_CONFIG.sequence + 1), generator=generator)
    targets: dict[torch.device, Tensor] = {}

    def loss(logits: Tensor) -> Tensor:
        if logits.device not in targets:
            targets[logits.device] = window[:, 1:].to(logits.device)
        return F.cross_entropy(logits.flatten(0, 1), targets[logits.device].flatten())

    return Work(model, Call((window[:, :-1].contiguous(),), {}), loss, batch, batch * GPT_CONFIG.sequence)


def _named(settings: BenchSettings, weights: bool) -> Work:
    loaded = load(settings.model, settings.inputs, settings.overrides, settings.size, weights)
    if loaded.example_inputs is None:
        check_inputs(settings.model, loaded.model)
    call = example_call(loaded.model, loaded.example_inputs)
    sizes = {tensor.shape[0] for tensor in call.tensors if tensor.ndim}
    given = sizes.pop() if len(sizes) == 1 else 1
    if settings.batch and (sizes or not given):
        raise SDPError(
            f"--batch {settings.batch}: the inputs of {settings.model} have no common leading dimension. "
            "Leave --batch out and give inputs of the right size with --input."
        )
    batch = settings.batch or given
    if batch != given:
        call = call.map_tensors(lambda tensor: _repeated(tensor, batch))
    return Work(loaded.model, call, output_loss, batch, configuration=loaded.configuration)


def _repeated(tensor: Tensor, batch: int) -> Tensor:
    if not tensor.ndim:
        return tensor
    return tensor.repeat(-(-batch // tensor.shape[0]), *(1,) * (tensor.ndim - 1))[:batch]


def output_loss(outputs: Any) -> Tensor:
    """Returns ``outputs.loss`` if there is one, or else the sum of the means of all floating-point outputs.

    Raises:
        SDPError: If no output depends on the parameters.
    """
    loss = getattr(outputs, "loss", None)
    if isinstance(loss, Tensor):
        return loss
    floats = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.requires_grad]
    if not floats:
        raise SDPError("No output of the model depends on its parameters, so there is no loss to train with.")
    return torch.stack([leaf.float().mean() for leaf in floats]).sum()
