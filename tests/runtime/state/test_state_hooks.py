"""Models whose ``state_dict()`` has other keys or values than their tensors: hooks split, rename and change them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdp_compile import NeuronPolicy, sdp_compile
from sdp_compile.errors import SDPError
from tests.distributed import run_workers

pytestmark = pytest.mark.timeout(120)
PARTS = ("wq", "wk", "wv")


class Fused(nn.Module):
    """Attention that holds its three projections as one parameter, and states them as three."""

    def __init__(self, width: int = 8, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.wqkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.register_state_dict_post_hook(self.split)
        self.register_load_state_dict_pre_hook(self.join)

    @staticmethod
    def split(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        whole = state.pop(f"{prefix}wqkv.weight")
        state.update({f"{prefix}{name}.weight": part for name, part in zip(PARTS, whole.chunk(3), strict=True)})

    @staticmethod
    def join(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        keys = [f"{prefix}{name}.weight" for name in PARTS]
        if all(key in state for key in keys):
            state[f"{prefix}wqkv.weight"] = torch.cat([state.pop(key) for key in keys])

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.wqkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width))


class Doubling(nn.Linear):
    """States twice its weight under the weight's own name."""

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = destination[f"{prefix}weight"] * 2

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        if f"{prefix}weight" in state_dict:
            state_dict[f"{prefix}weight"] = state_dict[f"{prefix}weight"] / 2
        super()._load_from_state_dict(state_dict, prefix, *rest)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.up, self.down = Fused(), Doubling(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.down(F.gelu(self.up(x)))


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return Network().double()


def round_trip(rank: int) -> None:
    original, other, x = network(0), network(1), torch.randn(2, 5, 8, dtype=torch.float64)
    module = sdp_compile(original, NeuronPolicy(coverage=0.5), (x,))
    for source in (original, other):
        expected = source.state_dict()
        if source is other:
            assert not any(module.load_full_state_dict(expected))
        found = module.full_state_dict()
        assert list(found) == list(expected)
        assert all(torch.equal(found[key], expected[key]) for key in expected)
        assert torch.equal(module.full_model()(x), source(x))
    assert (module.full_state_dict(rank0_only=True) == {}) == (rank != 0)
    partly = {key: value for key, value in original.state_dict().items() if "wq" not in key and "wk" not in key}
    with pytest.raises(SDPError, match="wqkv"):
        module.load_full_state_dict(partly)
    assert "attention.wqkv.weight" in module.load_full_state_dict(partly, strict=False).missing_keys
    now = module.full_state_dict()
    assert torch.equal(now["attention.wq.weight"], other.state_dict()["attention.wq.weight"])
    assert torch.equal(now["up.weight"], original.state_dict()["up.weight"])


def test_states_that_hooks_change() -> None:
    run_workers(round_trip, 2)
