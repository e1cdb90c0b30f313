"""Predicted against measured on recorded spaces, without the plan and without its whole model.

What `inferplan predict` prints for a store, here for files that `record_space.py --pack` wrote: all processes of a plan
are one observation. Several files are taken together, with the rates of the first: they have to be of one machine, or
of the same kind of machine. How many of the five fastest plans a prediction can name is limited by how often measuring
again names them. That is printed of plans with a KV cache and at least four processes, else three: two of each plan's
processes, or one, against the other two, over all ways to part them.

    python benchmarks/prediction.py benchmarks/data/space.json.gz
    python benchmarks/prediction.py benchmarks/data/space-zen5.json.gz
    python benchmarks/prediction.py benchmarks/data/space-avx512.json.gz benchmarks/data/llama-1b.json.gz
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean, median

from _replay import Process, Recorded, as_measured, read_space

from inferplan._observed import observations
from inferplan.accuracy import Errors, Kind, errors, top_recall
from inferplan.result import results
from inferplan.stats import TIE_WITHIN

TOP = 5
_PARTED = (4, 3)  # processes of a plan, the more the better


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spaces", nargs="+", type=Path)
    spaces = [read_space(path) for path in parser.parse_args().spaces]
    told = [
        as_measured(space, plan, round_, process)
        for space in spaces
        for plan, found in space.processes.items()
        for round_, process in _ended_well(found)
    ]
    shapes = {name: shape for space in spaces for name, shape in space.shapes.items()}
    seen = observations(results(list(dict.fromkeys(m.plan for m in told)), told))
    for space in spaces:
        print(f"{len(space.plans)} plans, {space.about['machine']}, {' to '.join(space.about['recorded'])} UTC")
    print("\n".join(table(errors(seen, spaces[0].rates, shapes))))
    for within in (0.0, TIE_WITHIN):
        again = [share for space in spaces for share in measured_again(space, within)]
        print(f"measured again: {_percent(fmean(again) if again else None)} of the {_top(within)}")


def _ended_well(found: Sequence[Process]) -> Iterator[tuple[int, Process]]:
    yield from ((i, process) for i, process in enumerate(found, 1) if process.ok)


def table(found: Errors) -> list[str]:
    """Rows by model and engine: how many plans, and the mean absolute percentage errors."""
    lines = ["| of | plans | latency, plan out | latency, model out | memory, plan out | memory, model out |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    of: dict[str, Errors] = {}
    for name in sorted({one.seen.plan.model for one in found.compared}):
        of[name] = Errors(tuple(one for one in found.compared if one.seen.plan.model == name))
    for name in found.engines:
        of[name] = Errors(tuple(one for one in found.compared if one.seen.plan.engine == name))
    kinds: tuple[Kind, ...] = ("plan", "model")
    for name, part in {**of, "all": found}.items():
        cells = [_percent(part.mape(kind, quantity)) for quantity in ("latency", "peak") for kind in kinds]
        lines.append(f"| {' | '.join([name, str(len(part.compared)), *cells])} |")
    lines.append(f"model out: {_percent(found.coverage('latency'))} of the latencies inside their 90% interval")
    lines.extend(
        f"{kind} out: {_percent(found.recall(kind, TOP, within))} of the {_top(within)}"
        for kind in kinds
        for within in (0.0, TIE_WITHIN)
    )
    return lines


def measured_again(space: Recorded, tied_within: float) -> list[float]:
    """By model and way to part each plan's processes, the share of the fastest by two of them that the others name."""
    shares = []
    for model in sorted(space.shapes):
        found = [
            [process for process in of if process.ok]
            for plan, of in space.processes.items()
            if plan.model == model and plan.kv_cache
        ]
        count = next((n for n in _PARTED if sum(len(of) >= n for of in found) > TOP), 0)
        full = [of[:count] for of in found if len(of) >= count]
        for two in combinations(range(count), 2):
            truths = [_p50([of[i] for i in two]) for of in full]
            again = [_p50([of[i] for i in range(count) if i not in two]) for of in full]
            shares.append(top_recall(truths, again, TOP, tied_within))
    return shares


def _p50(processes: Sequence[Process]) -> float:
    return median(median(row[1] for row in rows) for process in processes for rows in process.rows.values())


def _top(within: float) -> str:
    return f"{TOP} fastest of a model" + (f", or tied with them within {within:.0%}" if within else "")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


if __name__ == "__main__":
    main()
