"""What a search makes of one plan: what it promises, and why it has no chance any more."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from scipy.stats import norm

from factories import measurement, plan
from inferplan.cost import Prices
from inferplan.plan import Plan
from inferplan.predict import Prediction, Range
from inferplan.ranking import Objective, Ranked
from inferplan.result import results
from inferplan.search.goal import Goal
from inferplan.sla import SLA, parse_sla

PLAN, BEST = plan("a"), plan("b")
LATENCY = Goal(SLA.from_p50_ms(1e9), Objective("latency"), Prices(), 2)
IN_90 = norm.ppf(0.95)  # a Range holds nine of ten truths


def expecting(of: Plan, latency_s: float, spread: float = 1.2, peak_bytes: float = 100e6) -> Prediction:
    def around(value: float) -> Range:
        return Range(value / spread, value, value * spread)

    times = around(latency_s), around(latency_s / 10), around(latency_s / 70)
    return Prediction(of, *times, around(peak_bytes), around(1.0), 64.0, "weights", "a test")


def best(goal: Goal, latency_s: float) -> Ranked:
    (found,) = results([BEST], [replace(measurement(BEST, [latency_s] * 2), look=True)])
    return goal.judge(found)


@given(
    latency_s=some.floats(0.05, 20.0),
    spread=some.floats(1.05, 4.0),
    lowest_s=some.floats(0.1, 10.0),
    limit_s=some.floats(0.1, 10.0),
)
def test_a_promise_is_the_mean_improvement_times_the_chance_to_meet_the_sla(
    latency_s: float, spread: float, lowest_s: float, limit_s: float
) -> None:
    goal = replace(LATENCY, sla=SLA.from_p50_ms(1000 * limit_s))
    z = np.linspace(-9, 9, 20_001)
    truths = latency_s * np.exp(math.log(spread) / IN_90 * z)
    mean = np.trapezoid(np.maximum(lowest_s - truths, 0) * norm.pdf(z), z)
    meets = norm.cdf(math.log(limit_s / latency_s) * IN_90 / math.log(spread))
    found = goal.promise(PLAN, {PLAN: expecting(PLAN, latency_s, spread)}, best(goal, lowest_s))
    assert found == pytest.approx(mean * meets, rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("objective", [Objective("latency"), Objective("memory"), Objective("cost")])
def test_before_there_is_a_best_plan_what_is_expected_to_be_lower_promises_more(objective: Objective) -> None:
    goal = replace(LATENCY, objective=objective)
    expected = {PLAN: expecting(PLAN, 1.0, peak_bytes=100e6), BEST: expecting(BEST, 1.1, peak_bytes=110e6)}
    assert goal.promise(PLAN, expected, None) > goal.promise(BEST, expected, None) > 0


def test_of_cost_is_compared_what_is_expected_of_both() -> None:
    goal = replace(LATENCY, objective=Objective("cost"))
    expected = {PLAN: expecting(PLAN, 0.5), BEST: expecting(BEST, 1.0)}
    # What was measured of the best plan is in another unit: that it took thrice as long as expected changes nothing.
    assert goal.promise(PLAN, expected, best(goal, 1.0)) == goal.promise(PLAN, expected, best(goal, 3.0)) > 0
    assert goal.no_chance(PLAN, expected, best(goal, 0.1)) == ""
    ahead = {PLAN: expecting(PLAN, 9.0), BEST: expecting(BEST, 1.0)}
    why = goal.no_chance(PLAN, ahead, best(goal, 1.0))
    assert "predicted cost 1.60 USD/Mtok (1.33 USD/Mtok to 1.92 USD/Mtok), 7.49x at the least of the 0.177 USD" in why
    unknown = {PLAN: expecting(PLAN, 0.5)}
    assert goal.promise(PLAN, unknown, best(goal, 1.0)) == pytest.approx(goal.promise(PLAN, unknown, None))


def test_what_nothing_is_predicted_of_promises_nothing_and_keeps_its_chance() -> None:
    assert LATENCY.promise(PLAN, {}, None) == LATENCY.promise(PLAN, {}, best(LATENCY, 1.0)) == 0
    assert LATENCY.no_chance(PLAN, {}, best(LATENCY, 1e-3)) == ""


@pytest.mark.parametrize(
    ("terms", "goal", "why"),
    [
        (
            ["p50<=800ms"],
            {},
            "predicted p50 1.00 s (833 ms to 1.20 s), 1.04x at the least of the 800 ms that",
        ),
        (["ttft_p95<=80ms"], {}, "predicted ttft_p95 100 ms"),
        (
            ["p50<=9s"],
            {"memory_bytes": 64e6},
            "peak memory 100 MB (83.3 MB to 120 MB), 1.30x at the least of the 64.0 MB that",
        ),
        (
            ["tokens_per_s>=80"],
            {},
            "64.0 tokens/s (53.3 tokens/s to 76.8 tokens/s), 0.96x at the most of the 80.0 tokens/s that are asked",
        ),
        (["cost<=0.1"], {}, "predicted cost 0.177 USD/Mtok (0.148 USD/Mtok to 0.213 USD/Mtok), 1.48x at the least"),
        (["p50<=9s"], {"objective": Objective("memory")}, "of the 80.0 MB that b/fake/fp32/t1/kv was seen to take"),
        (["p50<=9s"], {}, "2.08x at the least of the 400 ms that b/fake/fp32/t1/kv was seen to take"),
    ],
)
def test_why_a_plan_is_not_started_stands_in_numbers(terms: list[str], goal: dict[str, Any], why: str) -> None:
    aim = replace(LATENCY, sla=parse_sla(terms), **goal)
    (found,) = results([BEST], [measurement(BEST, [0.4, 0.4], peak_bytes=80_000_000)])
    assert why in aim.no_chance(PLAN, {PLAN: expecting(PLAN, 1.0)}, aim.judge(found))


@pytest.mark.parametrize("text", ["tokens_per_s>=76", "cost<=0.15", "load<=1ms", "p10<=100ms"])
def test_what_may_still_meet_keeps_its_chance(text: str) -> None:
    aim = replace(LATENCY, sla=parse_sla([text]))
    assert aim.no_chance(PLAN, {PLAN: expecting(PLAN, 1.0)}, None) == ""
    assert aim.promise(PLAN, {PLAN: expecting(PLAN, 1.0)}, None) > 0


def test_how_far_beyond_a_limit_the_nearest_request_is() -> None:
    def beyond(terms: list[str], latencies: list[float], cut: list[int] | None = None) -> float:
        aim = replace(LATENCY, sla=parse_sla(terms))
        (found,) = results([BEST], [measurement(BEST, latencies, cut=cut or [])])
        return aim.times_beyond(aim.judge(found))

    assert beyond(["p50<=1s"], [1.2, 1.1]) == pytest.approx(1.1)
    assert beyond(["p50<=1s"], [1.2, 1.3], cut=[0, 1]) == pytest.approx(1.2)
    assert beyond(["p50<=1s", "p95<=800ms"], [1.2, 1.1]) == pytest.approx(1.1 / 0.8)
    assert beyond(["p50<=1s"], [1.2, 0.9]) == 1.0
