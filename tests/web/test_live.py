"""What the page of a running study says of each plan, and how much is left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import factories
import fake_studies
from inferplan import locks
from inferplan.plan import Plan
from inferplan.store import Store, TrialRow
from inferplan.study import Study
from inferplan.web import live, reading
from inferplan.web.parts import named
from web.keeping import keep
from web.test_pages import opened, values


def states(study: Study, now: TrialRow | None = None, *, running: bool) -> dict[str, tuple[str, str]]:
    """State and reason of each plan."""
    trials = (now,) if now else ()
    table = live.table(study, study.results, trials, running=running)
    return {p: (s, r) for p, s, r in zip(table["plan"], table["state"], table["reason"], strict=True)}


def test_each_plan_is_waiting_measuring_measured_failed_or_cannot_run() -> None:
    empty = fake_studies.study(threads=(1,))
    one, two, three, four = empty.space.plans
    study = replace(
        empty,
        measurements=(
            factories.measurement(one, [1.0] * 8, disturbed=[2]),
            factories.measurement(two, status="out_of_memory", reason="wanted 9 GiB"),
        ),
        rejected=((four, "not here"),),
        finished=False,
    )
    now = TrialRow(7, three.id, 1, "interrupted", 5.0, 3, 0, 3.0)
    told = states(study, now, running=True)
    assert told[one.id] == ("measured, 1 process", "1 disturbed samples left out")
    assert told[two.id] == ("out of memory", "wanted 9 GiB")
    assert told[three.id] == ("measuring", "round 1, 3 requests done")
    assert told[four.id] == ("cannot run here", "not here")
    assert states(study, running=True)[three.id][0] == "waiting"
    assert states(study, running=False)[three.id][0] == "skipped"


def test_a_model_in_a_directory_is_called_by_its_name_where_there_is_no_room_for_its_path() -> None:
    here = Path("/somewhere/far/down/tiny").absolute()
    assert named(Plan(str(here), "fake", "int8", 2)) == "tiny/fake/int8/t2/kv"
    assert named(Plan("org/tiny", "fake")) == "org/tiny/fake/fp32/t1/kv"
    assert "\x1b" not in named(Plan("\x1b[31mred", "fake"))


def test_what_is_left_is_counted_as_the_search_counts_it(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    empty = replace(fake_studies.study(threads=(1, 2)), finished=False)
    with Store(path) as store:
        keep(store, empty)
        seen = reading.glance(path, empty.id)[0]
        assert live.remaining(seen) == 2 * len(empty.plans)
        for plan in empty.plans:
            keep(store, replace(empty, measurements=(factories.measurement(plan, [9.0] * 8),)))
        seen = reading.glance(path, empty.id)[0]
    assert live.remaining(seen) == 0  # all miss by far: nobody is a contender for the second round


def test_a_running_study_shows_how_far_it_is_and_offers_to_cancel(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    study = fake_studies.chosen()
    with Store(path) as store:
        keep(store, replace(study, measurements=study.measurements[:4], finished=False))
    with locks.machine_lock(study.id, wait=True):  # this very process runs it, as far as the page can tell
        app = opened("study", path, study=study.id)
    assert not app.exception
    assert [button.key for button in app.button] == ["cancel"]
    assert any("Best plan so far" in text for text in values(app, "markdown"))
    assert len(app.dataframe[0].value) == len(study.space.plans)


def test_a_stopped_study_says_so_and_offers_to_resume(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    study = replace(fake_studies.chosen(), finished=False)
    with Store(path) as store:
        keep(store, study)
    app = opened("study", path, study=study.id)
    assert not app.exception
    assert any("did not come to its end" in text for text in values(app, "warning"))
    assert "resume" in [button.key for button in app.button]
