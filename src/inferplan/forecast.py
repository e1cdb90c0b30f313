"""Forecast: how long a study may take, from what the same plans took here before.

Owns that estimate and says what it rests on. Predicts nothing of plans that were
never measured: those are counted, and taken to cost what the others do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from .plan import Plan
from .store import Cost
from .workload import Workload


@dataclass(frozen=True, slots=True)
class Forecast:
    """How long a study may take, in seconds; None where nothing like it was measured.

    Attributes:
        once_s: every plan once.
        at_most_s: every plan in every round.
        known: plans that were measured here before.
        plans: all of them.
    """

    once_s: float | None
    at_most_s: float | None
    known: int
    plans: int


def forecast(plans: Sequence[Plan], workload: Workload, costs: Iterable[Cost], rounds: int) -> Forecast:
    """The time of one process of each plan, from the median of its past processes.

    A process is taken to cost what it spent beyond its requests, and for each
    output token what its past requests spent a token, prefill included; longer
    prompts than those of the past take longer. A plan without a past costs the
    median of those of its model that have one, else of all.
    """
    past: dict[str, list[Cost]] = {}
    for cost in costs:
        if cost.tokens > 0:
            past.setdefault(cost.plan_id, []).append(cost)
    tokens = sum(workload.output_tokens(i) for i in range(len(workload.prompts)))
    known = {plan: median(_seconds(c, tokens) for c in past[plan.id]) for plan in plans if plan.id in past}
    if not known:
        return Forecast(None, None, 0, len(plans))
    by_model: dict[str, list[float]] = {}
    for plan, seconds in known.items():
        by_model.setdefault(plan.model, []).append(seconds)
    usual = median(known.values())
    once = sum(known[p] if p in known else median(by_model[p.model]) if p.model in by_model else usual for p in plans)
    return Forecast(once, once * rounds, len(known), len(plans))


def _seconds(cost: Cost, tokens: int) -> float:
    return max(cost.wall_s - cost.requests_s, 0.0) + cost.requests_s / cost.tokens * tokens
