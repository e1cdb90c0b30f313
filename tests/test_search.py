"""Exhaustive search: everything once, contenders again, in an order that favours nobody."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from factories import measurement, plan
from inferplan.cost import Prices
from inferplan.errors import InputError
from inferplan.measurement import Measurement
from inferplan.plan import Plan, Space
from inferplan.search import Search
from inferplan.search.exhaustive import Exhaustive
from inferplan.search.limits import NO_LIMITS, Limits
from inferplan.selection import SLA, Objective

SHAPE = [1.0, 1.02, 0.98, 1.01, 0.99, 1.03, 0.97, 1.005]
PLANS = [plan("a"), plan("a", 2), plan("b"), plan("b", 2), plan("c")]
SPEED = {PLANS[0]: 1.0, PLANS[1]: 1.05, PLANS[2]: 2.0, PLANS[3]: 1.02, PLANS[4]: 1.4}  # b/t1 misses, c is far slower


def search(
    plans: list[Plan] = PLANS,
    *,
    rounds: int = 2,
    all_rounds: bool = False,
    limits: Limits = NO_LIMITS,
    done: list[Measurement] | None = None,
) -> Exhaustive:
    return Exhaustive(
        plans,
        SLA.from_p50_ms(1500),
        Objective("latency"),
        Prices(),
        2,
        rounds=rounds,
        all_rounds=all_rounds,
        limits=limits,
        done=done or [],
    )


def outcome(of: Plan, round: int, speed: Mapping[Plan, float] = SPEED) -> Measurement:
    if of not in speed:
        return measurement(of, status="crashed", reason="gone", round=round)
    return measurement(of, [speed[of] * x for x in SHAPE], round=round)


def play(ask: Search, stop: int = 1000, speed: Mapping[Plan, float] = SPEED) -> list[Measurement]:
    told: list[Measurement] = []
    while len(told) < stop and (proposal := ask.ask()) is not None:
        told.append(outcome(proposal.plan, proposal.round, speed))
        ask.tell(told[-1])
    return told


def asked(told: list[Measurement]) -> list[tuple[str, int]]:
    return [(f"{m.plan.model}{m.plan.threads}", m.round) for m in told]


def test_the_first_round_measures_every_plan_models_interleaved() -> None:
    assert asked(play(search(rounds=1))) == [("a1", 1), ("b1", 1), ("c1", 1), ("a2", 1), ("b2", 1)]


def test_later_rounds_go_to_contenders_and_turn_round() -> None:
    assert asked(play(search(rounds=3)))[5:] == [("b2", 2), ("a2", 2), ("a1", 2), ("a1", 3), ("a2", 3), ("b2", 3)]


def test_all_rounds_go_to_every_plan_that_did_not_fail() -> None:
    broken = {p: s for p, s in SPEED.items() if p != PLANS[4]}
    told = asked(play(search(all_rounds=True), speed=broken))
    assert told[5:] == [("b2", 2), ("a2", 2), ("b1", 2), ("a1", 2)]


def test_a_failed_plan_is_not_run_again() -> None:
    told = asked(play(search(rounds=4), speed={PLANS[0]: 1.0}))
    assert told[5:] == [("a1", 2), ("a1", 3), ("a1", 4)]


def test_the_whole_of_the_main_job_is_24_plans_in_the_first_round() -> None:
    space = Space(("distilgpt2", "gpt2"), threads=(1, 2, 4))
    told = play(search(list(space.plans), rounds=1), speed={})
    assert [m.plan for m in told[:4:2]] == [p for p in space.plans if p.model == "distilgpt2"][:2]
    assert {m.plan for m in told} == set(space.plans)
    assert len(told) == 24


def test_asked_twice_without_an_answer_it_proposes_the_same() -> None:
    one = search()
    assert one.ask() == one.ask()


@pytest.mark.parametrize("cut_at", range(9))
def test_a_resumed_search_goes_on_as_the_interrupted_one_would_have(cut_at: int) -> None:
    whole = play(search())
    first = play(search(), stop=cut_at)
    assert asked(first + play(search(done=first))) == asked(whole)


def test_a_round_that_began_keeps_its_contenders_when_resumed() -> None:
    a, b, c = plan("a"), plan("b"), plan("c")
    peaks = {a: 105, b: 100, c: 112}  # c is out by more than a tenth, until b turns out to need more
    done = [measurement(p, SHAPE, peak_bytes=n) for p, n in peaks.items()]
    done.append(measurement(b, SHAPE, round=2, peak_bytes=200))
    again = Exhaustive([a, b, c], SLA.from_p50_ms(1500), Objective("memory"), Prices(), 2, done=done)
    assert asked(play(again, speed={a: 1.0})) == [("a1", 2)]


def test_an_interrupted_round_is_taken_again() -> None:
    first = play(search(), stop=6)
    first[2] = measurement(first[2].plan, [1.0], status="interrupted")
    first[5] = measurement(first[5].plan, [1.0], status="interrupted", round=2)
    again = asked(play(search(done=first)))
    assert again[0] == ("c1", 1)
    assert again[1:] == [("b2", 2), ("a2", 2), ("a1", 2)]


def test_a_limit_bounds_what_remains_and_leaves_it_unfinished() -> None:
    one = search(limits=Limits(processes=3))
    assert one.remaining == 3
    assert len(play(one)) == 3
    assert one.remaining == 0
    assert one.unfinished
    whole = search()
    assert whole.unfinished
    play(whole)
    assert not whole.unfinished


def test_remaining_counts_down_to_nothing() -> None:
    one, left = search(), []
    while (proposal := one.ask()) is not None:
        left.append(one.remaining)
        one.tell(outcome(proposal.plan, proposal.round))
    # Ten until the misses and the far slower are known; then the three contenders.
    assert left[0] == 10
    assert left[-3:] == [3, 2, 1]
    assert left == sorted(left, reverse=True)
    assert one.remaining == 0


def test_a_plan_given_twice_is_measured_once() -> None:
    assert asked(play(search([PLANS[0], PLANS[0]], rounds=1))) == [("a1", 1)]


def test_no_plans_end_the_search_at_once() -> None:
    assert search([]).ask() is None


def test_rounds_below_one_are_refused() -> None:
    with pytest.raises(InputError, match="rounds must be at least 1, not 0"):
        search(rounds=0)
