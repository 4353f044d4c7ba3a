"""The report page of GPT-2 on 8 workers in a real browser, opened from a file and used by mouse and keyboard."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from selenium.webdriver import Chrome
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from sdp_compile import NeuronPolicy
from sdp_compile.formatting import size
from sdp_compile.inspector import Subject
from sdp_compile.planning.making import make_plan
from sdp_compile.policies import resolve_schedule
from sdp_compile.report_page import listing, write_report
from tests.report_page.browser import browser, open_page
from tests.report_page.subjects import HOSTILE, Named, deep, gpt2, subject_of

pytestmark = pytest.mark.timeout(180)

PATIENCE = 20  # seconds, enough for a busy machine


@pytest.fixture(scope="module")
def driver() -> Iterator[Chrome]:
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def subject() -> Subject:
    return subject_of(*gpt2(), NeuronPolicy(coverage=0.5), 8)


@pytest.fixture(scope="module")
def page(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "a report with ünïcode.html"
    assert write_report(subject, path) == path.stat().st_size
    return path


def all_of(driver: Chrome, selector: str) -> list[WebElement]:
    return driver.find_elements(By.CSS_SELECTOR, selector)


def one(driver: Chrome, selector: str) -> WebElement:
    return driver.find_element(By.CSS_SELECTOR, selector)


def text(driver: Chrome, selector: str) -> str:
    return str(driver.execute_script("return document.querySelector(arguments[0]).textContent", selector))


def shown(driver: Chrome, selector: str) -> int:
    """Returns the number of elements that are not folded away."""
    script = "return [...document.querySelectorAll(arguments[0])].filter((one) => one.checkVisibility()).length"
    return int(driver.execute_script(script, selector))


def focused(driver: Chrome) -> str:
    return driver.switch_to.active_element.text


def press(driver: Chrome, *keys: str) -> None:
    for key in keys:
        driver.switch_to.active_element.send_keys(key)


def search(driver: Chrome, words: str) -> str:
    """Types into the search box, presses Enter, and returns the message about matches."""
    one(driver, "#search").send_keys(Keys.CONTROL, "a")
    press(driver, words or Keys.DELETE, Keys.ENTER)
    return text(driver, "#found")


def click(driver: Chrome, selector: str | WebElement) -> None:
    """Scrolls an element to the middle of the window, away from sticky bars, and clicks it."""
    element = one(driver, selector) if isinstance(selector, str) else selector
    driver.execute_script("arguments[0].scrollIntoView({ block: 'center' })", element)
    element.click()


def test_it_is_small_and_opens_without_an_error_or_a_request(driver: Chrome, page: Path) -> None:
    assert page.stat().st_size < 2_000_000
    driver.get_log("performance")
    open_page(driver, page)
    assert driver.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    sent = [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]
    assert [url for url in sent if not url.startswith("data:")] == [page.as_uri()]
    assert text(driver, "h1") == "GPT2LMHeadModel"
    assert not driver.execute_script("return document.documentElement.scrollWidth > innerWidth")


def test_the_search_narrows_the_graph_and_can_be_cleared(driver: Chrome, page: Path, subject: Subject) -> None:
    open_page(driver, page)
    everything = text(driver, "#found")
    found = search(driver, "h.3.mlp C_FC")
    rows = all_of(driver, "#listing .row")
    assert found == f"{len(rows)} of {everything}"
    assert 0 < len(rows) < 12
    for row in rows:
        words = row.find_element(By.XPATH, "ancestor::details[1]").text.lower()
        assert "h.3.mlp" in words and "c_fc" in words
    assert {mark.text for mark in all_of(driver, "#listing mark")} == {"h.3.mlp", "c_fc"}
    shape = subject.plan.local_shape("transformer.h.3.mlp.c_fc.weight", 0)
    assert shape is not None
    sliced = next(row for row in rows if row.text.startswith("sliced") and ".weight" in row.text)
    assert f"768 × 3072 → 768 × {shape[1]}" in sliced.text
    assert search(driver, "no such thing") == f"0 of {everything}"
    one(driver, "#search").send_keys(Keys.CONTROL, "a", Keys.DELETE)  # without Enter: the search follows the typing
    WebDriverWait(driver, PATIENCE).until(lambda _: text(driver, "#found") == everything)
    click(driver, "#changes")
    for run in all_of(driver, "#listing .run > summary"):  # many rows of one kind, here the all-reduces
        click(driver, run)

    def kinds(driver: Chrome) -> set[str]:
        return {one.text for one in all_of(driver, "#listing .row .kind")}

    # A run is filled by its toggle event, which the browser queues after the click.
    WebDriverWait(driver, PATIENCE).until(lambda _: kinds(driver) == {"sync", "sliced", "rewritten"})


def test_repeated_layers_are_folded_until_asked_for(driver: Chrome, page: Path) -> None:
    open_page(driver, page)
    folds = all_of(driver, "#listing .fold")
    assert folds and "transformer.h.11" in folds[-1].text
    assert "alike transformer.h." in folds[-1].text
    before = shown(driver, "#listing .row")
    click(driver, folds[-1].find_element(By.CSS_SELECTOR, "summary"))
    WebDriverWait(driver, PATIENCE).until(lambda _: shown(driver, "#listing .row") > 2 * before)
    click(driver, "#fold")
    assert shown(driver, "#listing .row") == 0
    click(driver, "#unfold")
    names = [row.text for row in all_of(driver, "#listing .group > summary b")]
    assert {f"transformer.h.{layer}.attn.c_proj" for layer in range(12)} <= set(names)

    lines = shown(driver, ".tree .line")
    assert "1 to 11" in one(driver, ".tree .alike summary").text
    click(driver, "[data-fold=open]")
    assert shown(driver, ".tree .line") > 2 * lines
    click(driver, "[data-fold=closed]")
    assert shown(driver, ".tree .line") < lines


def test_repeated_layers_of_a_deep_model_are_left_out_and_named(
    driver: Chrome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "MOST_ROWS", 20)
    subject = subject_of(*deep(6), NeuronPolicy(coverage=0.5), 64)
    write_report(subject, tmp_path / "page.html")
    open_page(driver, tmp_path / "page.html")
    assert "alike" in text(driver, "#found")
    assert search(driver, "4.down linear").startswith("0 of")  # of omitted layers only the names are known
    search(driver, "")
    click(driver, "#listing .fold > summary")
    WebDriverWait(driver, PATIENCE).until(lambda _: "inspect graph" in one(driver, "#listing .fold").text)
    assert "2, 3, 4, 5" in one(driver, "#listing .fold .more").text
    assert "of every 8" in one(driver, "#lane").text
    assert driver.get_log("browser") == []


def test_pointing_at_units_shows_their_owners(driver: Chrome, page: Path, subject: Subject) -> None:
    open_page(driver, page)
    plan = subject.plan
    names = [element.text for element in all_of(driver, ".family-name > .name")]
    assert len(names) == 2 and len(plan.families) == 24  # the other eleven layers have alike families
    for number, name in enumerate(names):
        family = next(family for family in plan.families if family.name == name)
        buttons = all_of(driver, ".strip")[number].find_elements(By.TAG_NAME, "button")
        first = 0
        for (units, owners), button in zip(plan.owners(family).runs, buttons, strict=True):
            ActionChains(driver).move_to_element(button).perform()
            facts = text(driver, "#facts")
            last = first + units - 1
            assert name in facts and f"of {family.units:,}" in facts
            assert (f"units {first} to {last}" if units > 1 else f"unit {first}") in facts
            assert f"{len(owners)} owners: " in facts
            assert size(sum(family.unit_bytes[first : last + 1])) in facts
            first = last + 1
        assert "owners: 0, 1, 6, 7" in "".join(str(button.get_attribute("aria-label")) for button in buttons)
    click(driver, "#lane option[value='3']")
    owned = [len(plan.owned(name, 3)) for name in names]
    assert [one.text for one in all_of(driver, ".mine")] == [
        f"owns {count:,} of {plan.owners(name).__len__():,}" for name, count in zip(names, owned, strict=True)
    ]


def test_a_phase_is_chosen(driver: Chrome, subject: Subject, tmp_path: Path) -> None:
    path, schedule = tmp_path / "phases.html", resolve_schedule("growing")
    write_report(subject, path, schedule=schedule)
    open_page(driver, path)
    assert [one.is_displayed() for one in all_of(driver, ".owners")] == [True, False, False]
    click(driver, "#phase option[value='1']")
    assert [one.is_displayed() for one in all_of(driver, ".owners")] == [False, True, False]
    plan = make_plan(subject.analysis, schedule.phases[1].policy, 8)
    click(driver, "#lane-1 option[value='3']")
    names = [element.text for element in all_of(driver, ".family-name > .name") if element.is_displayed()]
    expected = [f"owns {len(plan.owned(name, 3)):,} of {len(plan.owners(name)):,}" for name in names]
    assert len(names) == 2 and [one.text for one in all_of(driver, ".mine") if one.is_displayed()] == expected
    button = next(one for one in all_of(driver, ".strip button") if one.is_displayed())
    ActionChains(driver).move_to_element(button).perform()
    first = plan.owners(names[0]).runs
    assert f"{len(next(iter(first))[1])} owners: " in text(driver, "#facts")
    click(driver, "#phase option[value='2']")  # all workers own everything
    assert [one.is_displayed() for one in all_of(driver, ".owners")] == [False, False, True]
    assert text(driver, "#facts") == "" and driver.get_log("browser") == []


def test_everything_works_by_keyboard(driver: Chrome, page: Path) -> None:
    open_page(driver, page)
    one(driver, ".tree summary").send_keys(Keys.ARROW_DOWN)
    assert focused(driver).startswith("transformer")
    lines = shown(driver, ".tree .line")
    press(driver, Keys.ARROW_LEFT)
    assert shown(driver, ".tree .line") < lines
    press(driver, Keys.ARROW_RIGHT)
    assert shown(driver, ".tree .line") == lines
    press(driver, Keys.ARROW_RIGHT, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert focused(driver).startswith("transformer")

    one(driver, ".strip button").send_keys(Keys.ARROW_RIGHT)
    second = text(driver, "#facts")
    press(driver, Keys.ARROW_DOWN)
    assert "mlp" in text(driver, "#facts") != second
    assert len(all_of(driver, ".strip button[tabindex='0']")) == len(all_of(driver, ".strip"))
    press(driver, Keys.ARROW_LEFT)
    assert "units 0 to" in text(driver, "#facts")

    one(driver, "body").send_keys("/")
    assert driver.switch_to.active_element.get_attribute("id") == "search"
    press(driver, "view_9", Keys.ENTER, Keys.ARROW_DOWN)
    assert driver.switch_to.active_element.tag_name == "summary"
    press(driver, Keys.ARROW_DOWN, Keys.ENTER)
    link = WebDriverWait(driver, PATIENCE).until(lambda _: all_of(driver, "#listing .row dl a"))[0]
    name = link.text
    link.send_keys(Keys.ENTER)
    assert text(driver, "#found").startswith("7") and not one(driver, "#search").get_attribute("value")
    assert name in focused(driver)
    assert driver.execute_script("return getComputedStyle(document.activeElement).outlineStyle") == "solid"


CONTRAST = """
const channels = (color) => color.match(/[\\d.]+/g).map(Number);
const light = (color) => channels(color).slice(0, 3).map((value) => value / 255)
  .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
  .reduce((sum, value, at) => sum + value * [0.2126, 0.7152, 0.0722][at], 0);
const behind = (element) => {
  for (let one = element; one; one = one.parentElement) {
    const color = getComputedStyle(one).backgroundColor;
    if (channels(color)[3] !== 0) return color;
  }
};
const texts = [...document.querySelectorAll("body *")].filter((element) =>
  element.checkVisibility() && !element.closest(".quiet, .skip, svg, option")
  && [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()));
return texts.map((element) => {
  const [one, other] = [light(getComputedStyle(element).color), light(behind(element))].sort((a, b) => b - a);
  return [(one + 0.05) / (other + 0.05), element.className + ": " + element.textContent.slice(0, 40)];
}).filter(([ratio]) => ratio < 4.5);
"""


def test_the_theme_is_the_systems_until_one_is_chosen(driver: Chrome, page: Path) -> None:
    grounds = {}
    for scheme in ("light", "dark"):
        open_page(driver, page, scheme)
        grounds[scheme] = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert one(driver, "#theme").get_attribute("aria-pressed") == str(scheme == "dark").lower()
        assert driver.execute_script(CONTRAST) == []  # WCAG 2.2, 1.4.3: text contrast of at least 4.5:1
    assert grounds["light"] != grounds["dark"]
    click(driver, "#theme")
    assert driver.execute_script("return getComputedStyle(document.body).backgroundColor") == grounds["light"]
    open_page(driver, page, "dark")
    assert driver.execute_script("return getComputedStyle(document.body).backgroundColor") == grounds["light"]
    driver.execute_script("localStorage.clear()")


def test_a_narrow_window_scrolls_vertically_only(driver: Chrome, page: Path) -> None:
    open_page(driver, page, width=360)
    click(driver, "[data-fold=open]")
    assert driver.execute_script("return document.documentElement.scrollWidth") <= 360
    assert driver.get_log("browser") == []


def test_hostile_names_run_nothing_and_are_shown(driver: Chrome, tmp_path: Path) -> None:
    subject = subject_of(Named(HOSTILE), (torch.zeros(2, 6),), NeuronPolicy(coverage=0.5), 2)
    write_report(subject, tmp_path / "page.html", command="sdp-compile report '<b>x</b>'")
    open_page(driver, tmp_path / "page.html")
    assert driver.execute_script("return window.hacked") is None
    assert driver.get_log("browser") == []
    listing, tree = text(driver, "#listing"), text(driver, ".tree")
    for name in HOSTILE:
        assert name in listing and name in tree
    search(driver, HOSTILE[0].replace(" ", ""))
    search(driver, "<img")
    assert {mark.text for mark in all_of(driver, "#listing mark")} == {"<img"}
    assert driver.execute_script("return window.hacked") is None


def test_without_a_browser_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("SDP_COMPILE_BROWSER", raising=False)
    with pytest.raises(pytest.fail.Exception, match="apt-get install chromium chromium-driver"), browser():
        pass
