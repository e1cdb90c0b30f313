"""What the pages say of input that cannot be used, and how they show text that would be markup; in a real browser."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from web import browser as at
from web.browser import Server
from web.browser_studies import MARKUP, STUDIES

pytestmark = pytest.mark.browser


def test_a_first_start_asks_nothing_on_the_terminal(tmp_path: Path) -> None:
    """Streamlit would ask a new user for an address, and serve no page before the answer."""
    with at.serve(tmp_path / "app", home=tmp_path) as server:
        assert "mail" not in server.log.read_text()


# --- bad input ---


def _refused(page: Page, text: str) -> None:
    """The page says it in words and offers no start."""
    expect(at.errors(page).filter(has_text=text).first).to_be_visible()
    expect(page.get_by_role("button", name=at.START)).to_have_count(0)
    assert "Traceback" not in page.locator("body").inner_text()


def test_a_study_without_a_model_is_not_started(page: Page, shown: Server) -> None:
    at.visit(page, shown)
    at.select_many(page, "models")
    _refused(page, "choose at least one model")


def test_a_path_is_no_model_id_of_the_hub(page: Page, shown: Server) -> None:
    at.visit(page, shown)
    for id in ("../../etc", "/etc/passwd", "org/../../etc", "~/models/x", "models\\x", "just-a-name"):
        at.write(page, "model ids of the hub", id)
        _refused(page, f"{id!r} is not a model id of the hub")


def test_no_pasted_prompt_is_said_and_what_was_entered_before_stays(page: Page, shown: Server) -> None:
    at.visit(page, shown)
    at.write(page, "max_new_tokens", "7")
    at.pick(page, "prompts", "paste")
    _refused(page, "no prompt is pasted yet")
    at.write(page, "a prompt a line", " \n\t\n")
    _refused(page, "no prompt is pasted yet")
    at.write(page, "a prompt a line", "one\ntwo\n")
    expect(page.get_by_text("2 prompts: too few to speak for others")).to_be_visible()
    expect(page.get_by_role("button", name=at.START)).to_be_visible()
    expect(at.field(page, "max_new_tokens")).to_have_value("7")


BAD_FILES = (
    ("latin.txt", b"caf\xe9 \xff\xfe\n", "'latin.txt' is not UTF-8 text"),
    ("blank.txt", b"\n \n", "holds no prompts"),
    ("cut.jsonl", b'{"prompt": "good"}\n{"prompt": \n', "line 2: not JSON"),
    ("list.jsonl", b'{"prompt": "good"}\n["no object"]\n', "line 2: needs an object"),
    ("none.jsonl", b'{"prompt": "good", "max_new_tokens": 0}\n', "at least 1, not 0"),
)


def test_an_uploaded_file_that_cannot_be_used_is_refused_with_its_line(page: Page, shown: Server) -> None:
    at.visit(page, shown)
    at.pick(page, "prompts", "upload")
    _refused(page, "no file of prompts is uploaded yet")
    for name, content, said in BAD_FILES:
        at.upload(page, name, content)
        _refused(page, said)
    at.upload(page, "good.txt", b"one\ntwo\n")
    expect(page.get_by_role("button", name=at.START)).to_be_visible()


def test_bad_lengths_are_refused(page: Page, shown: Server) -> None:
    at.visit(page, shown)
    at.pick(page, "prompts", "by length")
    expect(page.get_by_role("button", name=at.START)).to_be_visible()
    for lengths, said in (("32,many", "'32,many'"), ("0", "not 0"), ("-5", "not -5"), ("", "length"), ("1.5", "'1.5'")):
        at.write(page, "lengths in tokens", lengths)
        _refused(page, said)


def test_free_hardware_is_no_price(page: Page, shown: Server) -> None:
    at.visit(page, shown)
    at.unfold(page, "How it is run, and prices")
    at.write(page, "USD per vCPU-hour", "0")
    at.write(page, "USD per GB-hour of memory", "0")
    _refused(page, "price")


def test_an_unknown_study_in_the_address_is_named(page: Page, shown: Server) -> None:
    for path in ("/study?study=nonesuch", "/compare?a=nonesuch", "/study?study=<b>x</b>"):
        page.goto(shown.url + path)
        expect(at.errors(page)).to_contain_text("unknown study")
        expect(at.errors(page)).to_contain_text(path.rpartition("=")[2])
        expect(at.errors(page).locator("b")).to_have_count(0)


# --- text that would be something else ---


def test_a_prompt_that_looks_like_markup_is_shown_as_it_was_written(page: Page, shown: Server) -> None:
    at.visit(page, shown)
    at.pick(page, "prompts", "upload")
    at.upload(page, "prompts.jsonl", json.dumps({"prompt": MARKUP}).encode())
    at.unfold(page, "1 prompts")
    expect(page.get_by_text(MARKUP, exact=True)).to_be_visible()
    _nothing_rendered(page)


@pytest.mark.parametrize("which", ["markup", "hostile"])
def test_a_model_whose_name_looks_like_markup_is_shown_as_it_is_called(page: Page, shown: Server, which: str) -> None:
    study = STUDIES[which]
    name = at.as_written(study.space.models[0])
    at.visit(page, shown, f"/study?study={study.id}")
    expect(at.chosen_plan(page)).to_contain_text(name)
    for title in ("What was measured, and where", "Run this plan yourself"):
        at.unfold(page, title)
    expect(page.get_by_test_id("stExpander").first).to_contain_text(name)
    for chart in ("distribution", "latency and memory"):
        assert at.pick_chart(page, chart)
    _nothing_rendered(page)
    at.visit(page, shown, "/history")
    at.select_one(page, "study", study.id)
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.get_by_role("dialog")).to_contain_text(name)
    _nothing_rendered(page)
    at.visit(page, shown, f"/compare?a={study.id}&b={study.id}")
    expect(page.get_by_role("figure")).to_be_visible()
    _nothing_rendered(page)


def _nothing_rendered(page: Page) -> None:
    """None of the markup became an element; a script that ran would have opened a dialog, which fails the test."""
    main = page.get_by_test_id("stMain")
    for selector in (
        'img[src="x"]',
        ".katex",
        'a[href*="evil"]',
        'b:text-is("big")',
        'strong:text-is("bold")',
        "script",
    ):
        expect(main.locator(selector)).to_have_count(0)
    expect(main.get_by_test_id("stIconMaterial").filter(has_text="delete")).to_have_count(0)
