"""The simulator behind docs/benchmarks.md: regret against time, successive halving, and rivals that keep to their time.

Whatever is searched here is the recorded space that lies in the repository.
"""

from __future__ import annotations

import itertools
import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))  # scripts, not a package

import search_efficiency
import verdicts
from _regret import Incumbent, difference, equal_time, mean_at, regret_at
from _replay import Neighbour, Recorded, read_space, resized
from _rivals import RIVALS, STRATEGIES, UNPREDICTED, Case
from record_space import OUT
from search_efficiency import exhaustive, run

from inferplan.search import Proposal
from inferplan.search.limits import NO_LIMITS, Limits
from inferplan.search.racing import FINALISTS
from inferplan.selection import SLA

LIMIT = SLA.from_p50_ms(1500)


@pytest.fixture(scope="module")
def space() -> Recorded:
    return read_space(OUT)


@pytest.fixture(scope="module")
def case(space: Recorded) -> Case:
    return Case.of(resized(space, 40, random.Random(1)), LIMIT, 1)


@pytest.mark.parametrize("size", [40, 216, 250])
def test_the_order_of_a_space_is_drawn_with_its_plans(space: Recorded, size: int) -> None:
    first, again, other = (resized(space, size, random.Random(seed)) for seed in (1, 1, 2))
    assert first.plans == again.plans
    assert len(set(first.plans)) == size
    drawn = [space.plans.index(plan) for plan in first.plans if plan in space.processes]
    assert drawn != sorted(drawn)
    assert first.plans != other.plans
    assert all(first.processes[plan] == space.processes[plan] for plan in first.plans if plan in space.processes)


def test_every_strategy_ends_with_a_plan_that_meets_the_sla(case: Case) -> None:
    for name in STRATEGIES:
        found = run(case, name, 5)
        assert found.chosen is not None, name
        assert not found.misses, name
        assert found.regret == case.regret(found.chosen) >= 0, name
        assert found.steps[-1] == (found.seconds, found.regret), name


def test_a_race_takes_less_time_than_a_look_at_everything(case: Case) -> None:
    race = run(case, "racing", 5)
    assert race.seconds < run(case, "racing" + UNPREDICTED, 5).seconds < exhaustive(case)["exhaustive"].seconds
    assert race.seconds < run(case, "predicted order", 5).seconds


@pytest.mark.parametrize("name", [name for name in RIVALS if name != "nsga2"])  # as slow as tpe, and made alike
def test_a_rival_keeps_to_its_time_and_more_time_means_more_looks(case: Case, name: str) -> None:
    whole = run(case, name, 5)
    before_s = case.space.rates_s
    spent = [run(case, name, 5, Limits(seconds=share * (whole.seconds - before_s))) for share in (0.4, 0.8, 1.1)]
    assert spent[0].seconds - before_s <= 0.4 * (whole.seconds - before_s)
    assert spent[1].seconds - before_s <= 0.8 * (whole.seconds - before_s)
    assert spent[0].processes < spent[1].processes < whole.processes
    assert spent[2] == whole


def test_rivals_begin_in_the_order_that_is_predicted_before_anything_is_measured(case: Case) -> None:
    first = case.in_order()[:4]
    for name, make in RIVALS.items():
        search, replay, asked = make(case, 4, NO_LIMITS), case.replay(), []
        for _ in range(4):
            proposal = search.ask()
            assert proposal is not None
            asked.append(proposal.plan)
            search.tell(replay.measure(proposal))
        assert asked == first, name


def test_a_table_of_budgets_says_what_races_chose_and_what_they_took(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--budgets", "0.1", "60", "--sizes", "40", "--seeds", "3"]
    monkeypatch.setattr(sys, "argv", ["search_efficiency.py", *asked])
    search_efficiency.main()
    short, long = ([cell.strip() for cell in row.split("|")[1:-1]] for row in capsys.readouterr().out.splitlines()[-2:])
    assert short[:6] == ["40", "0.1 s", "0.0%", "0.0%", "0.0%", "-"]  # a look alone chooses nothing
    assert long[:3] == ["40", "60 s", "100.0%"]
    assert 0 < float(short[6].split()[0]) < float(long[6].split()[0]) < 70


def test_rivals_that_would_look_at_too_many_plans_are_compared_at_equal_time_all_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--sizes", "40", "--seeds", "2", "--times", "1", "2", "--strategies", "racing", "random"]
    found = {}
    for whole in ("40", "20"):
        monkeypatch.setattr(sys, "argv", ["search_efficiency.py", *asked, "--whole", whole])
        search_efficiency.main()
        found[whole] = capsys.readouterr().out.split("\n\n")
    own, _, equal = found["20"][1:]
    assert "| 40 | random |" in found["40"][1]
    assert "| 40 | random |" not in own
    assert equal == found["40"][-1]
    rows = [[cell.strip() for cell in row.split("|")[2:5]] for row in equal.splitlines()[2:]]
    assert rows == [
        [times, *who] for times in ("1x", "2x") for who in (("racing", "no"), ("random", "no"), ("random", "yes"))
    ]


def test_halving_drops_the_worse_half_of_each_rung(case: Case) -> None:
    search, replay = STRATEGIES["successive halving"](case, 5, NO_LIMITS), case.replay()
    rungs: dict[int, int] = {}
    finalists = set()
    while (asked := search.ask()) is not None:
        if asked.look:
            rungs[asked.round] = rungs.get(asked.round, 0) + 1
        else:
            finalists.add(asked.plan)
        search.tell(replay.measure(asked))
    counts = [rungs[rung] for rung in sorted(rungs)]
    assert len(counts) > 1
    assert all(later <= -(-earlier // 2) for earlier, later in itertools.pairwise(counts))
    assert 1 <= len(finalists) <= FINALISTS
    assert not finalists & search.left_out.keys()


def test_strategies_of_one_seed_are_told_the_same_of_the_same_process(case: Case) -> None:
    plan = case.in_order()[0]
    one, other = case.replay().measure(Proposal(plan, 1)), case.replay().measure(Proposal(plan, 1))
    again = Case.of(case.space, LIMIT, case.seed).replay().measure(Proposal(plan, 1))
    assert one is other
    assert one == again


@given(st.floats(0, 50), st.floats(0.01, 10), st.floats(1, 4), st.floats(0, 4))
def test_a_replayed_neighbour_slows_what_falls_into_its_turns(
    start: float, work: float, pace: float, at: float
) -> None:
    took, beside = Neighbour(4.0, at, pace, watched=True).during(start, work)
    assert 0 <= beside <= took + 1e-9
    assert took - beside + beside / pace == pytest.approx(work)
    assert took <= work * pace + 1e-9


def test_a_replayed_neighbour_is_marked_and_its_requests_are_taken_again(case: Case) -> None:
    plan = case.in_order()[0]
    alone = case.replay().measure(Proposal(plan, 1))
    seen = {}
    for watched in (True, False):
        beside = replace(case, neighbour=Neighbour(1e6, 6e5, 2.0, watched))  # at work all the time
        seen[watched] = beside.replay().measure(Proposal(plan, 1)).samples
    assert [s.latency_s for s in seen[False]] == pytest.approx([2 * s.latency_s for s in alone.samples])
    assert not any(s.disturbed for s in seen[False])
    assert all(s.disturbed for s in seen[True])
    assert len(seen[True]) == len(alone.samples) + 4


def test_the_rules_that_are_replayed_by_the_thousand_are_those_of_the_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["verdicts.py", "--seeds", "20", "--check", "2"])
    verdicts.main()  # ends with an error where one of its rules says something else
    assert "sequential: at worst" in capsys.readouterr().out


def test_the_incumbent_is_the_fastest_of_the_furthest_stage(case: Case) -> None:
    fast, slow = sorted(case.truth, key=case.truth.__getitem__)[:2]
    replay, incumbent = case.replay(), Incumbent(LIMIT, case.space.cores)
    assert incumbent.after(replay.measure(Proposal(fast, 1, (0,), look=True))) == fast
    assert incumbent.after(replay.measure(Proposal(slow, 1))) == slow  # measured whole: a later stage
    assert incumbent.after(replay.measure(Proposal(fast, 1))) == fast


steps = st.lists(st.tuples(st.floats(0, 100), st.floats(0, 10)), max_size=6).map(
    lambda found: sorted(found, key=lambda one: one[0])
)


@given(steps, st.floats(0, 120))
def test_the_regret_at_a_time_is_that_of_the_last_step_before_it(found: list[tuple[float, float]], at: float) -> None:
    before = [regret for seconds, regret in found if seconds <= at]
    assert regret_at(found, at) == (before[-1] if before else None)


def test_a_mean_needs_an_incumbent_in_every_seed() -> None:
    early, late = [(1.0, 0.5), (4.0, 0.1)], [(3.0, 0.3)]
    assert mean_at([early, late], [10.0, 10.0], 0.2) is None
    assert mean_at([early, late], [10.0, 10.0], 0.5) == pytest.approx(0.2)
    assert mean_at([], [], 0.5) is None


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=30), st.floats(-1, 1))
def test_a_difference_of_pairs_that_never_changes_has_no_width(a: list[float], by: float) -> None:
    middle, low, high = difference(a, [value - by for value in a])
    assert middle == pytest.approx(by, abs=1e-9)
    assert low - 1e-9 <= middle <= high + 1e-9
    assert high - low == pytest.approx(0, abs=1e-9)


def test_a_rival_that_found_nothing_in_time_is_not_within() -> None:
    ours = [[(1.0, 0.0)], [(1.0, 0.0)]]
    assert equal_time([[(0.5, 0.01)], []], [1.0, 1.0], ours, 0.02) == "| 50.0% | 1.0% | -1.0% [-1.0%, -1.0%] |"
    assert equal_time([[], [(2.0, 0.0)]], [1.0, 1.0], ours, 0.02) == "| 0.0% | - | - |"
