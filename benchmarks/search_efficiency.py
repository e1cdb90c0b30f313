"""How much of the time of measuring everything a search takes to find the best plan, on a recorded space.

Each strategy searches the recorded space (`record_space.py`) with --seeds seeds; every process that it asks for is
drawn anew from those recorded, the same one for every strategy of a seed. Printed are, for spaces of several sizes:
the share of the time that measuring every plan once takes, how often the chosen plan is within 2% of the true optimum
(the plan with the lowest median over all that was recorded of it), how often a plan was chosen that misses the SLA,
and the regret: of the plan that was chosen, and at some times of the plan that was the best so far (--chart draws it).

All strategies are given the same: the order that is predicted for their first plans (--first of them), the pruning,
the short requests, the final; those with `no prediction` the last two. The sizes below that of the record are plans
drawn from it; those above are copies of its plans under an option of their own, made slower or faster by up to 30% (an
extrapolation, and labelled so). Conversions that a search made necessary are counted apart; measuring the machine's
rates, as long as it took when the space was recorded, counts for every search that predicts. With --plans24 the space
is the 24 plans of `benchmark.py`.

A seed takes some 2 seconds of CPU time at 200 plans and 10 at 1000; `racing, no prediction`, which looks at everything,
takes 5 more at 200 and is left out above --unpredicted plans. 500 seeds of all sizes are a matter of hours: use --jobs.
"""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, quantiles

from _halving import Halving
from _regret import Incumbent, Steps, chart, rows
from _replay import Recorded, Replay, of_benchmark, read_space, resized
from record_space import OUT

from inferplan.cost import Prices
from inferplan.measurement import Measurement
from inferplan.plan import Plan
from inferplan.predict import Prediction
from inferplan.result import results
from inferplan.search import Proposal, Search
from inferplan.search.picking import FIRST, Kind, at_random, optuna_pick
from inferplan.search.racing import Pick, Predict, Racing
from inferplan.selection import SLA, Objective, Selection, choose, contenders
from inferplan.strategies import expectations, looked_at

WITHIN = 0.02
TIED = 0.03
LATENCY, PRICES = Objective("latency"), Prices()
ONCE, UNPREDICTED = "every plan once", ", no prediction"


@dataclass(frozen=True, slots=True)
class Case:
    """One space with one seed, before any strategy.

    Attributes:
        truth: by plan, its median over all that was recorded of it.
        predict: what is expected of the plans, made once for the looks that strategies share.
        drawn: the processes that were drawn so far.
    """

    space: Recorded
    sla: SLA
    seed: int
    truth: Mapping[Plan, float]
    predict: Predict
    drawn: dict[Proposal, Measurement]

    @classmethod
    def of(cls, space: Recorded, sla: SLA, seed: int) -> Case:
        """A case of which nothing was measured yet."""
        truth = {plan: p50 for plan in space.plans if (p50 := space.true_p50_s(plan)) is not None}
        return cls(space, sla, seed, truth, shared(expected(space)), {})

    def regret(self, plan: Plan) -> float:
        """0.02: the plan's true median is 2% above the optimum."""
        return self.truth[plan] / min(self.truth.values()) - 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """One search: seconds spent, conversions apart, and how far the chosen plan is from the optimum.

    Attributes:
        regret: see `Case.regret`; None: nothing was chosen.
        steps: regret of the best plan so far; the last is that of the chosen one.
    """

    seconds: float
    converting_s: float
    processes: int
    chosen: Plan | None
    regret: float | None
    misses: bool
    steps: Steps


Make = Callable[[Case, Predict | None, int], Search]
"""The search of a case, from what is expected of its plans, and how many of the first are taken in that order."""


def main() -> None:
    arguments = _arguments()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the matrices are small, and --jobs share the cores
    os.environ.setdefault("MKL_NUM_THREADS", "1")
    space = read_space(arguments.space)
    sla = SLA.from_p50_ms(arguments.sla_ms)
    print(f"recorded on {space.about['machine']}, {' to '.join(space.about['recorded'])} UTC, {len(space.plans)} plans")
    print(f"SLA {sla}; {space.max_tokens} output tokens; {arguments.seeds} seeds a row; --first {arguments.first}\n")
    if arguments.plans24:
        plans24(arguments)
        return
    print("| plans | strategy | share of every plan once | processes | within 2% | misses | regret p95 | converting |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    panels: dict[int, tuple[Mapping[str, Sequence[Steps]], Sequence[float]]] = {}
    for size in arguments.sizes:
        names = [n for n in arguments.strategies if PREDICTED[n] or size <= arguments.unpredicted]
        found = searched(arguments, size, names)
        whole = [one[ONCE].seconds for one in found]
        outcomes = {name: [one[name] for one in found] for name in (ONCE, "exhaustive", *names)}
        for name, of in outcomes.items():
            print(row(size, len(space.plans), name, of, whole), flush=True)
        panels[size] = ({name: [one.steps for one in outcomes[name]] for name in names}, whole)
    print(f"\n| plans | time | strategy | mean regret | {arguments.strategies[0]} less it [95%] |")
    print("| --- | --- | --- | --- | --- |")
    for size, (steps, seconds) in panels.items():
        print("\n".join(rows(size, steps, seconds)))
    if arguments.chart is not None:
        chart(panels, arguments.chart)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", type=Path, default=OUT)
    parser.add_argument("--sizes", nargs="+", type=int, default=[50, 200, 1000])
    parser.add_argument("--seeds", type=int, default=500)
    parser.add_argument("--sla-ms", type=float, default=1500.0)
    parser.add_argument("--strategies", nargs="+", default=list(DEFAULT), choices=list(STRATEGIES))
    parser.add_argument("--first", type=int, default=FIRST, help="plans that all strategies take in predicted order")
    parser.add_argument("--unpredicted", type=int, default=200, help="the most plans that are searched unpredicted")
    parser.add_argument("--jobs", type=int, default=1, help="processes to search in; the seeds do not depend on them")
    parser.add_argument("--chart", type=Path, help="an SVG file of regret against time")
    parser.add_argument("--plans24", action="store_true", help="the 24 plans of benchmark.py")
    return parser.parse_args()


# --- one seed -----------------------------------------------------------------


def searched(arguments: argparse.Namespace, size: int, names: Sequence[str]) -> list[dict[str, Outcome]]:
    """For each seed, each strategy's outcome and that of exhaustive measurement."""
    tasks = [(arguments, size, tuple(names), seed) for seed in range(arguments.seeds)]
    if arguments.jobs == 1:
        _begin(arguments.space)
        return [_one(task) for task in tasks]
    with ProcessPoolExecutor(arguments.jobs, initializer=_begin, initargs=(arguments.space,)) as pool:
        return list(pool.map(_one, tasks, chunksize=max(1, min(10, len(tasks) // (2 * arguments.jobs)))))


_READ: dict[str, Recorded] = {}  # of this process


def _begin(path: Path) -> None:
    if "space" not in _READ:
        _READ["space"] = read_space(path)


def _one(task: tuple[argparse.Namespace, int, tuple[str, ...], int]) -> dict[str, Outcome]:
    arguments, size, names, seed = task
    space = of_benchmark(_READ["space"]) if arguments.plans24 else resized(_READ["space"], size, random.Random(seed))
    case = Case.of(space, SLA.from_p50_ms(arguments.sla_ms), seed)
    found = exhaustive(case)
    for name in names:
        make, predicted = STRATEGIES[name], PREDICTED[name]
        search = make(case, case.predict if predicted else None, arguments.first)
        found[name] = run(case, search, space.rates_s * predicted)
    return found


def run(case: Case, search: Search, before_s: float = 0.0) -> Outcome:
    """One search to its end."""
    replay = Replay(case.space, case.seed, case.drawn, spent_s=before_s)
    told: list[Measurement] = []
    steps: list[tuple[float, float]] = []
    best, incumbent = None, Incumbent(case.sla, case.space.cores)
    while (asked := search.ask()) is not None:
        told.append(replay.measure(asked))
        search.tell(told[-1])
        now = incumbent.after(told[-1])
        if now is not None and now != best:
            best = now
            steps.append((replay.spent_s, case.regret(now)))
    return outcome(case, chosen(case, told, search.left_out), replay, len(told), steps)


def exhaustive(case: Case) -> dict[str, Outcome]:
    """Every plan measured once, and with the second round of those that could still be chosen."""
    # The processes that `Exhaustive` would ask for: asking a thousand times takes longer than all the races.
    replay, plans = Replay(case.space, case.seed, case.drawn), case.space.plans
    told = [replay.measure(Proposal(plan, 1)) for plan in plans]
    once = outcome(case, chosen(case, told, {}), replay, len(told), [])
    again = contenders(results(plans, told), case.sla, LATENCY, PRICES, case.space.cores)
    told += [replay.measure(Proposal(plan, 2)) for plan in again]
    return {ONCE: once, "exhaustive": outcome(case, chosen(case, told, {}), replay, len(told), [])}


def chosen(case: Case, told: Sequence[Measurement], left_out: Mapping[Plan, str]) -> Selection:
    """What is chosen after these measurements."""
    found = results(dict.fromkeys(m.plan for m in told), told, left_out)
    return choose(found, case.sla, LATENCY, PRICES, case.space.cores)


def outcome(
    case: Case, selection: Selection, replay: Replay, processes: int, steps: Sequence[tuple[float, float]]
) -> Outcome:
    """What a selection is worth, by all that was recorded."""
    plan = None if selection.winner is None else selection.winner.plan
    regret = None if plan is None else case.regret(plan)
    last = [] if regret is None else [(replay.spent_s, regret)]
    misses = plan is not None and case.truth[plan] > case.sla.constraints[0].limit
    return Outcome(replay.spent_s, replay.converting_s, processes, plan, regret, misses, (*steps, *last))


# --- strategies ---------------------------------------------------------------


def expected(space: Recorded) -> Predict:
    """What is expected of the plans of a space."""
    return expectations(space.plans, space.shapes, space.rates, space.prompt_tokens, _places(space), space.max_tokens)


def shared(predict: Predict) -> Predict:
    """The same expectation, made once for what several strategies are told alike (the very same objects)."""
    made: dict[tuple[int, ...], Mapping[Plan, Prediction]] = {}

    def foreseen(told: Sequence[Measurement]) -> Mapping[Plan, Prediction]:
        key = tuple(map(id, told))
        if key not in made:
            made[key] = predict(told)
        return made[key]

    return foreseen


def race(
    case: Case,
    plans: Iterable[Plan],
    predict: Predict | None,
    pick: Pick | None = None,
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
        done=done,
    )


def _prompts(space: Recorded) -> int:
    return len(next(iter(space.prompt_tokens.values())))


def _places(space: Recorded) -> tuple[int, ...]:
    return looked_at(next(iter(space.prompt_tokens.values())))


def racing(case: Case, predict: Predict | None, first: int) -> Search:
    """Our own."""
    return race(case, case.space.plans, predict)


def in_drawn_order(case: Case, predict: Predict | None, first: int) -> Search:
    """The plans after the first ones in an order that is drawn."""
    return race(case, case.space.plans, predict, at_random(case.seed, first))


def sampled(kind: Kind) -> Make:
    """The plans after the first ones as one of Optuna's samplers suggests."""

    def make(case: Case, predict: Predict | None, first: int) -> Search:
        plans, cores = case.space.plans, case.space.cores
        pick = optuna_pick(kind, plans, case.sla, LATENCY, PRICES, cores, case.seed, first=first)
        return race(case, plans, predict, pick)

    return make


def halving(case: Case, predict: Predict | None, first: int) -> Search:
    """The best half of the looks goes on, and so forth."""
    space = case.space

    def make(plans: Sequence[Plan], predict: Predict | None, done: Sequence[Measurement]) -> Racing:
        return race(case, plans, predict, done=done)

    return Halving(make, space.plans, case.sla, _prompts(space), _places(space), predict)


_MADE: Mapping[str, Make] = {
    "racing": racing,
    "random": in_drawn_order,
    "tpe": sampled("tpe"),
    "nsga2": sampled("nsga2"),
    "successive halving": halving,
}
STRATEGIES: Mapping[str, Make] = {**_MADE, **{name + UNPREDICTED: make for name, make in _MADE.items()}}
PREDICTED = {name: not name.endswith(UNPREDICTED) for name in STRATEGIES}
DEFAULT = ("racing", "random", "tpe", "successive halving", "racing" + UNPREDICTED)


# --- tables -------------------------------------------------------------------


def row(size: int, recorded: int, name: str, outcomes: Sequence[Outcome], whole: Sequence[float]) -> str:
    """One row of the table."""
    shares = [o.seconds / seconds for o, seconds in zip(outcomes, whole, strict=True)]
    known = [o.regret for o in outcomes if o.regret is not None]
    near = sum(regret <= WITHIN for regret in known) / len(outcomes)
    worst = quantiles(known, n=20)[-1] if len(known) > 1 else float("nan")
    label = f"{size} (extrapolated)" if size > recorded else f"{size}"
    return (
        f"| {label} | {name} | {median(shares):.1%} ({max(shares):.1%} at most) "
        f"| {mean(o.processes for o in outcomes):.0f} | {near:.1%} "
        f"| {sum(o.misses for o in outcomes)} of {len(outcomes)} | {worst:.1%} "
        f"| {median(o.converting_s for o in outcomes):.0f} s |"
    )


def plans24(arguments: argparse.Namespace) -> None:
    """How often a race over the plans of `benchmark.py` ends with what measuring all of them ends with."""
    names = ["racing", "racing" + UNPREDICTED]
    found = searched(arguments, 0, names)
    print("| strategy | the exhaustive winner | that or tied within 3% | share of every plan once | processes |")
    print("| --- | --- | --- | --- | --- |")
    for name in names:
        pairs = [(one[name], one["exhaustive"]) for one in found]
        same = mean(a.chosen == b.chosen for a, b in pairs)
        tied = mean(
            a.regret is not None and b.regret is not None and a.regret + 1 <= (1 + TIED) * (b.regret + 1)
            for a, b in pairs
        )
        shares = [one[name].seconds / one[ONCE].seconds for one in found]
        print(
            f"| {name} | {same:.1%} | {tied:.1%} | {median(shares):.1%} ({max(shares):.1%} at most) "
            f"| {mean(a.processes for a, _ in pairs):.0f} |"
        )


if __name__ == "__main__":
    main()
