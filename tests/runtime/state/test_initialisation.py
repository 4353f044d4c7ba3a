"""Slices of given values, of files and of a model's own initialisation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sdp_compile.errors import SDPError
from sdp_compile.planning.holdings import holdings
from sdp_compile.planning.regions import Region, full
from sdp_compile.runtime.state.initialisation import materialize, slice_tensors
from sdp_compile.runtime.state.initialisers import Initialisers
from tests.runtime.stub import CYCLIC, SCATTERED, Net, Subnet, capture_of, network, plan_of

WORKERS = 4


def values_of(net: nn.Module) -> dict[str, Tensor]:
    return {**dict(net.named_parameters()), **dict(net.named_buffers())}


def on_meta(rank: int, owners: list[tuple[int, ...]], lowering: str = "sliced") -> Subnet:
    net = network()
    capture = capture_of(net)
    plan = plan_of(capture, owners, WORKERS)
    with torch.device("meta"):
        empty = Net().double()
    empty.scratch = net.scratch
    return Subnet(empty, plan, rank, capture, lowering)


def check(module: Subnet, expected: dict[str, Tensor]) -> None:
    plan = module.plan
    for name, tensor in values_of(module).items():
        mask = plan.mask(name, module.rank)
        values = tensor[mask] if module.holdings.lowering == "masked" else tensor.reshape(-1)
        assert torch.equal(values, expected[name][mask]), name


@pytest.mark.parametrize("owners", [CYCLIC, SCATTERED], ids=["cyclic", "scattered"])
@pytest.mark.parametrize("lowering", ["sliced", "masked"])
def test_slices_are_copies_of_what_the_mask_selects(owners: list[tuple[int, ...]], lowering: str) -> None:
    net = network()
    capture = capture_of(net)
    plan = plan_of(capture, owners, WORKERS)
    for rank in range(WORKERS):
        module = Subnet(net, plan, rank, capture, lowering)
        check(module, values_of(net))
        storages = {tensor.untyped_storage().data_ptr() for tensor in values_of(net).values()}
        assert not storages & {tensor.untyped_storage().data_ptr() for tensor in values_of(module).values()}
        assert not module.frozen.requires_grad and module.idle.requires_grad
        meta = slice_tensors(
            holdings("sliced", plan, rank), capture, {name: t.to("meta") for name, t in values_of(net).items()}
        )
        assert all(tensor.is_meta for tensor in meta.values())
        assert {name: t.shape for name, t in meta.items() if name in plan.state} == {
            name: torch.Size(plan.local_shape(name, rank) or ()) for name in meta
        }


@pytest.mark.parametrize("owners", [CYCLIC, SCATTERED], ids=["cyclic", "scattered"])
@pytest.mark.parametrize("kind", ["mapping", "file", "index", "folder"])
def test_weights_are_read_in_slices(owners: list[tuple[int, ...]], kind: str, tmp_path: Path) -> None:
    net = network(3)
    state = {key: value.clone() for key, value in net.state_dict().items() if key != "tied"}  # one name of two
    weights: Any = state
    if kind != "mapping":
        names = sorted(state)
        files = (
            {"a.safetensors": names[::2], "b.safetensors": names[1::2]} if kind == "index" else {"a.safetensors": names}
        )
        for file, content in files.items():
            save_file({name: state[name] for name in content}, tmp_path / file)
        if kind == "index":
            index = {"weight_map": {name: file for file, content in files.items() for name in content}}
            (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        weights = {
            "file": tmp_path / "a.safetensors",
            "index": str(tmp_path / "model.safetensors.index.json"),
            "folder": tmp_path,
        }[kind]
    for rank in range(WORKERS):
        module = on_meta(rank, owners)
        assert module.up.weight.is_meta
        materialize(module, weights)
        check(module, {**values_of(net), "scratch": network().scratch})
        assert module.down.bias is module.tied


def test_initialisation_agrees_between_owners_and_leaves_the_random_state() -> None:
    found: dict[int, Subnet] = {}
    state = torch.get_rng_state()
    for rank in range(WORKERS):
        module = on_meta(rank, SCATTERED)
        for name in ("frozen", "idle", "offset"):
            with pytest.raises(SDPError, match=name):
                materialize(module)
        module.frozen = nn.Parameter(torch.ones(5).double(), requires_grad=False)
        module.idle = nn.Parameter(torch.ones(3).double())
        module.offset = torch.zeros(5).double()
        found[rank] = materialize(module)
    assert torch.equal(torch.get_rng_state(), state)
    whole: dict[str, Tensor] = {}
    for rank, module in found.items():
        for name, tensor in values_of(module).items():
            mask = module.plan.mask(name, rank)
            other = whole.setdefault(
                name,
                torch.full(
                    mask.shape, float("nan"), dtype=tensor.dtype if tensor.is_floating_point() else torch.float64
                ),
            )
            known = mask & ~other.isnan()
            full_size = torch.zeros(mask.shape, dtype=other.dtype)
            full_size[mask] = tensor.detach().reshape(-1).to(other.dtype)
            assert torch.equal(other[known], full_size[known])
            other[mask] = full_size[mask]
    # What nn.Linear and nn.BatchNorm1d promise.
    bound = 6**-0.5
    assert whole["up.weight"].abs().max() <= bound and whole["up.weight"].std() > bound / 3
    assert (whole["norm.weight"] == 1).all() and (whole["norm.running_var"] == 1).all()
    assert (whole["norm.running_mean"] == 0).all() and whole["norm.num_batches_tracked"] == 0


class Parent(nn.Module):
    """Overwrites what its child drew, as GPT-2's blocks do, through ``.data``."""

    def __init__(self) -> None:
        super().__init__()
        self.child = nn.Linear(4, 4)

    def reset_parameters(self) -> None:
        self.child.weight.data.normal_(mean=100.0, std=1.0)


def test_later_initialisers_win() -> None:
    with torch.device("meta"):
        skeleton = nn.Sequential(Parent(), nn.Linear(4, 2))
    source = Initialisers(skeleton)
    assert (source.read("0.child.weight", (4, 4), full((4, 4))) > 90).all()
    assert (source.read("0.child.bias", (4,), full((4,))).abs() <= 0.5).all()
    first = source.read("1.weight", (2, 4), full((2, 4)))
    assert torch.equal(first, Initialisers(skeleton).read("1.weight", (2, 4), full((2, 4))))
    assert not torch.equal(first, Initialisers(skeleton, seed=1).read("1.weight", (2, 4), full((2, 4))))
    assert all(parameter.is_meta for parameter in skeleton.parameters())


class Spared(nn.Module):
    """Initialised by functions of torch.nn.init that do nothing on the meta device."""

    def __init__(self) -> None:
        super().__init__()
        self.cut, self.turn, self.asked = (nn.Parameter(torch.empty(8, 8)) for _ in range(3))

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.cut, std=0.1, a=-0.15, b=0.15)
        nn.init.orthogonal_(self.turn)
        assert self.asked.is_meta in (True, False)


def test_initialisers_that_do_nothing_on_the_meta_device_are_found() -> None:
    with torch.device("meta"):
        source = Initialisers(Spared())
    cut, turn = (source.read(name, (8, 8), full((8, 8))) for name in ("cut", "turn"))
    assert 0.05 < cut.std() < 0.1 and cut.abs().max() <= 0.15
    torch.testing.assert_close(turn @ turn.T, torch.eye(8))
    with pytest.raises(SDPError, match="No module initialises asked"):
        source.read("asked", (8, 8), full((8, 8)))


def test_transformers_models_initialise_as_they_do_themselves() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=2, n_embd=64, n_head=4, vocab_size=97, n_positions=32)
    with torch.device("meta"):
        skeleton = transformers.GPT2LMHeadModel(config)
    source = Initialisers(skeleton)
    real = transformers.GPT2LMHeadModel(config)
    for name, parameter in real.named_parameters():
        value = source.read(name, tuple(parameter.shape), full(parameter.shape))
        assert value.std().item() == pytest.approx(parameter.std().item(), rel=0.15, abs=1e-6), name
        assert value.mean().item() == pytest.approx(parameter.mean().item(), abs=3e-3), name


def test_errors_name_what_is_missing(tmp_path: Path) -> None:
    module, state = on_meta(0, CYCLIC), network().state_dict()
    with pytest.raises(SDPError, match=r"norm\.weight"):
        materialize(module, {key: value for key, value in state.items() if key != "norm.weight"})
    with pytest.raises(SDPError, match=r"'up\.weight' has shape \[3\]"):
        materialize(on_meta(0, CYCLIC), {**state, "up.weight": torch.zeros(3)})
    with pytest.raises(SDPError, match="does not exist"):
        materialize(module, tmp_path / "absent.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"nonsense")
    with pytest.raises(SDPError, match=r"broken\.safetensors cannot be read"):
        materialize(module, tmp_path / "broken.safetensors")
    (tmp_path / "index.json").write_text("{}")
    with pytest.raises(SDPError, match="weight_map"):
        materialize(module, tmp_path / "index.json")
    with pytest.raises(SDPError, match=r"must be a \.safetensors file or an index"):
        materialize(module, Path(__file__))


def test_regions_read_and_write_like_masks() -> None:
    generator = torch.Generator().manual_seed(0)
    for trial in range(40):
        shape = [int(torch.randint(1, 6, (1,), generator=generator)) for _ in range(trial % 4)]
        tensor = torch.randn(shape, generator=generator)
        kept = [torch.rand(size, generator=generator) < 0.6 for size in shape]
        mask = torch.ones(shape, dtype=torch.bool)
        for dim, holds in enumerate(kept):
            mask &= holds.reshape([-1 if other == dim else 1 for other in range(len(shape))])
        region = Region([holds.nonzero().reshape(-1).numpy() for holds in kept])
        assert torch.equal(region.read(tensor).reshape(-1), tensor[mask])
        expected, values = tensor.clone(), torch.randn(region.numel, generator=generator)
        expected[mask] = values
        region.write(tensor, values)
        assert torch.equal(tensor, expected)
