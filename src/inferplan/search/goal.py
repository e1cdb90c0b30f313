"""What a search is after, and what that makes of one plan: its score, its promise, why it has no chance any more.

Owns these judgements of one plan, in sentences with numbers. Leaves to `racing` what is done about them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist, median

from ..cost import Prices
from ..plan import Plan
from ..predict import Prediction, Range
from ..ranking import Objective, Ranked, figure, judged, least
from ..result import PlanResult
from ..sequential import observed
from ..sla import SLA, Constraint, Kind, format_quantity

_MEASURED: Mapping[str, tuple[str, Kind]] = {"latency": ("latency", "time"), "memory": ("peak memory", "memory")}

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
        """What is minimised, as a look shows it: of requests that were cut short, as far as they ran."""
        if self.objective.metric != "latency":
            return least(figure(r, self.objective))
        times = [s.latency_s for m in r.result.ok_measurements for s in m.samples if not s.disturbed]
        times = times or [s.latency_s for m in r.result.ok_measurements for s in m.samples]
        return median(times) if times else math.inf

    def hopeless(self, r: Ranked) -> str:
        """Why a process leaves a plan no way to meet the SLA: every request beyond a limit, or what is seen once.

        Empty where it leaves one.
        """
        for judgement in r.judgements:
            if judgement.verdict == "misses" and judgement.constraint.metric.q is None:
                return judgement.why
        for constraint in self.sla.constraints:
            q, limit = constraint.metric.q, constraint.limit
            if q is None:
                continue
            values, cut = observed(r.result, constraint.metric)
            known = (*values, *cut)  # of a request that was cut short, what it had reached
            beyond = all(value > limit for value in values) and all(bound >= limit for bound in cut)
            if known and constraint.op == "<=" and q >= 0.5 and beyond:
                closest = min(known)
            elif values and not cut and constraint.op == ">=" and max(values) < limit:
                closest = max(values)
            else:
                continue
            shown = format_quantity(constraint.metric.kind, closest)
            return f"all {len(known)} requests are beyond {constraint}, the nearest with {shown}"
        return ""

    # Of what is predicted

    def foreseen(self, expected: Prediction) -> Range:
        """What is minimised, as predicted: seconds, bytes, or what a request costs, in a unit of its own."""
        if self.objective.metric == "memory":
            return expected.peak_bytes
        if self.objective.metric == "latency":
            return expected.latency_s
        vcpus = min(float(expected.plan.threads), self.cores)
        return Range(
            *(
                (vcpus * self.prices.usd_per_vcpu_hour + b / 2**30 * self.prices.usd_per_gb_hour) * s
                for b, s in (
                    (getattr(expected.peak_bytes, end), getattr(expected.latency_s, end))
                    for end in ("low", "value", "high")
                )
            )
        )

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
        mine, bounds = self.foreseen(own), [(_foretold(c, own), c.limit) for c in self.sla.constraints]
        meets = math.prod(_probability(found, limit) for found, limit in bounds if found is not None)
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
            if why := _out_of_reach(constraint, own):
                return why
        if best is None:
            return ""
        mine, lowest = self.foreseen(own), self._to_beat(expected, best)
        if mine.low < lowest:
            return ""
        if self.objective.metric == "cost":
            return f"not started: predicted to cost {mine.low / lowest:.2f}x what {best.plan} does, at the least"
        name, kind = _MEASURED[self.objective.metric]
        return _predicted(name, mine, kind, lowest, f"{best.plan} was seen to take")

    def _to_beat(self, expected: Mapping[Plan, Prediction], best: Ranked) -> float:
        """What is minimised, of the best plan, in the units of `foreseen`: infinite where it is not known."""
        if self.objective.metric != "cost":
            return self.score(best)
        ahead = expected.get(best.plan)  # in other units than what is measured: compared as expected
        return math.inf if ahead is None else self.foreseen(ahead).value


def _improvement(expected: Range, lowest: float) -> float:
    """By how much, in the mean, a log-normal value lies below `lowest`; where that is infinite, the nearer the more."""
    if not math.isfinite(lowest):
        return 1.0 / expected.value
    sd = _sd(expected)
    z = math.log(lowest / expected.value) / sd
    return lowest * _NORMAL.cdf(z) - expected.value * math.exp(sd * sd / 2) * _NORMAL.cdf(z - sd)


def _probability(expected: Range, limit: float) -> float:
    """That a log-normal value is at most `limit`."""
    return _NORMAL.cdf(math.log(limit / expected.value) / _sd(expected))


def _sd(expected: Range) -> float:
    """Standard deviation of the logarithm of what is expected."""
    return max(math.log(expected.value / expected.low) / _IN_90, _STEADY)


def _out_of_reach(constraint: Constraint, expected: Prediction) -> str:
    """Why even the optimistic end of what is expected misses `constraint`; empty where it does not."""
    found = _foretold(constraint, expected)
    if found is None or found.low <= constraint.limit:
        return ""
    return _predicted(constraint.metric.name, found, constraint.metric.kind, constraint.limit, "are allowed")


def _foretold(constraint: Constraint, expected: Prediction) -> Range | None:
    """What is expected of what `constraint` limits from above; None where nothing is, or of a lower quantile."""
    ranges: Mapping[str, Range] = {
        "latency": expected.latency_s,
        "ttft": expected.ttft_s,
        "tpot": expected.tpot_s,
        "peak_rss": expected.peak_bytes,
    }
    metric = constraint.metric
    return None if metric.q is not None and metric.q < 0.5 else ranges.get(metric.quantity)


def _predicted(what: str, found: Range, kind: Kind, against: float, words: str) -> str:
    def shown(value: float) -> str:
        return format_quantity(kind, value)

    return (
        f"not started: predicted {what} {shown(found.value)} ({shown(found.low)} to {shown(found.high)}), "
        f"{found.low / against:.2f}x at the least of the {shown(against)} that {words}"
    )
