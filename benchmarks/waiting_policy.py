"""How a pool of threads waits for work, with and without a neighbour: every value of `spin`, engine by engine.

Plans that differ in their waiting policy alone are loaded side by side and get the same request in turn. Conditions
alternate by block: a quiet machine, and a neighbour that keeps one core busy for a share of the time (bursts of 10 ms
and pauses between them, on the first of the plan's cores). Printed are latencies over those of the engine's default on
a quiet machine, paired by block and prompt, and how many samples the check for disturbed samples recognizes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from _common import Bench, Key, header, make_ready, ratio_of, say, show_ratio
from _side_by_side import loaded

from inferplan import machine, measure, validity
from inferplan.measurement import Sample
from inferplan.plan import Plan
from inferplan.prepare import describe_engines

BURST_S = 0.010
Cell = tuple[str, float]  # (waiting policy, share of a core that the neighbour takes)


@dataclass(slots=True)
class Seen:
    """What one engine did in all conditions."""

    latencies: dict[Cell, dict[Key, float]] = field(default_factory=dict)
    samples: dict[Cell, list[Sample]] = field(default_factory=dict)

    def add(self, cell: Cell, key: Key, sample: Sample) -> None:
        """Keep one sample."""
        self.latencies.setdefault(cell, {})[key] = sample.latency_s
        self.samples.setdefault(cell, []).append(sample)


def hog() -> None:
    """Keep the core given as an argument busy for the given share of the time, until killed."""
    cpu, share = int(sys.argv[2]), float(sys.argv[3])
    os.sched_setaffinity(0, [cpu])
    while True:
        end = time.perf_counter() + BURST_S
        while time.perf_counter() < end:
            pass
        if share < 1:
            time.sleep(BURST_S * (1 - share) / share)


@contextmanager
def neighbour(share: float) -> Iterator[None]:
    """A busy process beside us; with a share of 0, none."""
    if not share:
        yield
        return
    cpu = sorted(machine.preferred_cpus())[0]
    busy = subprocess.Popen([sys.executable, __file__, "--hog", str(cpu), str(share)])
    try:
        time.sleep(0.3)
        yield
    finally:
        busy.kill()
        busy.wait()


def policies(engine: str, model: str, precision: str, threads: int) -> dict[str, Plan]:
    """By value of `spin` a plan, the engine's default first; empty: the engine has no such axis, or is not there."""
    info = describe_engines([engine])[engine]
    axis = next((axis for axis in info.axes if axis.name == "spin"), None)
    if axis is None or "engine" in info.lacks or precision not in info.precisions:
        return {}
    return {str(v): Plan(model, engine, precision, threads, options=(("spin", v),)) for v in axis.values}


def compare(
    bench: Bench, plans: Mapping[str, Plan], shares: Sequence[float], blocks: int, rounds: int, watch: measure.Watch
) -> Seen:
    """All conditions of one engine."""
    seen = Seen()
    requests = bench.ready.requests(next(iter(plans.values())).model)
    for round_ in range(rounds):
        with loaded(bench, plans, round_ + 1, watch) as sides:
            for block in range(blocks):
                order = shares if block % 2 else tuple(reversed(shares))
                for share in order:
                    with neighbour(share):
                        for request in requests:
                            for name, sample in sides.rotate(block + request.index, request):
                                seen.add((name, share), (round_ * blocks + block, request.index), sample)
    return seen


def show(engine: str, plans: Mapping[str, Plan], seen: Seen, shares: Sequence[float]) -> None:
    """One line a cell."""
    usual, plan = next(iter(plans.items()))
    default = seen.latencies[usual, 0.0]
    print(f"\n{engine}, {plan.model} {plan.precision}, {plan.threads} threads: latency over spin={usual}, quiet")
    for share in shares:
        for name in plans:
            samples = seen.samples[name, share]
            ratio = ratio_of(seen.latencies[name, share], default)
            median = statistics.median(sample.latency_s for sample in samples)
            cpu = statistics.median(sample.cpu_s / sample.latency_s for sample in samples)
            marked = sum(bool(sample.disturbed) for sample in samples)
            told = show_ratio(f"  neighbour {share:4.0%}, spin={name:>11}", ratio)
            print(
                f"{told}; {1000 * median:.0f} ms, {cpu:.2f} cores busy, {marked} of {len(samples)} marked as disturbed"
            )


def main() -> None:
    if sys.argv[1:2] == ["--hog"]:
        hog()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gpt2")
    parser.add_argument(
        "--engines", nargs="+", default=["transformers", "ctranslate2", "llamacpp", "onnxruntime", "vllm"]
    )
    parser.add_argument("--precision", default="int8", help="FP32 for engines that have nothing else")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--shares", nargs="+", type=float, default=[0.0, 0.04, 0.5, 1.0], help="of a core, for the neighbour"
    )
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--prompts", type=int, default=3, help="how many of the shipped prompts")
    arguments = parser.parse_args()
    groups = {}
    for engine in arguments.engines:
        for precision in dict.fromkeys((arguments.precision, "fp32")):
            if plans := policies(engine, arguments.model, precision, arguments.threads):
                groups[engine] = plans
                break
        else:
            say(f"left out: {engine} has no option spin here")
    every = [plan for plans in groups.values() for plan in plans.values()]
    bench = make_ready([arguments.model], every, arguments.tokens, arguments.prompts)
    print(header(bench.checkpoints, arguments.tokens))
    watch = measure.Watch(cores=machine.detect().cores_granted, canary=validity.Canary())
    shares = tuple(arguments.shares)
    for engine, plans in groups.items():
        say(engine)
        show(engine, plans, compare(bench, plans, shares, arguments.blocks, arguments.rounds, watch), shares)


if __name__ == "__main__":
    main()
