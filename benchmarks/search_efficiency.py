"""How much of the exhaustive time a search takes to find what exhaustive measurement finds, on a recorded space.

Each strategy searches the recorded space (`record_space.py`) with --seeds seeds; every process that it asks for is
drawn anew from those recorded. Printed are, for spaces of several sizes: the share of the exhaustive time that was
spent, how often the chosen plan is within 2% of the true optimum (the plan with the lowest median over all that was
recorded of it), how often a plan was chosen that misses the SLA, and the regret. The sizes below that of the record
are plans drawn from it; those above are copies of its plans under names of their own, made slower or faster by up to
30% (an extrapolation, and labelled so). A look's rates and the conversions that a search made necessary are counted
apart.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median, quantiles

from _common import say
from _replay import Process, Recorded, Replay, read_space
from record_space import OUT

from inferplan.cost import Prices
from inferplan.result import results
from inferplan.search import Search
from inferplan.search.exhaustive import Exhaustive
from inferplan.search.racing import Racing
from inferplan.selection import SLA, Objective, Selection, choose
from inferplan.strategies import expectations, looked_at

WITHIN = 0.02
Make = Callable[[Recorded, SLA], Search]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One search: seconds spent, conversions apart, and how far the chosen plan is from the optimum."""

    seconds: float
    converting_s: float
    processes: int
    regret: float | None  # 0.02: the chosen plan's true median is 2% above the optimum; None: nothing chosen
    misses: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", type=Path, default=OUT)
    parser.add_argument("--sizes", nargs="+", type=int, default=[50, 200, 1000])
    parser.add_argument("--seeds", type=int, default=500)
    parser.add_argument("--sla-ms", type=float, default=1500.0)
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=list(STRATEGIES))
    arguments = parser.parse_args()
    space = read_space(arguments.space)
    sla = SLA.from_p50_ms(arguments.sla_ms)
    print(f"recorded on {space.about['machine']}, {' to '.join(space.about['recorded'])} UTC, {len(space.plans)} plans")
    print(f"SLA {sla}; {space.max_tokens} output tokens; {arguments.seeds} seeds a row\n")
    print("| plans | strategy | share of exhaustive time | processes | within 2% | misses | regret p95 | converting |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for size in arguments.sizes:
        found: dict[str, list[Outcome]] = {name: [] for name in arguments.strategies}
        whole: list[float] = []
        for seed in range(arguments.seeds):
            part = resized(space, size, random.Random(seed))
            whole.append(exhaustive_s(part, sla, seed))
            for name in arguments.strategies:
                found[name].append(run(part, STRATEGIES[name], sla, seed))
        for name, outcomes in found.items():
            print(row(size, name, outcomes, whole), flush=True)


def run(space: Recorded, make: Make, sla: SLA, seed: int) -> Outcome:
    """One search to its end."""
    replay, search, told = Replay(space, seed), make(space, sla), []
    while (asked := search.ask()) is not None:
        told.append(replay.measure(asked))
        search.tell(told[-1])
    chosen = choose(results(space.plans, told, search.left_out), sla, Objective("latency"), Prices(), space.cores)
    return outcome(space, chosen, sla, replay, len(told))


def outcome(space: Recorded, chosen: Selection, sla: SLA, replay: Replay, processes: int) -> Outcome:
    """What a selection is worth, by all that was recorded."""
    limit = sla.constraints[0].limit
    truth = {plan: p50 for plan in space.plans if (p50 := space.true_p50_s(plan)) is not None}
    best = min(truth.values())
    mine = None if chosen.winner is None else truth[chosen.winner.plan]
    return Outcome(
        replay.spent_s,
        replay.converting_s,
        processes,
        None if mine is None else mine / best - 1,
        mine is not None and mine > limit,
    )


def exhaustive_s(space: Recorded, sla: SLA, seed: int) -> float:
    """Seconds that measuring every plan takes, with the second round of those that could still be chosen."""
    replay = Replay(space, seed)
    search = Exhaustive(space.plans, sla, Objective("latency"), Prices(), space.cores)
    while (asked := search.ask()) is not None:
        search.tell(replay.measure(asked))
    return replay.spent_s


def resized(space: Recorded, size: int, draw: random.Random) -> Recorded:
    """`size` plans of the space; more than it has are copies, 30% slower to 30% faster (see above)."""
    plans = list(space.plans)
    if size <= len(plans):
        kept = draw.sample(plans, size)
        return replace(space, processes={plan: space.processes[plan] for plan in kept})
    processes, converted = dict(space.processes), dict(space.converted_s)
    while len(processes) < size:
        of, factor = draw.choice(plans), draw.uniform(0.7, 1.3)
        copy = replace(of, options=(*of.options, ("copy", len(processes))))
        processes[copy] = [_scaled(process, factor) for process in space.processes[of]]
        converted[copy] = space.converted_s[of]
    return replace(space, processes=processes, converted_s=converted)


def _scaled(process: Process, factor: float) -> Process:
    rows = {
        prompt: [(row[0], row[1] * factor, row[2] * factor, *row[3:]) for row in found]
        for prompt, found in process.rows.items()
    }
    return replace(process, rows=rows)


def row(size: int, name: str, outcomes: Sequence[Outcome], whole: Sequence[float]) -> str:
    """One row of the table."""
    shares = [o.seconds / seconds for o, seconds in zip(outcomes, whole, strict=True)]
    known = [o.regret for o in outcomes if o.regret is not None]
    near = sum(regret <= WITHIN for regret in known) / len(outcomes)
    worst = quantiles(known, n=20)[-1] if len(known) > 1 else float("nan")
    return (
        f"| {size} | {name} | {median(shares):.1%} ({max(shares):.1%} at most) "
        f"| {mean(o.processes for o in outcomes):.0f} | {near:.1%} "
        f"| {sum(o.misses for o in outcomes)} of {len(outcomes)} | {worst:.1%} "
        f"| {median(o.converting_s for o in outcomes):.0f} s |"
    )


def racing(space: Recorded, sla: SLA, predicted: bool = True) -> Search:
    """Our own."""
    lengths = next(iter(space.prompt_tokens.values()))
    places = looked_at(lengths)
    predict = expectations(space.plans, space.shapes, space.rates, space.prompt_tokens, places, space.max_tokens)
    return Racing(
        space.plans,
        sla,
        Objective("latency"),
        Prices(),
        space.cores,
        prompts=len(lengths),
        look_at=places,
        predict=predict if predicted else None,
    )


STRATEGIES: Mapping[str, Make] = {
    "racing": racing,
    "racing, no prediction": lambda space, sla: racing(space, sla, predicted=False),
}


if __name__ == "__main__":
    say("each row takes a while: --seeds 20 for a first look")
    main()
