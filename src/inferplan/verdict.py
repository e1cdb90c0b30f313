"""Judgement: does one plan hold one constraint, and how sure is that?

Owns the rules that turn estimates into meets, misses or undecided. Leaves
comparing plans to `selection` (which hands these names on).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from .cost import Prices, usd_per_mtok
from .result import PlanResult
from .sequential import SequentialVerdict, observed, processes_needed, required_share, sequential_verdict, shares
from .sla import SLA, Constraint, Kind, Metric, format_quantity
from .stats import MIN_PROCESSES, Estimate, process_estimate, quantile_estimate, samples_to_settle

Verdict = Literal["meets", "misses", "undecided"]
_SHOWN: Mapping[Kind, tuple[str, float]] = {
    "time": ("ms", 1e-3),
    "memory": ("MB", 1e6),
    "rate": ("tokens/s", 1.0),
    "money": ("USD/Mtok", 1.0),
}
_MORE_OR_ELSE = "more {unit} alone hardly settle it: run more rounds, or move the limit"
_QUIET_OR_ELSE = "end what runs beside it and run it again, or let such requests count (--no-watch)"


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the evidence says of one constraint on one plan.

    Attributes:
        estimate: of the metric, in base units.
        margin: headroom relative to the limit, 0.12 is 12% to spare, negative
            where it is exceeded; None without a figure.
        confidence: what the verdict rests on, as text: bounds, samples, processes.
        why: the verdict in a sentence with numbers.
        needed: about how many more observations (of `estimate.unit`) would
            settle it; None where unknown or out of reach, 0 when it is settled.
        remedy: what would settle it where `needed` is None.
        reachable: the tightest limit that this evidence would meet, in base
            units; None where it would meet none.
        in_general: what the processes seen say of those to come (see `sequential`),
            of a quantile over requests; None for what is seen once a process.
    """

    constraint: Constraint
    verdict: Verdict
    estimate: Estimate
    margin: float | None
    confidence: str
    why: str
    needed: int | None = 0
    remedy: str = _MORE_OR_ELSE
    reachable: float | None = None
    in_general: SequentialVerdict | None = None


def judge(result: PlanResult, constraint: Constraint, prices: Prices, cores: float) -> Judgement:
    """The verdict on one constraint.

    A quantile over requests meets its limit when its one-sided 95% bound is
    within it and every process agrees (or `in_general` meets, which counts
    those that do not), and misses it when the other bound is beyond; a plan of
    which every request was cut short beyond the limit misses it too. That is
    about the processes seen; `in_general` is about those to come. What is seen
    once a process (memory, load, cost) meets when every process seen is within,
    and misses when every one is beyond. All else is undecided, missing evidence
    above all.
    """
    if constraint.metric.q is None:
        return _judge_processes(result, constraint, prices, cores)
    return _judge_requests(result, constraint, constraint.metric.q)


def judge_all(result: PlanResult, sla: SLA, prices: Prices, cores: float) -> tuple[Judgement, ...]:
    """A judgement per constraint, in the SLA's order."""
    return tuple(judge(result, constraint, prices, cores) for constraint in sla.constraints)


def overall(judgements: Sequence[Judgement]) -> Verdict:
    """`misses` if any does, else `undecided` if any is, else `meets`; without any, `undecided`."""
    verdicts = {judgement.verdict for judgement in judgements}
    if "misses" in verdicts:
        return "misses"
    return "meets" if verdicts == {"meets"} else "undecided"


def shortfall(judgement: Judgement) -> str:
    """By how much a constraint is missed, `misses p50<=1500ms by 12%`; else the judgement's own sentence."""
    if judgement.verdict != "misses" or judgement.margin is None or judgement.margin >= 0:
        return judgement.why
    least = "at least " if judgement.estimate.value is None else ""
    share = -judgement.margin
    return (
        f"misses {judgement.constraint} by {least}{share:.0%}" if share >= 0.01 else f"{judgement.why}, by {share:.1%}"
    )


def reachable_text(judgement: Judgement) -> str:
    """The tightest limit that this evidence meets, as it may be given in an SLA, rounded to the safe side; or empty."""
    if judgement.reachable is None or judgement.reachable <= 0:
        return ""
    metric = judgement.constraint.metric
    unit, factor = _SHOWN[metric.kind]
    number = judgement.reachable / factor
    step = math.floor(math.log10(number)) - 2  # three digits
    steps = number / 10.0**step
    rounded = math.ceil(steps) if metric.op == "<=" else math.floor(steps)
    return f"{metric.name}{metric.op}{float(f'{rounded}e{step}'):.12g}{unit}"


def what_settles(judgement: Judgement) -> str:
    """An undecided judgement with what it would take, as a sentence."""
    unit = judgement.estimate.unit
    if judgement.needed is None:
        return f"{judgement.why}; {judgement.remedy.format(unit=unit)}"
    about = "" if judgement.estimate.needed else "about "
    more = f"{about}{judgement.needed} more {unit if judgement.needed > 1 else unit.removesuffix('s')}"
    return f"{judgement.why}; {more} would settle it"


def _judge_requests(result: PlanResult, constraint: Constraint, q: float) -> Judgement:
    metric, limit, sign = constraint.metric, constraint.limit, 1 if constraint.op == "<=" else -1
    values, cut = observed(result, metric)
    estimate = quantile_estimate(values, q, at_least=cut)
    # The bound that must be within the limit, and the one that shows a miss.
    safe, sure = (estimate.upper, estimate.lower) if sign > 0 else (estimate.lower, estimate.upper)
    within = safe is not None and sign * safe <= sign * limit
    share = required_share(constraint)
    general = sequential_verdict(*shares(result, constraint), share)
    # Of processes enough for a claim about those to come, some may be beyond: that claim counts them.
    against = _disagreeing(result, metric, limit, q, sign) if within and general.verdict != "meets" else ""
    all_cut = bool(cut) and not values and min(cut) >= limit and sure is not None
    verdict: Verdict = "undecided"
    if all_cut or (sure is not None and sign * sure > sign * limit):
        verdict = "misses"
    elif within and not against:
        verdict = "meets"
    needed: int | None = 0
    disturbed = 0 if estimate.n else len(result.all_samples)
    if verdict == "undecided" and not disturbed:
        needed = _more_requests(estimate, values, cut, constraint, q, bool(against))
    rests_on = _rests_on(result, metric, estimate, safe if verdict != "misses" else sure)
    return Judgement(
        constraint,
        verdict,
        estimate,
        _margin(estimate, limit, sign, cut),
        f"{rests_on}; {_to_come(general, share)}" if verdict == "meets" else rests_on,
        _why_requests(constraint, verdict, estimate, safe, against, all_cut, disturbed),
        None if disturbed else needed,
        _QUIET_OR_ELSE if disturbed else _MORE_OR_ELSE,
        _reachable(result, metric, safe, q, sign),
        general,
    )


def _to_come(general: SequentialVerdict, share: float) -> str:
    """What a verdict about the processes seen leaves open."""
    if general.verdict == "meets":
        return f"shown of processes to come as well, at {general.confidence:.0%}, by {general.processes}"
    least = processes_needed(share, general.confidence)
    more = "" if general.needed is None else f", {general.needed} more at the least"
    return f"not shown of processes to come, which takes {least} or more{more}"


def _own(result: PlanResult, metric: Metric, q: float, sign: int) -> list[tuple[int, float | None]]:
    """By process, the figure that must be within the limit for it to agree: (round, figure).

    That is its own quantile. A process too small to have one agrees unless it
    shows a miss by itself, so its bound on the good side stands in. None: its
    quantile falls on a request that was cut short.
    """
    found: list[tuple[int, float | None]] = []
    for one in result.by_process:
        values, cut = observed(one, metric)
        if values or cut:
            own = quantile_estimate(values, q, at_least=cut)
            small = len(values) + len(cut) < 0.5 / min(q, 1 - q) - 1e-9
            figure = (own.lower if sign > 0 else own.upper) if small else own.value
            if not small or figure is not None:
                found.append((one.measurements[0].round, figure))
    return found


def _disagreeing(result: PlanResult, metric: Metric, limit: float, q: float, sign: int) -> str:
    """A sentence naming the first process whose own figure is beyond the limit; empty when all agree."""
    for number, figure in _own(result, metric, q, sign):
        if figure is None:
            return f"the process of round {number} alone had too many requests cut short"
        if sign * figure > sign * limit:
            return f"the process of round {number} alone had {format_quantity(metric.kind, figure)}"
    return ""


def _reachable(result: PlanResult, metric: Metric, safe: float | None, q: float, sign: int) -> float | None:
    own = [figure for _, figure in _own(result, metric, q, sign)]
    if safe is None or any(figure is None for figure in own):
        return None
    return sign * max(sign * figure for figure in [safe, *own] if figure is not None)


def _more_requests(
    estimate: Estimate, values: Sequence[float], cut: Sequence[float], constraint: Constraint, q: float, against: bool
) -> int | None:
    if estimate.needed:
        return max(estimate.needed - estimate.n, 1)
    if against:
        return None  # more requests do not settle what processes disagree about
    if any(bound < constraint.limit for bound in cut):
        return None  # nobody knows on which side of the limit these are
    # A rate's quantile must be at least the limit, so there an observation equal to it is not below.
    below = sum(v < constraint.limit or (v == constraint.limit and constraint.op == "<=") for v in values)
    total = samples_to_settle(below, estimate.n, q)
    return None if total is None else total - estimate.n


def _judge_processes(result: PlanResult, constraint: Constraint, prices: Prices, cores: float) -> Judgement:
    metric, limit = constraint.metric, constraint.limit
    values = _per_process(result, metric, prices, cores)
    worst, best = max(values, default=None), min(values, default=None)
    middle = process_estimate(values)
    complete = len(values) == result.processes
    verdict: Verdict = "undecided"
    if worst is not None and best is not None:
        if best > limit:
            verdict = "misses"
        elif worst <= limit and complete:
            verdict = "meets"
    seen = f"{len(values)} process{'' if len(values) == 1 else 'es'} seen"
    if len(values) < MIN_PROCESSES:
        seen += f"; a claim about processes in general needs {MIN_PROCESSES}"
    return Judgement(
        constraint,
        verdict,
        middle,
        None if worst is None else 1 - worst / limit,
        seen,
        _why_processes(constraint, verdict, worst, best, complete),
        0 if verdict != "undecided" else (1 if not values else None),
        reachable=worst if complete else None,
    )


def _per_process(result: PlanResult, metric: Metric, prices: Prices, cores: float) -> tuple[float, ...]:
    if metric.quantity == "peak_rss":
        return tuple(map(float, result.peak_bytes_by_process))
    if metric.quantity == "load":
        return tuple(m.load_s for m in result.ok_measurements if m.load_s is not None)
    costs = (usd_per_mtok(one, prices, cores) for one in result.by_process)
    return tuple(cost for cost in costs if cost is not None)


def _margin(estimate: Estimate, limit: float, sign: int, cut: Sequence[float]) -> float | None:
    value = estimate.value
    if value is None and cut:
        value = estimate.lower if estimate.lower is not None else min(cut)  # at least so much beyond
        return min(1 - value / limit, 0.0) if value > limit else None
    return None if value is None else sign * (1 - value / limit)


def _rests_on(result: PlanResult, metric: Metric, estimate: Estimate, bound: float | None) -> str:
    text = f"{estimate.n} requests in {result.processes} process{'' if result.processes == 1 else 'es'}"
    if bound is None:
        return text
    return f"one-sided {estimate.confidence:.0%} bound {format_quantity(metric.kind, bound)} from {text}"


def _why_requests(
    constraint: Constraint,
    verdict: Verdict,
    estimate: Estimate,
    safe: float | None,
    against: str,
    all_cut: bool,
    disturbed: int,
) -> str:
    metric = constraint.metric
    value = "unknown" if estimate.value is None else format_quantity(metric.kind, estimate.value)
    if verdict == "meets" and safe is not None:
        return f"meets {constraint}: {metric.name} is {value}, surely within {format_quantity(metric.kind, safe)}"
    if verdict == "misses" and all_cut:
        return f"misses {constraint}: every request was still running when it was cut short beyond the limit"
    if verdict == "misses":
        return f"misses {constraint}: {metric.name} is {value}"
    if disturbed:
        each = "the one request" if disturbed == 1 else f"each of the {disturbed} requests"
        return f"undecided on {constraint}: {each} was disturbed by what else ran on the machine"
    if estimate.n == 0:
        return f"undecided on {constraint}: no request was answered"
    if safe is None and estimate.needed:
        return f"undecided on {constraint}: {estimate.n} requests cannot bound it, {estimate.needed} can"
    if safe is None:
        return f"undecided on {constraint}: too many requests were cut short"
    if against:
        return f"undecided on {constraint}: {against}"
    # What else the evidence allows, on the other side of the limit: the safe bound, or from beyond it the opposite one.
    beyond = estimate.value is not None and (estimate.value > constraint.limit) == (constraint.op == "<=")
    opposite = estimate.lower if constraint.op == "<=" else estimate.upper
    other, far = safe, "high" if constraint.op == "<=" else "low"
    if beyond and opposite is not None:
        other, far = opposite, "low" if constraint.op == "<=" else "high"
    shown = format_quantity(metric.kind, other)
    return f"undecided on {constraint}: {metric.name} is {value}, but may be as {far} as {shown}"


def _why_processes(
    constraint: Constraint, verdict: Verdict, worst: float | None, best: float | None, complete: bool
) -> str:
    kind, name = constraint.metric.kind, constraint.metric.name
    if worst is None or best is None:
        return f"undecided on {constraint}: {name} is not known of any process"
    if verdict == "meets":
        return f"meets {constraint}: {name} is {format_quantity(kind, worst)} at most"
    if verdict == "misses":
        return f"misses {constraint}: {name} is {format_quantity(kind, best)} at least"
    if not complete:
        return f"undecided on {constraint}: {name} is not known of every process"
    return (
        f"undecided on {constraint}: processes differ, "
        f"from {format_quantity(kind, best)} to {format_quantity(kind, worst)}"
    )
