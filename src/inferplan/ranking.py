"""Ranked: one plan judged, with the figures it is compared by, and the order of display.

Owns what every comparison of plans needs. Leaves the choice to `selection`
(which hands these names on) and its sentences to `explain`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from .cost import Prices, usd_per_mtok
from .errors import SLAError
from .plan import Plan
from .result import PlanResult
from .sla import SLA
from .stats import Ratio, paired_ratio
from .verdict import Judgement, Verdict, judge_all, overall


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


def judged(result: PlanResult, sla: SLA, prices: Prices, cores: float) -> Ranked:
    """One plan by itself: not yet compared, explained or on a front."""
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


def sure(r: Ranked) -> bool:
    """Whether what it meets is shown of processes to come, not of those seen alone."""
    return all(j.in_general is None or j.in_general.verdict == "meets" for j in r.judgements)


def in_order(ranked: Sequence[Ranked]) -> tuple[Ranked, ...]:
    """By p50, then peak memory; those not eligible last; with the front marked."""
    ordered = sorted(ranked, key=lambda r: (not r.eligible, least(r.p50_s), least(r.peak_bytes)))
    measured = [r for r in ordered if r.eligible and r.p50_s is not None and r.peak_bytes is not None]
    front = {r.plan for r in measured if not any(_dominates(other, r) for other in measured)}
    return tuple(replace(r, on_pareto=r.plan in front) for r in ordered)


def _dominates(a: Ranked, b: Ranked) -> bool:
    left, right = (least(a.p50_s), least(a.peak_bytes)), (least(b.p50_s), least(b.peak_bytes))
    return left != right and left[0] <= right[0] and left[1] <= right[1]


def may_win(r: Ranked) -> bool:
    """Whether it meets every constraint, by more than looks, and has a median to be ranked by."""
    return r.eligible and r.verdict == "meets" and r.p50_s is not None and not r.result.looked_at


def least(value: float | None) -> float:
    """For sorting upwards: what is not known comes last."""
    return math.inf if value is None else value


def figure(r: Ranked, objective: Objective) -> float | None:
    """What is minimised: seconds, bytes or USD per Mtok; None where not known."""
    return {"latency": r.p50_s, "memory": r.peak_bytes, "cost": r.usd_per_mtok}[objective.metric]


def order(r: Ranked, objective: Objective) -> tuple[float, float, str]:
    """Sort key of the choice: the objective, then the second figure, then the id (never chance)."""
    second = r.peak_bytes if objective.metric == "latency" else r.p50_s
    return least(figure(r, objective)), least(second), r.plan.id


def ratio_of(a: Ranked, b: Ranked) -> Ratio:
    """Latency of `a` over `b`, paired by round and prompt."""
    return paired_ratio(a.result.latencies_by_request, b.result.latencies_by_request)
