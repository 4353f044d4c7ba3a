"""AutoPolicy takes the level that works, then the one that saves more memory, then the better balanced."""

from __future__ import annotations

import pytest

from sdp_compile.errors import NothingToPartition, PolicyError
from sdp_compile.policies import AutoPolicy
from sdp_compile.structure.layout import Leaf
from tests.synthetic import attention, blocks, nothing, structure_of


def test_auto_takes_the_level_that_works():
    by_neurons = AutoPolicy().partition(attention(), 4)
    assert list(by_neurons) == ["heads"] and "Auto chose the neuron level" in by_neurons.notes[0]
    whole = {f"blocks.{number}.w": [Leaf(6), Leaf(6)] for number in range(8)}
    by_blocks = AutoPolicy().partition(structure_of(whole, blocks={"blocks": [[name] for name in whole]}), 4)
    assert list(by_blocks) == ["blocks"] and "Auto chose the block level" in by_blocks.notes[0]
    with pytest.raises(NothingToPartition, match=r"no axis.*no residual blocks"):
        AutoPolicy().partition(nothing(), 4)
    assert not AutoPolicy(coverage=1.0).partition(nothing(), 4)


def test_auto_compares_memory_then_balance():
    structure = blocks((4, 4, 4, 4))  # both levels halve everything
    note = AutoPolicy().partition(structure, 4).notes[0]
    assert "neuron level" in note and "by balance" in note
    uneven = blocks((40, 4, 4, 4))  # two workers keep the large block whole
    assert "Auto chose the neuron level" in AutoPolicy().partition(uneven, 4).notes[0]


def test_auto_passes_on_mistakes_in_rules():
    with pytest.raises(PolicyError, match="matches no parameter"):
        AutoPolicy(rules={"nonsense": "shared"}).partition(blocks((4, 4, 4, 4)), 4)
