"""One variant on one rank, ready to train: the model, wrapped as its library recommends, and its optimizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import sdp_compile
from sdp_compile.bench.settings import BenchSettings
from sdp_compile.bench.variants import Variant
from sdp_compile.bench.work import Work
from sdp_compile.errors import SDPError
from sdp_compile.planning.buckets import DEFAULT_BUCKET_BYTES
from sdp_compile.policies.parts import with_steps
from sdp_compile.runtime.module.sdp_module import SDPModule

LEARNING_RATE = 3e-4


@dataclass(frozen=True)
class Contestant:
    """A variant that is ready to train.

    Attributes:
        work: The model, its inputs and its loss.
        module: The module that holds the tensors.
        call: What a step calls: the module or its compiled form.
        optimizer: AdamW, or its sharded form.
    """

    work: Work
    module: nn.Module
    call: Callable[..., Any]
    optimizer: torch.optim.Optimizer

    def backward(self) -> Tensor:
        """Runs forward and backward, exchanges gradients, and returns the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.work.loss(self.call)
        loss.backward()
        return loss.detach()

    def step(self) -> Tensor:
        """Runs one training step and returns the loss."""
        loss = self.backward()
        self.optimizer.step()
        return loss


def make_contestant(variant: Variant, work: Work, settings: BenchSettings) -> Contestant:
    """Wraps ``work.model`` as the variant says, with the same AdamW options for all variants. Collective.

    The model is used up. It must not be used afterwards.

    Raises:
        SDPError: If the variant does not work for the model.
    """
    make = {"ddp": _ddp, "ddp-checkpoint": _ddp, "fsdp2": _fsdp2, "sdp": _sdp, "schedule": _sdp, "local": _local}[
        variant.kind
    ]
    module, call = make(variant, work, settings)
    work = replace(work, model=module)  # with SDP the original is not needed any more and would count as memory
    return Contestant(work, module, call, _optimizer(variant, module))


def _optimizer(variant: Variant, module: nn.Module) -> torch.optim.Optimizer:
    if not variant.sharded:
        return torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE)
    optimizer: torch.optim.Optimizer = sdp_compile.ShardedOptimizer(module, torch.optim.AdamW, lr=LEARNING_RATE)
    return optimizer


def _ddp(variant: Variant, work: Work, settings: BenchSettings) -> tuple[nn.Module, Callable[..., Any]]:
    """DDP with gradients as views of its buckets, and a static graph unless torch.compile's bucketing rules it out."""
    if variant.kind == "ddp-checkpoint":
        blocks = repeated_blocks(work.model)
        if not blocks:
            raise SDPError("The model has no repeated blocks to checkpoint (see `sdp-compile bench --help`).")
        for block in blocks:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    megabytes = None if settings.bucket_bytes is None else settings.bucket_bytes / 2**20
    if variant.compiled and megabytes is not None:
        megabytes = max(megabytes, 1.0)  # TorchDynamo's bucketing fails with buckets below DDP's first one
    module = DistributedDataParallel(
        work.model, gradient_as_bucket_view=True, static_graph=not variant.compiled, bucket_cap_mb=megabytes
    )
    return module, torch.compile(module) if variant.compiled else module


def _fsdp2(variant: Variant, work: Work, settings: BenchSettings) -> tuple[nn.Module, Callable[..., Any]]:
    """`fully_shard` on each block and the root. Blocks are compiled before they are sharded, as in torchtitan."""
    from torch.distributed.fsdp import fully_shard

    for block in repeated_blocks(work.model):
        if variant.compiled:
            block.compile()
        fully_shard(block)
    fully_shard(work.model)
    return work.model, work.model


def _local(variant: Variant, work: Work, settings: BenchSettings) -> tuple[nn.Module, Callable[..., Any]]:
    return work.model, torch.compile(work.model) if variant.compiled else work.model


def _sdp(variant: Variant, work: Work, settings: BenchSettings) -> tuple[SDPModule, Callable[..., Any]]:
    policy: sdp_compile.Policy | sdp_compile.Schedule
    if variant.kind == "schedule":
        assert settings.schedule is not None
        policy = with_steps(sdp_compile.resolve_schedule(settings.schedule))
    else:
        policy = policy_of(variant, settings)
    module = sdp_compile.sdp_compile(
        work.model, policy, work.example_inputs, bucket_bytes=settings.bucket_bytes or DEFAULT_BUCKET_BYTES
    )
    return module, torch.compile(module) if variant.compiled else module


def policy_of(variant: Variant, settings: BenchSettings) -> sdp_compile.Policy:
    """Returns the policy of an SDP variant.

    Raises:
        PolicyError: If the policy does not accept the settings.
    """
    policy: sdp_compile.Policy = {"neuron": sdp_compile.NeuronPolicy, "block": sdp_compile.BlockPolicy}[variant.level](
        masking=variant.masking, **settings.policy_fields
    )
    return policy


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """Returns the layers of a model, which are checkpointed and sharded one by one.

    These are the modules of the classes in ``_no_split_modules`` (transformers). Without it, they are the outermost
    members of a `ModuleList` or `Sequential` that have children and whose class occurs there more than once.
    """
    named = set(getattr(model, "_no_split_modules", None) or ())
    if not named:
        members = [
            child
            for container in model.modules()
            if isinstance(container, nn.ModuleList | nn.Sequential)
            for child in container
            if next(child.children(), None) is not None
        ]
        counts = Counter(type(child).__name__ for child in members if not isinstance(child, nn.Sequential))
        named = {name for name, count in counts.items() if count > 1}
    blocks: list[nn.Module] = []

    def search(module: nn.Module) -> None:
        for child in module.children():
            if type(child).__name__ in named:
                blocks.append(child)
            else:
                search(child)

    search(model)
    return blocks
