"""Whether a busy neighbour changes what a race chooses: `inferplan optimize` on a quiet machine and beside others.

`core` keeps a core busy for half of the time, in turns of --period seconds; `memory` streams through memory in such
turns, on whichever core it is given, and `memory without a pause` all the time. Each race is the command that a user
would type, in a store of its own; the rates of the machine come from the first, quiet one. It is run as usual, where
requests that the neighbour disturbed are set aside, and with --no-watch, where each of them counts. Afterwards every
plan that won beside a neighbour is run against the one that won without, interleaved, and paired by round and prompt,
on the quiet machine and beside that neighbour: faster, slower, a tie (the whole interval within 3%) or undecided.

With --replayed the races run on a recorded space (`record_space.py`) instead, --seeds of them beside each neighbour,
which is a model there: in the second half of each period every request makes so many times less progress
(--slowdowns); starting, loading and the machine's rates are as they are on a quiet machine, and the time of measuring
those rates counts.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from _common import Bench, header, latencies, make_ready, ratio_of, say, show_ratio
from _replay import Neighbour, Recorded, only, read_space
from _rivals import Case
from search_efficiency import TIED, WITHIN, Outcome, run

from inferplan import machine, measure
from inferplan.measurement import Measurement
from inferplan.plan import Plan
from inferplan.search.limits import Limits
from inferplan.search.picking import FIRST
from inferplan.selection import parse_sla
from inferplan.stats import Ratio
from inferplan.terms import seconds_of

ENGINES = ("transformers", "llamacpp", "openvino", "ctranslate2", "onnxruntime")
WITHOUT_A_PAUSE = " without a pause"
NEIGHBOURS = ("core", "memory", "memory" + WITHOUT_A_PAUSE)
_STREAMED_BYTES = 256 << 20  # far beyond any cache of this size of machine


@dataclass(frozen=True, slots=True)
class Race:
    """How one race ended: the plan it chose, or None and what it said instead."""

    neighbour: str
    watched: bool
    winner: Plan | None
    p50_s: float | None
    outcome: str
    processes: int
    seconds: float


def main() -> None:
    if sys.argv[1:2] == ["--be"]:
        be(sys.argv[2], float(sys.argv[3]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["distilgpt2", "gpt2", "smollm2-135m-instruct"])
    parser.add_argument("--engines", nargs="+", default=list(ENGINES))
    parser.add_argument("--precisions", nargs="+", default=["fp32", "int8", "int4"])
    parser.add_argument("--threads", nargs="+", default=["1", "2", "4"])
    parser.add_argument("--sla", default="p50<=1500ms")
    parser.add_argument("--budget", default="5m", help="of each race")
    parser.add_argument("--period", type=float, default=4.0, help="seconds: half of it busy, half of it not")
    parser.add_argument("--rounds", type=int, default=4, help="of the comparison at the end")
    parser.add_argument("--neighbours", nargs="+", default=list(NEIGHBOURS), choices=NEIGHBOURS)
    parser.add_argument("--replayed", type=Path, metavar="SPACE", help="race on this recorded space")
    parser.add_argument("--seeds", type=int, default=500, help="races beside each neighbour that is replayed")
    parser.add_argument("--slowdowns", nargs="+", type=float, default=[1.5, 2.0], help="of those neighbours")
    parser.add_argument("--jobs", type=int, default=1, help="processes to replay in")
    arguments = parser.parse_args()
    if arguments.replayed is not None:
        replayed(arguments)
        return
    print("| neighbour | disturbed requests | outcome | chosen plan | p50 | processes | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    races = []
    with tempfile.TemporaryDirectory() as kept:
        conditions = [("none", True), *((name, watched) for name in arguments.neighbours for watched in (True, False))]
        for name, watched in conditions:
            races.append(race(name, watched, Path(kept) / "races.db", arguments))
            show(races[-1])
    against_each_other(races, arguments)


def show(one: Race) -> None:
    """A row of the table, as soon as it is known."""
    p50 = "-" if one.p50_s is None else f"{1000 * one.p50_s:.0f} ms"
    counted = "set aside" if one.watched else "count"
    print(
        f"| {one.neighbour} | {counted} | {one.outcome} | {one.winner or '-'} | {p50} "
        f"| {one.processes} | {one.seconds:.0f} |",
        flush=True,
    )


def race(neighbour: str, watched: bool, store: Path, arguments: argparse.Namespace) -> Race:
    """One race, beside `neighbour`, as its own command."""
    command = [sys.executable, "-m", "inferplan", "optimize", "--json", "--quiet", "--store", str(store)]
    command += ["--sla", arguments.sla, "--kv-cache", "on", "--budget", arguments.budget]
    for flag in ("models", "engines", "precisions", "threads"):
        command += [f"--{flag}", *getattr(arguments, flag)]
    command += [] if watched else ["--no-watch"]
    say(f"neighbour {neighbour}, {'watched' if watched else 'not watched'}")
    with beside(neighbour, arguments.period):
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - began
    if done.returncode not in (0, 3, 4):
        raise SystemExit(done.stderr[-2000:])
    told: dict[str, Any] = json.loads(done.stdout)
    winner = told["selection"]["winner"]
    return Race(
        neighbour,
        watched,
        None if winner is None else Plan.parse(winner["plan_id"]),
        None if winner is None else winner["p50_s"],
        told["selection"]["outcome"],
        len(told["study"]["measurements"]),
        seconds,
    )


@contextmanager
def beside(neighbour: str, period_s: float) -> Iterator[None]:
    """The neighbour, as long as the block lasts."""
    if neighbour == "none":
        yield
        return
    busy = subprocess.Popen([sys.executable, __file__, "--be", neighbour, str(period_s)])
    try:
        time.sleep(1.0)
        yield
    finally:
        busy.kill()
        busy.wait()


def be(neighbour: str, period_s: float) -> None:
    """Be a neighbour until killed."""
    import numpy as np

    turn: Callable[[], object] = _spin
    if neighbour == "core":
        os.sched_setaffinity(0, [sorted(machine.preferred_cpus())[0]])
    else:
        data = np.ones(_STREAMED_BYTES // 8)
        turn = data.sum
    pause_s = 0.0 if neighbour.endswith(WITHOUT_A_PAUSE) else period_s / 2
    while True:
        end = time.perf_counter() + period_s / 2
        while time.perf_counter() < end:
            turn()
        time.sleep(pause_s)


def _spin() -> None:
    """Some work for a core alone."""
    sum(range(1000))


def against_each_other(races: Sequence[Race], arguments: argparse.Namespace) -> None:
    """Each winner beside a neighbour against the quiet one: on the machine as it is now, and beside that neighbour."""
    quiet = races[0].winner
    others = [(r.winner, r.neighbour) for r in races[1:] if r.winner is not None and r.winner != quiet]
    if quiet is None or not others:
        print("\nno other plan was chosen beside a neighbour" if quiet else "\nthe quiet race chose no plan")
        return
    plans = list(dict.fromkeys([quiet, *(plan for plan, _ in others)]))
    bench = make_ready(list(dict.fromkeys(plan.model for plan in plans)), plans, 64)
    print("\n" + header(bench.checkpoints, 64))
    for plan, neighbour in dict.fromkeys((plan, name) for plan, theirs in others for name in ("none", theirs)):
        with beside(neighbour, arguments.period):
            ratio = compared(plan, quiet, bench, arguments.rounds)
        where = "quiet" if neighbour == "none" else f"beside {neighbour}"
        print(f"{show_ratio(f'latency of {plan} over {quiet}, {where}', ratio)}: {ratio.relation()}")


def compared(plan: Plan, other: Plan, bench: Bench, rounds: int) -> Ratio:
    """How `plan` compares with `other`, a process of each in every round, in turns; every request counts."""
    watch = measure.Watch(cores=machine.detect().cores_granted)
    taken: dict[Plan, list[Measurement]] = {plan: [], other: []}
    for round_ in range(1, rounds + 1):
        for one in (plan, other) if round_ % 2 else (other, plan):
            taken[one].append(measure.measure(bench.trial(one, round_), bench.infos[one.engine], watch))
    return ratio_of(latencies(taken[plan]), latencies(taken[other]))


# --- on a recorded space ------------------------------------------------------


def replayed(arguments: argparse.Namespace) -> None:
    """Races on a recorded space, beside none and beside each neighbour."""
    space = _of_the_race(arguments)
    print(f"recorded on {space.about['machine']}; {len(space.plans)} plans; {arguments.seeds} seeds a row\n")
    print("| slowdown | disturbed requests | within 2% | within 3% | none chosen | processes | seconds | lost to |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    conditions = [(1.0, True), *((slowdown, watched) for slowdown in arguments.slowdowns for watched in (True, False))]
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for slowdown, watched in conditions:
            tasks = [(arguments, slowdown, watched, seed) for seed in range(arguments.seeds)]
            found = list(pool.map(_replayed, tasks, chunksize=5))
            print(_row(slowdown, watched, found), flush=True)


def _of_the_race(arguments: argparse.Namespace) -> Recorded:
    """The recorded plans among those that the real races choose from."""

    def fits(plan: Plan) -> bool:
        named = plan.model in arguments.models and plan.engine in arguments.engines
        return named and plan.precision in arguments.precisions and str(plan.threads) in arguments.threads

    space = only(read_space(arguments.replayed), lambda plan: plan.kv_cache and fits(plan))
    if not space.plans:
        raise SystemExit(f"{arguments.replayed} holds none of the plans asked for: change --models, --engines, ...")
    return space


_READ: list[Recorded] = []  # of this process


def _replayed(task: tuple[argparse.Namespace, float, bool, int]) -> Outcome:
    arguments, slowdown, watched, seed = task
    if not _READ:
        _READ.append(_of_the_race(arguments))
    offset_s = random.Random(seed).uniform(0, arguments.period)
    neighbour = Neighbour(arguments.period, offset_s, slowdown, watched) if slowdown > 1 else None
    case = Case.of(_READ[0], parse_sla([arguments.sla]), seed, neighbour)
    return run(case, "racing", FIRST, Limits(seconds=seconds_of(arguments.budget)))


def _row(slowdown: float, watched: bool, found: Sequence[Outcome]) -> str:
    near, tied = (mean(r.regret is not None and r.regret <= within for r in found) for within in (WITHIN, TIED))
    lost = Counter(str(r.chosen) for r in found if r.regret is not None and r.regret > TIED)
    return (
        f"| {f'{slowdown:g}x' if slowdown > 1 else 'none'} | {'set aside' if watched else 'count'} | {near:.1%} "
        f"| {tied:.1%} | {sum(r.chosen is None for r in found)} | {mean(r.processes for r in found):.0f} "
        f"| {median(r.seconds for r in found):.0f} ({max(r.seconds for r in found):.0f} at most) "
        f"| {', '.join(f'{plan} ({count})' for plan, count in lost.most_common(3)) or '-'} |"
    )


if __name__ == "__main__":
    main()
