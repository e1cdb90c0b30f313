"""The web app as its users meet it: a real browser, a real server, and a real engine where something is measured."""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from inferplan import locks
from inferplan.report.csvfiles import RESULT_COLUMNS, SUMMARY_COLUMNS
from inferplan.selection import Objective, Selection, parse_sla
from inferplan.study import Study
from inferplan.web import jobs
from web import browser as at
from web.browser import NARROW, WIDE, Server, listen
from web.browser_studies import STUDIES

pytestmark = pytest.mark.browser

PROMPTS = "".join(f"The story of the number {n} begins\n" for n in range(8))
_ROUNDS = 12  # of the study that is cancelled
_MINUTES_MS = 180_000  # how long a tiny study may take on a busy machine before the test gives it up


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The app with two models to measure: `deep` is slow and small, `wide` is fast and takes more memory.

    One thread each: threads of two processes that wait for one core take a hundred times as long.
    """
    root = tmp_path_factory.mktemp("real")
    at.make_checkpoint(root / "models" / "deep", layers=64, width=32)
    at.make_checkpoint(root / "models" / "wide", layers=1, width=256)
    with at.serve(root, models=root / "models") as server:
        yield server


# --- a study with a real engine, from the start to the choice ---


@dataclass(frozen=True, slots=True)
class Course:
    """A study as a user saw it: begun on the page, looked at from two windows, reloaded in the middle, ended.

    Attributes:
        prompts: of the file that the command line reads, as the page gives it.
        measured: what the table said of the first plan that was measured.
        progress: the line above the bar then, after the reload, and in the second window.
        titles: of the three pages.
        choice: the plan that the page called chosen in the end.
    """

    id: str
    command: str
    prompts: str
    measured: str
    progress: tuple[str, str, str]
    titles: tuple[str, str, str]
    choice: str


@pytest.fixture(scope="module")
def course(chromium: Browser, real: Server) -> Iterator[Course]:
    """One small study, measured once for all tests that need real figures; its page is closed in the end."""
    context = chromium.new_context(viewport={"width": WIDE, "height": 900}, reduced_motion="reduce")
    page, second = context.new_page(), context.new_page()
    heard = listen(page) + listen(second)
    second.set_viewport_size({"width": NARROW, "height": 844})
    second.emulate_media(color_scheme="dark")
    try:
        yield _follow(page, second, real)
    finally:
        context.close()
    assert heard == []


def _follow(page: Page, second: Page, server: Server) -> Course:
    _ask_for(page, server, ("deep", "wide"), caches=("on", "off"), tokens=24)
    expect(page.get_by_role("heading", name=re.compile("^4 plans"))).to_be_visible()
    command = page.get_by_test_id("stCode").last.inner_text()
    with page.expect_download() as prompts:
        page.get_by_role("button", name="prompts.txt").click()
    page.get_by_role("button", name=at.START).click()
    bar = page.get_by_test_id("stProgress")
    expect(bar).to_contain_text(re.compile(r"\b[1-3] of 4 processes"), timeout=_MINUTES_MS)
    expect(at.grid(page, "each plan with its state")).to_contain_text("measured, 1 process")
    first, measured = bar.inner_text(), at.grid(page, "each plan with its state").inner_text()
    id = re.sub(r".*[?&]study=([\w-]+).*", r"\1", page.url)
    titles = [at.title(page).inner_text()]
    at.picture(page, "live-1440-light")
    page.reload()
    expect(bar).to_contain_text("of 4 processes", timeout=30_000)
    again = bar.inner_text()
    at.visit(second, server, "/study")
    expect(second.get_by_test_id("stProgress")).to_contain_text("of 4 processes")
    other = second.get_by_test_id("stProgress").inner_text()
    at.picture(second, "live-390-dark")
    titles += [at.title(one).inner_text() for one in (page, second)]
    expect(page.get_by_text("Chosen plan", exact=True)).to_be_visible(timeout=_MINUTES_MS)
    expect(second.get_by_text("Chosen plan", exact=True)).to_be_visible()
    choice = at.chosen_plan(page).inner_text()
    return Course(
        id,
        command,
        prompts.value.path().read_text(encoding="utf-8"),
        measured,
        (first, again, other),
        (titles[0], titles[1], titles[2]),
        choice,
    )


def _ask_for(
    page: Page,
    server: Server,
    models: tuple[str, ...],
    *,
    tokens: int,
    caches: tuple[str, ...] = ("on",),
    rounds: int = 1,
) -> None:
    """Fill in the form: each model at FP32 on one thread, every round for every plan."""
    at.visit(page, server)
    at.select_many(page, "models", *models)
    at.pick(page, "precisions", "fp32")
    at.pick(page, "threads", "1")
    at.pick(page, "KV cache", *caches)
    at.pick(page, "prompts", "paste")
    at.write(page, "a prompt a line", PROMPTS)
    at.write(page, "exact limit, ms", "60000")
    _command_says(page, "p50<=60000ms", "--threads 1", "--precisions fp32", "--prompts prompts.txt")
    at.write(page, "max_new_tokens", str(tokens))
    at.unfold(page, "How it is run, and prices")
    at.write(page, "rounds", str(rounds))
    at.tick(page, "give every round to every plan")
    # The browser itself takes the machine from what is timed; here that is no fault.
    at.tick(page, "do not mark samples that other processes disturbed")
    _command_says(page, f"--max_new_tokens {tokens}", "--all-rounds", "--no-watch")


def _command_says(page: Page, *flags: str) -> None:
    for flag in flags:
        expect(page.get_by_test_id("stCode").last).to_contain_text(flag)


@pytest.mark.slow
def test_a_study_started_on_the_page_is_seen_to_progress_and_found_again(course: Course, real: Server) -> None:
    study = real.study(course.id)
    assert study.finished
    assert len(study.plans) == 4
    assert {m.status for m in study.measurements} == {"ok"}
    assert "measured, 1 process" in course.measured
    assert "waiting" in course.measured or "measuring" in course.measured
    assert {re.sub(r"^\d of (4 processes).*", r"\1", text.strip(), flags=re.DOTALL) for text in course.progress} == {
        "4 processes"
    }
    assert set(course.titles) == {f"inferplan study {course.id}"}
    winner = study.select().winner
    assert winner is not None
    assert course.choice == winner.plan.id


@pytest.mark.slow
def test_the_command_line_that_the_page_shows_asks_for_the_same(
    course: Course, real: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inferplan import cli, terms

    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text(course.prompts, encoding="utf-8")
    arguments = cli.parse(shlex.split(course.command)[1:])
    study = real.study(course.id)
    assert terms.space_of(arguments) == study.space
    assert terms.new_sla(arguments) == study.sla
    assert terms.settings_of(arguments) == study.settings
    assert terms.workload_of(arguments) == study.workload


# --- what if ---


@dataclass(frozen=True, slots=True)
class Limits:
    """p50 limits in ms, with what is chosen under each: `loose` and `tight` two plans, `none` no plan."""

    loose: float
    tight: float
    none: float
    first: str
    second: str


def _limits(study: Study) -> Limits:
    """Limits under which, minimizing memory, another plan is chosen when the SLA is tightened, and then none."""
    memory = Objective("memory")

    def under(ms: float) -> Selection:
        return study.select(parse_sla([f"p50<={ms:g}ms"]), memory)

    judged = under(1e6).ranked
    ends = sorted(round(1050 * j.reachable, 1) for r in judged for j in r.judgements if j.reachable is not None)
    none = round(500 * min(r.p50_s for r in judged if r.p50_s is not None), 3)
    first = under(ends[-1]).winner
    assert first is not None
    assert under(none).outcome == "none_meets"
    for ms in reversed(ends):
        other = under(ms).winner
        if other is not None and other.plan != first.plan:
            return Limits(ends[-1], ms, none, first.plan.id, other.plan.id)
    raise AssertionError(f"one plan is both the fastest and the smallest: {first.plan.id}")


@pytest.mark.slow
def test_moving_the_sla_of_a_measured_study_chooses_another_plan_then_none_then_the_first_again(
    page: Page, course: Course, real: Server
) -> None:
    study = real.study(course.id)
    limits = _limits(study)
    at.visit(page, real, f"/study?study={course.id}")
    at.unfold(page, "What if")
    at.pick(page, "minimize", "peak memory")
    at.write(page, "exact limit, ms", f"{limits.loose:g}")
    expect(at.chosen_plan(page)).to_have_text(limits.first)
    at.write(page, "exact limit, ms", f"{limits.tight:g}")
    expect(at.chosen_plan(page)).to_have_text(limits.second)
    at.write(page, "exact limit, ms", f"{limits.none:g}")
    expect(at.chosen_plan(page)).to_have_text(f"No plan meets p50<={limits.none:.15g}ms")
    expect(page.get_by_text("What if: p50")).to_be_visible()
    at.write(page, "exact limit, ms", f"{limits.tight:g}")
    expect(at.chosen_plan(page)).to_have_text(limits.second)
    assert real.study(course.id) == study, "nothing was run, and the study keeps its own terms"


def test_the_slider_and_the_exact_limit_move_each_other(page: Page, shown: Server) -> None:
    at.visit(page, shown, f"/study?study={STUDIES['chosen'].id}")
    at.unfold(page, "What if")
    slider = page.get_by_role("slider", name="limit, ms")
    slider.press("ArrowRight")
    expect(at.field(page, "exact limit, ms")).to_have_value("1510")
    at.write(page, "exact limit, ms", "12000")
    expect(slider).to_have_value("5000")
    expect(at.field(page, "exact limit, ms")).to_have_value("12000")


def test_the_way_back_to_the_terms_of_the_study_takes_every_control_with_it(page: Page, shown: Server) -> None:
    at.visit(page, shown, f"/study?study={STUDIES['chosen'].id}")
    before = at.chosen_plan(page).inner_text()
    at.unfold(page, "What if")
    at.pick(page, "minimize", "peak memory")
    at.write(page, "exact limit, ms", "100")
    at.write(page, "USD per vCPU-hour", "3")
    expect(at.chosen_plan(page)).to_contain_text("No plan meets")
    page.get_by_role("button", name="Back to the terms of the study").click()
    expect(at.chosen_plan(page)).to_have_text(before)
    expect(at.field(page, "exact limit, ms")).to_have_value("1500")
    expect(at.field(page, "USD per vCPU-hour")).not_to_have_value("3")
    expect(page.get_by_role("radio", name="latency (p50)")).to_be_checked()
    # What the browser shows is also what it sends: the next change must not bring the old ones back.
    at.write(page, "exact limit, ms", "1400")
    expect(page.get_by_text("What if: p50<=1400ms, minimize latency")).to_be_visible()


def test_a_memory_limit_chooses_again_without_measuring(page: Page, shown: Server) -> None:
    study = STUDIES["chosen"]
    winner = study.select().winner
    assert winner is not None
    assert winner.peak_bytes is not None
    limit_mb = winner.peak_bytes / 1e6 - 1
    other = study.select(parse_sla(["p50<=1500ms", f"peak_rss<={limit_mb:.10g}MB"])).winner
    assert other is not None
    assert other.plan != winner.plan
    at.visit(page, shown, f"/study?study={study.id}")
    expect(at.chosen_plan(page)).to_have_text(winner.plan.id)
    at.unfold(page, "What if")
    at.select_many(page, "further constraints", "peak_rss")
    at.write(page, "peak_rss at most, MB", f"{limit_mb:.10g}")
    expect(at.chosen_plan(page)).to_have_text(other.plan.id)


# --- take it away ---


def _rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    return list(reader.fieldnames or ()), rows


@pytest.mark.slow
def test_the_files_taken_from_the_page_hold_what_the_store_holds(
    page: Page, course: Course, real: Server, tmp_path: Path
) -> None:
    study = real.study(course.id)
    at.visit(page, real, f"/study?study={course.id}")
    expect(at.chosen_plan(page)).to_have_text(course.choice)
    columns, results = _rows(at.download(page, "results.csv", tmp_path))
    assert columns == list(RESULT_COLUMNS)
    taken = {(row["plan_id"], row["prompt_index"]): float(row["latency_ms"]) for row in results}
    measured = {(m.plan.id, str(s.index)): s.latency_s * 1000 for m in study.measurements for s in m.samples}
    assert len(results) == sum(len(m.samples) for m in study.measurements)
    assert taken == pytest.approx(measured)

    columns, summary = _rows(at.download(page, "summary.csv", tmp_path))
    assert columns == list(SUMMARY_COLUMNS)
    assert {row["plan_id"] for row in summary} == {plan.id for plan in study.plans}
    _, chosen = _rows(at.download(page, "chosen_plan.csv", tmp_path))
    assert [row["plan_id"] for row in chosen] == [course.choice]
    assert chosen[0] in summary

    report = json.loads(at.download(page, "report.json", tmp_path).read_text(encoding="utf-8"))
    assert course.choice in json.dumps(report)
    html = at.download(page, "report.html", tmp_path)
    page.goto(html.as_uri())
    expect(page.locator("body")).to_contain_text(course.choice)


@pytest.mark.slow
def test_an_exported_study_is_taken_in_by_another_store(
    course: Course, real: Server, empty: Server, page: Page, tmp_path: Path
) -> None:
    at.visit(page, real, f"/study?study={course.id}")
    file = at.download(page, f"study-{course.id}.json", tmp_path)
    at.visit(page, empty, "/history")
    expect(page.get_by_text("The store has no study yet.")).to_be_visible()
    at.unfold(page, "Take in a study")
    at.upload(page, file.name, file.read_bytes())
    page.get_by_role("button", name="Take it in").click()
    expect(page.get_by_text(f"Study {course.id} is in the store")).to_be_visible()
    assert empty.study(course.id) == real.study(course.id)
    at.visit(page, empty, "/history")
    expect(at.grid(page, "every study in the store")).to_contain_text(course.id)


def test_a_file_that_is_no_study_is_refused_in_words(empty: Server, page: Page) -> None:
    at.visit(page, empty, "/history")
    at.unfold(page, "Take in a study")
    at.upload(page, "broken.json", b'{"format": "something else"}')
    page.get_by_role("button", name="Take it in").click()
    expect(at.errors(page).last).to_contain_text("not an exported study")
    assert empty.ids == ()


# --- cancel, resume, wait ---


@pytest.mark.slow
def test_a_cancelled_study_keeps_what_was_measured_and_is_resumed_to_its_end(page: Page, real: Server) -> None:
    _ask_for(page, real, ("deep",), tokens=48, rounds=_ROUNDS)  # so many that a look falls between first and last
    page.get_by_role("button", name=at.START).click()
    some = re.compile(rf"\b[1-9] of {_ROUNDS} processes")
    expect(page.get_by_test_id("stProgress")).to_contain_text(some, timeout=_MINUTES_MS)
    page.get_by_role("button", name="Cancel").click()
    resume = page.get_by_role("button", name="Resume")
    expect(resume).to_be_visible(timeout=60_000)
    expect(page.get_by_text("did not come to its end")).to_be_visible()
    id = real.ids[0]
    kept = real.study(id)
    assert not kept.finished
    whole = [m for m in kept.measurements if m.status == "ok"]
    assert whole
    assert [m.status for m in kept.measurements[len(whole) :]] == ["interrupted"]
    resume.click()
    expect(page.get_by_test_id("stProgress")).to_be_visible(timeout=30_000)
    expect(page.get_by_text("Chosen plan", exact=True)).to_be_visible(timeout=_MINUTES_MS)
    done = real.study(id)
    assert done.finished
    assert list(done.measurements[: len(whole)]) == whole
    assert [m.status for m in done.measurements].count("ok") == _ROUNDS


@pytest.mark.slow
def test_a_study_started_by_keyboard_waits_while_another_holds_the_machine(page: Page, real: Server) -> None:
    before = real.ids
    with locks.machine_lock("held by a test", wait=True):
        _ask_for(page, real, ("wide",), tokens=8, rounds=3)
        assert _tab_to(page, at.START) < 80
        page.keyboard.press("Enter")
        expect(page.get_by_text("It waits: one timed study at a time on a machine")).to_contain_text(
            "study held by a test", timeout=30_000
        )
        expect(page.get_by_test_id("stSkeleton")).to_have_count(0)
        at.picture(page, "waiting-1440-light")
        page.get_by_role("button", name="Cancel").click()
        expect(page.get_by_role("button", name="Resume")).to_be_visible(timeout=60_000)
    (new,) = set(real.ids) - set(before)
    assert real.study(new).measurements == ()
    job = jobs.find(real.store, new)
    assert job is not None
    assert jobs.state(job) == "ended"


def _tab_to(page: Page, name: str) -> int:
    """Press Tab until the button of that name has the focus; how often that was."""
    at.title(page).click()
    for count in range(1, 150):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.innerText || ''").strip() == name:
            return count
    raise AssertionError(f"{name!r} is not reached by Tab")


# --- history and comparison ---


def test_two_studies_are_compared_plan_by_plan_with_ratios_and_what_they_show(page: Page, shown: Server) -> None:
    at.visit(page, shown, f"/compare?a={STUDIES['chosen'].id}&b={STUDIES['slower'].id}")
    table = at.grid(page, "p50 latency of each plan")
    for text in ("distilgpt2/fake/int8/t1/kv", "B / A", "B is worse", "no difference shown", "1.500"):
        expect(table).to_contain_text(text)
    expect(page.get_by_text("no difference is shown")).to_be_visible()
    expect(page.get_by_role("figure")).to_have_attribute("aria-label", re.compile("B over A|ratio", re.IGNORECASE))
    at.pick(page, "metric", "peak memory")
    expect(at.grid(page, "peak memory of each plan")).to_contain_text("tie within 3%")


def test_studies_that_share_no_plan_are_not_compared_and_the_page_says_why(page: Page, shown: Server) -> None:
    at.visit(page, shown, f"/compare?a={STUDIES['chosen'].id}&b={STUDIES['undecided'].id}")
    expect(at.errors(page)).to_contain_text("have no plan in common")


def test_a_study_is_deleted_only_after_it_was_asked_for_twice(empty: Server, page: Page) -> None:
    at.keep(empty, [STUDIES["chosen"], STUDIES["undecided"]])
    gone, stays = STUDIES["chosen"].id, STUDIES["undecided"].id
    at.visit(page, empty, "/history")
    at.select_one(page, "study", gone)
    page.get_by_role("button", name="Delete", exact=True).click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text(gone)
    dialog.get_by_role("button", name="Keep it").click()
    expect(dialog).to_have_count(0)
    assert set(empty.ids) == {gone, stays}
    page.get_by_role("button", name="Delete", exact=True).click()
    dialog.get_by_role("button", name="Delete it").click()
    expect(dialog).to_have_count(0)
    expect(at.grid(page, "every study in the store")).not_to_contain_text(gone)
    assert empty.ids == (stays,)
