"""What watching a study costs the study: requests while its live page is open against the same ones while it is not.

One process of one plan, requests in blocks, each block once with the page open and once without; which comes first
alternates, and the ratio of latencies is paired by request. Between processes of one plan lies more than what is
looked for here. With: the real server (`inferplan web`) runs, and a websocket client in a process of its own has the
running study's page open and refreshes it as often as the page asks for, as a browser does. Without: no client is
connected and the server is suspended (SIGSTOP), so that it uses nothing but memory. Either way each sample is
committed to the store that the page reads. A browser would take more, but it need not run on this machine.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from _common import Bench, Key, header, make_ready, ratio_of, say, show_ratio
from _web_client import Server, Watched, Watcher, serving
from _web_study import keep, made_up, unfinished

from inferplan import locks, machine, measure, validity
from inferplan.measurement import Measurement, Sample, Trial
from inferplan.plan import Plan, Space
from inferplan.stats import Ratio
from inferplan.store import Store
from inferplan.study import Study, new_id

WITHIN = 0.02
# A block begins so long after its page was asked for, plus a random part of a refresh: a look may then fall anywhere.
LEAD_S = 1.0
RESAMPLES = 2000


@dataclass(slots=True)
class Side:
    """The requests of one side, by (repeat, place in the block)."""

    samples: dict[Key, Sample] = field(default_factory=dict)

    @property
    def latencies(self) -> dict[Key, float]:
        """Seconds, every sample counted: both sides saw the same neighbours."""
        return {key: sample.latency_s for key, sample in self.samples.items()}

    @property
    def disturbed(self) -> int:
        """Samples that the study would have marked as disturbed."""
        return sum(bool(sample.disturbed) for sample in self.samples.values())


@dataclass(slots=True)
class Costs:
    """What the watching itself took, over all blocks."""

    looks: list[tuple[float, float]] = field(default_factory=list)
    opened_s: list[float] = field(default_factory=list)
    watched_s: float = 0.0
    server_cpu_s: float = 0.0
    client_cpu_s: float = 0.0

    def add(self, opened_s: float, seconds: float, server_cpu_s: float, watched: Watched) -> None:
        """One block with the page open."""
        self.opened_s.append(opened_s)
        self.watched_s += seconds
        self.server_cpu_s += server_cpu_s
        self.client_cpu_s += watched.client_cpu_s
        self.looks += watched.looks


@dataclass(slots=True)
class Setting:
    """What both sides of every block share."""

    study: Study
    store: Store
    server: Server
    watcher: Watcher
    watch: measure.Watch
    refresh_s: float
    costs: Costs = field(default_factory=Costs)

    @contextmanager
    def page(self, live: bool, lead_s: float) -> Iterator[None]:
        """The page open, or the server suspended; begins after `lead_s` in either case."""
        begin = time.monotonic() + lead_s
        opened_s = 0.0
        if live:
            self.server.resume()
            opened_s = self.watcher.watch(self.server.port, self.study.id).seconds
        else:
            self.server.suspend()
        since, cpu_s = time.monotonic(), self.server.cpu_s
        time.sleep(max(begin - time.monotonic(), 0.0))
        yield
        if live:
            watched = self.watcher.leave()
            self.costs.add(opened_s, time.monotonic() - since, self.server.cpu_s - cpu_s, watched)
        else:
            self.server.resume()


def compare(bench: Bench, plan: Plan, setting: Setting, arguments: argparse.Namespace) -> None:
    """One process of `plan`, its blocks in turn with and without the page."""
    trial = bench.trial(plan, 1)
    child = measure._Child(trial, bench.infos[plan.engine], setting.watch)
    record = measure._Record()
    sides = {True: Side(), False: Side()}
    setting.costs = Costs()
    source = random.Random(plan.id)
    try:
        child.load(record)
        for request in trial.warmup:
            child.generate(request, None)
        for repeat in range(arguments.repeats):
            say(f"{plan.id}: {repeat + 1} of {arguments.repeats}")
            lead_s = LEAD_S + source.uniform(0, setting.refresh_s)
            for turn, live in enumerate((True, False) if repeat % 2 else (False, True)):
                round_ = 2 * repeat + turn + 1
                with setting.page(live, lead_s):
                    block(child, trial, record, round_, arguments.passes, setting, sides[live].samples, repeat)
        child.close()
    finally:
        child.kill()
    show(plan, sides[True], sides[False], setting.costs)


def block(
    child: measure._Child,
    trial: Trial,
    record: measure._Record,
    round_: int,
    passes: int,
    setting: Setting,
    into: dict[Key, Sample],
    repeat: int,
) -> None:
    """Every request `passes` times, each pass kept in the store as one process of the study."""
    for turn in range(passes):
        began = time.time()
        row = setting.store.begin_trial(setting.study.id, trial.plan, passes * (round_ - 1) + turn + 1, began)
        samples: list[Sample] = []
        for place, request in enumerate(trial.requests):
            sample = measure._observed(child, request, trial, setting.watch)
            setting.store.add_sample(row, sample)
            samples.append(sample)
            into[repeat, turn * len(trial.requests) + place] = sample
        done = Measurement(
            trial.plan,
            passes * (round_ - 1) + turn + 1,
            "ok",
            samples=tuple(samples),
            actual=record.actual,
            memory=child.memory,
            startup_s=record.startup_s,
            load_s=record.load_s,
            started_at=began,
            wall_s=time.time() - began,
            libraries=record.libraries,
        )
        setting.store.finish_trial(row, done)


def hit(samples: Mapping[Key, Sample], looks: Sequence[tuple[float, float]]) -> set[Key]:
    """The requests that were being timed during a look."""
    return {
        key
        for key, sample in samples.items()
        if any(began < sample.started_at + sample.latency_s and ended > sample.started_at for began, ended in looks)
    }


def total_ratio(a: Mapping[Key, float], b: Mapping[Key, float], seed: int = 0) -> Ratio:
    """All of `a` over all of `b`, over the keys of both; interval from resampled pairs. Unlike a median it misses none.

    Source: percentile bootstrap, B. Efron and R. Tibshirani, An Introduction to the Bootstrap (1993), section 13.3.
    """
    pairs = [(a[key], b[key]) for key in sorted(a) if key in b]
    if len(pairs) < 6:
        return Ratio(None, None, None, len(pairs))
    source = random.Random(seed)
    found = sorted(_total(source.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES))
    edge = int(0.025 * RESAMPLES)
    return Ratio(_total(pairs), found[edge], found[-edge - 1], len(pairs))


def _total(pairs: Sequence[tuple[float, float]]) -> float:
    return sum(a for a, _ in pairs) / sum(b for _, b in pairs)


def show(plan: Plan, live: Side, alone: Side, costs: Costs) -> None:
    """The figures of one plan."""
    ratio = ratio_of(live.latencies, alone.latencies)
    medians = [1000 * statistics.median(side.latencies.values()) for side in (live, alone)]
    looked_at = {key: live.latencies[key] for key in hit(live.samples, costs.looks)}
    count = len(live.samples)
    print(f"\n{plan.id}")
    print(show_ratio("  request latency, page open over not", ratio, 4))
    print(f"  p50 of all requests: {medians[0]:.1f} ms with the page open, {medians[1]:.1f} ms without: "
          f"{medians[0] / medians[1]:.4f}")  # fmt: skip
    print(show_ratio("  all requests together, page open over not", total_ratio(live.latencies, alone.latencies), 4))
    print(
        show_ratio("  requests that a look fell into, over the same without", ratio_of(looked_at, alone.latencies), 4)
    )
    print(
        f"  marked as disturbed: {live.disturbed} of {count} with the page open, {alone.disturbed} of {count} without"
    )
    minutes = costs.watched_s / 60
    looks = [1000 * (ended - began) for began, ended in costs.looks]
    print(
        f"  a minute of watching: {len(looks) / minutes:.1f} looks of {statistics.median(looks or [0]):.0f} ms "
        f"(median), {costs.server_cpu_s / minutes:.2f} s of CPU for the server, "
        f"{costs.client_cpu_s / minutes:.2f} s for the client"
    )
    opened = 1000 * statistics.median(costs.opened_s)
    print(f"  before it: opening the page, {opened:.0f} ms (median of {len(costs.opened_s)})")
    inside = ratio.low is not None and ratio.high is not None and ratio.low > 1 - WITHIN and ratio.high < 1 + WITHIN
    print(f"  within {WITHIN:.0%}, interval included: {'yes' if inside else 'no'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="distilgpt2")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--threads", nargs="+", type=int, default=[2, 1])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7, help="of every block, on each side")
    parser.add_argument("--passes", type=int, default=3, help="over the prompts, in a block")
    arguments = parser.parse_args()
    plans = tuple(Plan(arguments.model, "transformers", arguments.precision, t) for t in arguments.threads)
    bench = make_ready([arguments.model], plans, arguments.tokens)
    here = machine.detect()
    space = Space(
        tuple(dict.fromkeys([arguments.model, "distilgpt2", "gpt2"])),
        precisions=tuple(dict.fromkeys([arguments.precision, "fp32", "int8"])),
        threads=tuple(dict.fromkeys([*arguments.threads, 1, 2, 4])),
    )
    # The page is that of a study of usual size, all but these plans measured before: a look judges all of them.
    study = unfinished(made_up(new_id(time.time()), space, tokens=arguments.tokens), plans)
    study = replace(study, checkpoints=(*bench.checkpoints.values(), *study.checkpoints[1:]))
    watch = measure.Watch(here.cores_granted, here.cores_logical, validity.Canary())
    print(header(bench.checkpoints, arguments.tokens))
    print(f"the page shows a study of {len(study.plans)} plans, of which {len(plans)} are measured here")
    print("without the page: no client, and the server suspended")
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "store.db") as store:
        keep(store, study)
        with locks.machine_lock(study.id, wait=True, on_wait=say), serving(store.path) as server, Watcher() as watcher:
            opened = watcher.watch(server.port, study.id)  # once for all: imports, and what is decoded only once
            watcher.leave()
            setting = Setting(study, store, server, watcher, watch, opened.interval_s)
            for plan in plans:
                compare(bench, plan, setting, arguments)


if __name__ == "__main__":
    main()
