"""Successive halving over the looks of a race, for comparison: who stays is decided by rank alone.

Owns the rungs (Jamieson and Talwalkar, Non-stochastic Best Arm Identification and Hyperparameter Optimization, AISTATS
2016). Leaves the first look at each plan, with its order, its pruning and its cuts, and the final to `Racing`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from inferplan.cost import Prices
from inferplan.measurement import Measurement
from inferplan.plan import Plan
from inferplan.ranking import Objective, Ranked, least
from inferplan.result import results
from inferplan.search import Proposal
from inferplan.search.goal import Goal
from inferplan.search.racing import CUT_AT, FINALISTS, Predict, Racing
from inferplan.sla import SLA

Make = Callable[[Sequence[Plan], Predict | None, Sequence[Measurement]], Racing]
"""A race over some plans, with what to expect of them, going on after some measurements."""


class Halving:
    """Every plan with a chance gets a look; then the best half gets twice the requests, in a fresh process, and so on.

    When every request has been sent, the better half of the rest gets them again. It ends when no more than
    `FINALISTS` are left, and those run the final of a race: the heat too, where no rung sent every request.

    Args:
        race: makes the races that the first rung and the final are.
        prompts: how many requests the workload has.
        look_at: places of the requests of the first rung.
    """

    def __init__(
        self, race: Make, plans: Sequence[Plan], sla: SLA, prompts: int, look_at: Sequence[int], predict: Predict | None
    ) -> None:
        self._make, self._sla, self._prompts, self._look_at = race, sla, prompts, tuple(look_at)
        self._race = race(plans, predict, ())  # the first rung, then the final
        self._rung, self._final = 1, False
        self._told: list[Measurement] = []
        self._left: list[Plan] = []
        self._dropped: dict[Plan, str] = {}

    def ask(self) -> Proposal | None:
        """What to measure next; None when the final is over."""
        if self._final:
            return self._race.ask()
        if self._rung == 1:
            asked = self._race.ask()
            if asked is not None and asked.look and asked.round == 1:
                return asked
            self._dropped.update(self._race.left_out)
            self._promote()
        while not self._final:
            done = {m.plan for m in self._told if m.round == self._rung}
            waiting = [plan for plan in self._left if plan not in done]
            if waiting:
                return Proposal(waiting[0], self._rung, self._places(self._rung), self._cut_after_s(), look=True)
            self._promote()
        return self._race.ask()

    def tell(self, measurement: Measurement) -> None:
        """What came of a proposal."""
        self._told.append(measurement)
        if self._final or self._rung == 1:
            self._race.tell(measurement)

    @property
    def remaining(self) -> int:
        """Proposals of this rung that are left, or those of the race."""
        if self._final or self._rung == 1:
            return self._race.remaining
        return len(self._left) - sum(m.round == self._rung for m in self._told)

    @property
    def unfinished(self) -> bool:
        """Whether it would go on if it had no limits."""
        return self.ask() is not None

    @property
    def left_out(self) -> Mapping[Plan, str]:
        """Plans that were not started, or were not among the best half of a rung."""
        return self._dropped

    def _promote(self) -> None:
        """The best half of this rung goes on: to the next one, or to the final."""
        standing = alive([m for m in self._told if m.round == self._rung], self._sla)
        kept = [r.plan for r in standing[: math.ceil(len(standing) / 2)]]
        for place, r in enumerate(standing[len(kept) :], len(kept) + 1):
            self._dropped[r.plan] = f"place {place} of {len(standing)} in rung {self._rung}"
        if len(kept) > FINALISTS:
            self._left, self._rung = kept, self._rung + 1
            return
        last = [m for m in self._told if m.plan in kept and m.round == self._rung]
        heat = last if self._rung > 1 and self._whole(self._rung) else []
        self._race, self._final = self._make(kept, None, [*(replace(m, round=1) for m in last), *heat]), True

    def _whole(self, rung: int) -> bool:
        return len(self._places(rung)) == self._prompts

    def _places(self, rung: int) -> tuple[int, ...]:
        """Twice as many requests in each rung: those of the first look, then the others in their order."""
        others = [place for place in range(self._prompts) if place not in self._look_at]
        return tuple([*self._look_at, *others][: len(self._look_at) * 2 ** (rung - 1)])

    def _cut_after_s(self) -> float:
        """As in a look: beyond every limit on a latency, or far beyond the best so far."""
        limits = [c.limit for c in self._sla.constraints if c.metric.quantity == "latency" and (c.metric.q or 0) >= 0.5]
        best = alive([m for m in self._told if m.round == self._rung], self._sla) or alive(self._told, self._sla)
        slowest = max((s.latency_s for m in best[0].result.measurements for s in m.samples), default=math.inf)
        return min(max(limits, default=math.inf), CUT_AT * slowest)


def alive(told: Sequence[Measurement], sla: SLA) -> list[Ranked]:
    """The plans that may still be chosen by what these measurements say, the fastest first."""
    goal = Goal(sla, Objective("latency"), Prices(), math.inf)
    found = [goal.judge(r) for r in results(dict.fromkeys(m.plan for m in told), told)]
    fit = [r for r in found if r.eligible and not goal.hopeless(r)]
    return sorted(fit, key=lambda r: (goal.score(r), least(r.peak_bytes), r.plan.id))
