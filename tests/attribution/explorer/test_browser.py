"""The explorer in a browser: each thing that one does there, at two widths, dark and light, by keyboard alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from .conftest import served

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect
pytestmark = pytest.mark.slow
WIDE, PHONE = {"width": 1400, "height": 900}, {"width": 400, "height": 800}
OVERFLOWING = """() => [...document.querySelectorAll('main *, header *')].filter((each) => {
    const box = each.getBoundingClientRect();
    return box.right > innerWidth + 1 && !each.closest('svg, .scroll, .facets, nav, .unseen, thead');
}).map((each) => each.outerHTML.slice(0, 90))"""


class Watched:
    """A page with everything that it complains of, and every request that leaves its server."""

    def __init__(self, context: Any, address: str) -> None:
        self.page, self.address, self.complaints = context.new_page(), address, []
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._asked)

    def _said(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((self.address, "file:")):
            self.complaints.append(f"a request to {request.url}")

    def go(self, path: str, **params: str) -> Any:
        self.page.goto(f"{self.address}/{path}" + (f"?{urlencode(params)}" if params else ""))
        return self.page


@pytest.fixture
def wide(browser: Any, address: str) -> Iterator[Watched]:
    context = browser.new_context(viewport=WIDE, reduced_motion="reduce")
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    watched = Watched(context, address)
    yield watched
    context.close()
    assert watched.complaints == []


@pytest.fixture(scope="module")
def records(explored: Path) -> list[dict]:
    return [json.loads(line) for line in (explored / "traces/headwater.jsonl").read_text().splitlines()]


def places(records: list[dict]) -> dict[str, str]:
    """Every kind of page."""
    query, passage = records[0]["example_id"], records[0]["proponent_ids"][0]
    return {
        "ask": "ask",
        "browse": "browse",
        "question": f"question?{urlencode({'set': 'headwater', 'q': query})}",
        "compare": "compare",
        "one compared": f"compare?{urlencode({'a': 'headwater', 'b': 'bm25', 'q': query})}",
        "watch": "watch",
        "one watched": f"watch?{urlencode({'fact': query})}",
        "sources": "sources",
        "read": f"read?{urlencode({'p': passage, 'set': 'headwater', 'q': query})}",
        "trouble": "browse?where=rank%3Cx",
    }


def test_a_question_is_asked_and_its_address_shared(wide: Watched, records: list[dict]) -> None:
    page = wide.go("")
    expect(page.locator("h1")).to_have_text("Where does it have that from?")
    page.fill("textarea[name=prompt]", records[0]["inputs_plaintext"])
    page.fill("input[name=target]", records[0]["targets_plaintext"])
    page.click("text=Trace it")
    page.wait_for_selector("#result", timeout=90_000)
    expect(page.locator(".passages .passage").nth(19)).to_be_visible()
    expect(page.locator(".seen-dot").first).to_be_visible()
    first = page.locator(".passage .id").first.inner_text()
    shared = page.url
    page.locator(".passage .id").first.click()
    expect(page.locator("h1")).to_have_text(first)
    page.click("text=Score its tokens")
    page.wait_for_selector(".heated .heat-legend", timeout=90_000)
    assert page.locator(".heated .heat span").count() > 3

    other = Watched(wide.page.context, wide.address)
    other.page.goto(shared)
    other.page.wait_for_selector("#result", timeout=90_000)
    assert other.page.locator(".passage .id").first.inner_text() == first
    assert other.complaints == []


def test_the_model_goes_on_and_its_tokens_are_clicked(wide: Watched, records: list[dict]) -> None:
    page = wide.go("ask")
    page.fill("textarea[name=prompt]", records[0]["inputs_plaintext"])
    page.click("text=Let the model go on")
    page.wait_for_selector(".token", timeout=90_000)
    page.locator(".token").nth(2).click()
    expect(page.locator(".token.on")).to_have_count(1)
    page.locator(".token").nth(3).click()
    expect(page.locator(".token.on")).to_have_count(2)
    assert "from=2&to=3" in page.url
    page.locator(".chosen .primary").click()
    page.wait_for_selector("#result, .trouble", timeout=90_000)


def test_a_list_is_filtered_while_one_types(wide: Watched, records: list[dict]) -> None:
    page = wide.go("browse")
    relation = records[0]["relation"]
    expected = sum(record["relation"] == relation for record in records)
    page.fill("[data-live]", f'relation="{relation}"')
    expect(page.locator("[data-row]")).to_have_count(expected)
    assert "where=relation" in page.url
    assert page.locator(".figures .figure").first.inner_text() == str(expected)
    page.reload()
    assert page.locator("[data-row]").count() == expected, "the address holds the state"
    page.fill("[data-live]", "rank<")
    expect(page.locator("[data-live]")).to_have_attribute("aria-invalid", "true")
    assert page.locator("[data-row]").count() == expected, "a half-typed filter takes nothing away"
    wide.complaints.clear()  # the browser notes the refusal of the half-typed filter
    page.fill("[data-live]", "")
    expect(page.locator("[data-row]")).to_have_count(len(records))
    with page.expect_download() as download:
        page.click("text=CSV")
    assert len(Path(download.value.path()).read_text().splitlines()) == len(records) + 1


def test_comparing_reading_copying(wide: Watched, records: list[dict]) -> None:
    page = wide.go("compare", a="headwater", b="random")
    expect(page.locator(".pair-dot").first).to_be_visible()
    page.locator("[data-row] a").first.click()
    expect(page.locator("h2").nth(1)).to_contain_text("Only Headwater found")
    page.locator(".passage .id").first.click()
    page.click("text=Copy citation")
    page.wait_for_selector("text=Copied")
    assert "(Headwater)" in page.evaluate("navigator.clipboard.readText()")


def test_the_keyboard_is_enough(wide: Watched, records: list[dict]) -> None:
    page = wide.go("browse")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("j")
    page.keyboard.press("j")
    expect(page.locator("[data-row].marked")).to_have_count(1)
    page.keyboard.press("Enter")
    page.wait_for_url("**/question?**")
    name = page.locator("h1").inner_text()
    page.keyboard.press("ArrowRight")
    expect(page.locator("h1")).not_to_have_text(name)
    page.keyboard.press("?")
    expect(page.locator("#keys")).to_be_visible()
    page.keyboard.press("Escape")
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.keyboard.press("d")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert dark != before
    page.reload()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark, "the choice is kept"
    wide.go("browse").keyboard.press("/")
    page.keyboard.type("rank=1")
    assert page.input_value("[data-live]") == "rank=1"


@pytest.mark.parametrize(
    ("size", "theme", "audited"), [(WIDE, "light", True), (PHONE, "light", False), (PHONE, "dark", True)]
)
def test_every_page_is_accessible_and_fits(
    browser: Any, address: str, records: list[dict], size: dict[str, int], theme: str, audited: bool
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed").Axe()
    # The policy of the pages would not let axe in.
    context = browser.new_context(viewport=size, color_scheme=theme, reduced_motion="reduce", bypass_csp=True)
    watched = Watched(context, address)
    for name, path in places(records).items():
        page = watched.go(path)
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"], f"{name} is too wide"
        assert page.evaluate(OVERFLOWING) == [], name
        found = axe.run(page).response["violations"] if audited else []
        serious = [each for each in found if each["impact"] in ("serious", "critical")]
        told = [(each["id"], [node["html"][:120] for node in each["nodes"]][:3]) for each in serious]
        assert told == [], f"{name}, {theme}"
    assert [text for text in watched.complaints if "400" not in text] == []
    context.close()


def test_hostile_data_do_nothing(browser: Any, hostile: Path) -> None:
    with served(hostile) as address:
        context = browser.new_context(viewport=PHONE)
        watched = Watched(context, address)
        page = watched.go("browse")
        links = page.eval_on_selector_all("[data-row] a", "all => all.map((each) => each.href)")
        assert len(links) == 3
        for link in links:
            page.goto(link)
            passages = page.eval_on_selector_all(".passage .id", "all => all.map((each) => each.href)")
            for each in passages:
                page.goto(each)
                assert "taken" not in page.title() or "Passage" in page.title()
                assert page.evaluate("document.querySelectorAll('script').length") == 1
                assert page.evaluate("document.documentElement.scrollWidth") <= 400
        assert watched.complaints == []
        context.close()


def test_the_exported_files_work_from_a_disk(browser: Any, exported: Path) -> None:
    context = browser.new_context(viewport=WIDE, reduced_motion="reduce")
    watched = Watched(context, "file:")
    page = watched.page
    page.goto((exported / "index.html").as_uri())
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background not in ("rgba(0, 0, 0, 0)", "rgb(255, 255, 255)"), "the style is there"
    page.locator("[data-row] a").first.click()
    expect(page.locator(".passage").nth(5)).to_be_visible()
    page.locator(".passage .id").first.click()
    expect(page.locator(".page-text")).to_be_visible()
    page.keyboard.press("d")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != background
    assert watched.complaints == []
    context.close()


def test_leaving_lets_go_of_a_question(browser: Any, address: str) -> None:
    context = browser.new_context(viewport=WIDE)
    # Requests of a page that is going are not told to the test: the beacon is caught in the page.
    context.add_init_script("navigator.sendBeacon = (url) => { localStorage.setItem('left', url); return true; }")
    page = context.new_page()
    waiting = {"id": "x", "state": "waiting", "words": "waiting: 1 before this one", "share": 0}
    page.route("**/jobs**", lambda route: route.fulfill(json=waiting))
    page.goto(f"{address}/ask?prompt=never+asked&target=x")
    expect(page.locator("#way .words")).to_have_text("waiting: 1 before this one")
    page.goto(f"{address}/browse")
    assert page.evaluate("localStorage.getItem('left')") == "/jobs/x/leave"
    context.close()
