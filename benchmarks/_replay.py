"""A recorded space that stands in for the machine: searches run against it in milliseconds.

Owns reading the record and drawing from it. Each process that a search asks for is one of the recorded processes of
that plan, drawn anew, so that noise between processes and within them is that of the machine it was recorded on. What
is drawn follows from the seed, the plan and the round alone: strategies of one seed that ask for the same process get
the same, and their difference is not one of luck. Time is what the recorded process took: starting, loading, the
requests asked for, and once for each artifact its conversion.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from inferplan._codec import decode
from inferplan.measurement import Measurement, Memory, Sample
from inferplan.plan import Plan
from inferplan.rates import Rates
from inferplan.search import Proposal
from inferplan.shapes import Shape, shape_of
from inferplan.validity import OTHER_CPU_SHARE

_PLANS24 = {"engine": {"transformers"}, "model": {"distilgpt2", "gpt2"}, "precision": {"fp32", "int8"}}
Row = Sequence[float]  # prompt, latency, TTFT, disturbed, cut, tokens


@dataclass(frozen=True, slots=True)
class Process:
    """One recorded process.

    Attributes:
        around_s: what it took apart from its requests: starting, loading, warming up, closing.
        rows: by prompt, the undisturbed requests where there are any.
    """

    status: str
    reason: str
    around_s: float
    startup_s: float = 0.0
    load_s: float = 0.0
    peaks: tuple[int | None, int | None] = (None, None)
    rows: Mapping[int, Sequence[Row]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether it ended well, with at least one request of every kind."""
        return self.status == "ok" and bool(self.rows)


@dataclass(frozen=True, slots=True)
class Recorded:
    """A recorded space.

    Attributes:
        processes: by plan, in the order of the space.
        prompt_tokens: by model, the length of each prompt.
        converted_s: seconds of making what a plan loads; 0 where it is loaded as it is.
        rates_s: seconds that measuring the rates took.
    """

    about: Mapping[str, Any]
    processes: Mapping[Plan, Sequence[Process]]
    converted_s: Mapping[Plan, float]
    shapes: Mapping[str, Shape]
    prompt_tokens: Mapping[str, Sequence[int]]
    rates: Rates
    rates_s: float
    cores: float
    max_tokens: int

    @property
    def plans(self) -> tuple[Plan, ...]:
        """Every plan of it."""
        return tuple(self.processes)

    def true_p50_s(self, plan: Plan) -> float | None:
        """The median over all its recorded processes, each prompt of each counting once; None where it failed."""
        ok = [process for process in self.processes[plan] if process.ok]
        found = [median(row[1] for row in rows) for process in ok for rows in process.rows.values()]
        return median(found) if found else None


def read_space(path: Path) -> Recorded:
    """What `record_space.py --pack` wrote."""
    try:
        data = json.loads(gzip.decompress(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path} cannot be read as a recorded space: {error}") from None
    if data.get("format") != "inferplan recorded space" or data.get("version") != 1:
        raise SystemExit(f"{path} is not a recorded space of version 1: make it with record_space.py --pack")
    plans = {Plan.parse(row["id"]): row for row in data["plans"]}
    about = {key: value for key, value in data.items() if key not in ("plans", "models", "rates")}
    return Recorded(
        about=about,
        processes={plan: [_process(found) for found in row["processes"]] for plan, row in plans.items()},
        converted_s={plan: row["converted_s"] or 0.0 for plan, row in plans.items()},
        shapes={name: shape_of(model["config"]) for name, model in data["models"].items()},
        prompt_tokens={name: model["prompt_tokens"] for name, model in data["models"].items()},
        rates=decode(Rates, data["rates"]),
        rates_s=data["rates_s"],
        cores=data["cores"],
        max_tokens=data["max_tokens"],
    )


def _process(row: Mapping[str, Any]) -> Process:
    if row["status"] != "ok":
        return Process(row["status"], row["reason"], row["wall_s"])
    by_prompt: dict[int, list[Row]] = {}
    for sample in row["samples"]:
        by_prompt.setdefault(int(sample[0]), []).append(sample)
    rows = {prompt: [row for row in found if not row[3]] or found for prompt, found in by_prompt.items()}
    around_s = row["wall_s"] - sum(sample[1] for sample in row["samples"])
    return Process("ok", "", around_s, row["startup_s"], row["load_s"], tuple(row["peaks"]), rows)


def resized(space: Recorded, size: int, draw: random.Random) -> Recorded:
    """`size` plans of the space; more than it has are copies under an option of their own, 0.7 to 1.3 times as slow.

    Their order is drawn as well, for searches take plans that are predicted alike in the order of the space.
    """
    plans = list(space.plans)
    if size <= len(plans):
        return replace(space, processes={plan: space.processes[plan] for plan in draw.sample(plans, size)})
    processes, converted = dict(space.processes), dict(space.converted_s)
    while len(processes) < size:
        # An option with a value for each time round: a value for each copy would tell samplers nothing but its name.
        option = ("copy", len(processes) // len(plans))
        for of in draw.sample(plans, min(len(plans), size - len(processes))):
            copied, factor = replace(of, options=(*of.options, option)), draw.uniform(0.7, 1.3)
            processes[copied] = [_scaled(process, factor) for process in space.processes[of]]
            converted[copied] = space.converted_s[of]
    ordered = draw.sample(list(processes), size)
    return replace(space, processes={plan: processes[plan] for plan in ordered}, converted_s=converted)


def only(space: Recorded, fits: Callable[[Plan], bool]) -> Recorded:
    """The space with the plans that fit alone."""
    return replace(space, processes={plan: found for plan, found in space.processes.items() if fits(plan)})


def of_benchmark(space: Recorded) -> Recorded:
    """The plans of `benchmark.py` alone."""

    def fits(plan: Plan) -> bool:
        return all(getattr(plan, axis) in values for axis, values in _PLANS24.items()) and not plan.options

    return only(space, fits)


def _scaled(process: Process, factor: float) -> Process:
    found = {
        prompt: [(row[0], row[1] * factor, row[2] * factor, *row[3:]) for row in of]
        for prompt, of in process.rows.items()
    }
    return replace(process, rows=found)


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A program beside the search that works for the second half of every period, as a model of one.

    While it works, a request makes `slowdown` times less progress. Starting and loading are not slowed.

    Attributes:
        offset_s: where in its period the search begins.
        watched: whether requests that it disturbed are marked, and up to `retakes` of a process taken again.
    """

    period_s: float
    offset_s: float
    slowdown: float
    watched: bool
    retakes: int = 4

    def during(self, start_s: float, work_s: float) -> tuple[float, float]:
        """How long a request that takes `work_s` alone takes from `start_s` on, and for how long of that it worked."""
        now, left, beside = start_s + self.offset_s, work_s, 0.0
        while True:
            at = now % self.period_s
            works = at >= self.period_s / 2
            until = (self.period_s if works else self.period_s / 2) - at
            pace = self.slowdown if works else 1.0
            if left * pace <= until:
                now += left * pace
                return now - start_s - self.offset_s, beside + left * pace * works
            now, left, beside = now + until, left - until / pace, beside + until * works


@dataclass(slots=True)
class Replay:
    """The machine of one search.

    Attributes:
        neighbour: who works beside it.
        drawn: what was measured before with this seed; strategies that share it are told the same objects.
        spent_s: what the search has taken so far, conversions apart.
        converting_s: the conversions that it made necessary.
    """

    space: Recorded
    seed: int
    drawn: dict[Proposal, Measurement] = field(default_factory=dict)
    spent_s: float = 0.0
    converting_s: float = 0.0
    neighbour: Neighbour | None = None
    _made: set[tuple[Any, ...]] = field(default_factory=set)

    def measure(self, asked: Proposal) -> Measurement:
        """What came of a proposal."""
        plan = asked.plan
        made = (plan.model, plan.engine, plan.precision, plan.options)
        if made not in self._made:
            self._made.add(made)
            self.converting_s += self.space.converted_s[plan]
        if self.neighbour is not None:  # then it matters when
            measured = self._draw(asked)
        else:
            if asked not in self.drawn:
                self.drawn[asked] = self._draw(asked)
            measured = self.drawn[asked]
        self.spent_s += measured.wall_s
        return measured

    def _draw(self, asked: Proposal) -> Measurement:
        plan = asked.plan
        draw = random.Random(f"{self.seed} {asked.round} {plan.id}")
        process = draw.choice(self.space.processes[plan])
        if not process.ok:
            status: Any = process.status
            return Measurement(plan, asked.round, status, process.reason, wall_s=process.around_s, look=asked.look)
        drawn = {place: draw.choice(rows) for place, rows in sorted(process.rows.items())}
        places = tuple(process.rows) if asked.prompts is None else asked.prompts
        lengths = self.space.prompt_tokens[plan.model]
        samples, took_s = self._samples([drawn[place] for place in places], lengths, asked, process.around_s)
        return Measurement(
            plan,
            asked.round,
            "ok",
            samples=samples,
            memory=Memory(*process.peaks),
            startup_s=process.startup_s,
            load_s=process.load_s,
            wall_s=took_s,
            look=asked.look,
        )

    def _samples(
        self, rows: Sequence[Row], lengths: Sequence[int], asked: Proposal, around_s: float
    ) -> tuple[tuple[Sample, ...], float]:
        """What a process answers to its requests, and what it takes in all."""
        found: list[Sample] = []
        now, retakes, waiting = around_s, self.neighbour.retakes if self.neighbour else 0, list(rows)
        while waiting:
            row = waiting.pop(0)
            latency, beside = (row[1], 0.0)
            if self.neighbour is not None:
                latency, beside = self.neighbour.during(self.spent_s + now, row[1])
            slowed = (row[0], latency, row[2] * latency / row[1], *row[3:])
            sample = _sample(slowed, lengths[int(row[0])], asked.cut_after_s)
            now += sample.latency_s
            if self.neighbour is not None and self.neighbour.watched and beside > OTHER_CPU_SHARE * latency:
                sample = replace(sample, disturbed=("by the neighbour",))
                if retakes:
                    retakes -= 1
                    waiting.append(row)
            found.append(sample)
        return tuple(found), now


def as_measured(space: Recorded, plan: Plan, round_: int, process: Process) -> Measurement:
    """A recorded process that ended well, whole, as if it had just been measured."""
    lengths = space.prompt_tokens[plan.model]
    samples = tuple(_sample(row, lengths[place], None) for place, rows in sorted(process.rows.items()) for row in rows)
    return Measurement(
        plan,
        round_,
        "ok",
        samples=samples,
        memory=Memory(*process.peaks),
        startup_s=process.startup_s,
        load_s=process.load_s,
    )


def _sample(row: Row, prompt_tokens: int, cut_after_s: float | None) -> Sample:
    prompt, latency, first, _, was_cut, tokens = row
    count = int(tokens)
    step = (latency - first) / max(count - 1, 1)
    times = [first + step * i for i in range(count)]
    cut = bool(was_cut)
    if cut_after_s is not None and latency > cut_after_s:
        kept = [t for t in times if t <= cut_after_s]
        times = times[: len(kept) + 1]  # a request is ended at the token that came too late
        latency, cut = times[-1], True
    return Sample(int(prompt), 0.0, latency, tuple(times), prompt_tokens, cut=cut)
