"""Quantiles, their distribution-free intervals, and paired comparisons.

Pure functions over raw numbers; SciPy is imported where it is used, so that
importing this module loads nothing heavy. Says None where a sample is too
small to support a claim, and how many it would take.

Sources: the interval between two order statistics by the binomial
distribution is in W. J. Conover, Practical Nonparametric Statistics (1999),
section 3.2, and G. J. Hahn and W. Q. Meeker, Statistical Intervals (1991),
section 5.2. The plotting positions (i - 0.5)/n are A. Hazen's (Trans. ASCE 77,
1914, p. 1539).
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeVar

CONFIDENCE = 0.95
TIE_WITHIN = 0.03  # rule 9 of the design: a tie lies within 3%
_EXACT = 1e-12  # rounding: with one observation and q 0.95, 1 - q must count as no more than 0.05
MIN_PROCESSES = (
    6  # the full range of 6 is the smallest sample whose two-sided interval for a median reaches 95% (96.9%)
)

Key = TypeVar("Key", bound=Hashable)
Relation = Literal["faster", "slower", "tie", "undecided"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A quantity estimated from a sample, with its interval.

    Attributes:
        value: the point estimate; None where the sample is too small to have one,
            or where it falls on an observation that was cut short.
        low, high: two-sided interval at `confidence`; None on a side that the
            sample is too small to bound.
        upper, lower: one-sided bounds at `confidence`, for verdicts; None likewise.
        n: observations used, those cut short included.
        unit: what was drawn: `requests`, `processes`, `pairs`.
        needed: how many observations the missing bound needs; 0 when nothing is missing.
    """

    value: float | None
    low: float | None
    high: float | None
    upper: float | None
    lower: float | None
    n: int
    unit: str
    confidence: float = CONFIDENCE
    needed: int = 0


@dataclass(frozen=True, slots=True)
class Ratio:
    """How two plans compare on the same requests: a over b, below 1 where a is faster.

    Attributes:
        value: exp of the median log ratio; None without a pair.
        low, high: two-sided interval at `confidence`; None with too few pairs (six at 95%).
        n: pairs.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    confidence: float = CONFIDENCE

    def relation(self, within: float = TIE_WITHIN) -> Relation:
        """Of a to b. `tie` only where the whole interval is within `within` and includes 1."""
        if self.low is None or self.high is None:
            return "undecided"
        if self.high < 1:
            return "faster"
        if self.low > 1:
            return "slower"
        return "tie" if self.low >= 1 / (1 + within) and self.high <= 1 + within else "undecided"


def quantile_estimate(
    values: Sequence[float],
    q: float,
    confidence: float = CONFIDENCE,
    unit: str = "requests",
    at_least: Sequence[float] = (),
) -> Estimate:
    """The `q` quantile of what `values` were drawn from, and what bounds it.

    The point interpolates between Hazen's plotting positions (i - 0.5)/n and is
    None where `q` lies outside them: a p95 needs 10 observations. The bounds are
    order statistics chosen by the binomial distribution and hold for any
    distribution: an upper bound on a p95 needs 59 observations, on a p50 five.

    `at_least` holds observations that were cut short: only known to be no
    smaller. Lower bounds take them at what is known, upper bounds as infinite,
    and a figure that depends on how large they would have been is None.

    Args:
        values: observations, in any order and any unit.
        q: strictly between 0 and 1.

    Raises:
        ValueError: `q` or `confidence` is not strictly between 0 and 1.
    """
    if not 0 < q < 1 or not 0 < confidence < 1:
        raise ValueError(f"q and confidence must be between 0 and 1, not {q} and {confidence}")
    known = sorted([*values, *at_least])
    worst = sorted([*values, *(math.inf for _ in at_least)])
    n, alpha = len(known), 1 - confidence
    point, censored = _hazen(known, q), _hazen(worst, q)
    lower, upper = _bound(known, _lower_rank(n, q, alpha)), _bound(worst, _upper_rank(n, q, alpha))
    missing = _upper_rank(n, q, alpha) > n or _lower_rank(n, q, alpha) < 1
    return Estimate(
        value=point if point == censored else None,
        low=_bound(known, _lower_rank(n, q, alpha / 2)),
        high=_bound(worst, _upper_rank(n, q, alpha / 2)),
        upper=upper,
        lower=lower,
        n=n,
        unit=unit,
        confidence=confidence,
        needed=bound_needs(q, confidence) if missing else 0,
    )


def bound_needs(q: float, confidence: float = CONFIDENCE) -> int:
    """The smallest sample that bounds the `q` quantile on both sides, each at `confidence`."""
    # The extremes are the widest bounds there are: max >= the quantile unless all n lie below it, q**n.
    n = math.ceil(math.log(1 - confidence) / math.log(max(q, 1 - q)) - 1e-9)
    return max(n, 1)


def samples_to_settle(within: int, n: int, q: float, confidence: float = CONFIDENCE, cap: int = 5_000) -> int | None:
    """How large the sample must grow for its bound to clear a limit, should the share below it stay as seen.

    A rough plan, not a promise: it takes the share `within / n` of observations
    no larger than the limit as the truth and asks for the smallest sample whose
    one-sided bound on the `q` quantile then falls on one side of the limit.

    Returns:
        The total size to within 2%, at least `n` + 1; None when `cap` does not do, or when `n` is 0.
    """
    if n == 0:
        return None
    share, alpha, size = within / n, 1 - confidence, n + 1
    while share != q and size <= cap:
        below = share * size
        if share > q and _at_most(math.floor(below + 1e-9) - 1, size, q) >= 1 - alpha:
            return size
        if share < q and _at_most(math.ceil(below - 1e-9), size, q) <= alpha:
            return size
        size = max(size + 1, int(size * 1.02))  # it is a rough plan: no need to look at every size
    return None


def process_estimate(values: Sequence[float], confidence: float = CONFIDENCE, unit: str = "processes") -> Estimate:
    """The median over processes; bounded from six processes on, because fewer say nothing of others."""
    whole = quantile_estimate(values, 0.5, confidence, unit)
    if len(values) >= MIN_PROCESSES:
        return whole
    return Estimate(whole.value, None, None, None, None, len(values), unit, confidence, needed=MIN_PROCESSES)


def paired_ratio(a: Mapping[Key, float], b: Mapping[Key, float], confidence: float = CONFIDENCE) -> Ratio:
    """How `a` compares with `b` over the keys that both have, as the median of a/b.

    The interval is that of the sign test: the order statistics of the log
    ratios that bound their median (Conover, sections 3.2 and 3.4). It assumes
    nothing of the ratios' distribution, symmetry included, which prompts of
    different lengths would break.

    Args:
        a, b: positive numbers by key, a prompt's index or (round, index).

    Raises:
        ValueError: a number to be compared is not positive and finite.
    """
    keys = [key for key in a if key in b]
    if bad := [x for key in keys for x in (a[key], b[key]) if not 0 < x < math.inf]:
        raise ValueError(f"a ratio needs positive finite numbers, not {bad[0]}")
    logs = [math.log(a[key] / b[key]) for key in keys]
    found = quantile_estimate(logs, 0.5, confidence, "pairs")
    value, low, high = (None if x is None else math.exp(x) for x in (found.value, found.low, found.high))
    if low is None or high is None:
        low = high = None
    return Ratio(value, low, high, len(keys), confidence)


def _hazen(ordered: Sequence[float], q: float) -> float | None:
    n = len(ordered)
    if n == 0 or n * min(q, 1 - q) < 0.5 - 1e-9:  # 1 - 0.9 is a little less than 0.1: five samples still make a p90
        return None
    position = min(max(n * q - 0.5, 0.0), n - 1.0)
    below = math.floor(position + 1e-9)
    share = max(position - below, 0.0)
    if share < 1e-9:
        return ordered[below]
    if math.isinf(ordered[below + 1]):
        return math.inf
    return ordered[below] + share * (ordered[below + 1] - ordered[below])


def _bound(ordered: Sequence[float], rank: int) -> float | None:
    """The observation of that rank, counted from 1; None outside the sample or where it was cut short."""
    if not 1 <= rank <= len(ordered) or math.isinf(ordered[rank - 1]):
        return None
    return ordered[rank - 1]


@lru_cache(maxsize=4096)
def _upper_rank(n: int, q: float, alpha: float) -> int:
    """Smallest rank whose observation is at least the `q` quantile with probability 1 - `alpha`; n + 1: none."""
    # X_(s) falls below the quantile only when s or more of the n do, so that 1 - alpha <= P(B <= s - 1) is asked.
    return bisect_left(range(n + 1), 1 - alpha - _EXACT, key=lambda k: _at_most(k, n, q)) + 1


@lru_cache(maxsize=4096)
def _lower_rank(n: int, q: float, alpha: float) -> int:
    """Largest rank whose observation is at most the `q` quantile with probability 1 - `alpha`; 0: none."""
    return bisect_right(range(n), alpha + _EXACT, key=lambda k: _at_most(k, n, q))


def _at_most(k: int, n: int, q: float) -> float:
    """P(B <= k) for B binomial with n trials of chance q. From scipy.special: scipy.stats is slow to import."""
    from scipy.special import bdtr

    return float(bdtr(k, n, q)) if n else 1.0
