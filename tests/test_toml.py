"""Plain data as TOML: what is written reads back, and files that cannot be read are errors that name them."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdp_compile.errors import PassError, PolicyError
from sdp_compile.toml import read_toml, to_toml, tomllib


def test_values_come_first_and_tables_follow() -> None:
    values = {
        "level": "neuron",
        "rules": {"h.0": {"coverage": 0.25}, "wte": "shared"},
        "sizes": [1, 2],
        "strict": True,
    }
    assert (
        to_toml(values)
        == inspect.cleandoc("""
        level = "neuron"
        sizes = [1, 2]
        strict = true

        [rules]
        wte = "shared"

        [rules."h.0"]
        coverage = 0.25""")
        + "\n"
    )


def test_none_and_empty_tables_are_left_out() -> None:
    assert to_toml({"seed": None, "slots": 4, "rules": {}}) == "slots = 4\n"


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
VALUES = st.one_of(
    st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False), TEXTS
)
TABLES = st.recursive(
    VALUES | st.lists(VALUES, max_size=3),
    lambda inner: st.dictionaries(TEXTS, inner, min_size=1, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)
@given(st.dictionaries(TEXTS, TABLES, max_size=4))
def test_what_is_written_reads_back(values: dict[str, Any]) -> None:
    assert tomllib.loads(to_toml(values)) == values


def test_a_file_is_read_as_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text('name = "Größe"\n', encoding="utf-8")
    assert read_toml(path) == {"name": "Größe"}


def test_a_file_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"^The policy file '.*missing\.toml' does not exist\.$"):
        read_toml(tmp_path / "missing.toml")


def test_a_file_that_is_not_toml_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text('level = "neuron"\ncoverage = = 2\n')
    with pytest.raises(PolicyError, match=r"^The policy file '.*broken\.toml' is not valid TOML: .*line 2"):
        read_toml(path)


def test_what_is_not_a_text_file_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"cannot be read: .*directory"):
        read_toml(tmp_path)
    path = tmp_path / "bytes.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(PolicyError, match=r"bytes\.toml' cannot be read: .*decode"):
        read_toml(path)


def test_the_caller_says_what_the_file_holds_and_which_error_to_raise(tmp_path: Path) -> None:
    with pytest.raises(PassError, match=r"^The pass file '.*' does not exist"):
        read_toml(tmp_path / "passes.toml", "pass", PassError)
