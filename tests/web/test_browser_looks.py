"""How the pages look and read, in a real browser: fits, alternatives, marks; the pictures are for people to judge."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Browser, Page, expect

from web import browser as at
from web.browser import NARROW, WIDE, Server
from web.browser_studies import STUDIES

pytestmark = pytest.mark.browser


_CHARTS = ("latency and memory", "p50", "tokens/s", "peak memory", "distribution", "where the time goes")


def test_every_chart_has_a_text_alternative_that_is_also_on_the_page(page: Page, shown: Server) -> None:
    at.visit(page, shown, f"/study?study={STUDIES['synthetic'].id}")
    seen = set()
    for kind in _CHARTS:
        at.pick(page, "chart", kind)
        expect(page.get_by_role("radio", name=kind, exact=True)).to_be_checked()
        at.drawn(page)
        figure = page.get_by_role("figure")
        expect(figure).to_have_attribute("aria-label", re.compile(r"\w+ .*\."))
        alt = figure.get_attribute("aria-label") or ""
        expect(page.get_by_test_id("stCaptionContainer").filter(has_text=alt[:60])).to_be_visible()
        expect(figure).to_contain_text(re.compile(r"synthetic\s*weights"))  # a title of several lines
        seen.add(alt)
    assert len(seen) == len(_CHARTS)


def test_synthetic_weights_and_oversubscribed_threads_stand_where_the_figures_are(page: Page, shown: Server) -> None:
    at.visit(page, shown, f"/study?study={STUDIES['synthetic'].id}")
    expect(at.title(page)).to_contain_text("synthetic weights")
    choice = page.locator(".st-key-choice")
    for mark in ("synthetic weights", "oversubscribed"):
        expect(choice.get_by_text(mark).first).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_pages_fit_their_window_and_complain_of_nothing(
    chromium: Browser, shown: Server, empty: Server, width: int, scheme: str
) -> None:
    height = 900 if width == WIDE else 844
    context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    heard = at.listen(page)
    wide: dict[str, dict[str, int]] = {}
    for name, (server, path) in _places(shown, empty).items():
        page.set_viewport_size({"width": width, "height": height})
        at.visit(page, server, path)
        at.whole(page, width)
        at.picture(page, f"{name}-{width}-{scheme}")
        assert page.get_by_test_id("stException").count() == 0, name
        if beyond := at.sideways(page):
            wide[name] = beyond
    for place, kind in enumerate(_CHARTS):
        at.visit(page, shown, f"/study?study={STUDIES['chosen'].id}")
        at.pick(page, "chart", kind)
        at.whole(page, width)
        figure = page.get_by_role("figure")
        expect(figure.locator(".main-svg").first).to_be_visible()
        figure.screenshot(path=at.SCREENSHOTS / f"chart{place}-{width}-{scheme}.png")
    context.close()
    assert wide == {}
    assert heard == []


def _places(shown: Server, empty: Server) -> dict[str, tuple[Server, str]]:
    studies = {f"study-{name}": (shown, f"/study?study={study.id}") for name, study in STUDIES.items()}
    return {
        "new": (shown, "/"),
        **studies,
        "history": (shown, "/history"),
        "compare": (shown, f"/compare?a={STUDIES['chosen'].id}&b={STUDIES['slower'].id}"),
        "machine": (shown, "/machine"),
        "empty-study": (empty, "/study"),
        "empty-history": (empty, "/history"),
        "empty-compare": (empty, "/compare"),
    }
