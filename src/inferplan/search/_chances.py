"""What a look, or a prediction, leaves a plan: its score so far, and why it has no chance any more.

Owns these judgements of one plan, in sentences with numbers. Leaves to `racing` what is done about them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median

from ..predict import Prediction, Range
from ..ranking import Objective, Ranked, figure, least
from ..sequential import observed
from ..sla import SLA, Constraint, Kind, format_quantity


def score(r: Ranked, objective: Objective) -> float:
    """What is minimised, as a look shows it: of requests that were cut short, as far as they ran."""
    if objective.metric != "latency":
        return least(figure(r, objective))
    times = [s.latency_s for m in r.result.ok_measurements for s in m.samples if not s.disturbed]
    times = times or [s.latency_s for m in r.result.ok_measurements for s in m.samples]
    return median(times) if times else math.inf


def hopeless(r: Ranked, sla: SLA) -> str:
    """Why a look leaves a plan no way to meet `sla`: a miss, or every request beyond a limit; empty where it does."""
    for judgement in r.judgements:
        if judgement.verdict == "misses":
            return judgement.why
    for constraint in sla.constraints:
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


def out_of_reach(constraint: Constraint, expected: Prediction) -> str:
    """Why even the optimistic end of what is expected misses `constraint`; empty where it does not."""
    ranges: Mapping[str, Range] = {
        "latency": expected.latency_s,
        "ttft": expected.ttft_s,
        "tpot": expected.tpot_s,
        "peak_rss": expected.peak_bytes,
    }
    metric = constraint.metric
    found = ranges.get(metric.quantity)
    if found is None or (metric.q is not None and metric.q < 0.5) or found.low <= constraint.limit:
        return ""
    return predicted(metric.name, found, metric.kind, constraint.limit, "are allowed")


def predicted(what: str, found: Range, kind: Kind, against: float, words: str) -> str:
    def shown(value: float) -> str:
        return format_quantity(kind, value)

    return (
        f"not started: predicted {what} {shown(found.value)} ({shown(found.low)} to {shown(found.high)}), "
        f"{found.low / against:.2f}x at the least of the {shown(against)} that {words}"
    )
