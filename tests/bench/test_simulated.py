"""What is simulated is what a user gets on such nodes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from sdp_compile import sdp_compile
from sdp_compile.bench.contestant import policy_of
from sdp_compile.bench.settings import BenchSettings
from sdp_compile.bench.simulated import Subject
from sdp_compile.bench.variants import BASES
from sdp_compile.bench.work import make_work
from sdp_compile.cli.simulate import SimulateSettings
from sdp_compile.hardware import Hardware
from sdp_compile.models.presets import PRESETS

WORKERS, NODE_SIZE = 16, 4


@pytest.fixture
def sixteen_on_four_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One of sixteen workers, as torchrun starts it on four nodes."""
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "GROUP_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(NODE_SIZE))
    dist.init_process_group("fake", store=FakeStore(), rank=5, world_size=WORKERS)
    yield
    dist.destroy_process_group()


def test_the_simulated_plan_is_the_one_that_torchrun_gives(sixteen_on_four_nodes: None) -> None:
    settings = BenchSettings(model="tests/bench/models.py:residual", workers=WORKERS)
    subject = Subject(make_work(settings, 0, "meta"), settings)
    for variant in [variant for variant in BASES if variant.kind == "sdp"]:
        work = make_work(settings, 0, "cpu")
        trained = sdp_compile(work.model, policy_of(variant, settings), work.example_inputs).plan
        assert trained.nodes == WORKERS // NODE_SIZE
        assert subject.plan(variant, NODE_SIZE).digest == trained.digest
        assert subject.plan(variant, WORKERS).digest != trained.digest


@pytest.mark.parametrize(
    ("name", "parameters"), [("gpt2-124m", 124_439_808), ("llama-1b", 1_235_814_400), ("llama-8b", 8_030_261_248)]
)
def test_presets_have_the_published_sizes(name: str, parameters: int) -> None:
    pytest.importorskip("transformers")
    preset = PRESETS[name]
    bench = BenchSettings(model=preset.model, overrides=preset.settings, inputs=preset.inputs)
    work = make_work(SimulateSettings(bench, Hardware()).sized(), 0, "meta")
    assert sum(parameter.numel() for parameter in work.model.parameters()) == parameters
