"""Studies that nobody measured, with figures of a likely size: what the pages are timed with.

Owns their making, the same for the same seed, and keeping them in a store. Leaves
asking anything of them to the scripts.
"""

from __future__ import annotations

import hashlib
import math
import random
import time
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

from inferplan import machine
from inferplan.machine import Machine
from inferplan.measurement import Actual, Measurement, Memory, Sample, Signals
from inferplan.models import Checkpoint
from inferplan.plan import PRECISIONS, Plan, Space
from inferplan.selection import Objective, parse_sla
from inferplan.store import Store
from inferplan.study import Settings, Study, exported
from inferplan.workload import Prompt, Workload

MIB = 1 << 20
SPACE_500 = Space(
    models=("distilgpt2", "gpt2", "smollm2-135m", "qwen2.5-0.5b", "llama-3.2-1b"),
    precisions=PRECISIONS,
    threads=(1, 2, 4, 8, 16),
    options=(("attention", ("sdpa", "eager")),),
)
# Roughly: seconds of 64 tokens with one thread in FP32, and parameters in millions.
_SIZES = {
    "distilgpt2": (1.3, 82),
    "gpt2": (2.3, 124),
    "smollm2-135m": (2.6, 135),
    "qwen2.5-0.5b": (8.0, 494),
    "llama-3.2-1b": (19.0, 1236),
}
# INT4 slower than INT8 and no cache slower still, both smaller: under the objective `memory` each SLA has its own plan.
_SPEED = {"fp32": 1.0, "bf16": 1.3, "fp16": 0.8, "int8": 1.9, "int4": 0.6}
_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "int8": 1.2, "int4": 0.7}
_DISTURBED_SHARE = 0.02
_FAILS_EVERY = 83  # plans, of which one crashes
_VOCABULARY = 50_000


def made_up(id: str, space: Space, *, rounds: int = 2, prompts: int = 8, tokens: int = 64, seed: int = 0) -> Study:
    """A study of every plan of `space`: `rounds` processes a plan, each of `prompts` requests of `tokens` tokens."""
    source = random.Random(seed)
    here = machine.detect()
    lengths = [source.randint(8, 200) for _ in range(prompts)]
    measured: list[Measurement] = []
    for round_ in range(1, rounds + 1):
        for place, plan in enumerate(space.plans):
            fails = place % _FAILS_EVERY == _FAILS_EVERY - 1
            if not fails or round_ == 1:
                measured.append(_process(plan, round_, lengths, tokens, here, source, fails))
    return Study(
        id=id,
        created_at=time.time(),
        space=space,
        workload=Workload(tuple(Prompt(text="word " * n) for n in lengths), max_new_tokens=tokens),
        sla=parse_sla(["p50<=1500ms"]),
        objective=Objective("memory"),
        machine=here,
        settings=Settings(rounds=rounds, all_rounds=True),
        checkpoints=tuple(_checkpoint(model) for model in space.models),
        measurements=tuple(measured),
        finished=True,
    )


def keep(store: Store, study: Study) -> None:
    """Save the study with everything in it, in one transaction."""
    store.import_study(exported(study))


def unfinished(study: Study, without: tuple[Plan, ...]) -> Study:
    """The study while it runs: in its last round but one, and nothing measured of `without`."""
    kept = tuple(m for m in study.measurements if m.plan not in without)
    settings = replace(study.settings, rounds=study.settings.rounds + 1, all_rounds=False)
    return replace(study, measurements=kept, settings=settings, finished=False)


def latency_s(plan: Plan, cores: float) -> float:
    """What a request of the plan is made to take: faster with threads up to the cores, slower without a cache."""
    base, _ = _SIZES.get(plan.model, _SIZES["gpt2"])
    useful = min(float(plan.threads), max(cores, 1.0))
    crowded = 1.0 + 0.3 * max(plan.threads - useful, 0.0) / plan.threads
    cache = 1.0 if plan.kv_cache else 3.5
    attention = 1.06 if plan.option("attention", "sdpa") == "eager" else 1.0
    return base / _SPEED.get(plan.precision, 1.0) / math.pow(useful, 0.75) * crowded * cache * attention


def _process(
    plan: Plan, round_: int, lengths: list[int], tokens: int, here: Machine, source: random.Random, fails: bool
) -> Measurement:
    middle = latency_s(plan, here.cores_granted) * source.gauss(1.0, 0.008)
    _, millions = _SIZES.get(plan.model, _SIZES["gpt2"])
    peak = int((millions * 1e6 * _BYTES.get(plan.precision, 4.0)) * 1.15 + 160 * MIB + plan.threads * 4 * MIB)
    peak += 20 * MIB if plan.kv_cache else 0
    now = time.time()
    samples = []
    for index, length in enumerate(lengths[:2] if fails else lengths):
        latency = middle * (1 + length / 2000) * source.gauss(1.0, 0.01)
        samples.append(_sample(index, now, latency, length, tokens, peak, source))
        now += latency
    return Measurement(
        plan=plan,
        round=round_,
        status="crashed" if fails else "ok",
        reason="while generating: the process died of SIGSEGV" if fails else "",
        samples=tuple(samples),
        actual=Actual("float32", plan.precision, plan.threads, "made up", attention="sdpa", kv_cache=plan.kv_cache),
        memory=Memory(int(peak * 0.9), peak, int(peak * 0.6), int(peak * 0.3), 4.0),
        startup_s=2.5 * source.gauss(1.0, 0.03),
        load_s=0.4 * source.gauss(1.0, 0.05),
        started_at=samples[0].started_at,
        wall_s=3.5 + sum(sample.latency_s for sample in samples),
        oversubscribed=plan.threads > here.cores_granted,
        libraries={"torch": "2.13.0", "transformers": "5.23.0"},
    )


def _sample(
    index: int, started_at: float, latency: float, length: int, tokens: int, rss: int, source: random.Random
) -> Sample:
    first = 0.02 + length / 4000
    steps = [first, *(source.uniform(0.95, 1.05) * (1 - first) / max(tokens - 1, 1) for _ in range(tokens - 1))]
    times = list(accumulate(steps))
    ids = tuple(source.randrange(_VOCABULARY) for _ in range(tokens))
    disturbed = source.random() < _DISTURBED_SHARE
    return Sample(
        index=index,
        started_at=started_at,
        latency_s=latency,
        token_times_s=tuple(t / times[-1] * latency for t in times),
        prompt_tokens=length,
        output_ids=ids,
        output_sha256=hashlib.sha256(repr(ids).encode()).hexdigest(),
        cpu_s=latency * 1.02,
        rss_bytes=rss,
        disturbed=("other processes took 120 ms of CPU time",) if disturbed else (),
        signals=Signals(latency, 0.12 if disturbed else 0.004, 0.0, 0.001, 0.0, 0, 0.0031),
    )


def _checkpoint(model: str) -> Checkpoint:
    name = hashlib.sha256(model.encode()).hexdigest()
    return Checkpoint(model, Path("made-up") / model, "synthetic", "synthetic weights, seed 0", name)
