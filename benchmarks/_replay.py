"""A recorded space that stands in for the machine: searches run against it in milliseconds.

Owns reading the record and drawing from it. Each process that a search asks for is one of the recorded processes of
that plan, drawn anew, so that noise between processes and within them is that of the machine it was recorded on. Time
is what the recorded process took: starting, loading, the requests asked for, and once for each artifact its conversion.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from inferplan._codec import decode
from inferplan.measurement import Measurement, Memory, Sample
from inferplan.plan import Plan
from inferplan.rates import Rates
from inferplan.search import Proposal
from inferplan.shapes import Shape, shape_of

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
    """

    about: Mapping[str, Any]
    processes: Mapping[Plan, Sequence[Process]]
    converted_s: Mapping[Plan, float]
    shapes: Mapping[str, Shape]
    prompt_tokens: Mapping[str, Sequence[int]]
    rates: Rates
    cores: float
    max_tokens: int

    @property
    def plans(self) -> tuple[Plan, ...]:
        """Every plan of it."""
        return tuple(self.processes)

    def true_p50_s(self, plan: Plan) -> float | None:
        """The median over the recorded processes of the plan of their median latencies; None where it failed."""
        found = [
            median(median(row[1] for row in rows) for rows in process.rows.values())
            for process in self.processes[plan]
            if process.ok
        ]
        return median(found) if found else None


def read_space(path: Path) -> Recorded:
    """What `record_space.py --pack` wrote."""
    data = json.loads(gzip.decompress(path.read_bytes()))
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


@dataclass(slots=True)
class Replay:
    """The machine of one search.

    Attributes:
        spent_s: what the search has taken so far, conversions apart.
        converting_s: the conversions that it made necessary.
    """

    space: Recorded
    seed: int
    spent_s: float = 0.0
    converting_s: float = 0.0
    _random: random.Random = field(init=False)
    _made: set[tuple[Any, ...]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def measure(self, asked: Proposal) -> Measurement:
        """What came of a proposal."""
        plan = asked.plan
        made = (plan.model, plan.engine, plan.precision, plan.options)
        if made not in self._made:
            self._made.add(made)
            self.converting_s += self.space.converted_s[plan]
        process = self._random.choice(self.space.processes[plan])
        if not process.ok:
            self.spent_s += process.around_s
            status: Any = process.status
            return Measurement(plan, asked.round, status, process.reason, wall_s=process.around_s, look=asked.look)
        places = tuple(process.rows) if asked.prompts is None else asked.prompts
        lengths = self.space.prompt_tokens[plan.model]
        samples = tuple(self._sample(process, place, lengths[place], asked.cut_after_s) for place in places)
        wall_s = process.around_s + sum(s.latency_s for s in samples)
        self.spent_s += wall_s
        return Measurement(
            plan,
            asked.round,
            "ok",
            samples=samples,
            memory=Memory(*process.peaks),
            startup_s=process.startup_s,
            load_s=process.load_s,
            wall_s=wall_s,
            look=asked.look,
        )

    def _sample(self, process: Process, place: int, prompt_tokens: int, cut_after_s: float | None) -> Sample:
        prompt, latency, first, _, was_cut, tokens = self._random.choice(process.rows[place])
        count = int(tokens)
        step = (latency - first) / max(count - 1, 1)
        times = [first + step * i for i in range(count)]
        cut = bool(was_cut)
        if cut_after_s is not None and latency > cut_after_s:
            kept = [t for t in times if t <= cut_after_s]
            times = times[: len(kept) + 1]  # a request is ended at the token that came too late
            latency, cut = times[-1], True
        return Sample(int(prompt), 0.0, latency, tuple(times), prompt_tokens, cut=cut)
