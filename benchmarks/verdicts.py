"""How often is a verdict wrong? Replayed on latencies whose truth is known: recorded, heavy-tailed, drifting, bimodal.

Processes of 8 requests are drawn one after the other until the sequential verdict is decided or the budget ends
(100 processes for a p50, 200 for a p95). Limits are placed where a given share of the requests is within them: at the
share asked, just and well below and above it. A verdict is wrong when it is `meets` at a moment at which the expected
share, averaged over the processes so far, is at most the share asked, or `misses` where it is at least that: at the
share asked itself both are. Beside it, on the same latencies, `verdict.judge`, asked after every process and asked once
after two; it claims something of the processes seen, and is counted here as a claim about processes in general.

--recorded PATH adds real latencies: a recorded space as `record_space.py --pack` writes it, JSON lines as `engines.py
--keep` writes them, or a store. Their processes are drawn with replacement, of each plan by itself and of all plans
together (each relative to its plan's median). Each figure has an exact 95% interval (Clopper and Pearson). No latency
of this machine enters without --recorded.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
from _replay import read_space
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import binomtest

from inferplan._codec import decode
from inferplan.cost import Prices
from inferplan.measurement import Measurement, Sample
from inferplan.plan import Plan
from inferplan.result import PlanResult
from inferplan.sequential import BETS, sequential_verdict, shares
from inferplan.sla import METRICS, Constraint
from inferplan.stats import quantile_estimate
from inferplan.store import Store
from inferplan.verdict import judge

Floats = NDArray[np.float64]
REQUESTS = 8
LEVEL = 0.05
BUDGETS = {"p50": 100, "p95": 200}
# How far the share within the limit lies from the share asked: well and just below, at, just and well above.
PLACES = {"p50": (-0.2, -0.03, 0.0, 0.03, 0.2), "p95": (-0.1, -0.01, 0.0, 0.01, 0.04)}
UNDECIDED, MEETS, MISSES = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Drawn:
    """Processes of many runs.

    Attributes:
        latencies_s: (runs, processes, requests).
        limits: share within -> the limit of each run that has it (as nearly as there is one), (runs,).
        expected: limits -> the share expected of each process before it starts, (runs, processes).
    """

    name: str
    latencies_s: Floats
    limits: Callable[[float], Floats]
    expected: Callable[[Floats], Floats]


@dataclass(frozen=True, slots=True)
class Kind:
    """Synthetic latencies: exp(drift + slow or not + noise).

    Attributes:
        noise: standard deviation of the log of a request.
        slow: probability that a process is slow, with all of its requests, by the factor `slower`.
        wave: amplitude of a sine over the processes, of a period of 30, in log seconds.
        step: standard deviation of a step of a random walk from process to process, in log seconds.
    """

    name: str
    noise: float = 0.05
    slow: float = 0.0
    slower: float = 1.5
    wave: float = 0.0
    step: float = 0.0

    def draw(self, rng: np.random.Generator, runs: int, processes: int) -> Drawn:
        """Runs of independent processes, or of drifting ones that differ in phase or walk."""
        drift = np.cumsum(rng.normal(0, self.step, (runs, processes)), axis=1) if self.step else np.zeros((runs, 1))
        if self.wave:
            phase = rng.uniform(0, 2 * math.pi, (runs, 1))
            drift = drift + self.wave * np.sin(phase + 2 * math.pi * np.arange(processes) / 30)
        slow = math.log(self.slower) * (rng.random((runs, processes)) < self.slow)
        logs = (drift + slow)[:, :, None] + rng.normal(0, self.noise, (runs, processes, REQUESTS))

        def within(limits: Floats, drift: Floats) -> Floats:
            # What is known before the process starts is the drift, not whether it will be a slow one.
            at = np.log(limits)[:, None] - drift
            slow = ndtr((at - math.log(self.slower)) / self.noise)
            found: Floats = (1 - self.slow) * ndtr(at / self.noise) + self.slow * slow
            return found

        def limits(share: float) -> Floats:
            wave = self.wave * np.sin(2 * math.pi * np.arange(30) / 30)[None, :]
            low, high = -20.0, 20.0
            for _ in range(200):
                middle = (low + high) / 2
                less = float(within(np.array([math.exp(middle)]), wave).mean()) < share
                low, high = (middle, high) if less else (low, middle)
            return np.full(runs, math.exp(high))

        return Drawn(self.name, np.exp(logs), limits, lambda at: np.broadcast_to(within(at, drift), (runs, processes)))


KINDS = (
    Kind("heavy tail", noise=1.0),
    Kind("6% slow processes", slow=0.06),
    Kind("20% slow processes", slow=0.2),
    Kind("50% slow processes", slow=0.5),
    Kind("random walk", step=0.02),
    Kind("sine", wave=0.1),
    Kind("6% slow, sine", slow=0.06, wave=0.1),
    Kind("20% slow, heavy tail", noise=1.0, slow=0.2, slower=4.0),
    Kind("50% slow, random walk", slow=0.5, step=0.02),
    Kind("20% slow, heavy tail, walk and sine", noise=1.0, slow=0.2, slower=4.0, step=0.1, wave=0.5),
)


def replay(name: str, plans: Sequence[Floats], rng: np.random.Generator, runs: int, processes: int) -> Drawn:
    """Processes drawn with replacement from recorded ones: run r from those of plan r modulo their number."""
    of = [run % len(plans) for run in range(runs)]
    drawn = np.stack([plans[i][rng.integers(len(plans[i]), size=processes)] for i in of])

    def limits(share: float) -> Floats:
        found = []
        for plan in plans:
            ordered = np.sort(plan, axis=None)
            # The smallest latency with at least `share` of all requests no slower.
            found.append(ordered[min(max(math.ceil(share * ordered.size - 1e-9), 1), ordered.size) - 1])
        return np.array(found)[of]

    def expected(at: Floats) -> Floats:
        share = np.array([(plans[i] <= limit).mean() for i, limit in zip(of, at, strict=True)])
        return np.broadcast_to(share[:, None], (runs, processes))

    return Drawn(name, drawn, limits, expected)


def recorded(paths: Sequence[Path]) -> list[Floats]:
    """Latencies in seconds by plan, each (processes, requests): plans with two processes or more of equal length."""
    plans: dict[object, list[tuple[float, ...]]] = defaultdict(list)
    for path in paths:
        for plan, times in _packed(path) if path.suffix == ".gz" else _whole(path):
            if len(times) > 1:
                plans[plan].append(times)
    usual = Counter(len(times) for found in plans.values() for times in found).most_common(1)
    length = usual[0][0] if usual else 0
    kept = [[times for times in found if len(times) == length] for found in plans.values()]
    return [np.array(found) for found in kept if len(found) > 1]


def _packed(path: Path) -> Iterator[tuple[Plan, tuple[float, ...]]]:
    """Of a recorded space: the undisturbed requests of each process of which none was disturbed."""
    for plan, processes in read_space(path).processes.items():
        for process in processes:
            found = [row for prompt in sorted(process.rows) for row in process.rows[prompt]]
            if process.ok and not any(disturbed or cut for _, _, _, disturbed, cut, _ in found):
                yield plan, tuple(row[1] for row in found)


def _whole(path: Path) -> Iterator[tuple[Plan, tuple[float, ...]]]:
    """Of a store, or JSON lines: the requests of each process of which none was disturbed."""
    for one in _measurements(path):
        if one.status == "ok" and len(one.clean) == len(one.samples):
            yield one.plan, tuple(s.latency_s for s in one.clean)


def _measurements(path: Path) -> Iterator[Measurement]:
    if path.suffix == ".jsonl":
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)["record"]
            if "measurement" in record:
                yield decode(Measurement, record["measurement"])
    else:
        with Store(path) as store:
            for study in store.study_ids():
                yield from store.measurements(study)


# --- the rules, over all runs at once ---


def sequential(within: Floats, q: float) -> NDArray[np.int8]:
    """The sequential verdict after each process, (runs, processes); `check` compares it with the one of the package."""
    meets, misses = np.zeros_like(within), np.zeros_like(within)
    with np.errstate(under="ignore"):
        for bet, part in BETS:
            meets += part * np.cumprod(1 + bet * (within - q) / q, axis=1)
            misses += part * np.cumprod(1 + bet * (q - within) / (1 - q), axis=1)
    return np.where(meets >= 1 / LEVEL, MEETS, np.where(misses >= 1 / LEVEL, MISSES, UNDECIDED)).astype(np.int8)


@cache
def _ranks(n: int, q: float) -> tuple[float, float]:
    """Ranks of the lower and the upper bound among n requests: 0 and infinity where there is none."""
    found = quantile_estimate([float(i) for i in range(1, n + 1)], q)
    return found.lower or 0.0, found.upper or math.inf


def judged(latencies_s: Floats, limits: Floats, q: float) -> NDArray[np.int8]:
    """What `verdict.judge` says after each process, (runs, processes); `check` compares it with that function."""
    _, processes, requests = latencies_s.shape
    at = limits[:, None]
    seen = np.cumsum((latencies_s <= at[:, :, None]).sum(axis=2), axis=1)
    ranks = np.array([_ranks(requests * k, q) for k in range(1, processes + 1)])
    if requests < 0.5 / min(q, 1 - q) - 1e-9:  # a process too small for a quantile of its own: its lower bound
        rank = int(_ranks(requests, q)[0])
        agrees = np.sort(latencies_s, axis=2)[:, :, rank - 1] <= at if rank else np.full(seen.shape, True)
    else:
        agrees = np.quantile(latencies_s, q, axis=2, method="hazen") <= at
    outweighed = sequential((latencies_s <= at[:, :, None]).mean(axis=2), q) == MEETS
    meets = (seen >= ranks[:, 1]) & (np.logical_and.accumulate(agrees, axis=1) | outweighed)
    return np.where(seen < ranks[:, 0], MISSES, np.where(meets, MEETS, UNDECIDED)).astype(np.int8)


# --- counting ---


@dataclass(frozen=True, slots=True)
class Count:
    """One rule in one cell: runs with a wrong `meets`, a wrong `misses`, no verdict; mean processes to a verdict."""

    runs: int
    wrong_meets: int
    wrong_misses: int
    undecided: int
    processes: float | None

    @property
    def worst(self) -> int:
        """The larger of the two wrong counts: each has the level to itself."""
        return max(self.wrong_meets, self.wrong_misses)


def count(verdicts: NDArray[np.int8], expected: Floats, q: float) -> Count:
    """The first verdict of each run, where its study would have ended, against the average up to there."""
    runs = len(verdicts)
    decided = verdicts != UNDECIDED
    ended, when = decided.any(axis=1), decided.argmax(axis=1)
    first = verdicts[np.arange(runs), when]
    average = np.cumsum(expected, axis=1)[np.arange(runs), when] / (when + 1)
    return Count(
        runs,
        int((ended & (first == MEETS) & (average <= q + 1e-9)).sum()),
        int((ended & (first == MISSES) & (average >= q - 1e-9)).sum()),
        int((~ended).sum()),
        float(when[ended].mean()) + 1 if ended.any() else None,
    )


def check(drawn: Drawn, limits: Floats, name: str, runs: int) -> None:
    """The rules above say what the package's own say, on a few runs."""
    constraint_of = METRICS[name]
    q = constraint_of.q or 0.0
    within = (drawn.latencies_s <= limits[:, None, None]).mean(axis=2)
    ours, theirs = sequential(within, q), judged(drawn.latencies_s, limits, q)
    plan = Plan("replayed", "fake", "fp32", 1)
    for run in range(min(runs, len(within))):
        constraint = Constraint(constraint_of, "<=", float(limits[run]))
        for k in (1, 2, 5, 6, 7, 20, within.shape[1]):
            processes = (_measurement(plan, i + 1, drawn.latencies_s[run, i]) for i in range(k))
            result = PlanResult(plan, tuple(processes))
            names = ("undecided", "meets", "misses")
            found = sequential_verdict(*shares(result, constraint), q).verdict
            if found != names[ours[run, k - 1]]:
                raise SystemExit(f"{drawn.name} {constraint} after {k}: {found}, replayed as {names[ours[run, k - 1]]}")
            found = judge(result, constraint, Prices(), 1.0).verdict
            if found != names[theirs[run, k - 1]]:
                raise SystemExit(f"{drawn.name} {constraint} after {k}: judge says {found}, not {theirs[run, k - 1]}")


def _measurement(plan: Plan, round_: int, latencies_s: Floats) -> Measurement:
    samples = (Sample(i, 0.0, float(latency), (), 16) for i, latency in enumerate(latencies_s))
    return Measurement(plan, round_, "ok", samples=tuple(samples))


# --- the table ---


@dataclass(frozen=True, slots=True)
class Cell:
    """One source at one limit: the sequential verdict, and `judge` after every process and once after two."""

    metric: str
    ours: Count
    every: Count
    once: Count


def _wrong(wrong: int, runs: int) -> str:
    interval = binomtest(wrong, runs).proportion_ci(0.95, "exact")
    return f"{100 * wrong / runs:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def _standing(wrong: int, runs: int) -> str:
    """On which side of the level the share of wrong verdicts lies, by its interval."""
    interval = binomtest(wrong, runs).proportion_ci(0.95, "exact")
    return "below" if interval.high <= LEVEL else "above" if interval.low > LEVEL else "not told apart"


def _row(drawn: Drawn, cell: Cell, expected: Floats) -> str:
    ours, every, once = cell.ours, cell.every, cell.once
    columns = [
        drawn.name,
        cell.metric,
        f"{100 * expected.mean():.1f}",
        _wrong(ours.wrong_meets, ours.runs),
        _wrong(ours.wrong_misses, ours.runs),
        f"{100 * ours.undecided / ours.runs:.0f}",
        "" if ours.processes is None else f"{ours.processes:.0f}",
        _standing(ours.worst, ours.runs),
        f"{100 * every.wrong_meets / every.runs:.1f}, {100 * every.wrong_misses / every.runs:.1f}",
        f"{100 * once.wrong_meets / once.runs:.1f}, {100 * once.wrong_misses / once.runs:.1f}",
    ]
    return f"| {' | '.join(columns)} |"


HEADER = (
    "source",
    "metric",
    "within, %",
    "wrong meets, %",
    "wrong misses, %",
    "undecided, %",
    "processes",
    "level of 5%",
    "judge at every look: wrong meets, misses, %",
    "judge after two: wrong meets, misses, %",
)


def run_source(draw: Callable[[int], Drawn], checked: int) -> list[Cell]:
    """The rows of one source, printed as they come."""
    cells = []
    for metric, budget in BUDGETS.items():
        drawn, q = draw(budget), METRICS[metric].q or 0.0
        before = np.zeros(0)
        for place in PLACES[metric]:
            limits = drawn.limits(q + place)
            if np.array_equal(limits, before):
                continue  # few recorded requests: two places fall on one of them
            before = limits
            expected = drawn.expected(limits)
            within = (drawn.latencies_s <= limits[:, None, None]).mean(axis=2)
            looks = judged(drawn.latencies_s, limits, q)
            ours, every = count(sequential(within, q), expected, q), count(looks, expected, q)
            cells.append(Cell(metric, ours, every, count(looks[:, 1:2], expected[:, :2].mean(axis=1)[:, None], q)))
            check(drawn, limits, metric, checked)
            print(_row(drawn, cells[-1], expected), flush=True)
    return cells


def summary(cells: Sequence[Cell]) -> str:
    """How many cells lie below the level, and the worst of each rule."""
    lines = []
    for metric in BUDGETS:
        of = [cell for cell in cells if cell.metric == metric]
        if not of:
            continue
        standing = [_standing(cell.ours.worst, cell.ours.runs) for cell in of]
        tally = ", ".join(f"{standing.count(word)} {word}" for word in ("below", "not told apart", "above"))
        lines.append(f"{metric}: {len(of)} cells, the level of {LEVEL:.0%}: {tally}")
        rules: dict[str, list[Count]] = {
            "sequential": [cell.ours for cell in of],
            "judge at every look": [cell.every for cell in of],
            "judge after two processes": [cell.once for cell in of],
        }
        for rule, counts in rules.items():
            meets, misses = max(c.wrong_meets for c in counts), max(c.wrong_misses for c in counts)
            runs = counts[0].runs
            lines.append(f"  {rule}: at worst wrong meets {_wrong(meets, runs)}%, wrong misses {_wrong(misses, runs)}%")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2000, help="runs a cell (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the first (default %(default)s)")
    parser.add_argument("--recorded", type=Path, nargs="+", default=[], help="recorded spaces, JSON lines or stores")
    parser.add_argument("--check", type=int, default=1, help="runs a cell compared with the package's own functions")
    arguments = parser.parse_args()
    rng, runs = np.random.default_rng(arguments.seed), arguments.seeds
    print(f"{runs} runs a cell, processes of {REQUESTS} requests (recorded ones as recorded), budgets {BUDGETS}\n")
    print(f"| {' | '.join(HEADER)} |")
    print(f"|{' --- |' * len(HEADER)}")
    cells: list[Cell] = []
    for kind in KINDS:
        cells += run_source(partial(kind.draw, rng, runs), arguments.check)
    if plans := recorded(arguments.recorded):
        relative = [np.concatenate([plan / np.median(plan) for plan in plans])]
        for name, of in ((f"recorded, {len(plans)} plans", plans), ("recorded, together", relative)):
            cells += run_source(partial(replay, name, of, rng, runs), arguments.check)
    print(f"\n{summary(cells)}")
    return int(any(_standing(cell.ours.worst, cell.ours.runs) == "above" for cell in cells))


if __name__ == "__main__":
    raise SystemExit(main())
