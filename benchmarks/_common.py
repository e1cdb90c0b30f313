"""What the benchmark scripts share: models and prompts made ready, ratios printed one way.

Owns preparation and printing. Leaves what is compared to each script.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from inferplan import machine, prepare
from inferplan.bandwidth import read_bandwidth
from inferplan.engines.base import EngineInfo
from inferplan.measurement import Measurement, Trial
from inferplan.models import Checkpoint
from inferplan.plan import Plan, Space
from inferplan.stats import Ratio, paired_ratio
from inferplan.study import pin
from inferplan.workload import Workload, parse_prompts

HERE = Path(__file__).resolve().parent
MIB = 1 << 20
Key = tuple[int, int]  # (round, prompt)


@dataclass(frozen=True, slots=True)
class Bench:
    """Checkpoints, token ids and artifacts of some plans."""

    infos: Mapping[str, EngineInfo]
    checkpoints: Mapping[str, Checkpoint]
    ready: prepare.Preparation

    def trial(self, plan: Plan, round_: int) -> Trial:
        """One process of `plan` with every prompt."""
        artifact = self.ready.artifact(plan)
        if isinstance(artifact, tuple):
            raise SystemExit(f"{plan.id}: {artifact[0]}: {artifact[1]}")
        requests, warmup = self.ready.requests(plan.model), self.ready.warmup(plan.model)
        cpus = pin(plan.threads, machine.preferred_cpus())
        return Trial(plan, artifact, round_, requests, warmup, cpus=cpus)


def make_ready(models: Sequence[str], plans: Sequence[Plan], tokens: int, prompts: int | None = None) -> Bench:
    """Resolve, tokenize and convert, with the shipped prompts (the first `prompts` of them)."""
    shipped = parse_prompts((files("inferplan") / "data" / "prompts.txt").read_text(encoding="utf-8"), jsonl=False)
    workload = Workload(shipped[:prompts], max_new_tokens=tokens)
    infos = prepare.describe_engines({plan.engine for plan in plans})
    space = Space(tuple(models), tuple(infos))
    checkpoints = prepare.resolve_models(space, infos, weights="auto", trust_remote_code=False, tell=say)
    ready = prepare.prepare(checkpoints, workload, plans, infos, say)
    return Bench(infos, {checkpoint.name: checkpoint for checkpoint in checkpoints}, ready)


def say(text: str) -> None:
    """A line of progress, apart from the figures."""
    print(text, file=sys.stderr, flush=True)


def header(checkpoints: Mapping[str, Checkpoint], tokens: int) -> str:
    """The machine and the models that every figure below is about."""
    here = machine.detect()
    models = "; ".join(f"{name}: {checkpoint.weights}" for name, checkpoint in checkpoints.items())
    return (
        f"machine: {here.cpu_model}, {here.cores_granted:g} cores, {here.memory_bytes / 2**30:.1f} GiB\n"
        f"models: {models}\n{tokens} output tokens, greedy, one request at a time"
    )


def run_script(name: str, task: Mapping[str, Any], threads: int | None) -> dict[str, Any]:
    """Run a script beside this one in a fresh process, pinned as ours are; it prints one JSON object last.

    Without `threads` it is neither pinned nor told a number of threads.
    """
    cpus = () if threads is None else pin(threads, machine.preferred_cpus())
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    if threads is not None:
        env.update(OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))
    command = [sys.executable, str(HERE / name)]
    task = {**task, "cpus": list(cpus)}
    done = subprocess.run(command, input=json.dumps(task), env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{name} failed: {done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def latencies(measurements: Sequence[Measurement]) -> dict[Key, float]:
    """Seconds by (round, prompt), every sample counted: both sides of a pair saw the same neighbours."""
    for measurement in measurements:
        if measurement.status != "ok":
            raise SystemExit(f"{measurement.plan.id}: {measurement.status}: {measurement.reason}")
    return {(m.round, s.index): s.latency_s for m in measurements for s in m.samples}


def show_ratio(what: str, ratio: Ratio, digits: int = 3) -> str:
    """`what: 2.31 [2.28, 2.35] (16 pairs)`."""
    if ratio.value is None:
        return f"{what}: no pairs"
    interval = "" if ratio.low is None else f" [{ratio.low:.{digits}f}, {ratio.high:.{digits}f}]"
    return f"{what}: {ratio.value:.{digits}f}{interval} ({ratio.n} pairs)"


def ratio_of(a: Mapping[Key, float], b: Mapping[Key, float]) -> Ratio:
    """How `a` compares with `b`, paired by round and prompt."""
    return paired_ratio(a, b)


def bandwidth(threads: int) -> tuple[float, str]:
    """Read bandwidth in bytes a second, measured now, and the kernel that read."""
    found = read_bandwidth(threads)
    return found.bytes_per_s, found.kernel
