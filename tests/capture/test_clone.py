"""Copies that share the weights or drop them; the original is never touched."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from sdp_compile.capture.clone import canonical_names, clone, is_persistent, named_state, skeleton, to_meta
from sdp_compile.errors import CaptureError
from tests.capture.models import Residual


def test_tied_tensors_have_one_canonical_name_and_come_under_each() -> None:
    model = Residual()
    names = canonical_names(model)
    assert names["outer.weight"] == names["inner.0.weight"] == "inner.0.weight"
    assert {name: names[name] for name in names if name != "outer.weight"} == {
        n: n for n in names if n != "outer.weight"
    }
    assert [name for name, _ in named_state(model)].count("outer.weight") == 1


def test_a_clone_shares_the_very_same_tensors() -> None:
    model = Residual()
    copied = clone(model)
    assert copied is not model and copied.inner[1] is not model.inner[1]
    for (name, original), (other, shared) in zip(named_state(model), named_state(copied), strict=True):
        assert name == other and shared is original
    copied.inner[1].eval()
    assert model.inner[1].training


def test_a_clone_with_other_tensors_keeps_ties_and_asks_once_for_each() -> None:
    model, asked = Residual(), []

    def double(tensor: torch.Tensor) -> torch.Tensor:
        asked.append(tensor)
        return nn.Parameter(tensor.detach() * 2) if isinstance(tensor, nn.Parameter) else tensor * 2

    copied = clone(model, double)
    assert copied.outer.weight is copied.inner[0].weight
    assert torch.equal(copied.outer.weight, model.outer.weight * 2) and torch.equal(copied.scale, model.scale * 2)
    assert len(asked) == len({id(tensor) for _, tensor in named_state(model)})


def test_results_that_a_module_keeps_can_be_copied() -> None:
    model = nn.Linear(6, 6)
    model.last = model(torch.randn(2, 6))  # not a leaf: deepcopy alone refuses it
    assert torch.equal(clone(model).last, model.last)


@pytest.mark.parametrize("path", ["", "0"])
def test_a_part_that_cannot_be_copied_is_named(path: str) -> None:
    model = nn.Sequential(nn.Linear(6, 6))
    model.get_submodule(path).lock = threading.Lock()
    where = "'0' (Linear)" if path else "the model (Sequential)"
    with pytest.raises(CaptureError) as caught:
        clone(model)
    assert f"attribute 'lock' of {where}" in str(caught.value) and "__deepcopy__" in str(caught.value)


def test_a_skeleton_holds_values_only_where_no_checkpoint_has_them() -> None:
    model = Residual()
    model.outer.bias.requires_grad_(False)
    bones = skeleton(model)
    assert bones.state_dict().keys() == model.state_dict().keys()
    assert all(tensor.is_meta for tensor in bones.state_dict().values())
    assert torch.equal(bones.scale, model.scale) and bones.scale is not model.scale
    assert bones.outer.weight is bones.inner[0].weight and bones.outer.weight.requires_grad
    assert not bones.outer.bias.requires_grad


def test_meta_tensors_keep_their_layout_and_kind() -> None:
    transposed = torch.randn(3, 5, dtype=torch.float64).t()
    assert to_meta(transposed).stride() == transposed.stride() and to_meta(transposed).dtype == torch.float64
    assert isinstance(to_meta(nn.Parameter(transposed, requires_grad=False)), nn.Parameter)
    assert not isinstance(to_meta(transposed), nn.Parameter)


def test_persistence_is_asked_of_the_module_that_holds_the_buffer() -> None:
    model = nn.Sequential(Residual())
    assert is_persistent(model, "0.seen") and not is_persistent(model, "0.scale")
