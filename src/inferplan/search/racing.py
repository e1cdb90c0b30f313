"""Racing: most plans are ruled out before they are started, the rest after a look, and the finalists are confirmed.

Owns the stages and who may still win at each. Leaves predicting to `predict` (handed in as a function), verdicts and
figures to `selection`; reads no clock: the time that is spent is the time that the measurements say they took.
"""

from __future__ import annotations

import copy
import itertools
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median

from ..cost import Prices
from ..measurement import Measurement
from ..plan import Plan
from ..predict import Prediction
from ..ranking import Objective, Ranked, least, order, sure
from ..result import results
from ..sequential import processes_needed, required_share
from ..sla import SLA
from ..stats import MIN_PROCESSES, TIE_WITHIN
from . import Proposal
from .exhaustive import interleaved
from .goal import Goal
from .limits import NO_LIMITS, Limits

Predict = Callable[[Sequence[Measurement]], Mapping[Plan, Prediction]]
"""What to expect of each plan after the looks so far, for requests like those of a look."""
Pick = Callable[[Sequence[Plan], Sequence[Measurement]], Plan | None]
"""Which plan to look at next, of those that still have a chance (in the order of a race), after the measurements so
far; None: no further looks. Its answer follows from these alone."""

# A request that has taken so many times what the best plan takes is ended: no plan so far off was seen to win later.
CUT_AT = 1.5
# Medians of fresh processes of one plan differ by a few percent, of two requests each by some ten: a quarter is that
# with room to spare.
HEAT_WITHIN = 1.25
HEAT_MOST = 6
HEATS = 3  # processes of one plan in the heat, where one is no witness
# Two undisturbed processes of one plan differ by so much only where something outside takes turns, or where the plan
# has two speeds: either way one process is no witness.
NOISY = 1.4
# Then so many of the plans are heated that the other looks let expect within so many times the best.
DOUBTED = 8
DOUBT_WITHIN = 2.0
# A heat is one process, and processes of a plan were recorded that differ by a third.
FINAL_WITHIN = 1.20
FINALISTS = 4
_FINAL_ROUND = 2 + HEATS  # the first; round 1 is the look, those up to this one the heat
_LEAST = 2  # processes for which a look leaves time, where there was no time to confirm the best plan anyway
_DROP_AFTER = 3  # rounds of the final before a finalist may be shown to be the slower one
_NOISY_MORE = 2  # times as many processes of the finalists where one is no witness
# Times the processes that a verdict needs at the least: enough that one of them may be slow as a whole.
_PATIENCE = 2.2


class Racing:
    """Looks in the order of what the prediction promises, a heat of the best, and a final in fresh processes.

    1. A look is one process of a plan with a few requests, each ended when it can no longer win. First comes a plan of
       each engine, the one that promised most before anything was measured (`_opening`); then the plan from which the
       largest improvement is expected (`promise`), or that `pick` likes better, while the expectation, made anew
       after every look, leaves one a chance at its optimistic end. Without a prediction every plan is looked at.
    2. The heat sends every request to the plans that came within `HEAT_WITHIN` of the best, and to the one that the
       other looks let expect there, though its own look did not show it: a process may be slow as a whole. Once two
       undisturbed processes of one plan have contradicted each other (`NOISY`), then or later, up to `DOUBTED` such
       plans are heated, and whichever its heat leaves behind is heated again, `HEATS` times in all: of several
       processes the fastest counts. A process without an undisturbed request is repeated in any case.
    3. The final runs those within `FINAL_WITHIN` of the best of the heat, interleaved, each in at least
       `MIN_PROCESSES` fresh processes, with another order of prompts each round; what chose the finalists does not
       count in it; twice as many after such a contradiction. One that was slower in every round leaves. The leader
       goes on until its verdict is decided, up to `_PATIENCE` times the processes that it needs. A finalist that
       cannot be confirmed counts no more: the race goes on as if it had never been the best, with further looks
       where plans have a chance now.
    4. Where no plan is left that may meet the SLA, those whose looks missed it by less than `HEAT_WITHIN` run a final
       after all, and the nearest in any case: that none meets is shown by whole requests of six processes.

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
        self._goal = Goal(sla, objective, prices, cores, memory_bytes)
        self._prompts, self._look_at, self._predict, self._pick = prompts, look_at, predict, pick
        self._limits = limits
        # Fresh processes that a verdict on the leader takes at the least: a tail needs more than a median.
        tails = (processes_needed(required_share(c)) for c in sla.constraints if c.metric.q is not None)
        self._needed = max([MIN_PROCESSES, *tails])
        self._told: list[Measurement] = list(done)
        self._state: _State | None = None
        self._judged: dict[tuple[str, Plan, tuple[int, ...]], Ranked] = {}
        self._steady: dict[tuple[Plan, int], bool] = {}
        self._expected: dict[tuple[int, Plan | None], Mapping[Plan, Prediction]] = {}
        self._beforehand: dict[Plan, float] | None = None

    def ask(self) -> Proposal | None:
        """What to measure next; None when a plan is confirmed, no plan is left, or a limit is reached."""
        proposal = self._now().next()
        return proposal if proposal is not None and self._limits.allow(self._told) else None

    def tell(self, measurement: Measurement) -> None:
        """What came of a proposal; one that was interrupted will be proposed again."""
        self._told.append(measurement)
        self._state = None

    @property
    def remaining(self) -> int:
        """About how many proposals are left: the looks that would follow now, a heat and a final of usual size.

        No more than the limits leave room for.
        """
        return min(self._now().remaining(), self._limits.left(self._told))

    @property
    def unfinished(self) -> bool:
        """Whether it would go on if it had no limits."""
        unlimited = copy.copy(self)
        unlimited._limits, unlimited._state = NO_LIMITS, None
        return unlimited.ask() is not None

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

    def _beforehand_out(self, plan: Plan) -> str:
        """Why a plan had no chance before anything was measured; empty if it had."""
        return self._goal.no_chance(plan, self._foreseen([]), None)

    def _promised(self, plan: Plan) -> float:
        """How much a look at `plan` promised before anything was measured."""
        if self._beforehand is None:
            expected = self._foreseen([])
            self._beforehand = {one: self._goal.promise(one, expected, None) for one in self._plans}
        return self._beforehand[plan]


class _State:
    """What follows from the measurements so far.

    A plan is spent when its final has shown that it cannot be confirmed. It counts no more then: the best is the best
    of the others, and plans that only the spent one had left without a chance are looked at after all.
    """

    def __init__(self, race: Racing, told: Sequence[Measurement]) -> None:
        self._race, self._told, self._goal = race, told, race._goal
        self._looks = [m for m in told if m.look and m.round == 1]
        self._first_looks = list(itertools.takewhile(lambda m: m.look and m.round == 1, told))
        self._heats = _by_plan(m for m in told if m.look and m.round > 1)
        self._expected = race._foreseen(self._looks)
        self._seen = {m.plan: self._judge("look", m.plan, [m]) for m in self._looks}
        self._heated = {plan: self._heat_of(plan, heats) for plan, heats in self._heats.items()}
        finals = _by_plan(m for m in told if not m.look)
        self._finals = {plan: self._judge("final", plan, of) for plan, of in finals.items()}
        contradicted = not all(self._is_steady(plan, of) for plan, of in _by_plan(told).items())
        self._noisy = contradicted and self._goal.objective.metric != "memory"  # which is not a matter of luck
        self._enough = MIN_PROCESSES * (_NOISY_MORE if self._noisy else 1)  # processes of a finalist
        self._spent = {plan for plan, r in self._finals.items() if self._is_spent(r)}
        fit = [r for r in map(self._known, self._seen.values()) if r.eligible and not self._goal.hopeless(r)]
        fit = sorted((r for r in fit if r.plan not in self._spent), key=self._key)
        self._alive = [r for r in fit if r.plan not in self._heated or self._stands(self._heated[r.plan])]
        self._best = self._alive[0] if self._alive else None

    def next(self) -> Proposal | None:
        """A look, else a process of the heat, else one of the final; None when nothing is left to ask."""
        return None if self._unclear() else self.look() or self.heat() or self.final()

    def _judge(self, stage: str, plan: Plan, of: Sequence[Measurement]) -> Ranked:
        """What these of a plan's measurements say of it; the same ones are judged once."""
        race, key = self._race, (stage, plan, tuple(m.round for m in of))
        if key not in race._judged:
            (found,) = results([plan], of)
            race._judged[key] = self._goal.judge(found)
        return race._judged[key]

    def _heat_of(self, plan: Plan, heats: Sequence[Measurement]) -> Ranked:
        """The fastest process of a plan's heat, an undisturbed one if there is one; the last if that failed."""
        if heats[-1].status != "ok":
            return self._judge("heat", plan, heats[-1:])
        each = [self._judge("heat", plan, [m]) for m in heats]
        return min(each, key=lambda r: (not _witness(r), self._goal.score(r)))

    def _known(self, seen: Ranked) -> Ranked:
        """What is known of a plan: its look, unless a whole heat was needed, or as much of the final contradicts it."""
        final, score = self._finals.get(seen.plan), self._goal.score
        if final is not None and final.result.processes >= HEATS and score(final) > NOISY * score(seen):
            return final
        return self._heated[seen.plan] if len(self._heats.get(seen.plan, ())) >= HEATS else seen

    def _is_steady(self, plan: Plan, of: Sequence[Measurement]) -> bool:
        """Whether no two of a plan's processes contradict each other."""
        steady, key = self._race._steady, (plan, len(of))
        if key not in steady:
            steady[key] = not any(_apart(a, b) > NOISY for a in of for b in of if a is not b)
        return steady[key]

    def _key(self, r: Ranked) -> tuple[float, float, str]:
        return (self._goal.score(r), least(r.peak_bytes), r.plan.id)

    # Looks

    def look(self) -> Proposal | None:
        """The most promising plan that was not started and has a chance, one of each engine first."""
        race = self._race
        waiting = [plan for plan in race._plans if plan not in self._seen and not self._no_chance(plan)]
        if not waiting or not self._affordable():
            return None
        waiting.sort(key=lambda p: (-self._goal.promise(p, self._expected, self._best), race._plans[p]))
        waiting = list(dict.fromkeys([*self._opening(waiting), *waiting]))
        plan = waiting[0] if race._pick is None else race._pick(waiting, self._told)
        if plan is None:
            return None
        return Proposal(plan, 1, race._look_at, self._cut_after_s(), self._cut_first_after_s(), look=True)

    def _opening(self, waiting: Sequence[Plan]) -> list[Plan]:
        """Of each engine that was not looked at yet the plan that promised most beforehand, the best first.

        Looks at other engines say little of it: what they let expect would put off the best plan as easily as not.
        """
        race, seen = self._race, {(plan.engine, plan.device) for plan in self._seen}
        fresh = [plan for plan in waiting if (plan.engine, plan.device) not in seen]
        first: dict[tuple[str, str], Plan] = {}
        for plan in sorted(fresh, key=lambda p: (-race._promised(p), race._plans[p])):
            first.setdefault((plan.engine, plan.device), plan)
        return list(first.values())

    def _affordable(self) -> bool:
        """Whether another look leaves time for the heat, and to confirm the best plan so far."""
        if self._best is None:
            return True
        best, limits, told = self._best.plan, self._race._limits, self._told
        kept = self._kept(best)
        if not self._fit(best, kept) and len(self._looks) == len(told) and limits.allow(told, kept):
            kept = _LEAST  # it is the time that is short, and another plan may start faster
        then, usual = len(self._to_heat(self._near())) + kept, median([m.wall_s for m in told])
        return limits.allow(told, 1 + then, usual + then * self._seconds(best))

    def _kept(self, plan: Plan) -> int:
        """How many processes of `plan`, the best so far, the limits keep room for.

        As many as its verdict needs, or those of a median where so many do not fit.
        """
        return self._race._needed if self._fit(plan, self._race._needed) else MIN_PROCESSES

    def _fit(self, plan: Plan, count: int) -> bool:
        """Whether the looks before the first heat left room for so many of its processes; the last is begun in time.

        What is measured later does not change it: an estimate that moves a little must not turn a final into looks.
        """
        each = self._seconds(plan, self._looks)
        return self._race._limits.allow(self._first_looks, count, (count - 1) * each)

    def _seconds(self, plan: Plan, told: Sequence[Measurement] | None = None) -> float:
        """About what a process of `plan` with every request takes, from the last look or heat, of all or of `told`."""
        m = next(m for m in reversed(self._told if told is None else told) if m.plan == plan and m.look)
        requests = sum(s.latency_s for s in m.samples)
        return m.wall_s + requests * max(self._race._prompts / max(len(m.samples), 1) - 1, 0.0)

    def _cut_after_s(self) -> float | None:
        """When a request has shown that its plan can neither meet the SLA, by far, nor come near the best."""
        limits = self._limits("latency")
        bounds = [HEAT_WITHIN * max(limits)] if limits else []
        if self._goal.objective.metric == "latency" and self._best is not None:
            seen = [s for m in self._best.result.measurements for s in m.samples]
            alike = [s.latency_s for s in seen if s.index in self._race._look_at] or [s.latency_s for s in seen]
            bounds.append(CUT_AT * max(alike))
        return min(bounds, default=None)

    def _cut_first_after_s(self) -> float | None:
        """When the first token has come too late for the SLA, by far."""
        limits = self._limits("ttft")
        return HEAT_WITHIN * max(limits) if limits else None

    def _limits(self, quantity: str) -> list[float]:
        """What the SLA allows the median of a time, or more than half of it."""
        bounded = (c for c in self._goal.sla.constraints if c.metric.quantity == quantity)
        return [c.limit for c in bounded if (c.metric.q or 0) >= 0.5]

    def _no_chance(self, plan: Plan) -> str:
        """Why a plan that was not started is not worth it: what is expected of it at its best; empty if it is."""
        return self._goal.no_chance(plan, self._expected, self._best)

    # The heat

    def heat(self) -> Proposal | None:
        """The next of the plans that came near the best, or might have; none where there is only one."""
        near = self._near()
        if not near:
            return None
        then, each = self._kept(near[0].plan), self._seconds(near[0].plan)
        for plan in self._to_heat(near + self._doubtful(near)):
            if self._race._limits.allow(self._told, 1 + then, self._seconds(plan) + then * each):
                whole = any(r.plan == plan for r in near)
                cuts = (None, None) if whole else (self._cut_after_s(), self._cut_first_after_s())
                last = max((m.round for m in self._heats.get(plan, ())), default=1)
                return Proposal(plan, last + 1, None, *cuts, look=True)
        return None

    def _to_heat(self, entered: Sequence[Ranked]) -> list[Plan]:
        """Those of `entered` that need a process of the heat, the ones that had fewest first."""
        if len(entered) < 2:
            return []
        waiting = [r.plan for r in entered if r.plan not in self._finals and not self._is_heated(r.plan)]
        return sorted(waiting, key=lambda plan: len(self._heats.get(plan, ())))

    def _is_heated(self, plan: Plan) -> bool:
        """Whether the heat has no more to ask about `plan`."""
        if plan not in self._heated:
            return False
        heated, score = self._heated[plan], self._goal.score
        if not heated.eligible or len(self._heats[plan]) >= HEATS:
            return True
        lowest = min(score(r) for r in self._heated.values() if r.eligible)
        return _witness(heated) and not (self._noisy and score(heated) > FINAL_WITHIN * lowest)

    def _near(self) -> list[Ranked]:
        """The plans whose look came near the best, which is the first."""
        if self._best is None:
            return []
        lowest = self._goal.score(self._best)
        return [r for r in self._alive if self._goal.score(r) <= HEAT_WITHIN * lowest][:HEAT_MOST]

    def _doubtful(self, near: Sequence[Ranked]) -> list[Ranked]:
        """The plans that by the other looks might be among those, the most promising first.

        A look was one process, and processes of a plan were recorded that took twice as long as the next. How far
        off it was does not count: it was ended when it could no longer win. Memory is not a matter of luck.
        """
        if not near or self._goal.objective.metric == "memory":
            return []
        found: list[tuple[float, str, Ranked]] = []
        for r in self._seen.values():
            if r.eligible and r.plan not in self._spent and all(r.plan != one.plan for one in near):
                ratio = self._without_its_look(r, near[0])
                if ratio <= DOUBT_WITHIN:
                    found.append((ratio, r.plan.id, r))
        found.sort()
        doubted = found if self._noisy else [one for one in found if not _witness(one[2])]
        kept = [r for _, _, r in doubted[:DOUBTED]]
        return kept + [r for ratio, _, r in found[:1] if ratio <= HEAT_WITHIN and r not in kept]

    def _without_its_look(self, r: Ranked, best: Ranked) -> float:
        """How many times what the best takes a plan is expected to, by the looks at the others."""
        expected = self._race._foreseen(self._looks, without=r.plan)
        if r.plan not in expected or best.plan not in expected:
            if not self._noisy:
                return math.inf
            return self._goal.score(r) / self._goal.score(best)
        own, lowest = (self._goal.foreseen(expected[plan]).value for plan in (r.plan, best.plan))
        return own / lowest

    def _by_merit(self) -> list[Ranked]:
        """All that may still be tried in a final, the best first: by the heat, then by the looks."""
        fit = [r for r in self._heated.values() if r.plan not in self._spent and self._stands(r)]
        return sorted(fit, key=self._key) + [r for r in self._alive if r.plan not in self._heated]

    def _stands(self, heated: Ranked) -> bool:
        """Whether a plan's heat leaves it a chance."""
        return heated.eligible and not self._goal.hopeless(heated)

    # The final

    def final(self) -> Proposal | None:
        """The next process of a finalist; None when one is confirmed, or none is left."""
        batch = self._batch()
        waiting = [plan for plan in batch if not self._settled(plan, batch)]
        return self._next_of(waiting) if waiting else None

    def _batch(self) -> list[Plan]:
        """The finalists: those near the best of the heat, as many as can be confirmed, and those that have begun."""
        merit, score = self._by_merit(), self._goal.score
        alike = [r for r in merit if r.plan in self._heated] or merit
        near = [r.plan for r in alike if score(r) <= FINAL_WITHIN * score(alike[0])] or self._last()
        near = near[:FINALISTS]
        begun = [plan for plan in self._finals if plan not in self._spent]
        return list(dict.fromkeys([*near[: self._room(near)], *begun]))

    def _last(self) -> list[Plan]:
        """Where no plan may meet the SLA by its look: those that missed it by little, and one that shows by how much.

        A look is two requests of one process. The nearest is the first.
        """
        seen = [self._heated.get(plan, r) for plan, r in self._seen.items() if plan not in self._spent]
        missed = [r for r in seen if r.eligible and self._goal.hopeless(r) and not self._goal.shown_once(r)]
        beyond = {r.plan: (self._goal.times_beyond(r), self._expected_s(r), r.plan.id) for r in missed}
        order = sorted(beyond, key=beyond.__getitem__)
        return [plan for plan in order if beyond[plan][0] < HEAT_WITHIN] or ([] if self._finals else order[:1])

    def _expected_s(self, r: Ranked) -> float:
        """What is expected of a plan's latency: of requests that were cut short alike, it tells which is the nearest.

        Where nothing is predicted, the time of each token that came.
        """
        if (expected := self._expected.get(r.plan)) is not None:
            return expected.latency_s.value
        samples = [s for m in r.result.ok_measurements for s in m.samples]
        return sum(s.latency_s for s in samples) / max(sum(s.output_tokens for s in samples), 1)

    def _room(self, plans: Sequence[Plan]) -> int:
        """How many of `plans` the limits leave time to confirm, at least one."""
        limits, before = self._race._limits, [m for m in self._told if m.look or m.plan in self._spent]
        seconds, processes, count = 0.0, 0, 0
        for plan in plans:
            more = MIN_PROCESSES if count else self._kept(plan)  # the leader's verdict alone may need more
            processes, seconds = processes + more, seconds + more * self._seconds(plan)
            if count and not limits.allow(before, processes, seconds):
                break
            count += 1
        return count

    def _settled(self, plan: Plan, batch: Sequence[Plan]) -> bool:
        """Whether the final has no more to ask about `plan`."""
        found = self._finals.get(plan)
        if found is None:
            return False
        if plan in self._spent or self._slower(found, batch):
            return True
        if plan == self._leader(batch):
            return found.result.processes >= max(self._race._needed, self._enough) and self._confirmed(found)
        return found.result.processes >= self._enough

    def _leader(self, batch: Sequence[Plan]) -> Plan | None:
        """The best of the finalists, as far as they ran."""
        able = [self._finals[plan] for plan in batch if plan in self._finals and plan not in self._spent]
        able = [r for r in able if not self._slower(r, batch)]
        return min(able, key=lambda r: order(r, self._goal.objective)).plan if able else None

    def _slower(self, found: Ranked, batch: Sequence[Plan]) -> bool:
        """Whether another finalist was faster in every round that both have clean requests of, and these are enough."""
        if self._goal.objective.metric != "latency":
            return False
        others = [self._finals[plan] for plan in batch if plan in self._finals and plan != found.plan]
        by_round = [_by_round(found, r) for r in others if r.plan not in self._spent and r.verdict == "meets"]
        return any(len(ratios) >= _DROP_AFTER and min(ratios) > 1 + TIE_WITHIN for ratios in by_round)

    def _is_spent(self, found: Ranked) -> bool:
        """Whether a finalist failed, misses, or stays open after as many processes as it is given.

        One slow process does not end it: a miss is shown of processes to come, or of as many as a median needs.
        """
        misses = any(j.in_general is not None and j.in_general.verdict == "misses" for j in found.judgements)
        misses = misses or (found.verdict == "misses" and found.result.processes >= MIN_PROCESSES)
        return not found.eligible or misses or (self._out_of_patience(found) and not self._confirmed(found))

    def _out_of_patience(self, found: Ranked) -> bool:
        return found.result.processes >= _PATIENCE * self._race._needed

    def _confirmed(self, found: Ranked) -> bool:
        return found.eligible and found.verdict == "meets" and sure(found)

    def _unclear(self) -> bool:
        """Whether a final stays open for want of undisturbed requests: no other plan would fare better here."""
        return any(
            found.eligible
            and found.verdict != "misses"
            and self._out_of_patience(found)
            and sum(bool(one.samples or one.cut_count) for one in found.result.by_process) < MIN_PROCESSES
            for found in self._finals.values()
        )

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
        if self._unclear():
            return 0
        looks = sum(p not in self._seen and not self._no_chance(p) for p in self._race._plans)
        batch = self._batch()
        leader = self._leader(batch) or (batch[0] if batch else None)
        of_leader = max(self._enough, self._race._needed)
        left = sum(
            max((of_leader if plan == leader else self._enough) - self._rounds(plan), 1)
            for plan in batch
            if not self._settled(plan, batch)
        )
        near = self._near()
        entered = near + self._doubtful(near) if self._heated else near  # who is doubted is dear to tell
        return looks + len(self._to_heat(entered)) + (left if batch else of_leader if looks else 0)

    def left_out(self) -> dict[Plan, str]:
        race, out = self._race, dict[Plan, str]()
        # What was disturbed tells a race where to look next, and nobody that a plan is slow.
        blind = bool(self._seen) and not any(map(_witness, self._seen.values()))
        for plan in race._plans:
            if plan not in self._seen:
                if why := race._beforehand_out(plan) if blind else self._no_chance(plan):
                    out[plan] = why
            elif plan not in self._finals and self._seen[plan].eligible and (why := self._beaten(plan)):
                out[plan] = why
        return out

    def _beaten(self, plan: Plan) -> str:
        """Why a plan that was looked at is out; empty while it may still be tried."""
        seen = self._seen[plan]
        if plan not in self._heated and (why := self._goal.hopeless(seen)):
            return f"ruled out by a look: {why}"
        if self._best is None or not self._finals:
            return ""
        r, best = seen, self._best
        if plan in self._heated:
            r = self._heated[plan]
            stand = (h for h in self._heated.values() if h.eligible and h.plan not in self._spent)
            best = min(stand, key=self._key, default=best)
        mine, lowest = self._goal.score(r), self._goal.score(best)
        # One that is near the best was kept from being tried, by a limit or enough others; one that was disturbed shows
        # nothing.
        tried = FINAL_WITHIN if plan in self._heated else HEAT_WITHIN
        if not 0 < lowest < math.inf or mine <= tried * lowest or not (_witness(r) and _witness(best)):
            return ""
        requests = sum(len(m.samples) for m in r.result.measurements)
        least_ = "at least " if r.result.cut_count else ""
        return (
            f"ruled out by a look at {requests} requests: {least_}{mine / lowest:.2f}x the "
            f"{self._goal.objective.metric} of {best.plan}"
        )


def _by_round(a: Ranked, b: Ranked) -> list[float]:
    """Latency of `a` over `b` in each round that both ran, the median over its prompts: processes are the unit."""
    mine, other = a.result.latencies_by_request, b.result.latencies_by_request
    ratios: dict[int, list[float]] = {}
    for key in mine.keys() & other.keys():
        ratios.setdefault(key[0], []).append(mine[key] / other[key])
    return [median(found) for found in ratios.values()]


def _by_plan(told: Iterable[Measurement]) -> dict[Plan, list[Measurement]]:
    found: dict[Plan, list[Measurement]] = {}
    for m in told:
        found.setdefault(m.plan, []).append(m)
    return found


def _witness(r: Ranked) -> bool:
    """Whether an undisturbed request stands behind it."""
    return any(not s.disturbed for m in r.result.ok_measurements for s in m.samples)


def _apart(a: Measurement, b: Measurement) -> float:
    """How many times as long `a` took at least as `b`, over the undisturbed requests of both; 0: not known."""
    whole = {s.index: s.latency_s for s in b.samples if not s.disturbed and not s.cut}
    ratios = [s.latency_s / whole[s.index] for s in a.samples if not s.disturbed and s.index in whole]
    return median(ratios) if len(ratios) > 1 else 0.0
