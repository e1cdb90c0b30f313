"""The choice: which plan, and for every loser why.

Pure functions over results; the door to `sla`, `verdict` and `ranking`, whose
names it hands on. Missing evidence never meets an SLA; a miss is never
presented as the choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from .cost import Prices
from .explain import Nearest, disqualified, explained, nearest_to, notes_on, settling, tie_broken
from .plan import Plan
from .ranking import Objective, Ranked, figure, in_order, judged, least, may_win, order, ratio_of, sure
from .result import PlanResult
from .sla import METRICS, SLA, Constraint, Metric, find_metric, format_quantity, parse_sla
from .verdict import Judgement, Verdict, judge, judge_all, overall

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

# Who may still win another round. Medians of fresh processes of one plan were seen to differ by a few percent; ten is
# that with room to spare, so that a plan is dropped only when a further round could hardly turn the order.
CONTENDER_WITHIN = 1.10
# Without an interval (fewer than six pairs) a single number must be far worse before it counts.
CONTENDER_WITHIN_UNBOUNDED = 1.50


@dataclass(frozen=True, slots=True)
class Selection:
    """What was chosen, and everything that led to it.

    Attributes:
        winner: the chosen plan; None unless `outcome` is `chosen`.
        ranked: every plan, by p50 latency, then peak memory; those without figures last.
        runner_up: the next best that also meets the SLA; of the plans seen, where it is shown of no other to come.
        tie: a sentence, when a tie was broken by memory; empty otherwise.
        notes: sentences that the reader of the choice should know.
        nearest: when none meets.
        settle: what would settle an outcome that is open, in numbers; empty otherwise.
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
        """0 chosen, 3 no plan meets the SLA (also when every plan failed), 4 undecided (also when all still wait)."""
        if self.outcome == "nothing_measured":
            return 3 if all(r.result.failed for r in self.ranked) else 4
        return {"chosen": 0, "none_meets": 3, "undecided": 4}[self.outcome]

    @property
    def pareto(self) -> tuple[Ranked, ...]:
        """The front of p50 latency against peak memory, fastest first."""
        return tuple(r for r in self.ranked if r.on_pareto)


def choose(results: Sequence[PlanResult], sla: SLA, objective: Objective, prices: Prices, cores: float) -> Selection:
    """The plan that minimises `objective` among those whose every verdict is `meets`.

    Where that is shown of processes to come for some of them, only those may be chosen.

    Latency ranks by p50, then peak memory; memory by peak, then p50; cost by
    USD per Mtok, then p50. Plans whose latency ties with the fastest (paired by
    request; the whole interval within 3% and including 1) go to the lower memory.

    Args:
        cores: that the machine grants; what threads beyond them cost nothing.
    """
    ranked = in_order(tuple(judged(r, sla, prices, cores) for r in results))
    able = sorted((r for r in ranked if may_win(r)), key=lambda r: order(r, objective))
    meeting = [r for r in able if sure(r)] or able
    if not meeting:
        return _without_winner(ranked, sla, objective, prices, cores)
    first = meeting[0]
    against = {r.plan: ratio_of(r, first) for r in meeting[1:]} if objective.metric == "latency" else {}
    tied = [r for r in meeting[1:] if r.plan in against and against[r.plan].relation() == "tie"]
    winner = min([first, *tied], key=lambda r: (least(r.peak_bytes), least(r.p50_s)))
    rest = [r for r in (*meeting, *able) if r.plan != winner.plan]
    shown = {r.plan: explained(r, winner, objective, bool(tied)) for r in ranked}
    return Selection(
        outcome="chosen",
        winner=shown[winner.plan],
        runner_up=shown[rest[0].plan] if rest else None,
        ranked=tuple(shown[r.plan] for r in ranked),
        tie=tie_broken(winner, first, tied),
        notes=notes_on(ranked, winner, first, against, objective),
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
    ranked = tuple(judged(r, sla, prices, cores) for r in results)
    meeting = [r for r in ranked if may_win(r)]
    best = min(meeting, key=lambda r: order(r, objective), default=None)
    return tuple(
        r.plan
        for r in ranked
        if not r.result.failed
        and not (r.eligible and r.verdict == "misses")
        and (best is None or r.plan == best.plan or not _clearly_worse(r, best, objective))
    )


def _clearly_worse(r: Ranked, best: Ranked, objective: Objective) -> bool:
    if objective.metric == "latency":
        ratio = ratio_of(r, best)
        if ratio.low is not None:
            return ratio.low > CONTENDER_WITHIN
        return ratio.value is not None and ratio.value > CONTENDER_WITHIN_UNBOUNDED
    mine, lowest = figure(r, objective), figure(best, objective)
    return mine is not None and lowest is not None and mine > CONTENDER_WITHIN * lowest


def _without_winner(
    ranked: Sequence[Ranked], sla: SLA, objective: Objective, prices: Prices, cores: float
) -> Selection:
    shown = tuple(replace(r, reason=disqualified(r)) for r in ranked)
    # What was only looked at may meet and yet not be chosen: that is open, and no miss. Nor is it a miss where all
    # that was measured is looks that ruled plans out: one must be shown.
    open_ones = [r for r in shown if not r.result.failed and r.verdict != "misses" and not r.result.left_out]
    measured = any(r.eligible for r in shown)
    outcome: Outcome = "none_meets" if not open_ones and any(r.verdict == "misses" for r in shown) else "undecided"
    if not measured:
        outcome = "nothing_measured"
    return Selection(
        outcome=outcome,
        winner=None,
        runner_up=None,
        ranked=shown,
        tie="",
        notes=(),
        nearest=nearest_to(shown) if outcome == "none_meets" else None,
        settle=settling(shown, objective),
        sla=sla,
        objective=objective,
        prices=prices,
        cores=cores,
    )
