"""The report page as a file: well-formed, self-contained, small, with all text escaped and figures from the plan."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from sdp_compile import BlockPolicy, NeuronPolicy
from sdp_compile.cli.main import app
from sdp_compile.errors import SDPError
from sdp_compile.formatting import size
from sdp_compile.inspector import Subject, graph_view
from sdp_compile.planning.making import make_plan
from sdp_compile.policies import Phase, Schedule, resolve_policy, resolve_schedule
from sdp_compile.report_page import listing, write_report
from sdp_compile.report_page.page import report_html
from sdp_compile.toml import read_toml
from tests.report_page.subjects import HOSTILE, Named, deep, subject_of

pytestmark = pytest.mark.timeout(120)

VOID = {"meta", "link", "input", "br", "img", "hr"}


class Page(HTMLParser):
    """The elements of a page, its text, and the text of its scripts. Fails if tags do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("script", "style"):
            self.scripts.append(data)
        else:
            self.text.append(data)

    def of(self, attribute: str) -> list[str]:
        return [str(attributes[attribute]) for _, attributes in self.elements if attribute in attributes]

    def data(self) -> Any:
        return json.loads(self.scripts[1])


@pytest.fixture(scope="module")
def hostile() -> Subject:
    return subject_of(Named(HOSTILE), (torch.zeros(2, 6),), NeuronPolicy(coverage=0.25), 4)


@pytest.fixture(scope="module")
def layered() -> Subject:
    return subject_of(*deep(80), NeuronPolicy(coverage=0.5), 4)


SCHEDULE = Schedule(
    [
        Phase(NeuronPolicy(coverage=0.25, design="rolling"), share=0.5, resample_every=10),
        Phase(NeuronPolicy(coverage=0.5), share=0.25, alternate=NeuronPolicy(coverage=1.0), alternate_every=5),
        Phase(NeuronPolicy(coverage=0.5, masking="backward"), share=0.25),
    ],
    steps=400,
)


def test_the_phases_of_a_schedule(hostile: Subject, tmp_path: Path) -> None:
    plans = [make_plan(hostile.analysis, policy, 4) for policy in SCHEDULE.policies()]
    html = report_html(replace(hostile, plan=plans[0]), schedule=SCHEDULE)
    page = Page(html)
    ids = page.of("id")
    assert max(Counter(ids).values()) == 1 and "phases" in ids
    assert {link[1:] for link in page.of("href") if link.startswith("#")} <= set(ids)
    assert set(page.of("aria-labelledby")) <= set(ids)
    shown = " ".join(" ".join(page.text).split())
    for plan in plans:
        most = max(plan.memory(rank).total for rank in range(4))
        assert f"{most / plan.memory().total:.1%}" in shown and size(most) in shown
        assert size(max(plan.communication(rank).total for rank in range(4))) in shown
    assert size(int(plans[1].moves(plans[2]).nbytes.sum(1).max())) in shown
    assert "owners drawn again, every 10 steps" in shown and "coverage 1; every 5 steps" in shown
    # A map for each plan, the page's own in view; the one that comes back after its alternate is not repeated.
    maps = [attributes for tag, attributes in page.elements if tag == "div" and attributes.get("class") == "owners"]
    assert ["hidden" in one for one in maps] == [False, True, True, True, True]
    options = [attributes for tag, attributes in page.elements if tag == "option" and "selected" in attributes]
    assert [one["value"] for one in options] == ["0"]
    toml = html.partition('aria-label="The schedule as TOML">')[2].partition("</pre>")[0]
    (tmp_path / "schedule.toml").write_text(unescape(toml))
    assert resolve_schedule(tmp_path / "schedule.toml") == SCHEDULE


def test_the_map_of_the_plan_in_use_is_in_view(hostile: Subject) -> None:
    """In the middle of training, also that of owners which were drawn again several times."""
    for policy, number in ((SCHEDULE.policy_at(399), 4), (SCHEDULE.policy_at(150), 0)):
        plan = make_plan(hostile.analysis, policy, 4)
        page = Page(report_html(replace(hostile, plan=plan), schedule=SCHEDULE))
        maps = [attributes for _, attributes in page.elements if attributes.get("class") == "owners"]
        assert [at for at, one in enumerate(maps) if "hidden" not in one] == [number]


def test_a_page_of_one_plan_has_no_phases(hostile: Subject) -> None:
    ids = Page(report_html(hostile)).of("id")
    assert "phases" not in ids and "phase" not in ids and "lane" in ids


def test_a_page_is_well_formed_and_loads_nothing(hostile: Subject) -> None:
    page = Page(report_html(hostile))
    ids = page.of("id")
    assert len(ids) == len(set(ids))
    for reference in ("aria-labelledby", "aria-describedby", "aria-controls", "for"):
        assert set(page.of(reference)) <= set(ids)
    assert all(link.startswith("#") or link == "data:," for link in page.of("href"))
    assert {link[1:] for link in page.of("href") if link.startswith("#")} - {f"p{n}" for n in range(99)} <= set(ids)
    assert not page.of("src")
    assert not re.search(r"https?://|@import|url\(", "".join(page.scripts))


def test_hostile_names_are_literal_text(hostile: Subject) -> None:
    page = Page(report_html(hostile))
    text = "".join(page.text)
    for name in HOSTILE:
        assert name in text
        assert any(name in row[1] for row in page.data()["rows"])
    tags = Counter(tag for tag, _ in page.elements)
    assert tags["img"] == 0 and tags["script"] == 2
    assert not any(attribute.startswith("on") for _, attributes in page.elements for attribute in attributes)


def test_the_policy_and_the_findings_are_the_plans(hostile: Subject, tmp_path: Path) -> None:
    html = report_html(hostile)
    page = Page(html)
    toml = html.partition('aria-label="The policy as TOML">')[2].partition("</pre>")[0]
    (tmp_path / "policy.toml").write_text(toml.replace("&#34;", '"'))
    assert resolve_policy(tmp_path / "policy.toml").describe() == dict(hostile.plan.policy)
    assert read_toml(tmp_path / "policy.toml")["coverage"] == 0.25
    text = "".join(page.text)
    assert hostile.plan.diagnose()
    for finding in hostile.plan.diagnose():
        assert finding.text in text
    assert hostile.plan.digest in text


def test_eighty_alike_layers_are_folded_and_the_page_stays_small(
    layered: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    html = report_html(layered)
    assert len(html) < 200_000
    assert "× 79, alike" in html and "× 80, alike" in html  # modules in the tree, families in the owner map
    rows = len(graph_view(layered).rows)
    assert len(Page(html).data()["rows"]) == rows
    monkeypatch.setattr(listing, "MOST_ROWS", rows - 1)
    small = Page(report_html(layered)).data()
    assert len(small["rows"]) < rows / 20
    ((first, held, layers, like, folded),) = small["folds"]
    assert (held, like) == (0, "0") and len(layers) >= 78
    assert len(small["rows"]) + folded == rows
    assert [row[3] for row in small["rows"]][first - 1] != [row[3] for row in small["rows"]][first]


def test_the_same_plan_gives_the_same_page(hostile: Subject) -> None:
    pages = [report_html(hostile, rank) for rank in (3, 3, 0)]
    assert pages[0] == pages[1] != pages[2]


@pytest.mark.parametrize("workers", [1, 1000])
def test_one_worker_and_a_thousand(workers: int) -> None:
    for policy in (NeuronPolicy(coverage=0.5), BlockPolicy(coverage=0.5)):
        subject = subject_of(*deep(6), policy, workers)
        html = report_html(subject)
        assert len(html) < 300_000
        page = Page(html)
        lanes = [attributes for tag, attributes in page.elements if tag == "option"]
        assert len(lanes) - 1 <= 32


def test_a_file_that_cannot_be_written_is_named(hostile: Subject, tmp_path: Path) -> None:
    with pytest.raises(SDPError, match=r"no/such/folder/page\.html"):
        write_report(hostile, tmp_path / "no/such/folder/page.html")


def test_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def mlp():\n    return nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 6)), (torch.zeros(2, 6),)\n"
    )
    result = CliRunner().invoke(app, ["report", "mine.py:mlp", "--workers", "2", "--policy", "neuron", "-o", "x.html"])
    assert result.exit_code == 0, result.output
    assert "x.html" in result.stderr
    page = Path("x.html").read_text(encoding="utf-8")
    assert "sdp-compile report mine.py:mlp --policy neuron --workers 2" in page
    for wrong, words in (
        (["nothing.py:mlp"], "no such file"),
        (["mine.py:mlp", "--rank", "4"], "--rank 4"),
        (["mine.py:mlp", "-o", "missing/x.html"], "missing/x.html"),
        (["mine.py:mlp", "--coverage", "2"], "coverage=2"),
    ):
        result = CliRunner().invoke(app, ["report", *wrong])
        assert result.exit_code == 2
        assert words in result.stderr


def test_it_says_which_model_it_is_about(layered: Subject) -> None:
    told = "transformers:<gpt2>, published configuration, 124,439,808 parameters"
    assert told in "".join(Page(report_html(layered, description=told)).text)
    assert "configuration" not in "".join(Page(report_html(layered)).text)
