"""What a search is after, and what that makes of one plan: its score, its promise, why it has no chance any more.

Owns these judgements of one plan, in sentences with numbers. Leaves to `racing` what is done about them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist, median

from ..cost import Prices
from ..foretold import foretold
from ..plan import Plan
from ..predict import Prediction, Range
from ..ranking import Objective, Ranked, figure, judged, least
from ..result import PlanResult
from ..sequential import observed
from ..sla import SLA, Constraint, Kind, Metric, find_metric, format_quantity

_MINIMISED: Mapping[str, tuple[str, Metric]] = {
    "latency": ("latency", find_metric("p50")),
    "memory": ("peak memory", find_metric("peak_rss")),
    "cost": ("cost", find_metric("cost")),
}

_NORMAL = NormalDist()
_IN_90 = _NORMAL.inv_cdf(0.95)  # standard deviations from the middle of a `Range` to its ends
_STEADY = 1e-6  # at the least, of a logarithm: a range without width divides nothing by zero


@dataclass(frozen=True, slots=True)
class Goal:
    """What is minimised, and under which limits.

    Attributes:
        cores: granted here: a plan with more threads costs no more than these.
        memory_bytes: that a plan may have.
    """

    sla: SLA
    objective: Objective
    prices: Prices
    cores: float
    memory_bytes: float = math.inf

    # Of what was measured

    def judge(self, result: PlanResult) -> Ranked:
        """What a plan's measurements say under these terms."""
        return judged(result, self.sla, self.prices, self.cores)

    def score(self, r: Ranked) -> float:
        """What is minimised, as a look shows it: of requests that were cut short, as far as they ran.

        One that was ended at its first token tells little of its latency: it counts where there is no other.
        """
        if self.objective.metric != "latency":
            return least(figure(r, self.objective))
        every = [s for m in r.result.ok_measurements for s in m.samples]
        clean = [s for s in every if not s.disturbed] or every
        times = [s.latency_s for s in clean if not s.cut or s.output_tokens > 1] or [s.latency_s for s in clean]
        return median(times) if times else math.inf

    def hopeless(self, r: Ranked) -> str:
        """Why a process leaves a plan no way to meet the SLA: every request beyond a limit, or what is seen once.

        Empty where it leaves one.
        """
        if why := self.shown_once(r):
            return why
        for constraint in self.sla.constraints:
            if (found := _all_beyond(constraint, r)) is not None:
                closest, count = found
                shown = format_quantity(constraint.metric.kind, closest)
                return f"all {count} requests are beyond {constraint}, the nearest with {shown}"
        return ""

    def shown_once(self, r: Ranked) -> str:
        """Why what is seen once a process rules a plan out: no further process of it would be needed; or empty."""
        misses = (j for j in r.judgements if j.verdict == "misses" and j.constraint.metric.q is None)
        return next((j.why for j in misses), "")

    def times_beyond(self, r: Ranked) -> float:
        """How many times a limit the nearest of a plan's requests took, by the worst limit; 1.0: some are within."""
        found = ((c, _all_beyond(c, r)) for c in self.sla.constraints)
        ratios = (one[0] / c.limit if c.op == "<=" else c.limit / one[0] for c, one in found if one is not None)
        return max(ratios, default=1.0)

    # Of what is predicted

    def foreseen(self, expected: Prediction) -> Range:
        """What is minimised, as predicted: seconds, bytes or USD per Mtok."""
        found = self._foretold(_MINIMISED[self.objective.metric][1], expected)
        assert found is not None, "each of these is predicted"
        return found

    def promise(self, plan: Plan, expected: Mapping[Plan, Prediction], best: Ranked | None) -> float:
        """How much a look at `plan` promises: which of several plans to look at first.

        The expected improvement on the best plan (Jones, Schonlau and Welch, Efficient Global Optimization of Expensive
        Black-Box Functions, Journal of Global Optimization 13, 1998), times the probability that the SLA is met
        (Schonlau, Welch and Jones, Global versus Local Search in Constrained Optimization of Computer Models, IMS
        Lecture Notes 34, 1998); what is predicted is taken to be log-normal. Where there is no best plan yet: that
        probability over what is expected of the objective. 0 where nothing is predicted: such a plan comes last, when
        requests to it can be ended by what a better one takes.

        Args:
            best: of the plans that were looked at.
        """
        own = expected.get(plan)
        if own is None:
            return 0.0
        mine, bounds = self.foreseen(own), [(c, self._bounded(c, own)) for c in self.sla.constraints]
        meets = math.prod(_probability(found, c) for c, found in bounds if found is not None)
        return meets / mine.value if best is None else meets * _improvement(mine, self._to_beat(expected, best))

    def no_chance(self, plan: Plan, expected: Mapping[Plan, Prediction], best: Ranked | None) -> str:
        """Why even the optimistic end of what is expected of `plan` cannot win; empty where it may, or is not known.

        Args:
            best: of the plans that were looked at.
        """
        own = expected.get(plan)
        if own is None:
            return ""
        if own.peak_bytes.low > self.memory_bytes:
            return _predicted("peak memory", own.peak_bytes, "memory", self.memory_bytes, "are granted here")
        for constraint in self.sla.constraints:
            if why := self._out_of_reach(constraint, own):
                return why
        if best is None:
            return ""
        mine, lowest = self.foreseen(own), self._to_beat(expected, best)
        if mine.low < lowest:
            return ""
        name, metric = _MINIMISED[self.objective.metric]
        words = f"{best.plan} was seen to take" if metric.quantity != "cost" else f"{best.plan} is expected to cost"
        return _predicted(name, mine, metric.kind, lowest, words)

    def _foretold(self, metric: Metric, expected: Prediction) -> Range | None:
        return foretold(metric, expected, self.prices, self.cores)

    def _bounded(self, constraint: Constraint, expected: Prediction) -> Range | None:
        """What is expected of what `constraint` bounds; None where nothing is, or it says nothing of that."""
        q, op = constraint.metric.q, constraint.op
        if q is not None and (q < 0.5 if op == "<=" else q > 0.5):
            return None
        found = self._foretold(constraint.metric, expected)
        return None if found is None or found.low <= 0 else found  # one without a lower end may be anything

    def _out_of_reach(self, constraint: Constraint, expected: Prediction) -> str:
        """Why even the optimistic end of what is expected misses `constraint`; empty where it does not."""
        found, metric, limit = self._bounded(constraint, expected), constraint.metric, constraint.limit
        if found is None:
            return ""
        if constraint.op == ">=":
            return (
                "" if found.high >= limit else _predicted(metric.name, found, metric.kind, limit, "are asked", "most")
            )
        return "" if found.low <= limit else _predicted(metric.name, found, metric.kind, limit, "are allowed")

    def _to_beat(self, expected: Mapping[Plan, Prediction], best: Ranked) -> float:
        """What is minimised, of the best plan, to compare with `foreseen`: infinite where it is not known."""
        if self.objective.metric != "cost":
            return self.score(best)
        ahead = expected.get(best.plan)  # a cost is not known of requests that were cut: compared as expected
        return math.inf if ahead is None else self.foreseen(ahead).value


def _improvement(expected: Range, lowest: float) -> float:
    """By how much, in the mean, a log-normal value lies below `lowest`; where that is infinite, the nearer the more."""
    if not math.isfinite(lowest):
        return 1.0 / expected.value
    sd = _sd(expected)
    z = math.log(lowest / expected.value) / sd
    return lowest * _NORMAL.cdf(z) - expected.value * math.exp(sd * sd / 2) * _NORMAL.cdf(z - sd)


def _probability(expected: Range, constraint: Constraint) -> float:
    """That a log-normal value is within the limit."""
    below = _NORMAL.cdf(math.log(constraint.limit / expected.value) / _sd(expected))
    return below if constraint.op == "<=" else 1 - below


def _sd(expected: Range) -> float:
    """Standard deviation of the logarithm of what is expected."""
    return max(math.log(expected.high / expected.value) / _IN_90, _STEADY)


def _all_beyond(constraint: Constraint, r: Ranked) -> tuple[float, int] | None:
    """The nearest of a plan's requests, and how many there are, where every one is beyond a limit on a quantile.

    None where one is within, or may be, or where they say nothing of that quantile.
    """
    q, limit = constraint.metric.q, constraint.limit
    if q is None:
        return None
    values, cut = observed(r.result, constraint.metric)
    known = (*values, *cut)  # of a request that was cut short, what it had reached
    if constraint.op == ">=":
        return (max(values), len(values)) if values and not cut and max(values) < limit else None
    beyond = all(value > limit for value in values) and all(bound >= limit for bound in cut)
    return (min(known), len(known)) if known and q >= 0.5 and beyond else None


def _predicted(what: str, found: Range, kind: Kind, against: float, words: str, end: str = "least") -> str:
    def shown(value: float) -> str:
        return format_quantity(kind, value)

    nearest = found.low if end == "least" else found.high
    return (
        f"not started: predicted {what} {shown(found.value)} ({shown(found.low)} to {shown(found.high)}), "
        f"{nearest / against:.2f}x at the {end} of the {shown(against)} that {words}"
    )
