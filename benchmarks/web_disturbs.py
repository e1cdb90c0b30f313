"""What watching a study costs the study: requests while its live page is open against the same ones while it is not.

One process of one plan. Every request is sent twice, once with the page open and once without; which comes first
alternates, and the ratio of latencies is paired by request: processes of one plan, and stretches of some seconds on a
shared machine, differ by more than what is looked for. With: the real server (`inferplan web`) runs, and a websocket
client in a process of its own has the running study's page open and refreshes it as often as the page asks for, as a
browser does. Without: server and client are suspended (SIGSTOP), so that they use nothing but memory. The time from
one refresh to the next runs only while the page is open, and a refresh that is cut short goes on with the next request
of its side: what watching costs falls on watched requests alone. Either way each sample is committed to the store that
the page reads. A browser would take more, but it need not run on this machine.
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
RESAMPLES = 2000


@dataclass(slots=True)
class Side:
    """The requests of one side, by (repeat, prompt)."""

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
    """What the watching of one plan took."""

    watched_s: float = 0.0
    server_cpu_s: float = 0.0
    watched: Watched = field(default_factory=Watched)


@dataclass(frozen=True, slots=True)
class Setting:
    """What the plans share."""

    study: Study
    store: Store
    server: Server
    watcher: Watcher
    watch: measure.Watch


@contextmanager
def page(setting: Setting, live: bool, costs: Costs) -> Iterator[None]:
    """The page open, or left as it was; suspended on leaving."""
    if not live:
        yield
        return
    began = time.monotonic()
    setting.server.resume()
    setting.watcher.resume()
    yield
    setting.watcher.suspend()
    setting.server.suspend()
    costs.watched_s += time.monotonic() - began


def compare(bench: Bench, plan: Plan, setting: Setting, repeats: int) -> None:
    """One process of `plan`, its requests in turn with and without the page."""
    trial = bench.trial(plan, 1)
    child = measure._Child(trial, bench.infos[plan.engine], setting.watch)
    record = measure._Record()
    sides = {True: Side(), False: Side()}
    costs = Costs()
    try:
        child.load(record)
        for request in trial.warmup:
            child.generate(request, None)
        opened = setting.watcher.watch(setting.server.port, setting.study.id)
        cpu_s = setting.server.cpu_s
        setting.watcher.suspend()
        setting.server.suspend()
        for repeat in range(repeats):
            say(f"{plan.id}: {repeat + 1} of {repeats}")
            both_sides(child, trial, record, repeat, setting, sides, costs)
        costs.server_cpu_s = setting.server.cpu_s - cpu_s
        child.close()
    finally:
        child.kill()
        setting.server.resume()
    setting.watcher.resume()
    costs.watched = setting.watcher.leave()
    show(plan, sides[True], sides[False], costs, opened.seconds)


def both_sides(
    child: measure._Child,
    trial: Trial,
    record: measure._Record,
    repeat: int,
    setting: Setting,
    sides: Mapping[bool, Side],
    costs: Costs,
) -> None:
    """Every request once on each side, each side kept in the store as one process of the study."""
    began = time.time()
    rounds = {False: 2 * repeat + 1, True: 2 * repeat + 2}
    rows = {side: setting.store.begin_trial(setting.study.id, trial.plan, rounds[side], began) for side in rounds}
    samples: dict[bool, list[Sample]] = {False: [], True: []}
    for request in trial.requests:
        for live in (True, False) if (repeat + request.index) % 2 else (False, True):
            with page(setting, live, costs):
                sample = measure._observed(child, request, trial, setting.watch)
                setting.store.add_sample(rows[live], sample)
            samples[live].append(sample)
            sides[live].samples[repeat, request.index] = sample
    for live, row in rows.items():
        done = Measurement(
            trial.plan,
            rounds[live],
            "ok",
            samples=tuple(samples[live]),
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


def show(plan: Plan, live: Side, alone: Side, costs: Costs, opened_s: float) -> None:
    """The figures of one plan."""
    ratio = ratio_of(live.latencies, alone.latencies)
    medians = [1000 * statistics.median(side.latencies.values()) for side in (live, alone)]
    looked_at = {key: live.latencies[key] for key in hit(live.samples, costs.watched.looks)}
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
    looks = [1000 * (ended - began) for began, ended in costs.watched.looks]
    print(
        f"  a minute of watching: {len(looks) / minutes:.1f} looks of {statistics.median(looks or [0]):.0f} ms "
        f"(median), {costs.server_cpu_s / minutes:.2f} s of CPU for the server, "
        f"{costs.watched.client_cpu_s / minutes:.2f} s for the client"
    )
    print(f"  before it: opening the page, {1000 * opened_s:.0f} ms")
    inside = ratio.low is not None and ratio.high is not None and ratio.low > 1 - WITHIN and ratio.high < 1 + WITHIN
    print(f"  within {WITHIN:.0%}, interval included: {'yes' if inside else 'no'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="distilgpt2")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--threads", nargs="+", type=int, default=[2, 1])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=40, help="of every prompt, on each side")
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
    print("without the page: server and client suspended")
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "store.db") as store:
        keep(store, study)
        with locks.machine_lock(study.id, wait=True, on_wait=say), serving(store.path) as server, Watcher() as watcher:
            watcher.watch(server.port, study.id)  # once for all: imports, and what is decoded only once
            watcher.leave()
            for plan in plans:
                compare(bench, plan, Setting(study, store, server, watcher, watch), arguments.repeats)


if __name__ == "__main__":
    main()
