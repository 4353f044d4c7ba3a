"""Parameter groups of all ranks, put together."""

from __future__ import annotations

from typing import Any

from sdp_compile.runtime.optimizer.param_groups import merged_groups


def test_groups_that_only_some_ranks_have_are_matched_by_name() -> None:
    def group(rate: float, *names: str) -> dict[str, Any]:
        return {"options": {"lr": rate, "betas": [0.9, 0.99]}, "names": list(names), "named": False}

    ranks = [[group(1.0, "a"), group(2.0, "b")], [group(2.0, "b"), group(3.0, "c")], [group(1.0, "a")]]
    merged = merged_groups(ranks, ["a", "b", "c"])
    assert [(found["lr"], found["params"]) for found in merged] == [(1.0, ["a"]), (2.0, ["b"]), (3.0, ["c"])]
    assert merged[0]["betas"] == (0.9, 0.99)
    same = merged_groups([[group(1.0, "a", "b")], [group(1.0, "c", "b")]], ["a", "b", "c"])
    assert [found["params"] for found in same] == [["a", "b", "c"]]
