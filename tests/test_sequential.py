"""Sequential verdicts: what they take, what they never say, and how often they are wrong.

Owns the evidence and the way from measurements to it. Leaves the wrong shares
on recorded and hostile latencies to `benchmarks/verdicts.py`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import factories
from inferplan.measurement import Measurement
from inferplan.result import PlanResult
from inferplan.sequential import (
    BETS,
    meets_evidence,
    misses_evidence,
    processes_needed,
    required_share,
    sequential_verdict,
    shares,
)
from inferplan.sla import Constraint, parse_sla

DECIDES = math.log(20)
SHARE = st.sampled_from([i / 8 for i in range(9)])
SHARES = st.lists(SHARE, max_size=40)
QUANTILES = st.sampled_from([0.1, 0.5, 0.9, 0.95, 0.99])
CONFIDENCES = st.sampled_from([0.8, 0.9, 0.95, 0.99])


def constraint(text: str) -> Constraint:
    return parse_sla([text]).constraints[0]


def result(*measurements: Measurement) -> PlanResult:
    return PlanResult(factories.plan(), measurements)


# --- how many processes it takes ---


@pytest.mark.parametrize(("q", "needed"), [(0.5, 6), (0.9, 34), (0.95, 70), (0.99, 357)])
def test_so_many_processes_without_a_slow_request_meet_and_one_fewer_does_not(q: float, needed: int) -> None:
    assert processes_needed(q) == needed
    enough, short = (sequential_verdict([1.0] * n, [1.0] * n, q) for n in (needed, needed - 1))
    assert (enough.verdict, enough.needed, enough.processes) == ("meets", None, needed)
    assert (short.verdict, short.needed, short.processes) == ("undecided", 1, needed - 1)


@pytest.mark.parametrize(("q", "needed"), [(0.5, 6), (0.9, 2), (0.95, 2), (0.99, 1)])
def test_processes_without_a_fast_request_miss_sooner_the_higher_the_quantile(q: float, needed: int) -> None:
    assert sequential_verdict([0.0] * needed, [0.0] * needed, q).verdict == "misses"
    assert sequential_verdict([0.0] * (needed - 1), [0.0] * (needed - 1), q).verdict == "undecided"


def test_a_p95_is_missed_after_a_few_processes_that_are_mostly_within() -> None:
    verdict = sequential_verdict([0.625] * 4, [0.625] * 4, 0.95)
    assert verdict.verdict == "misses"
    assert verdict.log_evidence_misses >= DECIDES > 0 > verdict.log_evidence_meets


def test_a_process_at_exactly_the_share_asked_says_nothing() -> None:
    assert meets_evidence([0.5] * 50, 0.5) == pytest.approx(0.0)
    assert misses_evidence([0.5] * 50, 0.5) == pytest.approx(0.0)


def test_nothing_seen_is_undecided_with_what_it_takes() -> None:
    nothing = sequential_verdict([], [], 0.95)
    assert (nothing.verdict, nothing.processes, nothing.needed) == ("undecided", 0, processes_needed(0.95))
    assert (nothing.log_evidence_meets, nothing.log_evidence_misses) == (0.0, 0.0)
    assert "no process" in nothing.why


def test_requests_of_which_nothing_is_known_decide_nothing() -> None:
    assert sequential_verdict([0.0] * 200, [1.0] * 200, 0.5).verdict == "undecided"


def test_a_verdict_speaks_of_all_processes_so_far_not_of_the_luckiest_moment() -> None:
    early = [1.0] * 6
    assert sequential_verdict(early, early, 0.5).verdict == "meets"
    drifted = early + [0.0] * 6  # by now half of the requests were slow
    assert sequential_verdict(drifted, drifted, 0.5).verdict == "undecided"
    drifted = early + [0.0] * 40
    assert sequential_verdict(drifted, drifted, 0.5).verdict == "misses"


def test_the_why_has_the_numbers() -> None:
    meets = sequential_verdict([1.0] * 6, [1.0] * 6, 0.5).why
    assert "100.0% of the requests of 6 processes" in meets
    assert "50% asked" in meets
    assert "35.7 to 1 that it meets, where 20 to 1 decides" in meets
    unsure = sequential_verdict([0.5], [0.75], 0.95).why
    assert "between 50.0% and 75.0% of the requests of 1 process " in unsure
    assert "over a million to 1" in sequential_verdict([1.0] * 60, [1.0] * 60, 0.5).why


@given(low=SHARES, q=QUANTILES)
def test_the_evidence_shown_for_an_open_verdict_never_reads_as_decided(low: list[float], q: float) -> None:
    found = sequential_verdict(low, low, q)
    if found.verdict == "undecided" and low:
        shown = found.why.split("evidence of ")[1].split("; 20 to 1")[0].removesuffix(" that it misses")
        assert "million" not in shown
        odds = [float(part.removeprefix("under ").split(" to 1")[0]) for part in shown.split(" that it meets, ")]
        assert len(odds) == 2
        assert max(odds) < 20


# --- what holds for all shares ---


def test_the_stake_is_divided_whole_and_no_bet_can_lose_more_than_it_has() -> None:
    assert math.fsum(part for _, part in BETS) == pytest.approx(1.0)
    assert all(part > 0 and 0 < bet <= 1 for bet, part in BETS)


@given(low=SHARES, q=QUANTILES)
def test_one_process_adds_nothing_on_average_when_the_truth_is_the_share_asked(low: list[float], q: float) -> None:
    # A process that is all within with probability q, and else all outside, has the mean q: the evidence must not grow.
    for evidence in (meets_evidence, misses_evidence):
        before = math.exp(evidence(low, q))
        after = q * math.exp(evidence([*low, 1.0], q)) + (1 - q) * math.exp(evidence([*low, 0.0], q))
        assert after == pytest.approx(before)


@given(low=st.lists(SHARE, min_size=1, max_size=30), q=QUANTILES, data=st.data())
def test_a_larger_share_never_weakens_meets_nor_strengthens_misses(
    low: list[float], q: float, data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(low) - 1))
    better = [*low]
    better[place] = data.draw(st.floats(low[place], 1.0))
    assert meets_evidence(better, q) >= meets_evidence(low, q) - 1e-9
    assert misses_evidence(better, q) <= misses_evidence(low, q) + 1e-9


@given(low=st.lists(SHARE, min_size=1, max_size=60), q=QUANTILES)
def test_no_bet_gains_against_the_average_seen(low: list[float], q: float) -> None:
    if math.fsum(low) <= q * len(low):
        assert meets_evidence(low, q) <= 1e-9
    if math.fsum(low) >= q * len(low):
        assert misses_evidence(low, q) <= 1e-9


@given(low=SHARES, q=QUANTILES, seed=st.integers(0, 99))
def test_the_order_of_processes_does_not_change_the_evidence_of_all(low: list[float], q: float, seed: int) -> None:
    shuffled = random.Random(seed).sample(low, len(low))
    assert meets_evidence(shuffled, q) == pytest.approx(meets_evidence(low, q))


@given(pairs=st.lists(st.tuples(SHARE, SHARE), max_size=90), q=QUANTILES, confidence=CONFIDENCES)
def test_no_evidence_is_for_both_and_fewer_processes_than_needed_never_meet(
    pairs: list[tuple[float, float]], q: float, confidence: float
) -> None:
    low, high = [min(pair) for pair in pairs], [max(pair) for pair in pairs]
    found, decides = sequential_verdict(low, high, q, confidence), -math.log(1 - confidence)
    assert not (found.log_evidence_meets >= decides and found.log_evidence_misses >= decides)
    if len(low) < processes_needed(q, confidence):
        assert found.verdict != "meets"


@given(low=SHARES, q=QUANTILES, confidence=CONFIDENCES)
def test_as_many_more_as_needed_meet_and_one_fewer_does_not(low: list[float], q: float, confidence: float) -> None:
    needed = sequential_verdict(low, low, q, confidence).needed
    if needed is not None:
        enough, short = [*low, *[1.0] * needed], [*low, *[1.0] * (needed - 1)]
        assert sequential_verdict(enough, enough, q, confidence).verdict == "meets"
        assert sequential_verdict(short, short, q, confidence).verdict != "meets"


@given(low=SHARES, q=QUANTILES)
def test_more_confidence_takes_more(low: list[float], q: float) -> None:
    counts = [processes_needed(q, confidence) for confidence in (0.5, 0.9, 0.95, 0.99, 0.999)]
    assert counts == sorted(counts)
    if sequential_verdict(low, low, q, 0.99).verdict == "meets":
        assert sequential_verdict(low, low, q, 0.95).verdict == "meets"


@settings(deadline=None)
@given(n=st.integers(0, 3000), share=SHARE, q=QUANTILES)
def test_thousands_of_processes_do_not_overflow(n: int, share: float, q: float) -> None:
    found = sequential_verdict([share] * n, [share] * n, q)
    assert not math.isnan(found.log_evidence_meets)
    assert not math.isnan(found.log_evidence_misses)


@pytest.mark.parametrize("q", [0.0, 1.0, -0.1, math.nan])
def test_a_share_asked_outside_zero_to_one_is_refused(q: float) -> None:
    calls: list[Callable[[], object]] = [
        lambda: meets_evidence([1.0], q),
        lambda: misses_evidence([1.0], q),
        lambda: processes_needed(q),
        lambda: sequential_verdict([1.0], [1.0], q),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="between 0 and 1"):
            call()


def test_shares_that_cannot_be_are_refused() -> None:
    for bad in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="lies between 0 and 1"):
            sequential_verdict([bad], [bad], 0.5)
    with pytest.raises(ValueError, match="low nowhere above high"):
        sequential_verdict([0.5], [0.25], 0.5)
    with pytest.raises(ValueError, match="as long as each other"):
        sequential_verdict([0.5], [0.5, 0.5], 0.5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        processes_needed(0.5, 1.0)


# --- how often it is wrong, stopped at the first verdict ---


def bernoulli(q: float) -> Callable[[random.Random, int], tuple[float, float]]:
    """A whole process within or outside: the widest spread that shares of mean q can have. (share, its expectation)"""
    return lambda r, k: (float(r.random() < q), q)


def few_slow(r: random.Random, k: int) -> tuple[float, float]:
    """Eight requests; one process in five is slow with nearly all of its requests."""
    within = 0.05 if r.random() < 0.2 else 0.6125  # 0.2 * 0.05 + 0.8 * 0.6125 = 0.5
    return sum(r.random() < within for _ in range(8)) / 8, 0.5


def waves(r: random.Random, k: int) -> tuple[float, float]:
    """The machine drifts in long waves, good hours first."""
    mean = 0.5 + 0.45 * math.sin(2 * math.pi * k / 30)
    return sum(r.random() < mean for _ in range(8)) / 8, mean


@pytest.mark.parametrize(
    ("draw", "q", "budget"),
    [
        pytest.param(bernoulli(0.5), 0.5, 40, id="whole-processes-p50"),
        pytest.param(bernoulli(0.95), 0.95, 80, id="whole-processes-p95"),
        pytest.param(few_slow, 0.5, 40, id="few-slow-processes"),
        pytest.param(waves, 0.5, 60, id="drift"),
    ],
)
def test_wrong_verdicts_at_the_limit_stay_below_the_level(
    draw: Callable[[random.Random, int], tuple[float, float]], q: float, budget: int
) -> None:
    from scipy.stats import binomtest

    runs, random_ = 2000, random.Random(7)
    wrong_meets = wrong_misses = 0
    for _ in range(runs):
        verdict, mean = _first_verdict(draw, random_, q, budget)
        wrong_meets += verdict == "meets" and mean <= q
        wrong_misses += verdict == "misses" and mean >= q
    for wrong in (wrong_meets, wrong_misses):
        assert binomtest(wrong, runs).proportion_ci(0.95, "exact").low <= 0.05


def test_the_simulation_finds_an_error_where_there_is_one() -> None:
    # The same runs with a level of 30% are wrong more often than 5%: the check above can fail.
    from scipy.stats import binomtest

    random_, runs = random.Random(7), 400
    wrong = sum(_first_verdict(bernoulli(0.5), random_, 0.5, 40, 0.7)[0] == "meets" for _ in range(runs))
    assert binomtest(wrong, runs).proportion_ci(0.95, "exact").low > 0.05
    assert wrong / runs <= 0.3


def _first_verdict(
    draw: Callable[[random.Random, int], tuple[float, float]],
    random_: random.Random,
    q: float,
    budget: int,
    confidence: float = 0.95,
) -> tuple[str, float]:
    """The verdict at which a study would have ended, and the mean of the expected shares up to there.

    The stake is carried on from process to process, as `meets_evidence` would find it each time anew.
    """
    decides = 1 / (1 - confidence)
    meets, misses, means = [part for _, part in BETS], [part for _, part in BETS], 0.0
    for k in range(1, budget + 1):
        share, mean = draw(random_, k)
        means += mean
        meets = [stake * (1 + bet * (share - q) / q) for stake, (bet, _) in zip(meets, BETS, strict=True)]
        misses = [stake * (1 + bet * (q - share) / (1 - q)) for stake, (bet, _) in zip(misses, BETS, strict=True)]
        if sum(meets) >= decides:
            return "meets", means / k
        if sum(misses) >= decides:
            return "misses", means / k
    return "undecided", means / budget


@given(low=st.lists(SHARE, min_size=1, max_size=25), q=QUANTILES)
def test_the_stake_carried_on_is_the_evidence(low: list[float], q: float) -> None:
    meets, misses = [part for _, part in BETS], [part for _, part in BETS]
    for share in low:
        meets = [stake * (1 + bet * (share - q) / q) for stake, (bet, _) in zip(meets, BETS, strict=True)]
        misses = [stake * (1 + bet * (q - share) / (1 - q)) for stake, (bet, _) in zip(misses, BETS, strict=True)]
    assert math.log(sum(meets)) == pytest.approx(meets_evidence(low, q), abs=1e-6)
    assert math.log(sum(misses)) == pytest.approx(misses_evidence(low, q), abs=1e-6)


# --- from measurements to shares ---


def test_each_process_gives_its_share_in_the_order_measured() -> None:
    plan = factories.plan()
    seen = result(
        factories.measurement(plan, [1.0, 2.0, 3.0, 4.0]), factories.measurement(plan, [1.0, 1.5, 1.9, 2.0], round=2)
    )
    assert shares(seen, constraint("p50<=2s")) == ((0.5, 1.0), (0.5, 1.0))


def test_a_request_cut_short_beyond_the_limit_is_outside_and_one_below_it_is_unknown() -> None:
    one = factories.measurement(factories.plan(), [1.0, 1.0, 3.0, 1.5], cut=[2, 3])
    assert shares(result(one), constraint("p50<=2s")) == ((0.5,), (0.75,))
    at_the_limit = factories.measurement(factories.plan(), [1.0, 2.0], cut=[1])  # it was still running then
    assert shares(result(at_the_limit), constraint("p50<=2s")) == ((0.5,), (0.5,))


def test_a_process_of_which_every_request_was_cut_short_still_counts() -> None:
    cut = [factories.measurement(factories.plan(), [2.5] * 4, cut=range(4), round=i) for i in (1, 2)]
    low, high = shares(result(*cut), constraint("p95<=2s"))
    assert (low, high) == ((0.0, 0.0), (0.0, 0.0))
    assert sequential_verdict(low, high, 0.95).verdict == "misses"


def test_disturbed_requests_are_left_out_and_a_process_of_nothing_else_gives_no_share() -> None:
    plan = factories.plan()
    some = factories.measurement(plan, [1.0, 9.0, 1.0], disturbed=[1])
    none = factories.measurement(plan, [1.0, 1.0], disturbed=[0, 1], round=2)
    assert shares(result(some, none), constraint("p50<=2s")) == ((1.0,), (1.0,))


def test_a_process_that_failed_gives_no_share() -> None:
    plan = factories.plan()
    crashed = factories.measurement(plan, [1.0, 1.0], status="crashed", reason="gone", round=2)
    assert shares(result(factories.measurement(plan, [1.0, 1.0]), crashed), constraint("p50<=2s")) == ((1.0,), (1.0,))


def test_every_metric_over_requests_has_shares() -> None:
    one = factories.measurement(factories.plan(), [1.0, 2.0], ttft_s=0.3, tokens=8)  # 8 and 4 tokens/s
    assert shares(result(one), constraint("ttft<=300ms")) == ((1.0,), (1.0,))
    assert shares(result(one), constraint("ttft_p95<=200ms")) == ((0.0,), (0.0,))
    assert shares(result(one), constraint("tpot<=150ms")) == ((0.5,), (0.5,))  # 0.1 and 0.243 s
    assert shares(result(one), constraint("tokens_per_s>=5")) == ((0.5,), (0.5,))
    assert shares(result(one), constraint("tokens_per_s>=8")) == ((0.5,), (0.5,))


def test_of_a_request_cut_short_its_first_token_is_known_and_its_rate_is_not() -> None:
    one = factories.measurement(factories.plan(), [1.0, 2.0], ttft_s=0.3, cut=[1])
    assert shares(result(one), constraint("ttft<=300ms")) == ((1.0,), (1.0,))
    assert shares(result(one), constraint("tpot<=150ms")) == ((0.5,), (1.0,))
    assert shares(result(one), constraint("tokens_per_s>=5")) == ((0.5,), (1.0,))


@pytest.mark.parametrize(("text", "share"), [("p95<=1s", 0.95), ("ttft<=1s", 0.5), ("tokens_per_s>=5", 0.5)])
def test_a_constraint_says_which_share_it_asks(text: str, share: float) -> None:
    assert required_share(constraint(text)) == share


def test_what_is_seen_once_a_process_has_no_share() -> None:
    with pytest.raises(ValueError, match="seen once a process"):
        shares(result(factories.measurement(factories.plan(), [1.0])), constraint("peak_rss<=1GB"))


def _undecided_before(plan_shares: Sequence[float], q: float) -> bool:
    return all(
        sequential_verdict(plan_shares[:k], plan_shares[:k], q).verdict == "undecided" for k in range(len(plan_shares))
    )


def test_fast_and_slow_plans_are_told_apart_after_six_processes_and_not_before() -> None:
    plan, limit = factories.plan(), constraint("p50<=2s")
    fast = result(*(factories.measurement(plan, [1.0, 1.1, 1.2, 2.1], round=i) for i in range(1, 12)))
    slow = result(*(factories.measurement(plan, [3.0] * 4, round=i) for i in range(1, 7)))
    assert sequential_verdict(*shares(fast, limit), 0.5).verdict == "meets"
    low, high = shares(slow, limit)
    assert sequential_verdict(low, high, 0.5).verdict == "misses"
    assert _undecided_before(low, 0.5)
