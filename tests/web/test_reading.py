"""A study read for a page is the study in the store, at every moment, without reading it anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import factories
import fake_studies
from inferplan import study as studies
from inferplan.cost import Prices
from inferplan.errors import UnknownNameError
from inferplan.selection import Objective, parse_sla
from inferplan.store import Store
from inferplan.study import Study
from inferplan.web import reading
from web.keeping import keep


@pytest.mark.parametrize("name", list(fake_studies.STUDIES))
def test_a_page_reads_what_the_command_line_reads(tmp_path: Path, name: str) -> None:
    path = tmp_path / "s.db"
    with Store(path) as store:
        keep(store, fake_studies.STUDIES[name]())
        same = studies.load(store, "latest")
    seen = reading.see(path, same.id)
    assert seen.study == same
    view = reading.judge(seen, same.sla, same.objective, same.prices)
    assert view.selection == same.select()
    assert view.rows == studies_rows(same)


def studies_rows(study: Study) -> tuple[object, ...]:
    from inferplan.report import report_of

    return report_of(study).rows


def test_a_new_sample_is_seen_at_the_next_look(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    empty = fake_studies.empty()
    plan = empty.plans[0]
    with Store(path) as store:
        keep(store, empty)
        assert not reading.see(path, empty.id).study.measurements
        trial = store.begin_trial(empty.id, plan, 1, 1.0)
        assert reading.see(path, empty.id).study.measurements[0].status == "interrupted"
        for count in range(1, 4):
            store.add_sample(trial, factories.sample(count, 1.0))
            seen = reading.see(path, empty.id)
            assert len(seen.study.measurements[0].samples) == count
            assert seen.trials[0].samples == count
        done = factories.measurement(plan, [1.0] * 3)
        store.finish_trial(trial, done)
        assert reading.see(path, empty.id).study.measurements[0].status == "ok"
        assert reading.see(path, empty.id).results[0].status == "ok"


def test_a_study_looked_at_twice_is_the_same_object(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with Store(path) as store:
        keep(store, fake_studies.chosen())
    first, second = (reading.see(path, fake_studies.chosen().id) for _ in range(2))
    assert first is second
    sla = parse_sla(["p50<=900ms"])
    terms = (sla, Objective("memory"), Prices())
    assert reading.judge(first, *terms) is reading.judge(second, *terms)


def test_new_terms_reselect_from_what_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    study = fake_studies.chosen()
    with Store(path) as store:
        keep(store, study)
    seen = reading.see(path, study.id)
    for sla in ("p50<=1500ms", "p50<=10ms", "p50<=1500ms"):
        wanted = parse_sla([sla])
        view = reading.judge(seen, wanted, Objective("memory"), Prices())
        assert view.selection == seen.study.select(wanted, Objective("memory"), Prices())
    assert reading.judge(seen, parse_sla(["p50<=10ms"]), Objective(), Prices()).chosen is None


def test_a_deleted_study_is_unknown_and_a_new_one_in_its_rows_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    first = fake_studies.chosen()
    with Store(path) as store:
        keep(store, first)
        reading.see(path, first.id)
        store.delete_study(first.id)
        with pytest.raises(UnknownNameError):
            reading.see(path, first.id)
        plan = first.plans[0]
        other = replace(first, measurements=(factories.measurement(plan, [7.0] * 8),))
        keep(store, other)
    assert reading.see(path, first.id).study.measurements[0].samples[0].latency_s == 7.0


def test_costs_are_of_studies_on_this_machine_alone(tmp_path: Path) -> None:
    from inferplan import machine

    path = tmp_path / "s.db"
    elsewhere = fake_studies.chosen()
    here = replace(elsewhere, id="20260101-130000-beef", machine=machine.detect())
    with Store(path) as store:
        keep(store, elsewhere)
        assert reading.costs(path) == ()
        keep(store, here)
    costs = reading.costs(path)
    ok = [m for m in here.measurements if m.status == "ok"]
    assert len(costs) == len(ok)
    assert sum(c.requests_s for c in costs) == pytest.approx(sum(s.latency_s for m in ok for s in m.samples))
    assert sum(c.tokens for c in costs) == sum(s.output_tokens for m in ok for s in m.samples)


def test_a_running_process_changes_nothing_that_is_judged_until_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    empty = fake_studies.empty()
    first, second = empty.plans[:2]
    with Store(path) as store:
        keep(store, replace(empty, measurements=(factories.measurement(first, [1.0] * 8),)))
        before = reading.glance(path, empty.id)[0]
        trial = store.begin_trial(empty.id, second, 1, 1.0)
        store.add_sample(trial, factories.sample(0, 1.0))
        assert reading.glance(path, empty.id)[0] is before
        store.finish_trial(trial, factories.measurement(second, [1.0]))
        after = reading.glance(path, empty.id)[0]
    assert after is not before
    assert [m.plan for m in after.study.measurements] == [first, second]
