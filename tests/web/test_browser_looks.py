"""How the pages look and read, in a real browser: fits, alternatives, marks; the pictures are for people to judge."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from web import browser as at
from web.browser import NARROW, WIDE, Server
from web.browser_studies import STUDIES

pytestmark = pytest.mark.browser


_CHARTS = ("latency and memory", "p50", "tokens/s", "peak memory", "distribution", "where the time goes")


def test_every_chart_has_a_text_alternative_that_is_also_on_the_page(page: Page, shown: Server) -> None:
    at.visit(page, shown, f"/study?study={STUDIES['synthetic'].id}")
    seen = set()
    for kind in _CHARTS:
        alt = at.pick_chart(page, kind)
        figure = page.get_by_role("figure")
        assert re.search(r"\w+ .*\.", alt)
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


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_pages_fit_their_window_and_complain_of_nothing(shown: Server, empty: Server, page: Page, width: int) -> None:
    wide: dict[str, dict[str, int]] = {}
    for name, (server, path, folded) in _places(shown, empty).items():
        page.emulate_media(color_scheme="light")
        page.set_viewport_size({"width": width, "height": 900 if width == WIDE else 844})
        at.visit(page, server, path)
        for part in folded:
            at.unfold(page, part)
        at.whole(page, width)
        at.pictures(page, f"{name}-{width}")
        assert page.get_by_test_id("stException").count() == 0, name
        if beyond := at.sideways(page):
            wide[name] = beyond
    assert wide == {}


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_every_chart_is_drawn_at_both_widths(page: Page, shown: Server, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 844})
    at.visit(page, shown, f"/study?study={STUDIES['chosen'].id}")
    for place, kind in enumerate(_CHARTS):
        at.pick_chart(page, kind)
        expect(page.locator(".js-plotly-plot .main-svg").first).to_be_visible()
        at.pictures(page, f"chart{place}-{width}", page.get_by_role("figure"))
        drawn = page.locator(".js-plotly-plot .main-svg").first.bounding_box()
        assert drawn is not None
        assert drawn["width"] <= width


_Place = tuple[Server, str, tuple[str, ...]]


def _places(shown: Server, empty: Server) -> dict[str, _Place]:
    """By name, the server, the path, and what is unfolded there."""
    two = f"a={STUDIES['chosen'].id}&b={STUDIES['slower'].id}"
    every = ("chosen", "none-meets", "undecided", "synthetic", "failed", "markup")
    studies: dict[str, _Place] = {f"study-{name}": (shown, f"/study?study={STUDIES[name].id}", ()) for name in every}
    chosen = studies["study-chosen"]
    return {
        "new": (shown, "/", ()),
        "new-unfolded": (shown, "/", ("8 prompts", "How it is run, and prices")),
        **studies,
        "study-unfolded": (*chosen[:2], ("What was measured", "What if", "Run this plan yourself", "Filter the")),
        "history": (shown, "/history", ("Take in a study",)),
        "compare": (shown, f"/compare?{two}", ()),
        "machine": (shown, "/machine", ()),
        "empty-study": (empty, "/study", ()),
        "empty-compare": (empty, "/compare", ()),
    }
