"""Checkpoint regions of the model stay regions: no more is saved for backward than by the original eager model."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from sdp_compile import BlockPolicy, NeuronPolicy, sdp_compile
from sdp_compile.runtime.module.sdp_module import SDPModule


class Block(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down, self.dropout = nn.Linear(width, 4 * width), nn.Linear(4 * width, width), dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        parts = self.qkv(self.norm(x)).chunk(3, dim=-1)
        q, k, v = (part.view(batch, length, 4, width // 4).transpose(1, 2) for part in parts)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(x.shape)
        x = x + F.dropout(self.out(attended), self.dropout, self.training)
        return x + F.dropout(self.down(F.gelu(self.up(self.mlp_norm(x)))), self.dropout, self.training)


class GPT(nn.Module):
    def __init__(self, checkpointed: bool = True, reentrant: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(64, 32), nn.Linear(32, 64)
        self.blocks = nn.ModuleList(Block(32, dropout) for _ in range(3))
        self.checkpointed, self.reentrant = checkpointed, reentrant

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.reentrant) if self.checkpointed else block(x)
        return self.head(x)


class Alive(TorchDispatchMode):
    """The storages that operators make, and how many of their bytes are still held."""

    def __init__(self) -> None:
        super().__init__()
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return result

    @property
    def nbytes(self) -> int:
        return sum(size for reference, size in self._storages.values() if not reference.expired())


def saved_bytes(model: nn.Module, tokens: torch.Tensor) -> int:
    """What is held between forward and backward, the output included."""
    with Alive() as alive:
        output = model(tokens)
    assert output.requires_grad
    return alive.nbytes


def dense(model: nn.Module, tokens: torch.Tensor) -> SDPModule:
    return sdp_compile(model, NeuronPolicy(coverage=1.0), (tokens,), workers=1, rank=0)


def gradients(model: nn.Module, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    model.zero_grad()
    model(tokens).square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


TOKENS = torch.randint(0, 64, (4, 32), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("reentrant", [False, True])
def test_no_more_is_saved_than_in_eager_mode(reentrant: bool) -> None:
    model = GPT(reentrant=reentrant, dropout=0.1)
    plain = GPT(checkpointed=False, dropout=0.1)
    module = dense(model, TOKENS)
    assert saved_bytes(module, TOKENS) <= saved_bytes(model, TOKENS) < saved_bytes(plain, TOKENS) / 3
    got, wanted = gradients(module, TOKENS), gradients(model, TOKENS)  # the same dropout, in backward too
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, msg=name)


@pytest.mark.parametrize("policy", [NeuronPolicy(coverage=0.5, rescale=True), BlockPolicy(coverage=0.5)])
@pytest.mark.parametrize("lowering", ["sliced", "masked"])
def test_a_subnetwork_keeps_its_regions(policy: Any, lowering: Any) -> None:
    model = GPT().double()
    module = sdp_compile(model, policy, (TOKENS,), workers=2, rank=0, lowering=lowering)
    plain = sdp_compile(_without_checkpoints(model), policy, (TOKENS,), workers=2, rank=0, lowering=lowering)
    assert saved_bytes(module, TOKENS) < saved_bytes(plain, TOKENS) / 2
    got, wanted = gradients(module, TOKENS), gradients(plain, TOKENS)
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-9, atol=1e-12, msg=name)
    assert "recompute_0(" in module.code


def _without_checkpoints(model: GPT) -> GPT:
    plain = copy.deepcopy(model)
    plain.checkpointed = False
    return plain


def test_regions_survive_copies_and_torch_compile() -> None:
    model = GPT()
    module = dense(model, TOKENS)
    expected = saved_bytes(model, TOKENS)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert saved_bytes(other, TOKENS) <= expected
    fast = torch.compile(module, backend="aot_eager", fullgraph=True)
    got, wanted = gradients(fast, TOKENS), gradients(model, TOKENS)
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[f"_orig_mod.{name}"], gradient, msg=name)


def test_regions_with_buffers_modes_and_nesting() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = nn.BatchNorm1d(8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                x = self.linear(x)
            with torch.no_grad():
                scale = x.float().abs().mean()
            return self.norm(x.float()) * scale

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Inner(), Inner()

        def both(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x = checkpoint(self.first, x, use_reentrant=False)
            return x, self.second(x)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first, second = checkpoint(self.both, x, use_reentrant=False)
            return first + second

    model, x = Outer(), torch.randn(4, 8)
    module = dense(model, x)
    assert module.code.count("def recompute_") == 1  # nested regions are one
    got, wanted = gradients(module, x), gradients(model, x)
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, msg=name)
