"""PlanResult: all the measurements of one plan, taken together.

Owns the derived numbers of a plan (percentiles, rates, peaks), each computed
from raw samples. Leaves comparing plans to `selection`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any, Generic, Literal, TypeVar

from .measurement import Actual, Measurement, Sample, Status
from .plan import Plan
from .stats import Estimate, process_estimate, quantile_estimate

PlanStatus = Status | Literal["waiting"]

Observed = tuple[tuple[float, ...], tuple[float, ...]]
"""Observations in full, and lower bounds of those that were cut short."""


T = TypeVar("T")


class Kept(Generic[T]):
    """A property that is made once for an object, in its `_made`: nothing that it is made from can change."""

    def __init__(self, make: Callable[[Any], T]) -> None:
        self._make, self._name, self.__doc__ = make, make.__name__, make.__doc__

    def __get__(self, of: PlanResult, kind: object = None) -> T:
        if self._name not in of._made:
            of._made[self._name] = self._make(of)
        found: T = of._made[self._name]
        return found


@dataclass(frozen=True, slots=True)
class PlanResult:
    """One plan and every process that ran it. `measurements` is empty while it waits.

    Figures are over the clean samples of processes that ended well. Disturbed
    samples leave them, unless asked for; a sample cut short counts as an
    observation that is known from below only (see `stats.quantile_estimate`).
    Where a plan was measured for its own sake, what a search only looked at
    (`Measurement.look`) leaves them too.

    Attributes:
        left_out: why the search was done with it before it could be chosen; empty otherwise.
    """

    plan: Plan
    measurements: tuple[Measurement, ...]
    left_out: str = ""
    # What was asked before: going through the samples again for every question cost most of a re-selection.
    _made: dict[object, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @Kept
    def status(self) -> PlanStatus:
        """`waiting` without a measurement; the last failure, if there is one; `ok` once a process ended well."""
        if not self.measurements:
            return "waiting"
        failures = [m.status for m in self.measurements if m.status not in ("ok", "interrupted")]
        if failures:
            return failures[-1]
        return "ok" if self.ok_measurements else "interrupted"

    @property
    def failed(self) -> bool:
        """Whether a process of this plan failed: it is then not run again and never chosen."""
        return self.status not in ("ok", "waiting", "interrupted")

    @property
    def reason(self) -> str:
        """Why the status is not `ok`, or why an `ok` plan has no figures; empty otherwise."""
        status = self.status
        if status == "waiting":
            return self.left_out or "not measured yet"
        if status != "ok":
            return next(m.reason for m in reversed(self.measurements) if m.status == status)
        if not self.samples and not self.cut_count:
            return f"none of its {len(self.all_samples)} samples is undisturbed"
        return ""

    @Kept
    def ok_measurements(self) -> tuple[Measurement, ...]:
        """The processes that ended well and that the figures come from, in the order they were measured."""
        ended = tuple(m for m in self.measurements if m.status == "ok")
        return tuple(m for m in ended if not m.look) or ended

    @Kept
    def looked_at(self) -> bool:
        """Whether all that is known of it comes from looks, which rule plans out and choose none."""
        return bool(self.ok_measurements) and all(m.look for m in self.ok_measurements)

    @Kept
    def samples(self) -> tuple[Sample, ...]:
        """Clean samples of the processes that ended well: what the figures are made of."""
        return tuple(s for m in self.ok_measurements for s in m.clean)

    @Kept
    def all_samples(self) -> tuple[Sample, ...]:
        """Every sample ever taken, whatever became of its process."""
        return tuple(s for m in self.measurements for s in m.samples)

    @Kept
    def disturbed_count(self) -> int:
        """Samples that were left out because something outside disturbed them."""
        return sum(bool(s.disturbed) for m in self.ok_measurements for s in m.samples)

    @Kept
    def cut_count(self) -> int:
        """Undisturbed samples that were ended early: known from below only."""
        return sum(s.cut and not s.disturbed for m in self.ok_measurements for s in m.samples)

    @property
    def processes(self) -> int:
        """How many processes the figures come from."""
        return len(self.ok_measurements)

    @Kept
    def by_process(self) -> tuple[PlanResult, ...]:
        """The same plan, each process that ended well by itself."""
        return tuple(PlanResult(self.plan, (m,)) for m in self.ok_measurements)

    def latency(self, q: float, include_disturbed: bool = False) -> Estimate:
        """The `q` quantile of the whole latency, in seconds, over requests."""
        return self._estimate("latency", q, include_disturbed, self.latencies)

    def ttft(self, q: float, include_disturbed: bool = False) -> Estimate:
        """The `q` quantile of the time to first token, in seconds, over requests."""
        return self._estimate("ttft", q, include_disturbed, self.ttfts)

    def tpot(self, q: float, include_disturbed: bool = False) -> Estimate:
        """The `q` quantile of the time per output token after the first, in seconds, over requests."""
        return self._estimate("tpot", q, include_disturbed, self.tpots)

    def latencies(self, include_disturbed: bool = False) -> Observed:
        """Latencies in seconds, and what is known of those cut short."""
        return self._observed("latency", include_disturbed, lambda s: s.latency_s, lambda s: s.latency_s)

    def ttfts(self, include_disturbed: bool = False) -> Observed:
        """Times to first token in seconds; a request cut before it took at least as long as it ran."""
        values, unknown = self._observed(
            "ttft",
            include_disturbed,
            lambda s: s.ttft_s if s.output_tokens else None,
            lambda s: None if s.output_tokens else s.latency_s,
        )
        seen = tuple(s.ttft_s for s in self._counted(include_disturbed) if s.cut and s.output_tokens)
        return values + seen, unknown

    def tpots(self, include_disturbed: bool = False) -> Observed:
        """Times per output token in seconds. Of a request cut short nothing is known: it would have gone on slower."""
        return self._observed("tpot", include_disturbed, lambda s: s.tpot_s, lambda s: 0.0)

    @Kept
    def tokens_per_s_mean(self) -> float | None:
        """Mean over clean samples of output tokens over the whole latency, prefill included."""
        return _mean(s.tokens_per_s for s in self.samples)

    @Kept
    def output_tokens_mean(self) -> float | None:
        """Mean over clean samples of the tokens that came out."""
        return _mean(float(s.output_tokens) for s in self.samples)

    @Kept
    def latency_mean_s(self) -> float | None:
        """Mean latency of the clean samples; None where some were cut short, for it would flatter the plan."""
        return None if self.cut_count else _mean(s.latency_s for s in self.samples)

    @Kept
    def peak_bytes(self) -> int | None:
        """Largest peak memory of its processes; None where none is known."""
        return max(self.peak_bytes_by_process, default=None)

    @property
    def peak_bytes_by_process(self) -> tuple[int, ...]:
        """Peak memory of each process that ended well and whose peak is known."""
        peaks = (m.memory.peak_bytes for m in self.ok_measurements if m.memory is not None)
        return tuple(b for b in peaks if b is not None)

    @Kept
    def load_s(self) -> Estimate:
        """Time to load the artifact, over processes."""
        return process_estimate([m.load_s for m in self.ok_measurements if m.load_s is not None])

    @Kept
    def startup_s(self) -> Estimate:
        """Time from starting a process until it was ready to load, over processes."""
        return process_estimate([m.startup_s for m in self.ok_measurements if m.startup_s is not None])

    @Kept
    def process_p50_s(self) -> tuple[float | None, ...]:
        """Median latency of each process that ended well; None where it has none."""
        return tuple(one.latency(0.5).value for one in self.by_process)

    @Kept
    def process_spread(self) -> float | None:
        """Largest over smallest median latency of its processes; None with fewer than two."""
        known = [p for p in self.process_p50_s if p is not None]
        return max(known) / min(known) if len(known) > 1 and min(known) > 0 else None

    @property
    def actual(self) -> Actual | None:
        """What really ran, as the last process that told says."""
        return next((m.actual for m in reversed(self.measurements) if m.actual is not None), None)

    @property
    def oversubscribed(self) -> bool:
        """Whether it ran with more threads than cores granted."""
        return any(m.oversubscribed for m in self.measurements)

    @Kept
    def latencies_by_request(self) -> Mapping[tuple[int, int], float]:
        """Clean latencies in seconds by (round, prompt index): what plans are paired by."""
        return {(m.round, s.index): s.latency_s for m in self.ok_measurements for s in m.clean}

    @Kept
    def latency_by_prompt(self) -> Mapping[int, float]:
        """Median clean latency in seconds by prompt index."""
        grouped: dict[int, list[float]] = {}
        for sample in self.samples:
            grouped.setdefault(sample.index, []).append(sample.latency_s)
        return {index: median(values) for index, values in sorted(grouped.items())}

    def _counted(self, include_disturbed: bool) -> tuple[Sample, ...]:
        return tuple(s for m in self.ok_measurements for s in m.samples if include_disturbed or not s.disturbed)

    def _observed(
        self,
        name: str,
        include_disturbed: bool,
        whole: Callable[[Sample], float | None],
        cut: Callable[[Sample], float | None],
    ) -> Observed:
        key = (name, include_disturbed)
        if key not in self._made:
            counted = self._counted(include_disturbed)
            values = (whole(s) for s in counted if not s.cut)
            bounds = (cut(s) for s in counted if s.cut)
            self._made[key] = tuple(v for v in values if v is not None), tuple(b for b in bounds if b is not None)
        made: Observed = self._made[key]
        return made

    def _estimate(self, name: str, q: float, include_disturbed: bool, observed: Callable[[bool], Observed]) -> Estimate:
        key = (name, q, include_disturbed)
        if key not in self._made:
            values, at_least = observed(include_disturbed)
            self._made[key] = quantile_estimate(values, q, unit="requests", at_least=at_least)
        made: Estimate = self._made[key]
        return made


def results(
    plans: Iterable[Plan], measurements: Iterable[Measurement], left_out: Mapping[Plan, str] | None = None
) -> tuple[PlanResult, ...]:
    """One result a plan, in the plans' order; measurements of other plans are left out."""
    why = left_out or {}
    grouped: dict[Plan, list[Measurement]] = {plan: [] for plan in plans}
    for measurement in measurements:
        if measurement.plan in grouped:
            grouped[measurement.plan].append(measurement)
    return tuple(PlanResult(plan, tuple(found), why.get(plan, "")) for plan, found in grouped.items())


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return fmean(known) if known else None
