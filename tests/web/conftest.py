"""Chromium and running apps for the tests of pages, and what the app said when one of them fails.

Owns their lifetimes. Leaves how an app is started, and selectors, to `web.browser`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from web.browser import ROOT, SCREENSHOTS, WIDE, Server, find_chromium, keep, listen, serve
from web.browser_studies import STUDIES

_LOG_CHARS = 6000

expect.set_options(timeout=15_000)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """The installed Chromium. For a module, not for the session: while it runs, no other test can have an event loop.

    Not found: a failure where CI is set, else the test is skipped.
    """
    path = find_chromium()
    if path is None:
        reason = "no chromium is installed (Debian: apt-get install chromium)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """A window of 1440 by 900 pixels; after the test, that no page of it failed or complained."""
    context = chromium.new_context(viewport={"width": WIDE, "height": 900}, reduced_motion="reduce")
    opened = context.new_page()
    heard = listen(opened)
    yield opened
    exceptions = opened.get_by_test_id("stException").count()
    context.close()
    assert exceptions == 0, "the page shows a traceback"
    assert heard == []


@pytest.fixture(scope="session")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The app, started from the repository, with a study of each outcome; tests leave its store as it is."""
    with serve(tmp_path_factory.mktemp("shown"), cwd=ROOT) as server:
        keep(server, STUDIES.values())
        yield server


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Server]:
    """The app with a store of its own, for a test that changes it. Asked for before `page`, it ends after it."""
    with serve(tmp_path / "empty") as server:
        yield server


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows what the app said and the page as it was."""
    report = yield
    if report.failed and call.when != "teardown":
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, Server):
                text = value.log.read_text(encoding="utf-8", errors="replace")[-_LOG_CHARS:]
                report.sections.append((f"the app at {value.url} said", text))
            elif isinstance(value, Page):
                report.sections.append(("the page is in", str(_failed(value, item.name))))
    return report


def _failed(page: Page, name: str) -> Path:
    place = SCREENSHOTS / f"failed-{re.sub(r'[^A-Za-z0-9]+', '-', name)}.png"
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=place)
    return place
