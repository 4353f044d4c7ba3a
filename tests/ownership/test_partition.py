"""Partitions of a user's own policy: what is accepted, and what is refused in the user's terms."""

from __future__ import annotations

from typing import Any

import pytest

from sdp_compile.errors import PolicyError
from sdp_compile.ownership.partition import Partition, checked
from sdp_compile.structure.families import Structure
from tests.synthetic import attention, blocks

HALVES = [[0], [1]]


def check(structure: Structure, partition: Any, workers: int = 2) -> Partition:
    return checked(structure, partition, workers, structure.layouts)


@pytest.mark.parametrize(
    ("owners", "message"),
    [
        ({"heds": [[0]]}, r"family 'heds', which the model does not have. Did you mean 'heads'"),
        ({"heads": [[0], [1]]}, r"'heads' in attention.qkv has 4 units, but the partition gives owners for 2"),
        ({"heads": [[0], [1], [], [0]]}, r"'heads'.*unit 2 has no owner"),
        ({"heads": [[0], [1], [2], [0]]}, r"'heads'.*unit 2 is given to worker 2, but the workers are 0 to 1"),
        ({"heads": [[0], [1], [-1], [0]]}, r"unit 2 is given to worker -1"),
        ({"heads": [[0]] * 4}, r"'heads'.*worker 1 owns none of the 4 units"),
        ({"heads": [[0.5]] * 4}, r"'heads'.*must be a collection of worker numbers"),
        ({"heads": [[True]] * 4}, r"'heads'.*must be a collection of worker numbers"),
        ({"heads": 3}, r"'heads'.*must be a collection of worker numbers"),
        (
            {"heads": [[0], [1], [0], [1]], "value": [[0], [1], [0]]},
            r"'attention.qkv.weight'.*'heads'.*'value'.*no owner",
        ),
        ([1], r"must return a mapping.*got list"),
        (None, r"must return a mapping.*got NoneType"),
    ],
)
def test_mistakes_name_the_family(owners: Any, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        check(attention(), owners)


def test_owners_need_not_be_canonical() -> None:
    partition = check(attention(), {"heads": [{1, 0}, (1,), range(2), [0, 0]]})
    assert list(partition["heads"]) == [(0, 1), (1,), (0, 1), (0,)]


def test_families_that_all_workers_own_whole_are_left_out() -> None:
    partition = check(attention(), {"heads": [[0], [1], [0], [1]], "value": [[0, 1]] * 3})
    assert list(partition) == ["heads"]


def test_notes_are_kept() -> None:
    assert check(attention(), Partition(notes=["as before"])).notes == ("as before",)
    assert check(attention(), {}).notes == ()


def test_cuts_that_meet_in_one_tensor_are_fine_where_each_element_has_an_owner() -> None:
    owners = {"heads": [[0, 1], [0, 1], [0], [0]], "value": [[0], [0], [0, 1]]}
    assert list(check(attention(), owners)) == ["heads", "value"]


def test_a_parameter_belongs_to_one_level() -> None:
    owners = {"blocks": HALVES * 2, "blocks.0.hidden": HALVES * 2}
    with pytest.raises(PolicyError, match=r"'blocks.0.up' is cut by the axis 'blocks.0.hidden'.*one level only"):
        check(blocks((4, 4, 4, 4)), owners)
    with pytest.raises(PolicyError, match="'blocks' and 'layers' together"):
        check(blocks((4, 4, 4, 4)), {"blocks": HALVES * 2, "layers": HALVES})
