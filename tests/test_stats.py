"""Quantiles, intervals and paired ratios: what they claim, how often that holds, and when they keep quiet."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferplan.stats import (
    Estimate,
    Ratio,
    bound_needs,
    paired_ratio,
    process_estimate,
    quantile_estimate,
    samples_to_settle,
)

POSITIVE = st.floats(1e-3, 1e3)
SAMPLES = st.lists(POSITIVE, min_size=1, max_size=80)
QUANTILES = st.sampled_from([0.1, 0.5, 0.9, 0.95, 0.99])


@pytest.mark.parametrize(("q", "smallest"), [(0.5, 1), (0.9, 5), (0.95, 10), (0.99, 50), (0.999, 500), (0.05, 10)])
def test_a_quantile_has_a_point_only_inside_the_plotting_positions(q: float, smallest: int) -> None:
    assert quantile_estimate([1.0] * smallest, q).value == 1.0
    assert quantile_estimate([1.0] * (smallest - 1), q).value is None


@pytest.mark.parametrize(("q", "smallest"), [(0.5, 5), (0.95, 59), (0.9, 29), (0.99, 299), (0.05, 59)])
def test_a_bound_needs_as_many_samples_as_the_binomial_says(q: float, smallest: int) -> None:
    values = [float(i) for i in range(smallest)]
    enough, short = quantile_estimate(values, q), quantile_estimate(values[1:], q)
    assert bound_needs(q) == smallest
    assert None not in (enough.upper, enough.lower)
    assert enough.needed == 0
    assert None in (short.upper, short.lower)
    assert short.needed == smallest


def test_five_samples_have_no_p95_and_say_what_it_takes() -> None:
    five = quantile_estimate([1.0, 2.0, 3.0, 4.0, 5.0], 0.95)
    assert (five.value, five.high, five.upper, five.needed, five.n) == (None, None, None, 59, 5)


def test_no_samples_give_nothing() -> None:
    assert quantile_estimate([], 0.5) == Estimate(None, None, None, None, None, 0, "requests", needed=5)


@pytest.mark.parametrize(
    ("values", "q", "expected"),
    [([1.0, 2.0, 3.0, 4.0], 0.5, 2.5), ([1.0, 2.0, 9.0], 0.5, 2.0), ([float(i) for i in range(1, 11)], 0.9, 9.5)],
)
def test_the_point_interpolates_between_hazens_positions(values: list[float], q: float, expected: float) -> None:
    assert quantile_estimate(values, q).value == pytest.approx(expected)


def test_the_interval_of_a_median_of_ten_is_the_textbook_one() -> None:
    ten = quantile_estimate([float(i) for i in range(1, 11)], 0.5)
    assert (ten.low, ten.high) == (2.0, 9.0)  # 97.9%; the next pair in, 3 to 8, has 89.1%
    assert (ten.lower, ten.upper) == (2.0, 9.0)


@pytest.mark.parametrize("q", [0.0, 1.0, -0.1, math.nan])
def test_a_quantile_outside_zero_to_one_is_refused(q: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        quantile_estimate([1.0], q)


@pytest.mark.parametrize("n", [1, 2, 5, 8, 16, 59, 200])
@pytest.mark.parametrize("q", [0.05, 0.5, 0.95])
def test_bounds_are_the_tightest_order_statistics_that_suffice(n: int, q: float) -> None:
    from scipy.stats import binom

    e = quantile_estimate([float(i) for i in range(1, n + 1)], q)  # the value is its rank
    upper = next((s for s in range(1, n + 1) if binom.cdf(s - 1, n, q) >= 0.95 - 1e-9), None)
    lower = next((r for r in range(n, 0, -1) if binom.cdf(r - 1, n, q) <= 0.05 + 1e-9), None)
    assert (e.upper, e.lower) == (upper, lower)


@given(values=SAMPLES, q=QUANTILES, seed=st.integers(0, 99))
def test_the_order_of_samples_does_not_matter(values: list[float], q: float, seed: int) -> None:
    shuffled = random.Random(seed).sample(values, len(values))
    assert quantile_estimate(shuffled, q) == quantile_estimate(values, q)


@given(values=SAMPLES, q=QUANTILES)
def test_the_interval_holds_the_point_and_the_one_sided_bounds(values: list[float], q: float) -> None:
    e = quantile_estimate(values, q)
    known = [x for x in (e.low, e.lower, e.value, e.upper, e.high) if x is not None]
    assert known == sorted(known)


@given(values=SAMPLES)
def test_higher_quantiles_have_higher_points_and_bounds(values: list[float]) -> None:
    estimates = [quantile_estimate(values, q) for q in (0.1, 0.25, 0.5, 0.75, 0.9)]
    for name in ("value", "lower", "upper"):
        known = [x for e in estimates if (x := getattr(e, name)) is not None]
        assert known == sorted(known)


@given(values=SAMPLES, q=QUANTILES, by=st.floats(1.0, 10.0))
def test_a_slower_plan_never_has_lower_figures(values: list[float], q: float, by: float) -> None:
    fast, slow = quantile_estimate(values, q), quantile_estimate([v * by for v in values], q)
    for name in ("value", "lower", "upper"):
        before, after = getattr(fast, name), getattr(slow, name)
        assert (before is None) == (after is None)
        assert before is None or after >= before


@given(values=SAMPLES, cut=st.lists(st.tuples(POSITIVE, st.floats(1.0, 5.0)), min_size=1, max_size=20), q=QUANTILES)
def test_a_figure_with_samples_cut_short_is_the_true_one_or_none(
    values: list[float], cut: list[tuple[float, float]], q: float
) -> None:
    truth = quantile_estimate([*values, *(at * longer for at, longer in cut)], q)
    seen = quantile_estimate(values, q, at_least=[at for at, _ in cut])
    assert seen.n == truth.n
    assert seen.value is None or truth.value is None or seen.value == pytest.approx(truth.value)
    assert seen.upper is None or (truth.upper is not None and seen.upper >= truth.upper)
    assert (seen.lower is None) == (truth.lower is None)
    assert seen.lower is None or truth.lower is None or seen.lower <= truth.lower


def test_samples_cut_short_leave_only_a_lower_bound() -> None:
    e = quantile_estimate([1.0, 1.1], 0.5, at_least=[3.0] * 6)
    assert (e.value, e.upper, e.high) == (None, None, None)
    assert e.lower == 1.1


Draw = Callable[[random.Random], float]


@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (lambda r: r.expovariate(1.0), lambda q: -math.log(1 - q)),
        (lambda r: r.random() ** 3, lambda q: q**3),
        (lambda r: r.paretovariate(1.5), lambda q: (1 - q) ** (-1 / 1.5)),
    ],
    ids=["exponential", "cubed uniform", "heavy tail"],
)
@pytest.mark.parametrize(("q", "n"), [(0.5, 8), (0.5, 16), (0.95, 80)])
def test_intervals_cover_as_often_as_they_say(draw: Draw, truth: Callable[[float], float], q: float, n: int) -> None:
    source, times = random.Random(f"{q}-{n}"), 400
    two = up = down = 0
    for _ in range(times):
        e = quantile_estimate([draw(source) for _ in range(n)], q)
        two += (e.low is None or e.low <= truth(q)) and (e.high is None or truth(q) <= e.high)
        up += e.upper is not None and truth(q) <= e.upper
        down += e.lower is not None and e.lower <= truth(q)
    # Coverage is at least 95%; three standard errors of 400 trials at 95% are 3.3%.
    assert min(two, up, down) / times >= 0.95 - 0.033


def test_processes_have_a_median_at_once_and_an_interval_from_six() -> None:
    five, six = process_estimate([1.0, 2.0, 3.0, 4.0, 5.0]), process_estimate([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert (five.value, five.low, five.high, five.upper, five.needed) == (3.0, None, None, None, 6)
    assert (six.value, six.low, six.high, six.needed, six.unit) == (3.5, 1.0, 6.0, 0, "processes")
    assert process_estimate([]).value is None


def test_pairs_are_made_by_key_and_the_rest_is_left_out() -> None:
    ratio = paired_ratio({1: 2.0, 2: 6.0, 9: 1000.0}, {2: 3.0, 1: 1.0, 7: 0.001})
    assert ratio.n == 2
    assert ratio.value == pytest.approx(2.0)
    assert ratio.low is None
    assert ratio.high is None
    assert ratio.relation() == "undecided"


def test_plans_that_share_no_request_have_no_ratio() -> None:
    assert paired_ratio({1: 1.0}, {2: 1.0}) == Ratio(None, None, None, 0)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, math.nan])
def test_a_ratio_of_impossible_latencies_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="positive finite"):
        paired_ratio({1: bad}, {1: 1.0})


@given(pairs=st.lists(st.tuples(POSITIVE, POSITIVE), min_size=6, max_size=30))
def test_swapping_the_two_inverts_the_ratio(pairs: list[tuple[float, float]]) -> None:
    a, b = dict(enumerate(p[0] for p in pairs)), dict(enumerate(p[1] for p in pairs))
    there, back = paired_ratio(a, b), paired_ratio(b, a)
    assert there.value is not None
    assert there.low is not None
    assert there.high is not None
    assert back.value == pytest.approx(1 / there.value)
    assert back.low == pytest.approx(1 / there.high)
    assert there.low <= there.value * (1 + 1e-12)
    assert there.value <= there.high * (1 + 1e-12)


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_a_paired_difference_shows_through_prompts_of_any_length(seed: int) -> None:
    source = random.Random(seed)
    slow = {i: source.uniform(0.1, 100.0) for i in range(12)}
    fast = {i: t / source.uniform(1.10, 1.20) for i, t in slow.items()}
    assert paired_ratio(fast, slow).relation() == "faster"
    assert paired_ratio(slow, fast).relation() == "slower"


@pytest.mark.parametrize(
    ("low", "high", "relation"),
    [
        (0.98, 1.02, "tie"),
        (1 / 1.03, 1.03, "tie"),
        (0.96, 1.02, "undecided"),
        (0.98, 1.04, "undecided"),
        (0.90, 0.999, "faster"),
        (1.001, 1.02, "slower"),
        (None, None, "undecided"),
    ],
)
def test_a_tie_lies_wholly_within_three_percent(low: float | None, high: float | None, relation: str) -> None:
    assert Ratio(1.0, low, high, 8).relation() == relation


def test_settling_takes_more_samples_the_closer_the_limit() -> None:
    clear, close, hopeless = samples_to_settle(4, 4, 0.5), samples_to_settle(6, 10, 0.5), samples_to_settle(5, 10, 0.5)
    assert clear == 5
    assert close is not None
    assert close > 11
    assert hopeless is None
    assert samples_to_settle(0, 4, 0.5) == 5  # all beyond: as soon as a lower bound exists
    assert samples_to_settle(0, 0, 0.5) is None
