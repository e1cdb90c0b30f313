"""Another way of choosing which plan a race looks at next: as Optuna's samplers suggest.

Owns the way from a plan to Optuna's parameters and back. Leaves the stages of a race, and which plans still have a
chance, to `racing`. Optuna is imported where it is asked for.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from ..cost import Prices
from ..errors import InputError
from ..measurement import Measurement
from ..plan import Plan, option_text
from ..ranking import Objective, Ranked, least
from ..result import results
from ..sla import SLA
from .goal import Goal
from .racing import Pick

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.study import Study
    from optuna.trial import Trial

Kind = Literal["tpe", "nsga2"]

FIRST = 10
"""Plans that are looked at in the order in which they are expected to win: what a sampler starts from. TPE takes ten
trials of any kind before it suggests anything."""
POPULATION = 5
"""Plans of a generation of NSGA-II: with the usual 50, a race would end before anything was selected."""
TRIES = 10
"""Suggestions in turn that are no plan to look at, before the nearest such plan is taken."""
_ABSENT = "(default)"  # of an option that a plan leaves alone; no option's value is written so


def optuna_pick(
    kind: Kind,
    plans: Sequence[Plan],
    sla: SLA,
    objective: Objective,
    prices: Prices,
    cores: float,
    seed: int | str,
    *,
    first: int = FIRST,
) -> Pick:
    """Looks at the `first` plans in the order in which they are expected to win, then at what Optuna suggests.

    Optuna sees every axis on which the plans differ as a categorical parameter, what the looks showed (of requests
    that were cut short, as far as they ran), and how far beyond each limit of the SLA that is. A suggestion that is no
    plan to look at (there is no such plan, it was looked at, it has no chance) is told back with what is known of it,
    or as infeasible, up to `TRIES` times in a row; then the nearest plan is taken. What it suggests follows from the
    looks and the seed alone: nothing is remembered that a resumed search would not know.

    Args:
        kind: `tpe`: the tree-structured Parzen estimator (Bergstra et al., Algorithms for Hyper-Parameter Optimization,
            NIPS 2011), on what is minimised. `nsga2`: NSGA-II (Deb et al., A Fast and Elitist Multiobjective Genetic
            Algorithm, IEEE Transactions on Evolutionary Computation 6, 2002), on latency and peak memory, or cost in
            place of memory where it is minimised.
        plans: all of the space.
        seed: of the sampler.
        first: at least 1.

    Raises:
        InputError: Optuna is not installed, or `first` is less than 1.
    """
    if first < 1:
        raise InputError(f"a sampler needs at least 1 plan to start from, not {first}")
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"the strategy {kind} needs Optuna, which cannot be imported ({error}): pip install inferplan[optuna]"
        ) from None
    return _Suggested(kind, _Axes(plans), _Figures(kind, Goal(sla, objective, prices, cores)), str(seed), first)


def _looks(told: Sequence[Measurement]) -> list[Measurement]:
    """The first looks, one a plan."""
    return [m for m in told if m.look and m.round == 1 and m.status != "interrupted"]


@dataclass(frozen=True, slots=True)
class _Known:
    """What Optuna is told of a plan: what is minimised, and how far beyond each limit; above 0 is infeasible."""

    values: tuple[float, ...]
    constraints: Mapping[str, float]


class _Axes:
    """The axes on which plans differ, as Optuna's parameters."""

    def __init__(self, plans: Sequence[Plan]) -> None:
        self._options = sorted({name for plan in plans for name, _ in plan.options})
        every = [self._all(plan) for plan in plans]
        names = every[0] if every else {}
        self.choices = {name: tuple(dict.fromkeys(one[name] for one in every)) for name in names}
        self.choices = {name: values for name, values in self.choices.items() if len(values) > 1}
        self._plans = {tuple(self.of(plan).values()): plan for plan in plans}

    def __contains__(self, plan: Plan) -> bool:
        return self.plan(self.of(plan)) == plan

    def of(self, plan: Plan) -> dict[str, str | int]:
        """The parameters of a plan."""
        every = self._all(plan)
        return {name: every[name] for name in self.choices}

    def plan(self, parameters: Mapping[str, Any]) -> Plan | None:
        """The plan of these parameters; None: there is no such plan."""
        return self._plans.get(tuple(parameters[name] for name in self.choices))

    def nearest(self, parameters: Mapping[str, Any], waiting: Sequence[Plan]) -> Plan:
        """The plan that is alike on the most axes; of several, the first."""
        return max(waiting, key=lambda plan: sum(parameters[name] == value for name, value in self.of(plan).items()))

    def _all(self, plan: Plan) -> dict[str, str | int]:
        options = {name: option_text(value) for name, value in plan.options}
        return {
            "model": plan.model,
            "engine": plan.engine,
            "precision": plan.precision,
            "threads": plan.threads,
            "kv_cache": "on" if plan.kv_cache else "off",
            "device": plan.device,
            **{f"option {name}": options.get(name, _ABSENT) for name in self._options},
        }


@dataclass(frozen=True, slots=True)
class _Figures:
    """What a look says to Optuna."""

    kind: Kind
    goal: Goal

    @property
    def count(self) -> int:
        """How many values are minimised."""
        return 1 if self.kind == "tpe" else 2

    def known(self, look: Measurement, worst: Sequence[float]) -> _Known:
        """What one look showed; a figure that it lacks is `worst`, for Optuna takes no gaps."""
        (found,) = results([look.plan], [look])
        r = self.goal.judge(found)
        values = self._values(r) if r.eligible else (math.inf,) * self.count
        limits = {f"limit {place}": self._beyond(r, place) for place in range(len(r.judgements))}
        failed = 0.0 if r.eligible else 1.0
        if r.eligible and self.goal.hopeless(r) and max(limits.values()) <= 0:
            failed = 1.0  # beyond a limit by an unknown part: every request was cut short
        filled = tuple(v if math.isfinite(v) else w for v, w in zip(values, worst, strict=True))
        return _Known(filled, {**limits, "failed": failed})

    def infeasible(self, worst: Sequence[float]) -> _Known:
        """Of a suggestion that is no plan, or one without a chance."""
        limits = {f"limit {place}": 0.0 for place in range(len(self.goal.sla.constraints))}
        return _Known(tuple(worst), {**limits, "failed": 1.0})

    def _values(self, r: Ranked) -> tuple[float, ...]:
        if self.kind == "tpe":
            return (self.goal.score(r),)
        second = r.usd_per_mtok if self.goal.objective.metric == "cost" else r.peak_bytes
        return replace(self.goal, objective=Objective("latency")).score(r), least(second)

    def _beyond(self, r: Ranked, place: int) -> float:
        margin = r.judgements[place].margin
        return 0.0 if margin is None else -margin


class _Suggested:
    """Optuna's suggestions. What it keeps between calls is what it would make anew from the same looks."""

    def __init__(self, kind: Kind, axes: _Axes, figures: _Figures, seed: str, first: int) -> None:
        from optuna.distributions import CategoricalDistribution

        self._kind, self._axes, self._figures, self._seed, self._first = kind, axes, figures, seed, first
        self._parameters: dict[str, BaseDistribution] = {
            name: CategoricalDistribution(values) for name, values in axes.choices.items()
        }
        self._learned: list[Measurement] = []
        self._forget()

    def __call__(self, waiting: Sequence[Plan], told: Sequence[Measurement]) -> Plan | None:
        looks = [look for look in _looks(told) if look.plan in self._axes]
        if len(looks) < self._first or len(waiting) < 2:
            return waiting[0] if waiting else None
        with _quiet():
            self._learn(looks)
            return self._suggest(waiting)

    def _forget(self) -> None:
        self._learned.clear()
        self._known: dict[Plan, _Known] = {}
        self._worst = [1.0] * self._figures.count
        self._study: Study | None = None

    def _learn(self, looks: Sequence[Measurement]) -> None:
        """Bring the study up to these looks: each is a trial that was asked for as it was."""
        before = self._learned
        if len(before) > len(looks) or any(a is not b and a != b for a, b in zip(before, looks, strict=False)):
            self._forget()
        if self._study is None:
            self._study = self._new()
        for look in looks[len(self._learned) :]:
            known = self._figures.known(look, self._worst)
            both = zip(self._worst, known.values, strict=True)
            self._worst = [max(a, b) for a, b in both] if self._known else list(known.values)
            self._known[look.plan] = known
            self._study.enqueue_trial(self._axes.of(look.plan))
            trial = self._study.ask(self._parameters)
            if self._kind == "nsga2":
                _ = trial.relative_params  # Optuna counts a trial to a generation only where it has sampled for it
            _answer(self._study, trial, known)
            self._learned.append(look)

    def _suggest(self, waiting: Sequence[Plan]) -> Plan:
        study = copy.deepcopy(self._study)  # what is told back below is of these plans that wait, and of no others
        assert study is not None
        study.sampler = self._sampler(len(self._learned))
        free = set(waiting)
        for _ in range(TRIES):
            trial = study.ask(self._parameters)
            plan = self._axes.plan(trial.params)
            if plan in free:
                return plan
            known = None if plan is None else self._known.get(plan)
            _answer(study, trial, known or self._figures.infeasible(self._worst))
        return self._axes.nearest(trial.params, waiting)

    def _new(self) -> Study:
        import optuna

        directions: list[Literal["minimize", "maximize"]] = ["minimize"] * self._figures.count
        return optuna.create_study(directions=directions, sampler=self._sampler(0))

    def _sampler(self, count: int) -> BaseSampler:
        """The sampler, after so many looks: anew each time, so that no earlier suggestion has moved it."""
        from optuna.samplers import NSGAIISampler, TPESampler

        seed = int.from_bytes(hashlib.blake2b(f"{self._seed} {count}".encode(), digest_size=4).digest(), "big")
        if self._kind == "tpe":
            return TPESampler(n_startup_trials=self._first, seed=seed)
        return NSGAIISampler(population_size=POPULATION, seed=seed)


def _answer(study: Study, trial: Trial, known: _Known) -> None:
    for name, beyond in known.constraints.items():
        trial.set_constraint(name, beyond)
    study.tell(trial, known.values)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's lines about every study and trial."""
    from optuna import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)
