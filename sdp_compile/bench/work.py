"""The work that all variants do: the same model, the same weights, the same data for each rank, one loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sdp_compile.bench.settings import GPT, BenchSettings
from sdp_compile.capture.inputs import Call, example_call
from sdp_compile.errors import SDPError
from sdp_compile.models import gpt
from sdp_compile.models.configuration import FACTORY, Configuration
from sdp_compile.models.spec import check_inputs, load
from sdp_compile.train.loop import cross_entropy

GPT_CONFIG = gpt.GPTConfig(layers=6, width=512, heads=8, hidden=2048, vocabulary=512, sequence=128)
GPT_BATCH = 4


@dataclass(frozen=True)
class Work:
    """A model, one call of it on this rank's batch, and the loss of what the call returns.

    ``samples`` and ``tokens`` (None where the model has none) are those of one worker's batch.
    """

    model: nn.Module
    call: Call
    loss_of: Callable[[Any], Tensor]
    samples: int
    tokens: int | None = None
    configuration: Configuration = FACTORY

    @property
    def example_inputs(self) -> Any:
        """The call as `sdp_compile` takes it."""
        return self.call.kwargs if self.call.kwargs else self.call.args

    def loss(self, model: Callable[..., Any]) -> Tensor:
        """One forward pass of ``model``, which is called like the original."""
        return self.loss_of(model(*self.call.args, **self.call.kwargs))


def make_work(settings: BenchSettings, rank: int, device: torch.device | str) -> Work:
    """The work of ``rank``: weights by the seed alone, data by seed and rank. On the meta device it has no weights."""
    torch.manual_seed(settings.seed)
    weights = torch.device(device).type != "meta"
    work = _gpt(settings, rank) if settings.model == GPT else _named(settings, weights)
    if not weights:
        return replace(work, model=work.model.train())  # where its constructor needs values, the model has weights
    call = work.call.map_tensors(lambda tensor: tensor.to(device))
    return replace(work, model=work.model.to(device).train(), call=call)


def _gpt(settings: BenchSettings, rank: int) -> Work:
    """Next-token prediction on random tokens: what a step costs does not depend on them."""
    model, batch = gpt.GPT(GPT_CONFIG), settings.batch or GPT_BATCH
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + rank)
    window = torch.randint(GPT_CONFIG.vocabulary, (batch, GPT_CONFIG.sequence + 1), generator=generator)
    targets: dict[torch.device, Tensor] = {}

    def loss(logits: Tensor) -> Tensor:
        if logits.device not in targets:
            targets[logits.device] = window[:, 1:].to(logits.device)
        return cross_entropy(logits, targets[logits.device])

    return Work(model, Call((window[:, :-1].contiguous(),), {}), loss, batch, batch * GPT_CONFIG.sequence)


def _named(settings: BenchSettings, weights: bool) -> Work:
    loaded = load(settings.model, settings.inputs, settings.overrides, settings.size, weights)
    if loaded.example_inputs is None:
        check_inputs(settings.model, loaded.model)
    call = example_call(loaded.model, loaded.example_inputs)
    sizes = {tensor.shape[0] for tensor in call.tensors if tensor.ndim}
    own = sizes.pop() if len(sizes) == 1 else 1
    if settings.batch and (sizes or not own):
        raise SDPError(
            f"--batch {settings.batch}: the inputs of {settings.model} have no leading dimension in common to repeat; "
            "give inputs of the size that you mean with --input, and leave --batch out."
        )
    batch = settings.batch or own
    if batch != own:
        call = call.map_tensors(lambda tensor: _repeated(tensor, batch))
    return Work(loaded.model, call, output_loss, batch, configuration=loaded.configuration)


def _repeated(tensor: Tensor, batch: int) -> Tensor:
    if not tensor.ndim:
        return tensor
    return tensor.repeat(-(-batch // tensor.shape[0]), *(1,) * (tensor.ndim - 1))[:batch]


def output_loss(outputs: Any) -> Tensor:
    """The outputs' own ``loss`` where they have one, else the sum over their floating tensors of each one's mean."""
    loss = getattr(outputs, "loss", None)
    if isinstance(loss, Tensor):
        return loss
    floats = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.requires_grad]
    if not floats:
        raise SDPError("The model returns nothing that depends on its parameters: there is no loss to train with.")
    return torch.stack([leaf.float().mean() for leaf in floats]).sum()
