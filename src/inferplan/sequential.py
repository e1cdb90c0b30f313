"""Verdicts that hold however often one looks, and that speak of processes to come.

Owns the evidence for and against a share of requests within a limit, process
by process. Leaves what one look at the requests seen can say to `verdict`.

The claim is about the share of requests within the limit, averaged over the
processes as they were started one after the other: processes differ, requests
lean on each other within a process, and the machine drifts. The unit of
evidence is therefore the process, X between 0 and 1 its share. To bet on "more
than q" multiplies a stake by 1 + b (X - q), which gains nothing on average
while the truth is at most q, so that a stake of 1 that has become 20 is seen
with probability 1/20 at most, at any time. docs/decisions/0010 has the proof,
drift included, and why the bets are fixed beforehand.

Sources: I. Waudby-Smith and A. Ramdas, Estimating means of bounded random
variables by betting, J. R. Stat. Soc. B 86 (2024), p. 1 (read online in 2023);
J. Ville, Etude critique de la notion de collectif (1939), for the inequality;
G. Shafer and V. Vovk, Game-Theoretic Foundations for Probability and Finance
(2019). A mixture with density 1/(pi sqrt(u (1 - u))) is R. Krichevsky's and
V. Trofimov's (IEEE Trans. Inf. Theory 27, 1981, p. 199).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .result import Observed, PlanResult
from .sla import Constraint, Metric
from .stats import CONFIDENCE

_SPREAD = 16  # bets beside the boldest; with 64 of them a p50, a p95 and a p99 need the same number of processes
_BOLDEST = 1 / 3  # from 0.4 on, five processes would decide a median; with 0.3, a p95 would wait for 71 instead of 70

BETS: tuple[tuple[float, float], ...] = (
    (1.0, _BOLDEST),
    *((math.sin(math.pi * (i + 0.5) / (2 * _SPREAD)) ** 2, (1 - _BOLDEST) / _SPREAD) for i in range(_SPREAD)),
)
"""The stake, divided once and for all: (bet as a share of the boldest that can be paid, share of the stake)."""


@dataclass(frozen=True, slots=True)
class SequentialVerdict:
    """What the processes seen so far say, with an error that holds at every look.

    Attributes:
        verdict: `meets` and `misses` are each wrong with probability 1 - `confidence` at most.
        processes: how many gave a share.
        log_evidence_meets, log_evidence_misses: natural logs; decided from log(1 / (1 - `confidence`)) on.
        why: a sentence with numbers.
        needed: how many more processes `meets` takes at the least, with every request of theirs within the
            limit; None when it is decided.
    """

    verdict: Literal["meets", "misses", "undecided"]
    processes: int
    log_evidence_meets: float
    log_evidence_misses: float
    confidence: float
    why: str
    needed: int | None


def meets_evidence(shares: Sequence[float], q: float) -> float:
    """The natural log of the evidence that more than `q` of the requests are within the limit; 0.0 without a process.

    It is that of all processes given, not the largest on the way: under drift
    a maximum would speak of an average that is long past.

    Args:
        shares: by process in the order of starting, the share of its requests within the limit, 0 to 1.
        q: strictly between 0 and 1.

    Raises:
        ValueError: a number is out of its range.
    """
    _check(shares, q)
    return _mixed(_stakes(shares, q)) if shares else 0.0


def misses_evidence(shares: Sequence[float], q: float) -> float:
    """The natural log of the evidence that less than `q` of the requests are within the limit.

    The same bets on the shares beyond the limit, against 1 - `q` of them;
    arguments and errors as for `meets_evidence`.
    """
    _check(shares, q)
    return _mixed(_stakes([1 - share for share in shares], 1 - q)) if shares else 0.0


def processes_needed(q: float, confidence: float = CONFIDENCE) -> int:
    """How many processes `meets` takes at the least: every request of every one within the limit.

    6 for a median, 70 for a p95 and 357 for a p99, at 95%. It is known before anything runs.

    Raises:
        ValueError: `q` or `confidence` is not strictly between 0 and 1.
    """
    _check((), q, confidence)
    return _more(_stakes((), q), q, -math.log(1 - confidence))


def sequential_verdict(
    shares_low: Sequence[float], shares_high: Sequence[float], q: float, confidence: float = CONFIDENCE
) -> SequentialVerdict:
    """The verdict on "at least `q` of the requests are within the limit", after any number of processes.

    It may be asked after each process and the study ended as soon as it is
    decided: the chance of ever hearing `meets` while the average so far is at
    most `q` is 1 - `confidence` at most, and likewise that of `misses` while
    it is at least `q`. Processes must be counted however they turned out.

    Args:
        shares_low, shares_high: by process in the order of starting, the share of its requests within the
            limit, requests of which that is not known counted as outside, and as within.
        q: the share that is asked, strictly between 0 and 1: 0.95 for a p95.

    Raises:
        ValueError: a number is out of its range, or the two do not belong together.
    """
    _check(shares_low, q, confidence)
    _check(shares_high, q, confidence)
    if len(shares_low) != len(shares_high) or any(a > b for a, b in zip(shares_low, shares_high, strict=True)):
        raise ValueError("shares_low and shares_high must be as long as each other, and low nowhere above high")
    asked = -math.log(1 - confidence)
    meets, misses = meets_evidence(shares_low, q), misses_evidence(shares_high, q)
    verdict: Literal["meets", "misses", "undecided"] = "undecided"
    # Never both: bets on `meets` gain only where the shares seen average above q, those on `misses` only below.
    if meets >= asked:
        verdict = "meets"
    elif misses >= asked:
        verdict = "misses"
    needed = _more(_stakes(shares_low, q), q, asked) if verdict == "undecided" else None
    return SequentialVerdict(
        verdict,
        len(shares_low),
        meets,
        misses,
        confidence,
        _why(verdict, shares_low, shares_high, q, meets, misses, asked),
        needed,
    )


def required_share(constraint: Constraint) -> float:
    """The share of requests that must be within the limit: 0.95 for `p95<=...`; a rate's quantile mirrored.

    Raises:
        ValueError: the metric is seen once a process and has no share of requests.
    """
    q = constraint.metric.q
    if q is None:
        raise ValueError(f"{constraint.metric.name} is seen once a process: there is no share of requests")
    return q if constraint.op == "<=" else 1 - q


def shares(result: PlanResult, constraint: Constraint) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """By process in the order measured, the share of its requests within the limit: at least, and at most.

    A request cut short beyond the limit is outside. One cut short before is
    unknown: outside in the first tuple, within in the second. Disturbed
    requests are left out; a process without any other gives no share.

    Raises:
        ValueError: the metric is seen once a process and has no share of requests.
    """
    required_share(constraint)
    low: list[float] = []
    high: list[float] = []
    for one in result.by_process:
        values, cut = observed(one, constraint.metric)
        within = sum(v <= constraint.limit if constraint.op == "<=" else v >= constraint.limit for v in values)
        # A rate cut short may still be anything; a time is at least what it had run.
        known = sum(bound >= constraint.limit for bound in cut) if constraint.op == "<=" else 0
        if count := len(values) + len(cut):
            low.append(within / count)
            high.append((count - (len(values) - within) - known) / count)
    return tuple(low), tuple(high)


def observed(result: PlanResult, metric: Metric) -> Observed:
    """Observations of a metric over requests, and what is known of those cut short."""
    if metric.quantity == "latency":
        return result.latencies()
    if metric.quantity == "ttft":
        return result.ttfts()
    if metric.quantity == "tpot":
        return result.tpots()
    # A rate cut short: anything above 0.
    return tuple(s.tokens_per_s for s in result.samples), (0.0,) * result.cut_count


def _check(shares: Sequence[float], q: float, confidence: float = CONFIDENCE) -> None:
    if not 0 < q < 1 or not 0 < confidence < 1:
        raise ValueError(f"q and confidence must be between 0 and 1, not {q} and {confidence}")
    if bad := [share for share in shares if not 0 <= share <= 1]:
        raise ValueError(f"a share of requests lies between 0 and 1, not {bad[0]}")


def _stakes(shares: Sequence[float], q: float) -> list[float]:
    """The log of each part of the stake after these processes, in the order of `BETS`."""
    logs = []
    for bet, part in BETS:
        factors = [1 + bet * (share - q) / q for share in shares]
        # The boldest bet loses all on a process without a single request on its side.
        logs.append(-math.inf if min(factors, default=1.0) <= 0 else math.log(part) + math.fsum(map(math.log, factors)))
    return logs


def _mixed(stakes: Sequence[float]) -> float:
    """The log of the sum: that of the largest is taken out first, because the parts may be beyond a float."""
    top = max(stakes)
    return top + math.log(math.fsum(math.exp(stake - top) for stake in stakes))


def _more(stakes: Sequence[float], q: float, asked: float) -> int:
    """How many processes with share 1 raise the evidence to `asked`."""
    gains = [math.log(1 + bet * (1 - q) / q) for bet, _ in BETS]

    def enough(count: int) -> bool:
        return _mixed([stake + count * gain for stake, gain in zip(stakes, gains, strict=True)]) >= asked

    high = 1
    while not enough(high):
        high *= 2
    low = high // 2  # not enough, or 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _why(
    verdict: str,
    low: Sequence[float],
    high: Sequence[float],
    q: float,
    meets: float,
    misses: float,
    asked: float,
) -> str:
    if not low:
        return f"undecided: no process has a request that counts; {_odds(asked)} decides"
    count = f"{len(low)} process{'' if len(low) == 1 else 'es'}"
    least, most = math.fsum(low) / len(low), math.fsum(high) / len(high)
    share = f"{least:.1%}" if math.isclose(least, most) else f"between {least:.1%} and {most:.1%}"
    text = f"{share} of the requests of {count} were within the limit ({100 * q:.4g}% asked)"
    if verdict == "meets":
        return f"{text}: evidence of {_odds(meets)} that it meets, where {_odds(asked)} decides"
    if verdict == "misses":
        return f"{text}: evidence of {_odds(misses)} that it misses, where {_odds(asked)} decides"
    return f"{text}: evidence of {_odds(meets)} that it meets, {_odds(misses)} that it misses; {_odds(asked)} decides"


def _odds(log: float) -> str:
    """`36.1 to 1`, rounded down, so that it never reads as decided when it is not."""
    if log > math.log(1e6):
        return "over a million to 1"
    odds = math.exp(log)
    return "under 0.1 to 1" if odds < 0.1 else f"{math.floor(odds * 10 + 1e-9) / 10:g} to 1"
