"""The scripts that time the web app: their made-up study, their figures, and their client against the real server.

Owns what can be said of them without timing anything. Leaves the app itself to its own tests.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from inferplan.measurement import Sample
from inferplan.plan import Space
from inferplan.selection import SLA
from inferplan.stats import paired_ratio
from inferplan.store import Store
from inferplan.study import Study, load

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from _web_client import Client, Watcher, serving
from _web_study import SPACE_500, keep, made_up, unfinished
from web_disturbs import hit, total_ratio
from web_load import chosen, what_if


def test_the_made_up_study_has_500_plans_and_comes_back_from_the_store(tmp_path: Path) -> None:
    study = made_up("made-up", SPACE_500, rounds=1, prompts=5, tokens=3)
    with Store(tmp_path / "store.db") as store:
        keep(store, study)
        found = load(store, "made-up")
    assert len({plan.id for plan in study.plans}) == 500
    assert found == study
    assert found.synthetic
    assert found.select().outcome == "chosen"


def test_another_sla_chooses_another_plan_of_the_made_up_study() -> None:
    study = made_up("made-up", SPACE_500, rounds=1, prompts=6, tokens=3)
    winners = [study.select(SLA.from_p50_ms(ms)).winner for ms in (1, 700, 1500, 5000)]
    assert winners[0] is None
    assert len({winner.plan for winner in winners if winner}) == 3


def test_one_seed_makes_one_study() -> None:
    one, same, other = (made_up("made-up", SPACE_500, rounds=1, prompts=1, tokens=2, seed=seed) for seed in (1, 1, 2))

    def latencies(study: Study) -> list[float]:
        return [s.latency_s for m in study.measurements for s in m.samples]

    assert latencies(one) == latencies(same)
    assert latencies(one) != latencies(other)


def test_an_unfinished_study_lacks_only_the_plans_left_out() -> None:
    study = made_up("made-up", Space(("gpt2",)), prompts=1, tokens=2)
    first = study.plans[0]
    running = unfinished(study, (first,))
    assert not running.finished
    assert {result.plan for result in running.results if result.status == "waiting"} == {first}


def sample(started_at: float, latency_s: float) -> Sample:
    return Sample(0, started_at, latency_s, (latency_s,), 1)


def test_a_look_hits_the_requests_that_it_overlaps() -> None:
    samples = {(0, 0): sample(10.0, 1.0), (0, 1): sample(11.0, 1.0), (0, 2): sample(12.0, 1.0)}
    assert hit(samples, [(10.9, 11.1)]) == {(0, 0), (0, 1)}
    assert hit(samples, [(12.2, 12.3)]) == {(0, 2)}
    assert hit(samples, [(9.0, 10.0), (13.0, 14.0)]) == set()
    assert hit(samples, [(9.0, 14.0)]) == set(samples)


def test_a_few_slow_requests_show_in_the_total_and_not_in_the_median() -> None:
    without = {(0, i): 1.0 for i in range(40)}
    watched = {key: 2.0 if key[1] < 8 else 1.0 for key in without}
    assert paired_ratio(watched, without).value == pytest.approx(1.0)
    total = total_ratio(watched, without)
    assert total.value == pytest.approx(1.2)
    assert total.low is not None
    assert total.high is not None
    assert 1.05 < total.low < 1.2 < total.high < 1.35
    assert total.n == 40


def test_a_total_needs_six_pairs_and_pairs_by_key() -> None:
    five = {(0, i): 1.0 for i in range(5)}
    assert total_ratio(five, five).value is None
    assert total_ratio({**five, (0, 5): 4.0}, {**five, (0, 5): 2.0, (0, 6): 99.0}).value == pytest.approx(9 / 7)


@pytest.mark.slow
def test_the_client_moves_the_sla_of_a_stored_study(tmp_path: Path) -> None:
    study = made_up("20260101-000000-abcd", Space(("distilgpt2", "gpt2"), threads=(1, 2)), tokens=4)
    with Store(tmp_path / "store.db") as store:
        keep(store, study)
    with serving(tmp_path / "store.db") as server, Client(server.port) as page:
        first = chosen(page.open("study", f"study={study.id}"))
        assert chosen(page.rerun()) == first
        assert "No plan meets" in chosen(what_if(page, 210))
        assert not page.timers


@pytest.mark.slow
def test_the_watcher_refuses_a_page_that_is_not_live(tmp_path: Path) -> None:
    study = replace(made_up("20260101-000000-abcd", Space(("gpt2",)), tokens=4), finished=True)
    with Store(tmp_path / "store.db") as store:
        keep(store, study)
    with serving(tmp_path / "store.db") as server, Watcher() as watcher, pytest.raises(SystemExit, match="died"):
        watcher.watch(server.port, study.id)
