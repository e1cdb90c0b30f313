"""Makes fake Measurements out of latencies, for tests of what is derived from them.

Owns values only. Leaves running anything to the fake engine.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from inferplan.measurement import Actual, Measurement, Memory, Sample, Status
from inferplan.plan import Plan

MIB = 2**20


def plan(model: str = "tiny", threads: int = 1, precision: str = "fp32", kv_cache: bool = True) -> Plan:
    """A plan of the fake engine."""
    return Plan(model, "fake", precision, threads, kv_cache)


def sample(
    index: int,
    latency_s: float,
    *,
    ttft_s: float | None = None,
    tokens: int = 8,
    cut: bool = False,
    disturbed: tuple[str, ...] = (),
) -> Sample:
    """One request: the first token at `ttft_s` (a tenth of the latency), the rest evenly up to the end."""
    first = latency_s / 10 if ttft_s is None else ttft_s
    step = (latency_s - first) / max(tokens - 1, 1)
    times = tuple(first + step * i for i in range(tokens))
    return Sample(
        index=index,
        started_at=float(index),
        latency_s=latency_s,
        token_times_s=times,
        prompt_tokens=16,
        output_ids=tuple(range(tokens)),
        rss_bytes=100 * MIB,
        cut=cut,
        disturbed=disturbed,
    )


def measurement(
    plan: Plan,
    latencies_s: Sequence[float] = (),
    *,
    round: int = 1,
    ttft_s: float | None = None,
    tokens: int = 8,
    peak_bytes: int | None = 100 * MIB,
    load_s: float | None = 0.5,
    startup_s: float | None = 0.25,
    status: Status = "ok",
    reason: str = "",
    disturbed: Collection[int] = (),
    cut: Collection[int] = (),
    actual: Actual | None = None,
) -> Measurement:
    """One process of `plan`: a sample a latency, prompt 0 first.

    `disturbed` and `cut` hold the places of the samples that are so. A status
    other than ok leaves the samples in place, as a real failure does.
    """
    samples = tuple(
        sample(
            i,
            latency,
            ttft_s=ttft_s,
            tokens=tokens,
            cut=i in cut,
            disturbed=("other processes took CPU time",) if i in disturbed else (),
        )
        for i, latency in enumerate(latencies_s)
    )
    ran = Actual(
        dtype="float32",
        weights="int8" if plan.quantized else "float32",
        threads=plan.threads,
        kernel="fake",
        kv_cache=plan.kv_cache,
    )
    return Measurement(
        plan=plan,
        round=round,
        status=status,
        reason=reason,
        samples=samples,
        actual=actual or (ran if status == "ok" else None),
        memory=None if peak_bytes is None else Memory(peak_bytes // 2, peak_bytes),
        startup_s=startup_s,
        load_s=load_s,
        wall_s=sum(latencies_s),
    )
