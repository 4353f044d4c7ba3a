"""Which variants take part, and settings that are refused before any work."""

import pytest

from sdp_compile.bench.settings import BenchSettings
from sdp_compile.bench.variants import VARIANTS, choose
from sdp_compile.errors import PolicyError, SDPError


def names(*patterns: str, compile: bool = True) -> list[str]:
    return [variant.name for variant in choose(patterns, compile)]


def test_every_variant_is_eager_and_compiled_side_by_side() -> None:
    everything = names()
    assert everything == list(VARIANTS)
    assert everything[1::2] == [f"{name}+compile" for name in everything[::2]]
    assert names(compile=False) == everything[::2]


def test_patterns_choose_in_the_known_order() -> None:
    assert names("sdp-block*", "ddp") == ["ddp", "sdp-block", "sdp-block+compile"]
    assert names("fsdp2+compile") == ["fsdp2+compile"]


@pytest.mark.parametrize(
    ("patterns", "compile", "words"),
    [
        (("sdp-newron",), True, ["sdp-newron", "Did you mean", "sdp-neuron"]),
        (("ddp", "zero*"), True, ["zero*", "fsdp2"]),
        (("ddp+compile",), False, ["ddp+compile", "--no-compile"]),
    ],
)
def test_an_unknown_variant_is_refused(patterns: tuple[str, ...], compile: bool, words: list[str]) -> None:
    with pytest.raises(SDPError) as caught:
        BenchSettings(variants=patterns, compile=compile)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"workers": 1}, "--workers 1"),
        ({"replicas": 5, "workers": 4}, "--replicas 5"),
        ({"replicas": 2, "coverage": 0.5}, "exclude each other"),
        ({"coverage": 0.0}, "coverage=0"),
        ({"inputs": ("2x3",)}, "MODEL"),
        ({"model": "torchvision"}, "does not name a model"),
        ({"json_path": "/nowhere/x.json"}, "--json /nowhere/x.json"),
        ({"plot_path": "/nowhere/x.png"}, "--plot /nowhere/x.png"),
    ],
)
def test_wrong_words_are_refused_before_any_work(fields: dict[str, object], words: str) -> None:
    with pytest.raises((SDPError, PolicyError), match=words):
        BenchSettings(**fields)  # type: ignore[arg-type]


def test_settings_survive_the_way_to_the_workers() -> None:
    settings = BenchSettings(workers=3, replicas=2, variants=("ddp", "sdp-*"), compile=False, timeout=9.0)
    assert BenchSettings.loads(settings.dumps()) == settings
