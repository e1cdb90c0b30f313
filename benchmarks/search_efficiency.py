"""How much of the time of measuring everything a search takes to find the best plan, on a recorded space.

Each strategy searches the recorded space (`record_space.py`) with --seeds seeds; every process that it asks for is
drawn anew from those recorded, the same one for every strategy of a seed. Printed are, for spaces of several sizes:
the share of the time that measuring every plan once takes, how often the chosen plan is within 2% of the true optimum
(the plan with the lowest median over all that was recorded of it) and within the 3% in which plans tie (the one with
less memory is chosen then), how often a plan was chosen that misses the SLA, and the regret: of the plan that was
chosen, and at some times of the plan that was the best so far (--chart draws it).

Then the rivals of racing at equal time, and at some multiples of it (--times): what the race of the same seed took. Not
told the time, a rival has the best plan so far by then. Told it, it makes as many looks as leave time for its final;
how many that is, is found by trial, which it could not know, and favours it. What the strategies are given stands in
`_rivals.py`: `predicted order`, `random`, `tpe` and `successive halving` are given the order that is predicted for the
first plans (--first of them; halving and `predicted order`: all), the plans that the prediction rules out, the short
requests, their cuts and the final.

The sizes below that of the record are plans drawn from it; those above are copies of its plans under an option of
their own, made slower or faster by up to 30% (an extrapolation, and labelled so). Conversions that a search made
necessary are counted apart; measuring the machine's rates, as long as it took when the space was recorded, counts for
every search that predicts. With --plans24 the space is the 24 plans of `benchmark.py`. With --budgets, printed is what
races choose that end after so many seconds (and those of the rates, as with `optimize --budget`), and nothing else.

A race takes some 0.3 seconds of CPU time at 200 plans and 5 at 1000; the strategies that look at every plan take
longer, and above --whole plans they are ended after the largest of --times: use --jobs.
"""

from __future__ import annotations

import argparse
import math
import os
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, quantiles
from typing import TypeVar

from _regret import Incumbent, Steps, chart, equal_time, rows
from _replay import Recorded, Replay, of_benchmark, read_space, resized
from _rivals import EXPECTING, LATENCY, PREDICTED, PRICES, RIVALS, STRATEGIES, UNPREDICTED, Case
from record_space import OUT

from inferplan.measurement import Measurement
from inferplan.plan import Plan
from inferplan.result import results
from inferplan.search import Proposal, Search
from inferplan.search.limits import NO_LIMITS, Limits
from inferplan.search.picking import FIRST
from inferplan.selection import SLA, Selection, choose, contenders
from inferplan.stats import MIN_PROCESSES

WITHIN = 0.02
TIED = 0.03
ONCE = "every plan once"
Task = TypeVar("Task")
Made = TypeVar("Made")
DEFAULT = ("racing", "predicted order", "random", "tpe", "successive halving", "racing" + UNPREDICTED)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One search: seconds spent, conversions apart, and how far the chosen plan is from the optimum.

    Attributes:
        of_chosen: processes that the chosen plan is judged by; 0: nothing was chosen.
        regret: see `Case.regret`; None: nothing was chosen.
        steps: regret of the best plan so far; the last is that of the chosen one.
    """

    seconds: float
    converting_s: float
    processes: int
    chosen: Plan | None
    of_chosen: int
    regret: float | None
    misses: bool
    steps: Steps


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
    if arguments.budgets:
        under_budgets(arguments)
        return
    print(
        "| plans | strategy | share of every plan once | processes | within 2% | within 3% | misses | regret p95 "
        "| converting |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    panels: dict[int, tuple[Mapping[str, Sequence[Steps]], Sequence[float]]] = {}
    timed: dict[int, list[dict[str, Outcome]]] = {}
    for size in arguments.sizes:
        names = [n for n in arguments.strategies if few_looks(n) or size <= arguments.whole]
        found = searched(arguments, size, names)
        whole = [one[ONCE].seconds for one in found]
        outcomes = {name: [one[name] for one in found] for name in (ONCE, "exhaustive", *names)}
        for name, of in outcomes.items():
            print(row(size, len(space.plans), name, of, whole), flush=True)
        panels[size] = ({name: [one.steps for one in outcomes[name]] for name in names}, whole)
        timed[size] = found
    print(f"\n| plans | time | strategy | mean regret | {arguments.strategies[0]} less it [95%] |")
    print("| --- | --- | --- | --- | --- |")
    for size, (steps, seconds) in panels.items():
        print("\n".join(rows(size, steps, seconds)))
    print("\n| plans | time | strategy | told the time | within 2% | mean regret | racing less it [95%] |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for size, found in timed.items():
        print("\n".join(at_equal_time(size, arguments, found)))
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
    parser.add_argument("--whole", type=int, default=200, help="the most plans for strategies that look at all")
    parser.add_argument("--times", nargs="*", type=float, default=[1, 2, 4], help="multiples of a race's time")
    parser.add_argument("--jobs", type=int, default=1, help="processes to search in; the seeds do not depend on them")
    parser.add_argument("--chart", type=Path, help="an SVG file of regret against time")
    parser.add_argument("--plans24", action="store_true", help="the 24 plans of benchmark.py")
    parser.add_argument("--budgets", nargs="+", type=float, metavar="SECONDS", help="of races that end after these")
    return parser.parse_args()


# --- one seed -----------------------------------------------------------------


def searched(arguments: argparse.Namespace, size: int, names: Sequence[str]) -> list[dict[str, Outcome]]:
    """For each seed, each strategy's outcome and that of exhaustive measurement."""
    return _for_each(_one, [(arguments, size, tuple(names), seed) for seed in range(arguments.seeds)], arguments)


def _for_each(make: Callable[[Task], Made], tasks: Sequence[Task], arguments: argparse.Namespace) -> list[Made]:
    """What is made of each task, in as many processes as asked for."""
    if arguments.jobs == 1:
        _begin(arguments.space)
        return [make(task) for task in tasks]
    with ProcessPoolExecutor(arguments.jobs, initializer=_begin, initargs=(arguments.space,)) as pool:
        return list(pool.map(make, tasks, chunksize=max(1, min(10, len(tasks) // (2 * arguments.jobs)))))


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
        found[name] = run(case, name, arguments.first)
    if "racing" in found and arguments.times:
        seconds = found["racing"].seconds
        for name in rivals(arguments):
            if name not in found:  # it would look at too many plans: no further than the table goes
                found[name] = run(case, name, arguments.first, until_s=max(arguments.times) * seconds)
            for times in arguments.times:
                limits = Limits(seconds=times * (seconds - space.rates_s))
                found[timed_name(name, times)] = run(case, name, arguments.first, limits)
    return found


def rivals(arguments: argparse.Namespace) -> list[str]:
    """Those that racing is compared with."""
    return [name for name in arguments.strategies if name in RIVALS]


def few_looks(name: str) -> bool:
    """Whether a strategy rules plans out as it goes, rather than look at all that may meet the SLA."""
    return name == "racing" or name.endswith(EXPECTING)


def timed_name(name: str, times: float) -> str:
    """A rival that was given so many times what the race took."""
    return f"{name}, {times:g}x"


def run(case: Case, name: str, first: int, limits: Limits = NO_LIMITS, until_s: float = math.inf) -> Outcome:
    """One search to its end, or for so long."""
    search: Search = STRATEGIES[name](case, first, limits)
    replay = case.replay(case.space.rates_s * PREDICTED[name])
    told: list[Measurement] = []
    steps: list[tuple[float, float]] = []
    best, incumbent = None, Incumbent(case.sla, case.space.cores)
    while replay.spent_s < until_s and (asked := search.ask()) is not None:
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
    replay, plans = case.replay(), case.space.plans
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
    winner = selection.winner
    plan, of_chosen = (None, 0) if winner is None else (winner.plan, winner.result.processes)
    regret = None if plan is None else case.regret(plan)
    last = [] if regret is None else [(replay.spent_s, regret)]
    misses = plan is not None and case.truth[plan] > case.sla.constraints[0].limit
    return Outcome(replay.spent_s, replay.converting_s, processes, plan, of_chosen, regret, misses, (*steps, *last))


# --- tables -------------------------------------------------------------------


def row(size: int, recorded: int, name: str, outcomes: Sequence[Outcome], whole: Sequence[float]) -> str:
    """One row of the table."""
    shares = [o.seconds / seconds for o, seconds in zip(outcomes, whole, strict=True)]
    known = [o.regret for o in outcomes if o.regret is not None]
    near, tied = (sum(regret <= within for regret in known) / len(outcomes) for within in (WITHIN, TIED))
    worst = quantiles(known, n=20)[-1] if len(known) > 1 else float("nan")
    label = f"{size} (extrapolated)" if size > recorded else f"{size}"
    return (
        f"| {label} | {name} | {median(shares):.1%} ({max(shares):.1%} at most) "
        f"| {mean(o.processes for o in outcomes):.0f} | {near:.1%} | {tied:.1%} "
        f"| {sum(o.misses for o in outcomes)} of {len(outcomes)} | {worst:.1%} "
        f"| {median(o.converting_s for o in outcomes):.0f} s |"
    )


def at_equal_time(size: int, arguments: argparse.Namespace, found: Sequence[Mapping[str, Outcome]]) -> list[str]:
    """Rows of the table: the best so far after so many times what the race took, of each rival told that and not."""
    ours = [one["racing"] for one in found if "racing" in one]
    rows = []
    for times in arguments.times if ours else ():
        ends = [times * o.seconds for o in ours]
        both = [(name, *of) for name in rivals(arguments) for of in ((name, "no"), (timed_name(name, times), "yes"))]
        for name, key, told in [("racing", "racing", "no"), *both]:
            cells = equal_time([one[key].steps for one in found], ends, [o.steps for o in ours], WITHIN)
            rows.append(f"| {size} | {times:g}x | {name} | {told} {cells}")
    return rows


def plans24(arguments: argparse.Namespace) -> None:
    """How often a race over the plans of `benchmark.py` ends with what measuring all of them ends with."""
    names = ["racing", "racing" + UNPREDICTED]
    arguments.times = []  # no rivals
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


def under_budgets(arguments: argparse.Namespace) -> None:
    """What races choose that a budget ends."""
    print("| plans | budget | chosen | in six processes | within 2% | mean regret | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for size in arguments.sizes:
        for seconds in arguments.budgets:
            found = _for_each(_ended, [(arguments, size, seconds, seed) for seed in range(arguments.seeds)], arguments)
            regrets = [o.regret for o in found if o.regret is not None]
            six = sum(o.of_chosen >= MIN_PROCESSES for o in found)
            near = sum(regret <= WITHIN for regret in regrets)
            spent = [o.seconds for o in found]
            print(
                f"| {size} | {seconds:g} s | {len(regrets) / len(found):.1%} | {six / len(found):.1%} "
                f"| {near / len(found):.1%} | {f'{mean(regrets):.1%}' if regrets else '-'} "
                f"| {median(spent):.0f} ({max(spent):.0f} at most) |",
                flush=True,
            )


def _ended(task: tuple[argparse.Namespace, int, float, int]) -> Outcome:
    """One race that a budget ends."""
    arguments, size, seconds, seed = task
    case = Case.of(resized(_READ["space"], size, random.Random(seed)), SLA.from_p50_ms(arguments.sla_ms), seed)
    return run(case, "racing", arguments.first, Limits(seconds=seconds))


if __name__ == "__main__":
    main()
