"""Studies made of fake measurements, one for each outcome that a report must tell.

Owns values only. Leaves single measurements to `factories`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from factories import MIB, measurement
from inferplan.machine import Machine
from inferplan.measurement import Actual, Measurement
from inferplan.models import Checkpoint
from inferplan.plan import Plan, Space
from inferplan.selection import Objective, parse_sla
from inferplan.study import Settings, Study
from inferplan.workload import Prompt, Workload

MACHINE = Machine(
    cpu_model="Made-up CPU 9000",
    arch="x86_64",
    isa=("avx2",),
    cores_logical=4,
    cores_physical=2,
    cores_granted=2.0,
    caches=(("L3", 32 * MIB),),
    memory_bytes=8192 * MIB,
    memory_granted_bytes=4096 * MIB,
    gpus=(),
    system="Linux",
    kernel="6.1",
    python="3.11.9",
)
PROMPTS = tuple(Prompt(text=f"prompt number {i}, " + "long " * i) for i in range(8))
SHAPE = (1.0, 1.02, 0.98, 1.01, 0.99, 1.03, 0.97, 1.005)


def checkpoint(name: str, provenance: Literal["hub", "local", "packaged", "synthetic"] = "local") -> Checkpoint:
    words = "synthetic weights, seed 0" if provenance == "synthetic" else "float32"
    return Checkpoint(name, Path("somewhere"), provenance, words, content_hash=f"hash of {name}")


def study(
    models: tuple[str, ...] = ("tiny",),
    sla: tuple[str, ...] = ("p50<=1500ms",),
    measurements: tuple[Measurement, ...] = (),
    rejected: Mapping[Plan, str] | None = None,
    provenance: Literal["hub", "local", "packaged", "synthetic"] = "local",
    threads: tuple[int, ...] = (1, 2),
    precisions: tuple[str, ...] = ("fp32", "int8"),
    prompts: tuple[Prompt, ...] = PROMPTS,
) -> Study:
    """A study of the fake engine; plans without a measurement wait."""
    return Study(
        id="20260101-120000-abcd",
        created_at=1_767_268_800.0,
        space=Space(models, ("fake",), precisions, threads),
        workload=Workload(prompts, max_new_tokens=8),
        sla=parse_sla(list(sla)),
        objective=Objective(),
        machine=MACHINE,
        settings=Settings(),
        checkpoints=tuple(checkpoint(name, provenance) for name in models),
        libraries={"fake": "1.0"},
        rejected=tuple((rejected or {}).items()),
        measurements=measurements,
        finished=True,
    )


def runs(plan: Plan, p50_s: float, *, rounds: int = 2, peak: int = 300 * MIB, noise: float = 0.01) -> list[Measurement]:
    """Each round a process: eight prompts around `p50_s`."""
    source = random.Random(plan.id)
    return [
        measurement(
            plan, [p50_s * x * (1 + source.uniform(-noise, noise)) for x in SHAPE], round=i, peak_bytes=peak,
        )
        for i in range(1, rounds + 1)
    ]  # fmt: skip


def expected_p50_s(plan: Plan) -> float:
    """INT8 and threads make it faster, no cache slower."""
    base = 2.0 if plan.precision == "fp32" else 0.9
    return base / float(plan.threads**0.7) * (1 if plan.kv_cache else 4)


def full(**terms: object) -> Study:
    """Two models, 16 plans: a chosen one, misses, a crash, a rejected plan, disturbed, cut and oversubscribed ones."""
    empty = study(models=("distilgpt2", "gpt2"), threads=(1, 2, 4), **terms)  # type: ignore[arg-type]
    plans = empty.space.plans
    done: list[Measurement] = []
    for place, plan in enumerate(plans[:-1]):
        heavier = 2 if plan.model == "gpt2" else 1
        peak = (420 if plan.precision == "fp32" else 190) * heavier * MIB + plan.threads * 7 * MIB
        found = runs(plan, expected_p50_s(plan) * heavier, peak=peak)
        if place == 3:
            found = [measurement(plan, [1.0], status="crashed", reason="killed by signal 9 <out of memory?>")]
        if plan.threads == 4:
            found = [replace(m, oversubscribed=True) for m in found]
        if place == 1:
            found[0] = replace(
                found[0],
                samples=(*found[0].samples, replace(found[0].samples[0], disturbed=("steal 12%",), latency_s=9.0)),
            )
        done += found
    return replace(empty, measurements=tuple(done), rejected=((plans[-1], "fake has no cache-less INT8 here"),))


def chosen() -> Study:
    return full()


def none_meets() -> Study:
    return full(sla=("p50<=10ms",))


def synthetic() -> Study:
    return full(provenance="synthetic")


def undecided() -> Study:
    """Three prompts once: too few to bound a median."""
    empty = study(prompts=PROMPTS[:3], threads=(1,))
    return replace(empty, measurements=tuple(measurement(plan, [1.0, 1.1, 1.2]) for plan in empty.plans))


def failed() -> Study:
    """Every plan fails in its own way."""
    empty = study(threads=(1,))
    one, two, three, four = empty.space.plans
    return replace(
        empty,
        measurements=(
            measurement(one, [1.0, 1.1], status="failed", reason="=HYPERLINK(1) | said the engine\nand more"),
            measurement(two, status="out_of_memory", reason="wanted 9 GiB"),
            measurement(three, status="timeout", reason="no token in 600 s"),
        ),
        rejected=((four, "not here"),),
    )


def empty() -> Study:
    """Nothing was measured yet."""
    return replace(study(), finished=False)


def raced() -> Study:
    """A race: the winner in six processes, a plan that was looked at, and six that were never started."""
    plain = replace(study(threads=(1, 2)), settings=Settings(strategy="racing"))
    winner, seen, *others = sorted(plain.plans, key=expected_p50_s)
    looks = [replace(m, look=True) for plan in (winner, seen) for m in runs(plan, expected_p50_s(plan), rounds=1)]
    final = [replace(m, round=m.round + 2) for m in runs(winner, expected_p50_s(winner), rounds=6)]
    out = {
        seen: "ruled out by a look at 8 requests: 1.62x the latency",
        **dict.fromkeys(others, "not started: predicted"),
    }
    return replace(plain, measurements=(*looks, *final), left_out=tuple(out.items()))


def hostile() -> Study:
    """Names that would be markup, a formula, or a terminal's command."""
    name = "=<script>alert('x')</script>|$a_b$\x1b[31m"
    ran = Actual("float32", "int8", 1, "=cmd()", details={})
    plain = study(models=(name,), threads=(1,))
    done = [replace(m, actual=ran) for plan in plain.plans for m in runs(plan, 1.0)]
    return replace(plain, measurements=tuple(done))


STUDIES = {make.__name__: make for make in (chosen, none_meets, synthetic, undecided, failed, empty, raced, hostile)}
