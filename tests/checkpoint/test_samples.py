"""The order of samples that all workers share."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import sdp_compile as sdp
from sdp_compile.errors import SDPError


def trained_on(samples: int, workers: int, batch: int, steps: int, done: int, seed: int = 0) -> tuple[list[int], int]:
    """The samples of all workers in so many steps, step by step, and their number after these."""
    orders = [sdp.SampleOrder(samples, batch, rank, workers, seed, done) for rank in range(workers)]
    batches = [list(islice(order, steps)) for order in orders]
    assert len({order.after(steps) for order in orders}) == 1
    return [index for step in range(steps) for own in batches for index in own[step]], orders[0].after(steps)


PARTS = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 7), st.integers(1, 4)), min_size=1, max_size=5)


@settings(max_examples=150, deadline=None)
@given(samples=st.integers(1, 300), seed=st.integers(0, 5), parts=PARTS)
def test_no_sample_is_lost_or_repeated_when_workers_change(samples: int, seed: int, parts: Any) -> None:
    seen: list[int] = []
    done = 0
    for workers, batch, steps in parts:
        found, done = trained_on(samples, workers, batch, steps, done, seed)
        seen += found
    assert done == len(seen)
    assert seen == trained_on(samples, 1, 1, len(seen), 0, seed)[0]
    for start in range(0, len(seen), samples):
        epoch = seen[start : start + samples]
        assert len(set(epoch)) == len(epoch) and set(epoch) <= set(range(samples))


def test_orders_are_random_and_differ_between_epochs_and_seeds() -> None:
    count = 2000
    first, second = np.array(trained_on(count, 1, count, 2, 0)[0]).reshape(2, count)
    other = np.array(trained_on(count, 1, count, 1, 0, seed=1)[0])
    for one, two in ((first, second), (first, other), (first[:-1], first[1:]), (first, np.arange(count))):
        assert abs(np.corrcoef(one, two)[0, 1]) < 0.1
        assert (one == two).sum() < 10


def test_skipping_takes_no_time_and_no_memory() -> None:
    order = sdp.SampleOrder(10**12, 4, rank=1, workers=3, done=7 * 10**15 + 5)
    assert len(set(order.batch(0).tolist())) == 4 and order.after(1) == 7 * 10**15 + 17
    assert all(0 <= index < 10**12 for index in order.batch(10**6))


def test_a_data_loader_takes_it() -> None:
    order = sdp.SampleOrder(10, 2, rank=1, workers=2)
    data = [index * 10 for index in range(10)]
    loaded = [batch.tolist() for batch in islice(DataLoader(data, batch_sampler=order), 4)]  # type: ignore[arg-type]
    assert loaded == [[10 * index for index in batch] for batch in islice(order, 4)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"samples": 0}, "samples of sdp.SampleOrder must be an integer of at least 1, got 0"),
        ({"batch": 1.5}, "batch of sdp.SampleOrder must be"),
        ({"workers": 2, "rank": 2}, "rank of sdp.SampleOrder must be an integer from 0 to 1, got 2"),
        ({"done": None}, "done of sdp.SampleOrder must be an integer of at least 0, got None"),
    ],
)
def test_what_cannot_be_is_an_error(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(SDPError, match=words):
        sdp.SampleOrder(**{"samples": 5, "batch": 1, **arguments})
