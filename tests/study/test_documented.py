"""The studies of the documentation: their files can be loaded, and `sdp-compile study --show` finds their results."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdp_compile.study.results import read_rows
from sdp_compile.study.spec import Run, Study

FOLDER = Path(__file__).parents[2] / "docs" / "studies"
STUDIES = sorted(FOLDER.glob("*.toml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_results_are_those_of_the_study_as_it_stands(path: Path) -> None:
    """A field that is changed after the runs would make the file's results those of another study."""
    study = Study.load(path)
    rows = read_rows(path.with_suffix(".jsonl"))
    for row in rows:
        fields = {field: row[field] for field in ("contestant", "match", "seed", "peak", "tunes")}
        assert study.key(Run(**fields)) == row["key"], fields
        assert row["seed"] in (*study.seeds, *study.tuning_seeds)


def test_there_are_studies_with_results() -> None:
    assert sum(path.with_suffix(".jsonl").exists() for path in STUDIES) >= 2
