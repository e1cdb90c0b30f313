"""Racing: most plans are ruled out before they are started, the rest after a look, and the finalists are confirmed.

Owns the stages and who may still win at each. Leaves predicting to `predict` (handed in as a function), verdicts and
figures to `selection`; reads no clock: the time that is spent is the time that the measurements say they took.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median

from ..cost import Prices
from ..measurement import Measurement
from ..plan import Plan
from ..predict import Prediction
from ..ranking import Objective, Ranked, judged, least, order, sure
from ..result import results
from ..sequential import processes_needed
from ..sla import SLA
from ..stats import MIN_PROCESSES, TIE_WITHIN
from . import Proposal
from ._chances import foreseen, hopeless, no_chance, score
from .exhaustive import interleaved
from .limits import NO_LIMITS, Limits

Predict = Callable[[Sequence[Measurement]], Mapping[Plan, Prediction]]
"""What to expect of each plan after the looks so far, for requests like those of a look."""
Pick = Callable[[Sequence[Plan], Sequence[Measurement]], Plan | None]
"""Which plan to look at next, of those that still have a chance (the most promising first), after the measurements so
far; None: no further looks. Its answer follows from these alone."""

# A request that has taken so many times what the best plan takes is ended: no plan so far off was seen to win later.
CUT_AT = 1.5
# Medians of fresh processes of one plan differ by a few percent, of two requests each by some ten: a quarter is that
# with room to spare.
HEAT_WITHIN = 1.25
HEAT_MOST = 6
# A heat is one process, and processes of a plan were recorded that differ by a third.
FINAL_WITHIN = 1.20
FINALISTS = 4
_FINAL_ROUND = 3  # the first; round 1 is the look, round 2 the heat
_DROP_AFTER = 3  # rounds of the final before a finalist may be shown to be the slower one
_PATIENCE = 2.0  # times the processes that a verdict needs at the least; then it stays undecided


class Racing:
    """Looks in the order of the prediction, a heat of the best, and a final in fresh processes.

    1. A look is one process of a plan with a few requests, each ended when it can no longer win. Plans are looked at
       in the order in which they are expected to win, or that `pick` likes better, while the expectation, made anew
       after every look, leaves one a chance at its optimistic end. Without a prediction every plan is looked at.
    2. The heat sends every request to the plans that came within `HEAT_WITHIN` of the best, and to the one that the
       other looks let expect there, though its own look did not show it: a process may be slow as a whole.
    3. The final runs those within `FINAL_WITHIN` of the best of the heat, and those whose look and heat contradict
       each other, interleaved, each in at least `MIN_PROCESSES` fresh processes, with another order of prompts each
       round; what chose the finalists does not count in it. One that was slower in every round leaves. The leader
       goes on until its verdict is decided, up to `_PATIENCE` times the processes that it needs. Where no finalist
       meets the SLA, the next best is tried.

    The order follows from the arguments and from what it is told alone: a resumed search goes on as the interrupted
    one would have.

    Args:
        plans: those that can run here, without doubles.
        prompts: how many requests the workload has.
        look_at: places of the requests of a look.
        predict: None: nothing is expected of any plan.
        pick: None: the most promising plan is looked at next.
        memory_bytes: memory that a plan may have.
        done: measurements of an earlier session.
    """

    def __init__(
        self,
        plans: Sequence[Plan],
        sla: SLA,
        objective: Objective,
        prices: Prices,
        cores: float,
        *,
        prompts: int,
        look_at: tuple[int, ...],
        predict: Predict | None = None,
        pick: Pick | None = None,
        memory_bytes: float = math.inf,
        limits: Limits = NO_LIMITS,
        done: Sequence[Measurement] = (),
    ) -> None:
        self._plans = {plan: place for place, plan in enumerate(interleaved(plans))}
        self._sla, self._objective, self._prices, self._cores = sla, objective, prices, cores
        self._prompts, self._look_at, self._predict, self._pick = prompts, look_at, predict, pick
        self._memory_bytes, self._limits = memory_bytes, limits
        self._told: list[Measurement] = list(done)
        self._state: _State | None = None
        self._judged: dict[tuple[str, Plan, int], Ranked] = {}
        self._expected: dict[tuple[int, Plan | None], Mapping[Plan, Prediction]] = {}

    def ask(self) -> Proposal | None:
        """What to measure next; None when a plan is confirmed, no plan is left, or a limit is reached."""
        state = self._now()
        proposal = state.look() or state.heat() or state.final()
        if proposal is None or not self._limits.allow(self._told):
            return None
        return proposal

    def tell(self, measurement: Measurement) -> None:
        """What came of a proposal; one that was interrupted will be proposed again."""
        self._told.append(measurement)
        self._state = None

    @property
    def remaining(self) -> int:
        """About how many proposals are left: the looks that would follow now, a heat and a final of usual size."""
        return self._now().remaining()

    @property
    def left_out(self) -> Mapping[Plan, str]:
        """Plans that cannot be chosen any more, or that the prediction leaves no chance, with the reason."""
        return self._now().left_out()

    def _now(self) -> _State:
        if self._state is None:
            self._state = _State(self, [m for m in self._told if m.status != "interrupted"])
        return self._state

    def _foreseen(self, looks: Sequence[Measurement], without: Plan | None = None) -> Mapping[Plan, Prediction]:
        """Made anew after every look; `without` that of one plan. What follows the looks, measurement decides."""
        if self._predict is None:
            return {}
        key = len(looks), without
        if key not in self._expected:
            self._expected = {kept: made for kept, made in self._expected.items() if kept[0] == len(looks)}
            self._expected[key] = self._predict([m for m in looks if m.plan != without])
        return self._expected[key]


class _State:
    """What follows from the measurements so far."""

    def __init__(self, race: Racing, told: Sequence[Measurement]) -> None:
        self._race, self._told = race, told
        self._looks = [m for m in told if m.look and m.round == 1]
        second = [m for m in told if m.look and m.round > 1]
        last = [m for m in told if not m.look]
        self._expected = race._foreseen(self._looks)
        self._seen = self._ranked("look", self._looks)
        self._heated = self._ranked("heat", second)
        self._finals = self._ranked("final", last)
        self._alive = sorted(
            (r for r in self._seen.values() if r.eligible and not hopeless(r, race._sla)), key=self._key
        )
        self._best = self._alive[0] if self._alive else None

    def _ranked(self, stage: str, told: Sequence[Measurement]) -> dict[Plan, Ranked]:
        """By plan, its judgement by one stage; its measurements only grow in number, so each count is judged once."""
        race, by_plan = self._race, dict[Plan, list[Measurement]]()
        for m in told:
            by_plan.setdefault(m.plan, []).append(m)
        for plan, of in by_plan.items():
            if (stage, plan, len(of)) not in race._judged:
                (found,) = results([plan], of)
                race._judged[stage, plan, len(of)] = judged(found, race._sla, race._prices, race._cores)
        return {plan: race._judged[stage, plan, len(of)] for plan, of in by_plan.items()}

    def _key(self, r: Ranked) -> tuple[float, float, str]:
        return (score(r, self._race._objective), least(r.peak_bytes), r.plan.id)

    # Looks

    def look(self) -> Proposal | None:
        """The most promising plan that was not started and has a chance; None once the heat has begun."""
        race = self._race
        if self._heated or self._finals:
            return None
        waiting = [plan for plan in race._plans if plan not in self._seen and not self._no_chance(plan)]
        if not waiting or not self._affordable():
            return None
        waiting.sort(key=lambda p: (self._hope(p), race._plans[p]))
        plan = waiting[0] if race._pick is None else race._pick(waiting, self._told)
        if plan is None:
            return None
        return Proposal(plan, 1, race._look_at, self._cut_after_s(), look=True)

    def _affordable(self) -> bool:
        """Whether another look leaves time to confirm the best plan so far."""
        if self._best is None:
            return True
        each = self._seconds(self._best.plan)
        usual = median([m.wall_s for m in self._told])
        return self._race._limits.allow(self._told, 1 + MIN_PROCESSES, usual + MIN_PROCESSES * each)

    def _seconds(self, plan: Plan) -> float:
        """About what a process of `plan` with every request takes, from its look."""
        m = next(m for m in reversed(self._told) if m.plan == plan)
        requests = sum(s.latency_s for s in m.samples)
        return m.wall_s + requests * max(self._race._prompts / max(len(m.samples), 1) - 1, 0.0)

    def _cut_after_s(self) -> float | None:
        """When a request has shown that its plan can neither meet the SLA nor come near the best."""
        race = self._race
        limits = [c.limit for c in race._sla.constraints if c.metric.quantity == "latency" and (c.metric.q or 0) >= 0.5]
        bounds = [max(limits)] if limits else []
        if race._objective.metric == "latency" and self._best is not None:
            seen = [s for m in self._best.result.measurements for s in m.samples]
            alike = [s.latency_s for s in seen if s.index in race._look_at] or [s.latency_s for s in seen]
            bounds.append(CUT_AT * max(alike))
        return min(bounds, default=None)

    def _hope(self, plan: Plan) -> float:
        """What the objective is expected to be; without a prediction all are alike."""
        expected, race = self._expected.get(plan), self._race
        return 0.0 if expected is None else foreseen(expected, race._objective, race._prices, race._cores).value

    def _no_chance(self, plan: Plan) -> str:
        """Why a plan that was not started is not worth it: what is expected of it at its best; empty if it is."""
        race = self._race
        return no_chance(
            plan,
            self._expected,
            self._best,
            sla=race._sla,
            objective=race._objective,
            prices=race._prices,
            cores=race._cores,
            memory_bytes=race._memory_bytes,
        )

    # The heat

    def heat(self) -> Proposal | None:
        """The next of the plans that came near the best, or might have; none where there is only one."""
        if self._finals:
            return None
        entered = self._entered()
        if len(entered) < 2:
            return None
        for r in entered:
            if r.plan not in self._heated and self._race._limits.allow(
                self._told, 1 + MIN_PROCESSES, (1 + MIN_PROCESSES) * self._seconds(entered[0].plan)
            ):
                return Proposal(r.plan, 2, None, None, look=True)
        return None

    def _entered(self) -> list[Ranked]:
        near = self._near()
        return near + self._doubtful(near)

    def _near(self) -> list[Ranked]:
        """The plans whose look came near the best, which is the first."""
        if self._best is None:
            return []
        lowest = score(self._best, self._race._objective)
        return [r for r in self._alive if score(r, self._race._objective) <= HEAT_WITHIN * lowest][:HEAT_MOST]

    def _doubtful(self, near: Sequence[Ranked]) -> list[Ranked]:
        """The plan, if any, that by the other looks would be among those, the best of several.

        Its look was one process, and processes of a plan were recorded that took twice as long as the next. How far
        off it was does not count: it was ended when it could no longer win. Memory is not a matter of luck.
        """
        race = self._race
        if not near or race._objective.metric == "memory":
            return []
        found = []
        for r in self._seen.values():
            doubted = r.eligible and r not in near
            expected = race._foreseen(self._looks, without=r.plan) if doubted else {}
            if r.plan in expected and near[0].plan in expected:
                own, best = (
                    foreseen(expected[plan], race._objective, race._prices, race._cores).value
                    for plan in (r.plan, near[0].plan)
                )
                if own <= HEAT_WITHIN * best:
                    found.append((own / best, r.plan.id, r))
        return [r for _, _, r in sorted(found)[:1]]

    def _by_merit(self) -> list[Ranked]:
        """All that may still be tried in a final, the best first: by the heat, then by the looks."""
        fit = [
            r
            for r in self._heated.values()
            if r.eligible and (self._contradicted(r) or not hopeless(r, self._race._sla))
        ]
        return sorted(fit, key=self._key) + [r for r in self._alive if r.plan not in self._heated]

    # The final

    def final(self) -> Proposal | None:
        """The next process of a finalist; None when one is confirmed, or none is left."""
        for batch in self._batches():
            waiting = [r.plan for r in batch if not self._settled(r.plan, batch)]
            if waiting:
                return self._next_of(waiting)
            if any(self._confirmed(r.plan) or self._unclear(r.plan) for r in batch):
                return None
        return None

    def _batches(self) -> Iterable[list[Ranked]]:
        """The finalists, then every other that may be tried, one at a time."""
        merit = self._by_merit()
        if not merit:
            return
        lowest = score(merit[0], self._race._objective)
        first = [
            r
            for r in merit
            if (r.plan in self._heated) == bool(self._heated)
            and (score(r, self._race._objective) <= FINAL_WITHIN * lowest or self._contradicted(r))
        ][:FINALISTS]
        yield first
        yield from ([r] for r in merit if r not in first)

    def _contradicted(self, r: Ranked) -> bool:
        """Whether a plan that its look put near the best is far from it in the heat: neither process is a witness."""
        objective = self._race._objective
        if self._best is None or r.plan not in self._heated:
            return False
        look = score(self._seen[r.plan], objective) / score(self._best, objective)
        lowest = min(score(heated, objective) for heated in self._heated.values() if heated.eligible)
        return look <= FINAL_WITHIN and score(r, objective) > CUT_AT * look * lowest

    def _settled(self, plan: Plan, batch: Sequence[Ranked]) -> bool:
        """Whether the final has no more to ask about `plan`."""
        found = self._finals.get(plan)
        if found is None:
            return False
        if not found.eligible or found.verdict == "misses":
            return True
        done, needed = found.result.processes, self._processes_for(plan, batch)
        if done >= needed and (self._confirmed(plan) or not self._leads(plan, batch)):
            return True
        if done >= _DROP_AFTER and self._slower(found, batch):
            return True
        return done >= _PATIENCE * needed

    def _processes_for(self, plan: Plan, batch: Sequence[Ranked]) -> int:
        """Fresh processes that a verdict on `plan` takes at the least: the leader's tail needs more than six."""
        if not self._leads(plan, batch):
            return MIN_PROCESSES
        quantiles = [max(c.metric.q, 1 - c.metric.q) for c in self._race._sla.constraints if c.metric.q is not None]
        return max([MIN_PROCESSES, *(processes_needed(q) for q in quantiles)])

    def _leads(self, plan: Plan, batch: Sequence[Ranked]) -> bool:
        known = [self._finals[r.plan] for r in batch if r.plan in self._finals]
        able = [r for r in known if r.eligible and r.verdict != "misses"]
        return bool(able) and min(able, key=lambda r: order(r, self._race._objective)).plan == plan

    def _slower(self, found: Ranked, batch: Sequence[Ranked]) -> bool:
        if self._race._objective.metric != "latency":
            return False
        others = [self._finals[r.plan] for r in batch if r.plan in self._finals and r.plan != found.plan]
        return any(
            min(_by_round(found, other), default=0.0) > 1 + TIE_WITHIN
            for other in others
            if other.eligible and other.verdict == "meets"
        )

    def _confirmed(self, plan: Plan) -> bool:
        found = self._finals.get(plan)
        return found is not None and found.eligible and found.verdict == "meets" and sure(found)

    def _unclear(self, plan: Plan) -> bool:
        """Whether its final stays open for want of undisturbed requests: no other plan would fare better here."""
        found = self._finals.get(plan)
        if found is None or not found.eligible or found.verdict == "misses":
            return False
        clean = sum(bool(one.samples or one.cut_count) for one in found.result.by_process)
        return clean < MIN_PROCESSES

    def _next_of(self, waiting: Sequence[Plan]) -> Proposal:
        """The plan that is a round behind; the order of plans turns every round, that of prompts is the round's own."""
        rounds = {plan: self._rounds(plan) for plan in waiting}
        number = min(rounds.values())
        behind = [plan for plan in waiting if rounds[plan] == number]
        turn = number % len(waiting)
        turned = [*waiting[turn:], *waiting[:turn]]
        plan = next(plan for plan in turned if plan in behind)
        places = list(range(self._race._prompts))
        random.Random(number).shuffle(places)  # the same for every plan of a round: they are paired
        return Proposal(plan, _FINAL_ROUND + number, tuple(places))

    def _rounds(self, plan: Plan) -> int:
        return sum(m.plan == plan and not m.look for m in self._told)

    def remaining(self) -> int:
        looks = 0
        if not self._heated and not self._finals:
            looks = sum(p not in self._seen and not self._no_chance(p) for p in self._race._plans)
        entered = self._entered() if self._heated else self._near()
        heats = 0 if self._finals or len(entered) < 2 else sum(r.plan not in self._heated for r in entered)
        for batch in self._batches():
            left = sum(
                max(self._processes_for(r.plan, batch) - self._rounds(r.plan), 1)
                for r in batch
                if not self._settled(r.plan, batch)
            )
            if left or any(self._confirmed(r.plan) or self._unclear(r.plan) for r in batch):
                return looks + heats + int(left)
        return looks + heats + (MIN_PROCESSES if looks else 0)

    def left_out(self) -> dict[Plan, str]:
        race, out = self._race, dict[Plan, str]()
        for plan in race._plans:
            if plan not in self._seen:
                if why := self._no_chance(plan):
                    out[plan] = why
            elif plan not in self._finals and self._seen[plan].eligible and (why := self._beaten(plan)):
                out[plan] = why
        return out

    def _beaten(self, plan: Plan) -> str:
        """Why a plan that was looked at is out; empty while it may still be tried."""
        seen = self._seen[plan]
        if plan not in self._heated and (why := hopeless(seen, self._race._sla)):
            return f"ruled out by a look: {why}"
        if self._best is None or not self._finals:
            return ""
        r, best = seen, self._best
        if plan in self._heated:
            r = self._heated[plan]
            best = min((h for h in self._heated.values() if h.eligible), key=self._key, default=best)
        mine, lowest = score(r, self._race._objective), score(best, self._race._objective)
        if r.plan == best.plan or not 0 < lowest < math.inf:
            return ""
        requests = sum(len(m.samples) for m in r.result.measurements)
        least_ = "at least " if r.result.cut_count else ""
        return (
            f"ruled out by a look at {requests} requests: {least_}{mine / lowest:.2f}x the "
            f"{self._race._objective.metric} of {best.plan}"
        )


def _by_round(a: Ranked, b: Ranked) -> list[float]:
    """Latency of `a` over `b` in each round that both ran, the median over its prompts: processes are the unit."""
    mine, other = a.result.latencies_by_request, b.result.latencies_by_request
    ratios: dict[int, list[float]] = {}
    for key in mine.keys() & other.keys():
        ratios.setdefault(key[0], []).append(mine[key] / other[key])
    return [median(found) for found in ratios.values()]
