"""The choice: which plan, and for every loser why.

Pure functions over results; hands on the names of `sla` and `verdict`, of
which it is the door. Missing evidence never meets an SLA; a miss is never
presented as the choice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from .cost import Prices, usd_per_mtok
from .errors import SLAError
from .plan import Plan
from .result import PlanResult
from .sla import METRICS, SLA, Constraint, Kind, Metric, find_metric, format_quantity, parse_sla
from .stats import Ratio, paired_ratio
from .verdict import Judgement, Verdict, judge, judge_all, overall, reachable_text, shortfall, what_settles

__all__ = [
    "METRICS",
    "SLA",
    "Constraint",
    "Judgement",
    "Metric",
    "Nearest",
    "Objective",
    "Ranked",
    "Selection",
    "Verdict",
    "choose",
    "contenders",
    "find_metric",
    "format_quantity",
    "judge",
    "judge_all",
    "overall",
    "parse_sla",
]

Outcome = Literal["chosen", "none_meets", "undecided", "nothing_measured"]
_KINDS: Mapping[str, Kind] = {"latency": "time", "memory": "memory", "cost": "money"}

# Who may still win another round. Medians of fresh processes of one plan were seen to differ by a few percent; ten is
# that with room to spare, so that a plan is dropped only when a further round could hardly turn the order.
CONTENDER_WITHIN = 1.10
# Without an interval (fewer than six pairs) a single number must be far worse before it counts.
CONTENDER_WITHIN_UNBOUNDED = 1.50


@dataclass(frozen=True, slots=True)
class Objective:
    """What is minimised among the plans that meet the SLA: `latency` (p50), `memory` (peak), `cost` (USD per Mtok)."""

    metric: Literal["latency", "memory", "cost"] = "latency"

    def __post_init__(self) -> None:
        if self.metric not in ("latency", "memory", "cost"):
            raise SLAError(f"cannot minimize {self.metric!r}: choose latency, memory or cost")


@dataclass(frozen=True, slots=True)
class Ranked:
    """One plan in the order of display, judged and compared.

    Attributes:
        judgements: one a constraint, in the SLA's order; also for a failed plan.
        verdict: over all constraints; a plan that failed or waits is `undecided` and not eligible.
        eligible: whether it ran without failing, so that it may be chosen at all.
        reason: in a sentence with numbers: why it was chosen, or why it lost.
        on_pareto: whether no other measured plan is better in one of p50 and peak memory and no worse in the other.
        p50_s, peak_bytes, usd_per_mtok: the figures that were compared; None where not known.
        ratio: its latency over the winner's, paired by request; None for the
            winner, without one, or without a pair.
    """

    result: PlanResult
    judgements: tuple[Judgement, ...]
    verdict: Verdict
    eligible: bool
    reason: str
    on_pareto: bool
    p50_s: float | None
    peak_bytes: int | None
    usd_per_mtok: float | None
    ratio: Ratio | None = None

    @property
    def plan(self) -> Plan:
        """The plan it is about."""
        return self.result.plan


@dataclass(frozen=True, slots=True)
class Nearest:
    """The plan that comes nearest to an SLA that none meets.

    Attributes:
        excess: by how much it exceeds its worst constraint, relative: 0.12 is 12%.
        text: that, in a sentence with numbers.
        feasible: the smallest limits that it would meet, one text per constraint
            that it does not meet now (`p50<=1.71s`); empty where its sample bounds none.
    """

    ranked: Ranked
    excess: float
    text: str
    feasible: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Selection:
    """What was chosen, and everything that led to it.

    Attributes:
        winner: the chosen plan; None unless `outcome` is `chosen`.
        ranked: every plan, by p50 latency, then peak memory; those without figures last.
        runner_up: the next best that also meets the SLA.
        tie: a sentence, when a tie was broken by memory; empty otherwise.
        notes: sentences that the reader of the choice should know.
        nearest: when none meets.
        settle: what would settle an undecided outcome, in numbers; empty otherwise.
    """

    outcome: Outcome
    winner: Ranked | None
    runner_up: Ranked | None
    ranked: tuple[Ranked, ...]
    tie: str
    notes: tuple[str, ...]
    nearest: Nearest | None
    settle: str
    sla: SLA
    objective: Objective
    prices: Prices
    cores: float

    @property
    def exit_code(self) -> int:
        """0 chosen, 3 no plan meets the SLA (also when none could be measured), 4 undecided."""
        return {"chosen": 0, "none_meets": 3, "nothing_measured": 3, "undecided": 4}[self.outcome]

    @property
    def pareto(self) -> tuple[Ranked, ...]:
        """The front of p50 latency against peak memory, fastest first."""
        return tuple(r for r in self.ranked if r.on_pareto)


def choose(results: Sequence[PlanResult], sla: SLA, objective: Objective, prices: Prices, cores: float) -> Selection:
    """The plan that minimises `objective` among those whose every verdict is `meets`.

    Latency ranks by p50, then peak memory; memory by peak, then p50; cost by
    USD per Mtok, then p50. Plans whose latency ties with the fastest (paired by
    request; the whole interval within 3% and including 1) go to the lower memory.

    Args:
        cores: that the machine grants; what threads beyond them cost nothing.
    """
    ranked = _in_order(tuple(_ranked(r, sla, prices, cores) for r in results))
    meeting = sorted((r for r in ranked if _may_win(r)), key=lambda r: _order(r, objective))
    if not meeting:
        return _without_winner(ranked, sla, objective, prices, cores)
    first = meeting[0]
    against = {r.plan: _ratio(r, first) for r in meeting[1:]} if objective.metric == "latency" else {}
    tied = [r for r in meeting[1:] if r.plan in against and against[r.plan].relation() == "tie"]
    winner = min([first, *tied], key=lambda r: (_least(r.peak_bytes), _least(r.p50_s)))
    rest = [r for r in meeting if r.plan != winner.plan]
    explained = {r.plan: _explained(r, winner, objective, bool(tied)) for r in ranked}
    notes = _notes(ranked, winner, first, against, objective)
    return Selection(
        outcome="chosen",
        winner=explained[winner.plan],
        runner_up=explained[rest[0].plan] if rest else None,
        ranked=tuple(explained[r.plan] for r in ranked),
        tie=_tie(winner, first, tied),
        notes=notes,
        nearest=None,
        settle="",
        sla=sla,
        objective=objective,
        prices=prices,
        cores=cores,
    )


def contenders(
    results: Sequence[PlanResult], sla: SLA, objective: Objective, prices: Prices, cores: float
) -> tuple[Plan, ...]:
    """The plans that could still be chosen after the measurements so far, in the results' order.

    Out are those that failed, those that miss a constraint, and those clearly
    worse than the best that meets: in latency when even the low end of the
    paired ratio is above `CONTENDER_WITHIN` (or, without an interval, the ratio
    above `CONTENDER_WITHIN_UNBOUNDED`), in memory or cost when theirs is more
    than `CONTENDER_WITHIN` times the best. A plan not measured yet stays in.
    """
    ranked = tuple(_ranked(r, sla, prices, cores) for r in results)
    meeting = [r for r in ranked if _may_win(r)]
    best = min(meeting, key=lambda r: _order(r, objective), default=None)
    return tuple(
        r.plan
        for r in ranked
        if not r.result.failed
        and not (r.eligible and r.verdict == "misses")
        and (best is None or r.plan == best.plan or not _clearly_worse(r, best, objective))
    )


def _ranked(result: PlanResult, sla: SLA, prices: Prices, cores: float) -> Ranked:
    judgements = judge_all(result, sla, prices, cores)
    eligible = result.status == "ok"
    return Ranked(
        result=result,
        judgements=judgements,
        verdict=overall(judgements) if eligible else "undecided",
        eligible=eligible,
        reason="",
        on_pareto=False,
        p50_s=result.latency(0.5).value,
        peak_bytes=result.peak_bytes,
        usd_per_mtok=usd_per_mtok(result, prices, cores),
    )


def _in_order(ranked: Sequence[Ranked]) -> tuple[Ranked, ...]:
    """By p50, then peak memory; those not eligible last; with the front marked."""
    ordered = sorted(ranked, key=lambda r: (not r.eligible, _least(r.p50_s), _least(r.peak_bytes)))
    measured = [r for r in ordered if r.eligible and r.p50_s is not None and r.peak_bytes is not None]
    front = {r.plan for r in measured if not any(_dominates(other, r) for other in measured)}
    return tuple(replace(r, on_pareto=r.plan in front) for r in ordered)


def _dominates(a: Ranked, b: Ranked) -> bool:
    left, right = (_least(a.p50_s), _least(a.peak_bytes)), (_least(b.p50_s), _least(b.peak_bytes))
    return left != right and left[0] <= right[0] and left[1] <= right[1]


def _may_win(r: Ranked) -> bool:
    return r.eligible and r.verdict == "meets" and r.p50_s is not None


def _least(value: float | None) -> float:
    """For sorting upwards: what is not known comes last."""
    return math.inf if value is None else value


def _figure(r: Ranked, objective: Objective) -> float | None:
    return {"latency": r.p50_s, "memory": r.peak_bytes, "cost": r.usd_per_mtok}[objective.metric]


def _order(r: Ranked, objective: Objective) -> tuple[float, float, str]:
    second = r.peak_bytes if objective.metric == "latency" else r.p50_s
    return _least(_figure(r, objective)), _least(second), r.plan.id


def _ratio(a: Ranked, b: Ranked) -> Ratio:
    return paired_ratio(a.result.latencies_by_request, b.result.latencies_by_request)


def _clearly_worse(r: Ranked, best: Ranked, objective: Objective) -> bool:
    if objective.metric == "latency":
        ratio = _ratio(r, best)
        if ratio.low is not None:
            return ratio.low > CONTENDER_WITHIN
        return ratio.value is not None and ratio.value > CONTENDER_WITHIN_UNBOUNDED
    mine, least = _figure(r, objective), _figure(best, objective)
    return mine is not None and least is not None and mine > CONTENDER_WITHIN * least


def _in_words(ratio: Ratio) -> str:
    if ratio.value is None:
        return "no request in common"
    if ratio.low is None or ratio.high is None:
        return f"ratio {ratio.value:.3g}, {ratio.n} pairs are too few for an interval"
    return f"ratio {ratio.value:.3g} [{ratio.low:.3g}, {ratio.high:.3g}]"


def _notes(
    ranked: Sequence[Ranked], winner: Ranked, first: Ranked, against: Mapping[Plan, Ratio], objective: Objective
) -> tuple[str, ...]:
    close = [r for r in ranked if r.plan in against and against[r.plan].relation() == "undecided"]
    better = [
        r
        for r in ranked
        if r.eligible
        and r.verdict == "undecided"
        and _least(_figure(r, objective)) < _least(_figure(winner, objective))
    ]
    return (
        *(
            f"{r.plan} is not distinguished from {first.plan} with these samples ({_in_words(against[r.plan])})"
            for r in close
            if _least(against[r.plan].value) <= CONTENDER_WITHIN_UNBOUNDED
        ),
        *(f"{r.plan} has the lower {objective.metric}, but is {_disqualified(r)}" for r in better),
    )


def _tie(winner: Ranked, first: Ranked, tied: Sequence[Ranked]) -> str:
    if not tied:
        return ""
    others = [r for r in (first, *tied) if r.plan != winner.plan]
    names = ", ".join(r.plan.id for r in others)
    if winner.peak_bytes is None:
        return f"{winner.plan} ties with {names} in latency; no peak memory is known to tell them apart"
    least = min((r.peak_bytes for r in others if r.peak_bytes is not None), default=None)
    tie = f"{winner.plan} ties with {names} in latency (within 3%)"
    used = format_quantity("memory", winner.peak_bytes)
    if least == winner.peak_bytes:
        return f"{tie} and in peak memory, {used}; the lower p50 decides"
    versus = "" if least is None else f" against {format_quantity('memory', least)}"
    return f"{tie} and is chosen for its lower peak memory, {used}{versus}"


def _explained(r: Ranked, winner: Ranked, objective: Objective, tied: bool) -> Ranked:
    """With its ratio to the winner, and why it lost to it."""
    if r.plan == winner.plan:
        why = f"with the lowest {objective.metric}"
        if tied:
            why = "with the lowest latency but for a tie, broken by memory"
        if _figure(r, objective) is None:
            why = f"though its {objective.metric} is not known, as for every plan that meets it"
        return replace(r, reason=f"meets {_limits(r)} {why}")
    ratio = _ratio(r, winner) if r.eligible else None
    ratio = None if ratio is None or ratio.value is None else ratio
    return replace(r, ratio=ratio, reason=_disqualified(r) or _beaten(r, winner, ratio, objective))


def _limits(r: Ranked) -> str:
    return ", ".join(str(j.constraint) for j in r.judgements)


def _disqualified(r: Ranked) -> str:
    """Why it may not win whatever the others do; empty where it may."""
    if not r.eligible:
        return r.result.reason if r.result.status == "waiting" else f"{r.result.status}: {r.result.reason}"
    misses = [j for j in r.judgements if j.verdict == "misses"]
    if misses:
        return "; ".join(shortfall(j) for j in misses)
    return "; ".join(j.why for j in r.judgements if j.verdict == "undecided")


def _beaten(r: Ranked, winner: Ranked, ratio: Ratio | None, objective: Objective) -> str:
    if objective.metric != "latency":
        mine, least = _figure(r, objective), _figure(winner, objective)
        kind = _KINDS[objective.metric]
        if mine is None or least is None:
            return f"its {objective.metric} is not known"
        figures = f"{format_quantity(kind, mine)} against {format_quantity(kind, least)}"
        return f"{objective.metric} {mine / least:.2f}x the winner's ({figures})"
    if ratio is None or ratio.value is None or ratio.low is None or ratio.high is None:
        shown = "" if ratio is None or ratio.value is None else f", {ratio.value:.2f}x by request"
        return f"p50 {_least(r.p50_s) / _least(winner.p50_s):.2f}x the winner's{shown}; too few pairs for an interval"
    interval = f"[{ratio.low:.2f}, {ratio.high:.2f}]"
    relation = ratio.relation()
    if relation == "slower":
        return f"{ratio.value:.2f}x the winner's latency {interval}"
    more = ""
    if r.peak_bytes is not None and winner.peak_bytes:
        more = f"; peak memory {r.peak_bytes / winner.peak_bytes:.2f}x the winner's"
    if relation == "tie":
        return f"ties with the winner, {ratio.value:.2f}x its latency {interval}{more}"
    if relation == "faster":
        return f"{ratio.value:.2f}x the winner's latency {interval}, yet not chosen by p50{more}"
    return f"not distinguished from the winner, {ratio.value:.2f}x its latency {interval}{more}"


def _without_winner(
    ranked: Sequence[Ranked], sla: SLA, objective: Objective, prices: Prices, cores: float
) -> Selection:
    shown = tuple(replace(r, reason=_disqualified(r)) for r in ranked)
    open_ones = [r for r in shown if not r.result.failed and r.verdict == "undecided"]
    measured = any(r.eligible for r in shown)
    outcome: Outcome = "undecided" if open_ones else "none_meets"
    if not measured:
        outcome = "nothing_measured"
    return Selection(
        outcome=outcome,
        winner=None,
        runner_up=None,
        ranked=shown,
        tie="",
        notes=(),
        nearest=_nearest(shown) if outcome == "none_meets" else None,
        settle=_settle(open_ones, objective) if outcome == "undecided" else "",
        sla=sla,
        objective=objective,
        prices=prices,
        cores=cores,
    )


def _nearest(ranked: Sequence[Ranked]) -> Nearest | None:
    missing = [(r, [j for j in r.judgements if j.verdict != "meets"]) for r in ranked if r.eligible]
    known = [(r, js) for r, js in missing if js and all(j.margin is not None for j in js)]
    if not known:
        return None
    found, judgements = min(known, key=lambda pair: (max(_excess(j) for j in pair[1]), _least(pair[0].p50_s)))
    worst = max(judgements, key=_excess)
    feasible = tuple(text for j in judgements if (text := reachable_text(j)))
    if len(feasible) < len(judgements):
        feasible = ()
    text = f"{found.plan} comes nearest: it " + "; ".join(shortfall(j) for j in judgements)
    if feasible:
        text += f"; it would meet {', '.join(feasible)}"
    return Nearest(found, _excess(worst), text, feasible)


def _excess(judgement: Judgement) -> float:
    return math.inf if judgement.margin is None else -judgement.margin


def _settle(open_ones: Sequence[Ranked], objective: Objective) -> str:
    waiting = [r for r in open_ones if not r.eligible]
    tried = sorted((r for r in open_ones if r.eligible), key=lambda r: _order(r, objective))
    parts = [
        f"{r.plan}: " + "; ".join(what_settles(j) for j in r.judgements if j.verdict == "undecided") for r in tried[:3]
    ]
    if len(tried) > 3:
        parts.append(f"and {len(tried) - 3} more plans are undecided")
    if waiting:
        parts.append(f"{len(waiting)} of the plans are not measured yet")
    return ". ".join(parts)
