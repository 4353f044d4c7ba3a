"""axes="all": parameters cut along several axes keep an owner for each element."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdp_compile.errors import PolicyError
from sdp_compile.policies import NeuronPolicy
from tests.synthetic import convolutions, recurrent


def test_all_axes_need_enough_replicas_and_the_error_says_how_many():
    with pytest.raises(PolicyError, match=r"along 2 axes.*replicas=3 of 4"):
        NeuronPolicy(axes="all").partition(convolutions(), 4)
    assert len(NeuronPolicy(axes="all", replicas=3).partition(convolutions(), 4)) == 4
    with pytest.raises(PolicyError, match=r"'cell.recurrent' along 2 axes.*replicas=2 of 3"):
        NeuronPolicy(axes="all", replicas=1).partition(recurrent(), 3)
    assert list(NeuronPolicy(axes="all", replicas=2).partition(recurrent(), 3)) == ["state"]
    assert len(NeuronPolicy(axes="all", design="nested").partition(convolutions(), 4)) == 4


@settings(deadline=None)
@given(st.integers(2, 9), st.integers(1, 9))
def test_all_axes_leave_no_element_without_an_owner(workers, replicas):
    """Whenever the policy accepts: each pair of a row's and a column's owners meets."""
    structure = convolutions((9, 9, 9))
    replicas = min(replicas, workers)
    try:
        partition = NeuronPolicy(axes="all", replicas=replicas).partition(structure, workers)
    except PolicyError:
        assert 2 * replicas <= workers
        return
    for first, second in [("channels.0", "channels.1"), ("channels.1", "channels.2")]:
        if first in partition and second in partition:
            assert all(set(a) & set(b) for a in partition[first] for b in partition[second])
