"""Predicted against measured on recorded spaces, without the plan and without its whole model.

What `inferplan predict` prints for a store, here for files that `record_space.py --pack` wrote: all processes of a plan
are one observation. Several files are taken together, with the rates of the first: they have to be of one machine, or
of the same kind of machine.

    python benchmarks/prediction.py benchmarks/data/space.json.gz benchmarks/data/llama-1b.json.gz
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from _replay import Process, as_measured, read_space

from inferplan._observed import observations
from inferplan.accuracy import Errors, Kind, errors
from inferplan.result import results


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
    lines.extend(
        f"{kind} out: {_percent(found.coverage(kind, 'latency'))} of the latencies inside their 90% interval; "
        f"{_percent(found.recall(kind))} of the 5 fastest of a model among its 5 predicted fastest"
        for kind in kinds
    )
    return lines


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


if __name__ == "__main__":
    main()
