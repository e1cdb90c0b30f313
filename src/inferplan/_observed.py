"""Observation and Prediction: what a plan showed, and what it is believed to show. Values only.

Owns how an observation is made of a plan's samples. Leaves predicting to `predict`, which hands these names on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from .measurement import Sample
from .plan import Plan
from .result import PlanResult


@dataclass(frozen=True, slots=True)
class Range:
    """A prediction: its median, and the interval that nine of ten truths should lie in."""

    low: float
    value: float
    high: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one plan would take. Never a measurement.

    Attributes:
        latency_s, ttft_s, tpot_s: medians over requests.
        peak_bytes: of the process.
        startup_s: from starting the process until the model is loaded.
        output_tokens: of the request that it is about.
        bottleneck: what takes most of a request, and its share.
        basis: how much was measured that it rests on.
    """

    plan: Plan
    latency_s: Range
    ttft_s: Range
    tpot_s: Range
    peak_bytes: Range
    startup_s: Range
    output_tokens: float
    bottleneck: str
    basis: str


@dataclass(frozen=True, slots=True)
class Observation:
    """The medians of one plan over its clean samples and processes.

    Attributes:
        prompt_tokens, output_tokens: medians.
        latency_s: None where every request was cut short.
        tpot_s: None with fewer than two output tokens.
        peak_bytes, startup_s: None where not known; `startup_s` includes loading.
        other_ttft: (prompt tokens, median TTFT in seconds) of the prompts whose length is furthest, as a ratio, from
            the median; None where all prompts are of one length.
        study: that it comes from, where several are taken together: their requests may differ.
    """

    plan: Plan
    prompt_tokens: float
    output_tokens: float
    ttft_s: float
    tpot_s: float | None
    latency_s: float | None
    peak_bytes: int | None
    startup_s: float | None
    other_ttft: tuple[float, float] | None = None
    study: str = ""


def observations(results: Iterable[PlanResult], *, or_disturbed: bool = False) -> tuple[Observation, ...]:
    """What plans showed: one each; none for a plan without an undisturbed first token, or not on the CPU.

    A request that was cut short tells the time to its first token and between those
    that came; its latency is left out.

    Args:
        or_disturbed: of a plan whose every sample was disturbed, take those: better than nothing for who must decide
            what to try next, and of no worth as a figure.
    """
    found = (_observation(result, or_disturbed) for result in results if result.plan.device == "cpu")
    return tuple(one for one in found if one is not None)


def _observation(result: PlanResult, or_disturbed: bool) -> Observation | None:
    ok = result.ok_measurements
    known = [s for m in ok for s in m.samples if s.token_times_s and s.prompt_tokens > 0]
    samples = [s for s in known if not s.disturbed] or (known if or_disturbed else [])
    if not samples:
        return None
    whole = [s for s in samples if not s.cut]
    tpots = [s.tpot_s for s in samples if s.tpot_s]
    started = [m.startup_s + m.load_s for m in ok if m.startup_s is not None and m.load_s is not None]
    return Observation(
        plan=result.plan,
        prompt_tokens=median(s.prompt_tokens for s in samples),
        output_tokens=median(s.output_tokens for s in whole or samples),
        ttft_s=median(s.ttft_s for s in samples),
        tpot_s=median(tpots) if tpots else None,
        latency_s=median(s.latency_s for s in whole) if whole else None,
        peak_bytes=result.peak_bytes,
        startup_s=median(started) if started else None,
        other_ttft=_furthest(samples),
    )


def _furthest(samples: Sequence[Sample]) -> tuple[float, float] | None:
    middle = median(s.prompt_tokens for s in samples)
    length = max({s.prompt_tokens for s in samples}, key=lambda n: (abs(math.log(n / middle)), n))
    if length == middle:
        return None
    return float(length), median(s.ttft_s for s in samples if s.prompt_tokens == length)
