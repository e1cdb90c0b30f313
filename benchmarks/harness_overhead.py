"""What measuring costs: requests inside a live study against the same loop run bare.

Twice, because processes of one plan differ by more than what is looked for:

- Within one process: every request is sent twice, once as in a study (canary, counters, memory sampled while it
  runs, the sample saved to a store on disk, a live table drawn on a terminal) and once by a parent that only waits
  for the answer; which comes first alternates. Prints the ratio of latencies paired by request.
- Between processes: a round is a study of one plan and the bare loop (`_bare.py`), in turn. Prints the ratio of
  latencies paired by round and prompt, the ratio of peak memory, and what a study's process costs beyond its
  requests.
"""

from __future__ import annotations

import argparse
import json
import os
import pty
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from _common import MIB, Bench, Key, header, latencies, make_ready, ratio_of, run_script, say, show_ratio

from inferplan import machine, measure, validity
from inferplan._codec import encode
from inferplan.measurement import Measurement, Request
from inferplan.plan import Plan, Space
from inferplan.progress import Progress
from inferplan.search import Proposal
from inferplan.selection import SLA, Objective
from inferplan.store import Store
from inferplan.study import PlanStarted, SampleTaken, Settings, Study, new_id, run, save_header
from inferplan.workload import Prompt, Workload


class Once:
    """A search that proposes one plan, once."""

    def __init__(self, plan: Plan, round_: int) -> None:
        self._next: Proposal | None = Proposal(plan, round_)

    def ask(self) -> Proposal | None:
        return self._next

    def tell(self, measurement: Measurement) -> None:
        self._next = None

    @property
    def remaining(self) -> int:
        return int(self._next is not None)

    @property
    def unfinished(self) -> bool:
        """Whether it would go on."""
        return False

    @property
    def left_out(self) -> Mapping[Plan, str]:
        return {}


def one_plan(bench: Bench, plan: Plan, tokens: int) -> Study:
    """A study of `plan` alone."""
    count = len(bench.ready.requests(plan.model))
    now = time.time()
    return Study(
        id=new_id(now),
        created_at=now,
        space=Space((plan.model,), (plan.engine,), (plan.precision,), (plan.threads,), (plan.kv_cache,)),
        workload=Workload(tuple(Prompt(text=f"{i}") for i in range(count)), max_new_tokens=tokens),
        sla=SLA.from_p50_ms(60_000),
        objective=Objective(),
        machine=machine.detect(),
        settings=Settings(rounds=1, retakes=0),
        checkpoints=(bench.checkpoints[plan.model],),
    )


def in_a_study(bench: Bench, plan: Plan, round_: int, tokens: int, store: Store, watch: measure.Watch) -> Measurement:
    """One process of `plan` in a study, drawn live on a pseudo-terminal."""
    study = one_plan(bench, plan, tokens)
    save_header(store, study)
    with terminal() as stream:
        progress = Progress(study, "live", stream)
        with progress.showing():
            search = Once(plan, round_)
            done = run(study, store, bench.ready, bench.infos, watch=watch, search=search, notify=progress)
    return done.measurements[-1]


def drain(master: int) -> None:
    """Read what is drawn, as a terminal does."""
    try:
        while os.read(master, 65536):
            pass
    except OSError:  # the other end was closed
        os.close(master)


def within(bench: Bench, plan: Plan, repeats: int, tokens: int, store: Store, watch: measure.Watch) -> None:
    """Watched and unwatched requests in turn, in one process."""
    study = one_plan(bench, plan, tokens)
    save_header(store, study)
    row = store.begin_trial(study.id, plan, 1, time.time())
    trial = bench.trial(plan, 1)
    child = measure._Child(trial, bench.infos[plan.engine], watch)
    watched: dict[Key, float] = {}
    alone: dict[Key, float] = {}
    with terminal() as stream:
        progress = Progress(study, "live", stream)
        try:
            child.load(measure._Record())
            for request in trial.warmup:
                child.generate(request, None)
            with progress.showing():
                progress(PlanStarted(plan, 1, 0))
                for repeat in range(repeats):
                    for request in trial.requests:
                        key = (repeat, request.index)
                        for ours in (True, False) if sum(key) % 2 else (False, True):
                            if not ours:
                                alone[key] = unwatched(child, request)
                                continue
                            sample = measure._observed(child, request, trial, watch)
                            store.add_sample(row, sample)
                            progress(SampleTaken(plan, 1, sample))
                            watched[key] = sample.latency_s
            child.close()
        finally:
            child.kill()
    print(f"\n{plan.id}")
    print(show_ratio("  within one process, request latency, watched over not", ratio_of(watched, alone), 4))


def unwatched(child: measure._Child, request: Request) -> float:
    """Send one request and sleep until its answer is there."""
    child._send({"do": "generate", "prompt_ids": request.prompt_ids, "max_tokens": request.max_tokens})
    line = child._inbox.get()
    if line is None:
        raise SystemExit("the worker died")
    return float(json.loads(line)["latency_s"])


@contextmanager
def terminal() -> Iterator[TextIO]:
    """A terminal that somebody reads."""
    master, slave = pty.openpty()
    threading.Thread(target=drain, args=(master,), daemon=True).start()
    with open(slave, "w", encoding="utf-8") as stream:
        yield stream


def bare(bench: Bench, plan: Plan, round_: int, tokens: int) -> tuple[dict[Key, float], int]:
    trial = bench.trial(plan, round_)
    requests = trial.requests if round_ % 2 else trial.requests[::-1]
    task = {
        "plan": encode(plan),
        "artifact": str(trial.artifact),
        "prompts": [list(request.prompt_ids) for request in requests],
        "warmup": list(trial.warmup[0].prompt_ids),
        "warmup_tokens": trial.warmup[0].max_tokens,
        "tokens": tokens,
    }
    answer = run_script("_bare.py", task, plan.threads)
    times = {(round_, request.index): s for request, s in zip(requests, answer["latency_s"], strict=True)}
    return times, int(answer["peak_bytes"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="distilgpt2")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "int8"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=12, help="of every prompt, within one process")
    parser.add_argument("--tokens", type=int, default=64)
    arguments = parser.parse_args()
    plans = [Plan(arguments.model, "transformers", p, t) for p in arguments.precisions for t in arguments.threads]
    bench = make_ready([arguments.model], plans, arguments.tokens)
    print(header(bench.checkpoints, arguments.tokens))
    watch = measure.Watch(cores=machine.detect().cores_granted, canary=validity.Canary())
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "store.db") as store:
        for plan in plans:
            within(bench, plan, arguments.repeats, arguments.tokens, store, watch)
            compare(bench, plan, arguments.rounds, arguments.tokens, store, watch)


def compare(bench: Bench, plan: Plan, rounds: int, tokens: int, store: Store, watch: measure.Watch) -> None:
    studied: list[Measurement] = []
    alone: dict[Key, float] = {}
    peaks: list[int] = []
    for round_ in range(1, rounds + 1):
        say(f"{plan.id}: round {round_} of {rounds}")
        turns = [True, False] if round_ % 2 else [False, True]
        for ours in turns:
            if ours:
                studied.append(in_a_study(bench, plan, round_, tokens, store, watch))
            else:
                times, peak = bare(bench, plan, round_, tokens)
                alone.update(times)
                peaks.append(peak)
    print(
        show_ratio("  between processes, request latency, in a study over bare", ratio_of(latencies(studied), alone), 4)
    )
    ours_peak = statistics.median(m.memory.peak_bytes or 0 for m in studied if m.memory)
    bare_peak = statistics.median(peaks)
    memory = f"{ours_peak / bare_peak:.4f} ({ours_peak / MIB:.0f} MiB, medians of {rounds})"
    print(f"  peak memory, in a study over bare: {memory}")
    beyond = [m.wall_s - sum(s.latency_s for s in m.samples) for m in studied]
    loads = [(m.startup_s or 0) + (m.load_s or 0) for m in studied]
    requests = [sum(s.latency_s for s in m.samples) for m in studied]
    print(
        f"  a process beyond its requests: {statistics.median(beyond):.2f} s, of which start and load "
        f"{statistics.median(loads):.2f} s; requests {statistics.median(requests):.2f} s (medians of {rounds})"
    )


if __name__ == "__main__":
    main()
