"""The models of the paper by name, with random data of any batch size and length."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sdp_compile.bench.one_of.settings import BATCH, NAMED, OneOfSettings
from sdp_compile.bench.settings import GPT, BenchSettings
from sdp_compile.bench.work import GPT_CONFIG, Work, make_work
from sdp_compile.capture.inputs import Call
from sdp_compile.models.gpt import GPT as GPTModel
from sdp_compile.models.gpt import GPTConfig
from sdp_compile.models.llama import Llama, LlamaConfig

CLASSES = 1000
"""Classes of the image models, as in ImageNet."""

_GPTS: Mapping[str, GPTConfig] = {
    GPT: GPT_CONFIG,
    "gpt2-124m": GPTConfig(12, 768, 12, 3072, 50257, 1024, tied=True),
    "gpt2-350m": GPTConfig(24, 1024, 16, 4096, 50257, 1024, tied=True),
}
_LLAMAS: Mapping[str, LlamaConfig] = {
    "llama-134m": LlamaConfig(12, 768, 12, 2048),
    "llama-500m": LlamaConfig(21, 1280, 20, 3456),
    "llama-1b": LlamaConfig(18, 2048, 16, 5504),
}
_IMAGES = {"resnet-50": "torchvision:resnet50", "swin-t": "torchvision:swin_t"}
assert {*_GPTS, *_LLAMAS, *_IMAGES} == {GPT, *NAMED}


@dataclass(frozen=True)
class OneOfWork(Work):
    """Work under autocast, if ``autocast`` names a dtype."""

    autocast: torch.dtype | None = None

    def loss(self, model: Callable[..., Any]) -> Tensor:
        """Runs ``model``, which is called like the original, and returns the loss."""
        device = self.call.tensors[0].device.type
        with torch.autocast(device, self.autocast, enabled=self.autocast is not None):
            return super().loss(model)


def make_one_of_work(settings: OneOfSettings, device: torch.device) -> OneOfWork:
    """Returns the model on ``device`` with the inputs of one worker; on the meta device neither has values."""
    torch.manual_seed(settings.seed)
    work = _language(settings, device) if _is_language(settings.model) else _other(settings, device)
    dtype = None if settings.dtype == "float32" else getattr(torch, settings.dtype)
    fields = {name: getattr(work, name) for name in ("model", "call", "loss_of", "samples", "tokens", "configuration")}
    return OneOfWork(**fields, autocast=dtype)


def _is_language(model: str) -> bool:
    return model in _GPTS or model in _LLAMAS


def _language(settings: OneOfSettings, device: torch.device) -> Work:
    """Next-token prediction on random tokens; the cost of a step does not depend on them."""
    batch, config = settings.batch or BATCH, _GPTS.get(settings.model) or _LLAMAS[settings.model]
    length = settings.length or config.sequence
    with device:
        model: nn.Module
        if isinstance(config, GPTConfig):
            model = GPTModel(replace(config, sequence=length))
        else:
            model = Llama(replace(config, sequence=length))
        window = torch.randint(config.vocabulary, (batch, length + 1))
    targets = window[:, 1:].flatten()

    def loss(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), targets)

    call = Call((window[:, :-1].contiguous(),), {})
    return Work(model.train(), call, loss, batch, batch * length)


def _other(settings: OneOfSettings, device: torch.device) -> Work:
    named = settings.model in _IMAGES
    model = _IMAGES.get(settings.model, settings.model)
    batch = settings.batch or (BATCH if named else None)
    bench = BenchSettings(
        model,
        settings.one_of,
        batch=batch,
        seed=settings.seed,
        inputs=settings.inputs,
        overrides=settings.overrides,
        size="full" if named else settings.size,
    )
    work = make_work(bench, 0, device)
    if not named:
        return work
    labels = torch.randint(CLASSES, (work.samples,), device=device)
    return replace(work, loss_of=lambda logits: F.cross_entropy(logits, labels))
