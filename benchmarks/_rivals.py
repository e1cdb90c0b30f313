"""The strategies that `search_efficiency.py` compares, each as a search of one case.

Owns what each of them is given. Leaves the stages of a race to `inferplan.search`, the rungs to `_halving.py`.

Three sets. Racing as `optimize` runs it. Its rivals, which are given the order that is predicted before anything is
measured, the plans left out that cannot meet the SLA by that prediction, short requests which are cut when they cannot
win any more, and the final; not what racing is: expecting anew after every look, and ruling plans out by that. And the
same ways of picking inside a race (`EXPECTING`, `UNPREDICTED`): those are given all of it, or no prediction at all.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from _halving import Halving
from _replay import Neighbour, Recorded, Replay

from inferplan.cost import Prices
from inferplan.measurement import Measurement
from inferplan.plan import Plan
from inferplan.predict import Prediction
from inferplan.search import Proposal, Search
from inferplan.search.goal import Goal
from inferplan.search.limits import NO_LIMITS, Limits
from inferplan.search.picking import FIRST, Kind, optuna_pick
from inferplan.search.racing import Pick, Predict, Racing
from inferplan.selection import SLA, Objective
from inferplan.strategies import expectations, looked_at

LATENCY, PRICES = Objective("latency"), Prices()
EXPECTING, UNPREDICTED = ", expecting anew", ", no prediction"


@dataclass(frozen=True, slots=True)
class Case:
    """One space with one seed, before any strategy.

    Attributes:
        truth: by plan, its median over all that was recorded of it.
        predict: what is expected of the plans, made once for the looks that strategies share.
        drawn: the processes that were drawn so far.
        suggested: what samplers picked so far, by what they were told and offered.
        neighbour: who works beside the search.
    """

    space: Recorded
    sla: SLA
    seed: int
    truth: Mapping[Plan, float]
    predict: Predict
    drawn: dict[Proposal, Measurement]
    suggested: dict[tuple[object, ...], tuple[Plan | None, tuple[Measurement, ...]]]
    neighbour: Neighbour | None = None

    @classmethod
    def of(cls, space: Recorded, sla: SLA, seed: int, neighbour: Neighbour | None = None) -> Case:
        """A case of which nothing was measured yet."""
        truth = {plan: p50 for plan in space.plans if (p50 := space.true_p50_s(plan)) is not None}
        return cls(space, sla, seed, truth, _shared(_expected(space)), {}, {}, neighbour)

    def regret(self, plan: Plan) -> float:
        """0.02: the plan's true median is 2% above the optimum."""
        return self.truth[plan] / min(self.truth.values()) - 1

    def replay(self, spent_s: float = 0.0) -> Replay:
        """The machine of one search, which has already taken so long."""
        return Replay(self.space, self.seed, self.drawn, spent_s=spent_s, neighbour=self.neighbour)

    def in_order(self) -> list[Plan]:
        """The plans that may meet the SLA by what is predicted before anything is measured, in a race's order."""
        expected, goal = self.predict([]), Goal(self.sla, LATENCY, PRICES, self.space.cores)
        fit = [plan for plan in self.space.plans if not goal.no_chance(plan, expected, None)]
        return sorted(fit, key=lambda plan: goal.promise(plan, expected, None), reverse=True)


Make = Callable[[Case, int, Limits], Search]
"""The search of a case, how many of the first plans are taken in predicted order, and how long it may take."""


def _expected(space: Recorded) -> Predict:
    """What is expected of the plans of a space."""
    return expectations(space.plans, space.shapes, space.rates, space.prompt_tokens, _places(space), space.max_tokens)


def _shared(predict: Predict) -> Predict:
    """The same expectation, made once for what several strategies are told alike (the very same objects)."""
    made: dict[tuple[int, ...], Mapping[Plan, Prediction]] = {}

    def foreseen(told: Sequence[Measurement]) -> Mapping[Plan, Prediction]:
        key = tuple(map(id, told))
        if key not in made:
            made[key] = predict(told)
        return made[key]

    return foreseen


def _race(
    case: Case,
    plans: Iterable[Plan],
    predict: Predict | None,
    pick: Pick | None = None,
    limits: Limits = NO_LIMITS,
    done: Sequence[Measurement] = (),
) -> Racing:
    """A race as `optimize` would run it."""
    space = case.space
    return Racing(
        tuple(plans),
        case.sla,
        LATENCY,
        PRICES,
        space.cores,
        prompts=_prompts(space),
        look_at=_places(space),
        predict=predict,
        pick=pick,
        limits=limits,
        done=done,
    )


def _prompts(space: Recorded) -> int:
    return len(next(iter(space.prompt_tokens.values())))


def _places(space: Recorded) -> tuple[int, ...]:
    return looked_at(next(iter(space.prompt_tokens.values())))


# --- rivals -------------------------------------------------------------------


def _within(case: Case, limits: Limits, make: Callable[[int], Search], most: int) -> Search:
    """A search with as many looks as leave time for its heat and its final: found by trial, which favours it.

    Args:
        make: a search with so many looks.
        most: looks.
    """
    if (seconds := limits.seconds) is None:
        return make(most)
    high = 8
    while high < most and _seconds(case, make(high)) <= seconds:  # a search of every plan takes long to simulate
        high *= 2
    counts = range(1, min(high, most) + 1)
    return make(counts[max(bisect_right(counts, seconds, key=lambda count: _seconds(case, make(count))) - 1, 0)])


def _seconds(case: Case, search: Search) -> float:
    replay = case.replay()
    while (asked := search.ask()) is not None:
        search.tell(replay.measure(asked))
    return replay.spent_s


def at_random(seed: int | str, first: int = FIRST) -> Pick:
    """Looks at the `first` plans in the order in which they are expected to win, at the others in an order drawn once.

    Which of two plans comes first depends on `seed` and on these two alone.
    """

    def drawn(plan: Plan) -> bytes:
        return hashlib.blake2b(f"{seed} {plan.id}".encode(), digest_size=8).digest()

    def pick(waiting: Sequence[Plan], told: Sequence[Measurement]) -> Plan | None:
        if sum(m.look and m.round == 1 for m in told) < first:
            return waiting[0] if waiting else None
        return min(waiting, key=drawn, default=None)

    return pick


def _in_turn(plans: Sequence[Plan], first: int, then: Pick, looks: int) -> Pick:
    """So many looks: the `first` plans in this order, the others as `then` picks them."""
    places = {plan: place for place, plan in enumerate(plans)}

    def pick(waiting: Sequence[Plan], told: Sequence[Measurement]) -> Plan | None:
        count = sum(m.look and m.round == 1 for m in told)
        if count >= looks:
            return None
        return min(waiting, key=places.__getitem__, default=None) if count < first else then(waiting, told)

    return pick


def _ordered(case: Case, first: int, limits: Limits) -> Search:
    """The predicted order, to its end."""
    plans, rest = case.in_order(), at_random(case.seed)

    def make(looks: int) -> Search:
        return _race(case, plans, None, _in_turn(plans, len(plans), rest, looks))

    return _within(case, limits, make, len(plans))


def _drawn(case: Case, first: int, limits: Limits) -> Search:
    plans, rest = case.in_order(), at_random(case.seed, 0)

    def make(looks: int) -> Search:
        return _race(case, plans, None, _in_turn(plans, first, rest, looks))

    return _within(case, limits, make, len(plans))


def _suggested(kind: Kind) -> Make:
    def of(case: Case, first: int, limits: Limits) -> Search:
        plans = case.in_order()

        def make(looks: int) -> Search:
            return _race(case, plans, None, _in_turn(plans, first, _sampler(kind, case, plans, first), looks))

        return _within(case, limits, make, len(plans))

    return of


def _sampler(kind: Kind, case: Case, plans: Sequence[Plan], first: int) -> Pick:
    """A sampler of Optuna; told the very same objects again, as by another search of the case, it picks the same."""
    first = max(first, 1)
    suggest = optuna_pick(kind, plans, case.sla, LATENCY, PRICES, case.space.cores, case.seed, first=first)

    def pick(waiting: Sequence[Plan], told: Sequence[Measurement]) -> Plan | None:
        key = kind, first, len(plans), tuple(map(id, told)), tuple(waiting)
        if key not in case.suggested:
            case.suggested[key] = suggest(waiting, told), tuple(told)  # kept, so that no other object gets its id
        return case.suggested[key][0]

    return pick


def _halved(case: Case, first: int, limits: Limits) -> Search:
    """The first plans in predicted order."""
    plans = case.in_order()

    def make(looks: int) -> Search:
        return _halving(case, plans[:looks], None, _in_turn(plans, looks, at_random(case.seed), looks))

    return _within(case, limits, make, len(plans))


def _halving(case: Case, plans: Sequence[Plan], predict: Predict | None, pick: Pick | None = None) -> Search:
    space = case.space

    def make(plans: Sequence[Plan], predict: Predict | None, done: Sequence[Measurement]) -> Racing:
        return _race(case, plans, predict, pick, done=done)

    return Halving(make, plans, case.sla, _prompts(space), _places(space), predict)


# --- inside a race ------------------------------------------------------------


def _racing(predicted: bool) -> Make:
    return lambda case, first, limits: _race(case, case.space.plans, case.predict if predicted else None, limits=limits)


def _raced_at_random(predicted: bool) -> Make:
    return lambda case, first, limits: _race(
        case, case.space.plans, case.predict if predicted else None, at_random(case.seed, first), limits
    )


def _raced_as_suggested(kind: Kind) -> Callable[[bool], Make]:
    def of(predicted: bool) -> Make:
        return lambda case, first, limits: _race(
            case,
            case.space.plans,
            case.predict if predicted else None,
            _sampler(kind, case, case.space.plans, first),
            limits,
        )

    return of


def _raced_by_halves(predicted: bool) -> Make:
    return lambda case, first, limits: _halving(case, case.space.plans, case.predict if predicted else None)


RIVALS: Mapping[str, Make] = {
    "predicted order": _ordered,
    "random": _drawn,
    "tpe": _suggested("tpe"),
    "nsga2": _suggested("nsga2"),
    "successive halving": _halved,
}
_INSIDE: Mapping[str, Callable[[bool], Make]] = {
    "random": _raced_at_random,
    "tpe": _raced_as_suggested("tpe"),
    "nsga2": _raced_as_suggested("nsga2"),
    "successive halving": _raced_by_halves,
}
STRATEGIES: Mapping[str, Make] = {
    "racing": _racing(True),
    **RIVALS,
    **{name + EXPECTING: make(True) for name, make in _INSIDE.items()},
    "racing" + UNPREDICTED: _racing(False),
    **{name + UNPREDICTED: make(False) for name, make in _INSIDE.items()},
}
PREDICTED = {name: not name.endswith(UNPREDICTED) for name in STRATEGIES}
