"""PlanResult: which samples count, and what is said when they do not suffice."""

from __future__ import annotations

from dataclasses import replace

import pytest

from factories import MIB, measurement, plan
from inferplan.measurement import Status
from inferplan.result import PlanResult, results

FIVE = [1.0, 1.1, 1.2, 1.3, 1.4]


def test_a_plan_without_measurements_waits() -> None:
    waiting = PlanResult(plan(), ())
    assert (waiting.status, waiting.failed, waiting.processes) == ("waiting", False, 0)
    assert waiting.reason == "not measured yet"
    assert waiting.latency(0.5).value is None
    assert waiting.peak_bytes is None
    assert waiting.tokens_per_s_mean is None
    assert waiting.process_spread is None


def test_figures_are_over_the_samples_of_all_processes() -> None:
    result = PlanResult(plan(), (measurement(plan(), FIVE), measurement(plan(), [2.0] * 5, round=2)))
    assert result.status == "ok"
    assert result.reason == ""
    assert result.latency(0.5).n == 10
    assert result.latency(0.5).value == pytest.approx(1.7)
    assert result.latency(0.95).value == pytest.approx(2.0)
    assert result.process_p50_s == (1.2, 2.0)
    assert result.process_spread == pytest.approx(2.0 / 1.2)
    assert result.latency_mean_s == pytest.approx(1.6)


def test_disturbed_samples_leave_the_figures_but_can_be_shown() -> None:
    result = PlanResult(plan(), (measurement(plan(), [*FIVE, 99.0], disturbed=[5]),))
    assert (len(result.samples), len(result.all_samples), result.disturbed_count) == (5, 6, 1)
    assert result.latency(0.5).value == 1.2
    assert result.latency(0.5, include_disturbed=True).value == pytest.approx(1.25)
    assert result.ttft(0.5, include_disturbed=True).n == result.tpot(0.5, include_disturbed=True).n == 6


def test_an_ok_plan_whose_samples_are_all_disturbed_says_so() -> None:
    result = PlanResult(plan(), (measurement(plan(), [1.0, 1.0], disturbed=[0, 1]),))
    assert result.status == "ok"
    assert "none of its 2 samples is undisturbed" in result.reason


def test_an_interrupted_process_is_kept_but_leaves_the_figures() -> None:
    result = PlanResult(plan(), (measurement(plan(), FIVE), measurement(plan(), [9.0], round=2, status="interrupted")))
    assert result.status == "ok"
    assert (result.latency(0.5).n, len(result.all_samples)) == (5, 6)
    alone = PlanResult(plan(), result.measurements[1:])
    assert (alone.status, alone.failed) == ("interrupted", False)


@pytest.mark.parametrize("status", ["failed", "crashed", "timeout", "out_of_memory", "unsupported"])
def test_one_failed_process_fails_the_plan_with_its_reason(status: Status) -> None:
    broken = measurement(plan(), [1.0], round=2, status=status, reason="killed by signal 9")
    result = PlanResult(plan(), (measurement(plan(), FIVE), broken))
    assert (result.status, result.failed, result.reason) == (status, True, "killed by signal 9")
    assert result.latency(0.5).n == 5


def test_requests_cut_short_leave_a_lower_bound_and_no_mean() -> None:
    result = PlanResult(plan(), (measurement(plan(), [1.0, 3.0, 3.0, 3.0, 3.0, 3.0], cut=[1, 2, 3, 4, 5]),))
    p50 = result.latency(0.5)
    assert (p50.value, p50.upper, p50.lower) == (None, None, 1.0)
    assert result.cut_count == 5
    assert result.latency_mean_s is None
    assert result.latencies_by_request == {(1, 0): 1.0}


def test_a_request_cut_after_its_first_token_still_tells_ttft_but_not_tpot() -> None:
    result = PlanResult(plan(), (measurement(plan(), [1.0, 3.0, 3.0], ttft_s=0.2, cut=[1, 2]),))
    assert result.ttft(0.5).value == 0.2
    assert result.tpot(0.5).value is None


def test_a_request_cut_before_its_first_token_bounds_ttft_from_below() -> None:
    one = measurement(plan(), [3.0, 3.0, 3.0], cut=[0, 1, 2])
    silent = replace(one, samples=tuple(replace(s, token_times_s=()) for s in one.samples))
    assert PlanResult(plan(), (silent,)).ttfts() == ((), (3.0, 3.0, 3.0))


def test_ttft_and_tpot_come_from_token_times() -> None:
    result = PlanResult(plan(), (measurement(plan(), [1.0] * 5, ttft_s=0.3, tokens=8),))
    assert result.ttft(0.5).value == pytest.approx(0.3)
    assert result.tpot(0.5).value == pytest.approx(0.1)
    assert result.tokens_per_s_mean == pytest.approx(8.0)
    assert result.output_tokens_mean == 8


def test_memory_is_the_largest_of_the_processes() -> None:
    runs = [measurement(plan(), FIVE, round=i, peak_bytes=b) for i, b in ((1, 90 * MIB), (2, 110 * MIB), (3, None))]
    result = PlanResult(plan(), tuple(runs))
    assert result.peak_bytes == 110 * MIB
    assert result.peak_bytes_by_process == (90 * MIB, 110 * MIB)


def test_load_time_has_an_interval_from_six_processes_on() -> None:
    runs = tuple(measurement(plan(), [1.0], round=i, load_s=float(i)) for i in range(1, 7))
    assert PlanResult(plan(), runs[:5]).load_s.high is None
    assert PlanResult(plan(), runs).load_s.high == 6.0
    assert PlanResult(plan(), runs).startup_s.value == 0.25


def test_requests_are_told_apart_by_round_and_prompt() -> None:
    result = PlanResult(plan(), (measurement(plan(), [1.0, 5.0]), measurement(plan(), [3.0, 7.0], round=2)))
    assert result.latencies_by_request == {(1, 0): 1.0, (1, 1): 5.0, (2, 0): 3.0, (2, 1): 7.0}
    assert result.latency_by_prompt == {0: 2.0, 1: 6.0}


def test_what_ran_is_told_by_the_last_process_that_knew() -> None:
    told = replace(measurement(plan(), FIVE), oversubscribed=True)
    result = PlanResult(plan(), (told, measurement(plan(), status="crashed", reason="gone")))
    assert result.actual == told.actual
    assert result.oversubscribed


def test_results_are_grouped_in_the_plans_order() -> None:
    a, b, c = plan("a"), plan("b"), plan("c")
    grouped = results(
        [a, b], [measurement(b, [1.0]), measurement(a, [2.0]), measurement(c, [9.0]), measurement(b, [3.0])]
    )
    assert [r.plan for r in grouped] == [a, b]
    assert [[s.latency_s for s in r.samples] for r in grouped] == [[2.0], [1.0, 3.0]]
