"""State travels in batches of one key and a limited size."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sdp_compile.runtime.comm.transfer import batches


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from("ab")), max_size=12), st.integers(1, 20))
def test_batches_are_runs_of_one_key_within_the_limit(sizes: list[tuple[int, str]], limit: int) -> None:
    cut = [sizes[batch] for batch in batches(sizes, limit)]
    assert [member for batch in cut for member in batch] == sizes
    for number, batch in enumerate(cut):
        assert len({key for _, key in batch}) == 1
        assert len(batch) == 1 or sum(nbytes for nbytes, _ in batch) <= limit
        if number and cut[number - 1][0][1] == batch[0][1]:
            assert sum(nbytes for nbytes, _ in (*cut[number - 1], batch[0])) > limit, "no batch is closed early"
