"""Two studies, plan by plan: ratios B over A with intervals, and gates on them for a user's CI.

Owns pairing by prompt and what a gate may conclude. Leaves the statistics to
`stats`, escaping and numbers to `report`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from ._codec import encode
from .errors import InputError, UnknownNameError
from .measurement import Sample
from .plan import Plan
from .report.markdown import escape, table
from .report.numbers import MISSING, mebibytes, milliseconds, short
from .report.table import one_line
from .result import PlanResult, results
from .stats import CONFIDENCE, TIE_WITHIN, Ratio, bound_needs, paired_ratio, quantile_estimate
from .study import Study

SCHEMA = 1
GATE_FAILED = 1
"""Exit code of `compare` when a gate fails; 2 to 4 and 130 have their meanings elsewhere."""

Key = tuple[str, int]  # what makes two requests the same: hash of the prompt, tokens asked for

_MIN_PROCESSES = 2  # fewer show no spread: the range would be a point


@dataclass(frozen=True, slots=True)
class ComparedMetric:
    """One thing that is compared. `worse` is the direction in which it gets worse: `>` or `<`."""

    name: str
    title: str
    worse: Literal[">", "<"]
    help: str


METRICS: Mapping[str, ComparedMetric] = {
    m.name: m
    for m in (
        ComparedMetric("p50", "p50 latency", ">", "latency, paired by prompt"),
        ComparedMetric("p95", "p95 latency", ">", "ratio of the two p95, not paired"),
        ComparedMetric("ttft", "TTFT", ">", "time to first token, paired by prompt"),
        ComparedMetric("tpot", "TPOT", ">", "time per output token after the first, paired by prompt"),
        ComparedMetric("tokens_per_s", "tokens/s", "<", "output tokens over the whole latency, paired by prompt"),
        ComparedMetric("peak_rss", "peak memory", ">", "largest peak of the processes seen"),
    )
}


@dataclass(frozen=True, slots=True)
class Change:
    """How one metric of one plan differs: B over A.

    Attributes:
        a, b: the two figures in seconds, bytes or tokens per second; None where not known.
        ratio: b over a; its interval is over prompts, or the range over the processes seen for `peak_rss`.
        unit: what `ratio.n` counts: `prompts`, `requests`, `processes`.
        missing: why there is no ratio, or no interval; empty otherwise.
    """

    metric: str
    a: float | None
    b: float | None
    ratio: Ratio
    unit: str
    missing: str = ""

    @property
    def says(self) -> str:
        """In words: B is better, worse, the same within 3%, or nothing is shown."""
        low, high = self.ratio.low, self.ratio.high
        if low is None or high is None:
            return self.missing or "no interval"
        inside = low >= 1 / (1 + TIE_WITHIN) and high <= 1 + TIE_WITHIN
        if low <= 1 <= high:
            return "tie within 3%" if inside else "no difference shown"
        rises = low > 1
        word = "worse" if rises == (METRICS[self.metric].worse == ">") else "better"
        return f"B is {word}{', within 3%' if inside else ''}"


@dataclass(frozen=True, slots=True)
class PairedPlan:
    """One plan in both studies; `problem` says why it cannot be compared, empty otherwise.

    `gated`: whether a gate counts it: not when both studies rejected it, for then nothing changed.
    """

    plan: Plan
    changes: tuple[Change, ...]
    problem: str = ""
    gated: bool = True

    def change(self, metric: str) -> Change | None:
        """Its change in that metric; None when it could not be compared."""
        return next((c for c in self.changes if c.metric == metric), None)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Study B against study A.

    Attributes:
        plans: those that both hold, in A's order.
        only_a, only_b: plans that only one of the spaces holds.
        warnings: what makes the ratios mean less: other machines, versions, weights, prompts.
        notes: what the reader should know in any case.
    """

    a: str
    b: str
    metrics: tuple[str, ...]
    plans: tuple[PairedPlan, ...]
    only_a: tuple[Plan, ...]
    only_b: tuple[Plan, ...]
    shared_prompts: int
    synthetic: bool
    warnings: tuple[str, ...]
    notes: tuple[str, ...]


def _own(study: Study) -> dict[Plan, PlanResult]:
    """By plan, what the study measured itself: a process that it reused would be compared with itself."""
    fresh = [m for m in study.measurements if not m.reused_from]
    return {r.plan: r for r in results(study.space.plans, fresh)}


def compare(a: Study, b: Study, metrics: Sequence[str] = tuple(METRICS)) -> Comparison:
    """Pair the plans of two studies, and the requests of each plan by prompt. Pure.

    Raises:
        UnknownNameError: a metric that does not exist.
        InputError: the studies share no plan or no prompt, or send their requests in another way.
    """
    for name in metrics:
        if name not in METRICS:
            raise UnknownNameError("metric to compare", name, METRICS)
    shared = _shared_prompts(a, b)
    first, second = _own(a), _own(b)
    both = [plan for plan in first if plan in second]
    if not both:
        raise InputError(
            f"studies {a.id} and {b.id} have no plan in common, so there is nothing to compare. "
            f"{a.id} holds {next(iter(first))} and the like, {b.id} {next(iter(second))}."
        )
    rejected = (dict(a.rejected), dict(b.rejected))
    return Comparison(
        a=a.id,
        b=b.id,
        metrics=tuple(metrics),
        plans=tuple(_pair(a, b, first[plan], second[plan], rejected, shared, metrics) for plan in both),
        only_a=tuple(plan for plan in first if plan not in second),
        only_b=tuple(plan for plan in second if plan not in first),
        shared_prompts=len(shared),
        synthetic=a.synthetic or b.synthetic,
        warnings=_warnings(a, b, len(shared)),
        notes=_notes(a, b, len(shared)),
    )


def _keys(study: Study) -> list[Key]:
    workload = study.workload
    return [(prompt.sha256, workload.output_tokens(i)) for i, prompt in enumerate(workload.prompts)]


def _shared_prompts(a: Study, b: Study) -> frozenset[Key]:
    one, two = a.workload, b.workload
    if (one.concurrency, one.arrival) != (two.concurrency, two.arrival):
        raise InputError(
            f"study {a.id} sent {one.concurrency} at a time ({one.arrival}), {b.id} {two.concurrency} ({two.arrival}): "
            "their latencies mean different things. Compare studies that send requests in one way."
        )
    shared = frozenset(_keys(a)) & frozenset(_keys(b))
    if not shared:
        raise InputError(
            f"studies {a.id} (workload {one.key}) and {b.id} (workload {two.key}) share no prompt with the same "
            "output length, so nothing can be paired. Run one of them again with the other's prompts and "
            "max_new_tokens."
        )
    return shared


def _pair(
    a: Study,
    b: Study,
    first: PlanResult,
    second: PlanResult,
    rejected: tuple[Mapping[Plan, str], Mapping[Plan, str]],
    shared: frozenset[Key],
    metrics: Sequence[str],
) -> PairedPlan:
    plan = first.plan
    if plan in rejected[0] and plan in rejected[1]:
        return PairedPlan(plan, (), f"unsupported in both: {rejected[1][plan]}", gated=False)
    problems = [
        f"in {name}: {why}"
        for name, result, out in (("A", first, rejected[0]), ("B", second, rejected[1]))
        if (why := _problem(result, out))
    ]
    if problems:
        return PairedPlan(plan, (), "; ".join(problems))
    left, right = _by_prompt(a, first, shared), _by_prompt(b, second, shared)
    cut = first.cut_count + second.cut_count
    return PairedPlan(plan, tuple(_change(name, first, second, left, right, cut) for name in metrics))


def _problem(result: PlanResult, rejected: Mapping[Plan, str]) -> str:
    if result.plan in rejected:
        return f"unsupported: {rejected[result.plan]}"
    if result.failed or not result.samples:
        return f"{result.status.replace('_', ' ')}: {result.reason}".removesuffix(": ")
    return ""


def _by_prompt(study: Study, result: PlanResult, shared: frozenset[Key]) -> dict[Key, list[Sample]]:
    keys, found = _keys(study), dict[Key, list[Sample]]()
    for sample in result.samples:
        if 0 <= sample.index < len(keys) and keys[sample.index] in shared:
            found.setdefault(keys[sample.index], []).append(sample)
    return found


_OBSERVED: Mapping[str, Callable[[Sample], float | None]] = {
    "p50": lambda s: s.latency_s,
    "p95": lambda s: s.latency_s,
    "ttft": lambda s: s.ttft_s if s.output_tokens else None,
    "tpot": lambda s: s.tpot_s,
    "tokens_per_s": lambda s: s.tokens_per_s,
}


def _change(
    metric: str,
    first: PlanResult,
    second: PlanResult,
    left: Mapping[Key, list[Sample]],
    right: Mapping[Key, list[Sample]],
    cut: int,
) -> Change:
    if metric == "peak_rss":
        return _memory(first, second)
    if cut:  # the slow ones are known from below only: what is left would flatter the slower study
        why = f"{cut} requests were cut short, so their latency is not known"
        return Change(metric, None, None, Ratio(None, None, None, 0), "prompts", why)
    observe = _OBSERVED[metric]
    one, two = _values(left, observe), _values(right, observe)
    if metric == "p95":
        return _tail([v for vs in one.values() for v in vs], [v for vs in two.values() for v in vs])
    medians_a = {key: median(values) for key, values in one.items()}
    medians_b = {key: median(values) for key, values in two.items()}
    ratio = paired_ratio(medians_b, medians_a)
    missing = ""
    if ratio.low is None or ratio.high is None:
        missing = f"{ratio.n} prompts in common are too few for an interval, it takes 6"
    return Change(metric, _middle(one), _middle(two), ratio, "prompts", missing)


def _values(samples: Mapping[Key, list[Sample]], observe: Callable[[Sample], float | None]) -> dict[Key, list[float]]:
    """Positive observations by prompt; a duration of zero is a clock too coarse to compare with."""
    found = {key: [v for s in taken if (v := observe(s)) is not None and v > 0] for key, taken in samples.items()}
    return {key: values for key, values in found.items() if values}


def _middle(values: Mapping[Key, list[float]]) -> float | None:
    every = [value for taken in values.values() for value in taken]
    return median(every) if every else None


def _tail(one: Sequence[float], two: Sequence[float]) -> Change:
    """Ratio of the p95; each interval at 97.5%, so that both hold together at 95% (Bonferroni)."""
    each = 1 - (1 - CONFIDENCE) / 2
    a, b = quantile_estimate(one, 0.95, each), quantile_estimate(two, 0.95, each)
    n = min(a.n, b.n)
    value = None if a.value is None or b.value is None else b.value / a.value
    low = None if a.high is None or b.low is None else b.low / a.high
    high = None if a.low is None or b.high is None else b.high / a.low
    missing = ""
    if low is None or high is None:
        low = high = None
        need = bound_needs(0.95, 1 - (1 - each) / 2)  # two-sided: half of what is left on each side
        missing = f"{n} requests are too few for an interval on p95, it takes {need} in each study"
    return Change("p95", a.value, b.value, Ratio(value, low, high, n), "requests", missing)


def _memory(first: PlanResult, second: PlanResult) -> Change:
    one, two = first.peak_bytes_by_process, second.peak_bytes_by_process
    if not one or not two:
        return Change("peak_rss", None, None, Ratio(None, None, None, 0), "processes", "peak memory is not known")
    value, seen = max(two) / max(one), min(len(one), len(two))
    if seen < _MIN_PROCESSES:
        missing = f"one process has no range; it takes {_MIN_PROCESSES} in both studies"
        return Change("peak_rss", max(one), max(two), Ratio(value, None, None, seen), "processes", missing)
    ratio = Ratio(value, min(two) / max(one), max(two) / min(one), seen)
    return Change("peak_rss", max(one), max(two), ratio, "processes")


def _warnings(a: Study, b: Study, shared: int) -> tuple[str, ...]:
    found = []
    if a.machine.fingerprint != b.machine.fingerprint:
        found.append(f"the machines differ ({a.machine.cpu_model}; {b.machine.cpu_model}): ratios compare machines too")
    if a.workload.key != b.workload.key:
        found.append(f"the workloads differ: only the {shared} requests that both hold are compared")
    for checkpoint in a.checkpoints:
        other = b.checkpoint(checkpoint.name)
        if other is not None and other.content_hash != checkpoint.content_hash:
            found.append(f"{checkpoint.name} has other weights in B ({checkpoint.weights}; {other.weights})")
    for study, name in ((a, "A"), (b, "B")):
        if not study.finished:
            found.append(f"study {name} is not finished")
    return tuple(found)


def _notes(a: Study, b: Study, shared: int) -> tuple[str, ...]:
    every = sorted({*a.libraries, *b.libraries})
    changed = [n for n in every if a.libraries.get(n) != b.libraries.get(n)]
    found = [f"{n} {a.libraries.get(n, 'absent')} in A, {b.libraries.get(n, 'absent')} in B" for n in changed]
    count = a.workload.concurrency
    how = "one request at a time" if count == 1 else f"{count} requests at a time"
    keys = {key[1] for key in frozenset(_keys(a)) & frozenset(_keys(b))}
    lengths = f"{min(keys)}" if len(keys) == 1 else f"{min(keys)} to {max(keys)}"
    tokens = [s.prompt_tokens for study in (a, b) for m in study.measurements for s in m.samples]
    prompts = f" of {min(tokens)} to {max(tokens)} tokens" if tokens else ""
    found.insert(0, f"{how}; {shared} prompts in common{prompts}, {lengths} output tokens each")
    found.append("intervals are at 95% over prompts, for the processes seen; memory is the range over those processes")
    if a.synthetic or b.synthetic:
        found.append("synthetic weights: timings and memory are true, the text that comes out means nothing")
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Gate:
    """A limit on a change: `p50>+5%` fails where p50 is shown to have risen by more than 5%.

    `limit` is relative: 0.05 is 5%.
    """

    metric: str
    op: Literal[">", "<"]
    limit: float
    text: str


GateOutcome = Literal["passed", "failed", "not_shown", "no_evidence"]


@dataclass(frozen=True, slots=True)
class GateResult:
    """What one gate says of one plan. `plan` is None where there was no plan to look at."""

    gate: Gate
    plan: Plan | None
    outcome: GateOutcome
    text: str

    @property
    def fails(self) -> bool:
        """A gate that cannot see does not pass; a change that is not shown does."""
        return self.outcome in ("failed", "no_evidence")


_GATE = re.compile(r"([A-Za-z_]\w*)\s*([<>])=?\s*([+-]?\d+(?:\.\d+)?)\s*%")


def parse_gate(text: str) -> Gate:
    """The gate that `text` says: METRIC>+PERCENT%, or METRIC<-PERCENT% for `tokens_per_s`.

    Raises:
        InputError: not a gate, or one on the direction in which the metric gets better.
        UnknownNameError: a metric that is not compared.
    """
    shape = _GATE.fullmatch(text.strip())
    if shape is None:
        raise InputError(f'{text!r} is not a gate: write METRIC>+PERCENT%, for example "p50>+5%" or "tokens_per_s<-5%"')
    name, op, number = shape.groups()
    if name not in METRICS:
        raise UnknownNameError("metric to compare", name, METRICS)
    metric = METRICS[name]
    if op != metric.worse:
        example = f"{name}>+5%" if metric.worse == ">" else f"{name}<-5%"
        raise InputError(f'{text!r}: {metric.title} gets worse the other way: write it like "{example}"')
    if op == "<" and number[0] not in "+-":
        raise InputError(f'{text!r}: write the sign, "{name}<-{number}%" for a loss of {number}%')
    limit = float(number) / 100
    if limit <= -1:
        raise InputError(f"{text!r}: no figure can fall by {-limit:.0%} or more; give a change above -100%")
    return Gate(name, metric.worse, limit, f"{name}{op}{number}%")


def check_gates(comparison: Comparison, gates: Sequence[Gate]) -> tuple[GateResult, ...]:
    """Every gate on every plan that both studies hold.

    It fails when the whole interval is beyond the limit, and when there is no
    interval to look at; a point beyond with an interval that is not is `not_shown`.
    """
    found: list[GateResult] = []
    for gate in gates:
        plans = [paired for paired in comparison.plans if paired.gated]
        if not plans:
            found.append(GateResult(gate, None, "no_evidence", f"{gate.text}: no plan ran in both studies"))
        found += [_gate(gate, paired) for paired in plans]
    return tuple(found)


def gate_exit_code(gates: Sequence[GateResult]) -> int:
    """`GATE_FAILED` if any fails, else 0."""
    return GATE_FAILED if any(result.fails for result in gates) else 0


def _gate(gate: Gate, paired: PairedPlan) -> GateResult:
    change, where = paired.change(gate.metric), f"{gate.text} on {paired.plan}"
    if change is None:
        why = paired.problem or "this metric was not compared"
        return GateResult(gate, paired.plan, "no_evidence", f"{where}: cannot be checked, {why}")
    ratio = change.ratio
    if ratio.value is None or ratio.low is None or ratio.high is None:
        return GateResult(gate, paired.plan, "no_evidence", f"{where}: cannot be checked, {change.says}")
    sign = 1 if gate.op == ">" else -1
    limit, mildest = 1 + gate.limit, ratio.low if sign > 0 else ratio.high
    seen = f"{_signed(ratio.value)} [{_signed(ratio.low)}, {_signed(ratio.high)}]"
    if sign * mildest > sign * limit:
        return GateResult(gate, paired.plan, "failed", f"{where}: changed by {seen}")
    if sign * ratio.value > sign * limit:
        return GateResult(gate, paired.plan, "not_shown", f"{where}: {seen} is beyond the limit, but not shown to be")
    return GateResult(gate, paired.plan, "passed", f"{where}: {seen}")


def _signed(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f}%"


def render_comparison(comparison: Comparison, gates: Sequence[GateResult] = (), format: str = "table") -> str:
    """The comparison as `table`, `md` or `json`.

    Raises:
        UnknownNameError: there is no such format.
    """
    makers = {"table": _as_text, "md": _as_markdown, "json": _as_json}
    if format not in makers:
        raise UnknownNameError("comparison format", format, makers)
    return makers[format](comparison, gates)


_COLUMNS = ("plan", "metric", "A", "B", "B / A", "95% interval", "pairs", "says")


def _grid(comparison: Comparison) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for paired in comparison.plans:
        if paired.problem:
            rows.append((paired.plan.id, *("",) * 6, paired.problem))
        rows += [_cells(paired.plan, change) for change in paired.changes]
    return rows


def _cells(plan: Plan, change: Change) -> tuple[str, ...]:
    ratio = change.ratio
    interval = MISSING if ratio.low is None or ratio.high is None else f"[{ratio.low:.3f}, {ratio.high:.3f}]"
    value = MISSING if ratio.value is None else f"{ratio.value:.3f}"
    pairs = f"{ratio.n} {change.unit}"
    figures = (_figure(change.metric, change.a), _figure(change.metric, change.b))
    return (plan.id, METRICS[change.metric].title, *figures, value, interval, pairs, change.says)


def _figure(metric: str, value: float | None) -> str:
    if value is None:
        return MISSING
    if metric == "peak_rss":
        return f"{mebibytes(value)} MiB"
    return f"{short(value)} tokens/s" if metric == "tokens_per_s" else f"{milliseconds(value)} ms"


def _title(comparison: Comparison) -> str:
    return f"B {comparison.b} against A {comparison.a}" + (" (synthetic weights)" if comparison.synthetic else "")


def _remarks(comparison: Comparison, gates: Sequence[GateResult]) -> list[str]:
    found = [f"warning: {text}" for text in comparison.warnings]
    for name, plans in (("A", comparison.only_a), ("B", comparison.only_b)):
        if plans:
            found.append(f"only in {name}, not compared: {', '.join(plan.id for plan in plans)}")
    found += [f"note: {text}" for text in comparison.notes]
    words = {
        "failed": "gate FAILED",
        "no_evidence": "gate FAILED",
        "not_shown": "gate warning",
        "passed": "gate passed",
    }
    return found + [f"{words[result.outcome]}: {result.text}" for result in gates]


def _as_text(comparison: Comparison, gates: Sequence[GateResult]) -> str:
    grid = [_COLUMNS, *(tuple(map(one_line, row)) for row in _grid(comparison))]
    widths = [max(len(row[i]) for row in grid) for i in range(len(_COLUMNS))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in grid]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([_title(comparison), "", *lines, "", *map(one_line, _remarks(comparison, gates))]) + "\n"


def _as_markdown(comparison: Comparison, gates: Sequence[GateResult]) -> str:
    remarks = [f"- {escape(text)}" for text in _remarks(comparison, gates)]
    return "\n".join([f"# {escape(_title(comparison))}", "", *table(_COLUMNS, _grid(comparison)), "", *remarks]) + "\n"


def _as_json(comparison: Comparison, gates: Sequence[GateResult]) -> str:
    plans = [
        {
            "plan_id": paired.plan.id,
            "problem": paired.problem,
            "gated": paired.gated,
            "changes": [{**encode(change), "says": change.says} for change in paired.changes],
        }
        for paired in comparison.plans
    ]
    body = {
        "schema": SCHEMA,
        **encode(comparison),
        "only_a": [plan.id for plan in comparison.only_a],
        "only_b": [plan.id for plan in comparison.only_b],
        "plans": plans,
        "gates": [
            {
                "gate": r.gate.text,
                "plan_id": r.plan and r.plan.id,
                "outcome": r.outcome,
                "fails": r.fails,
                "text": r.text,
            }
            for r in gates
        ],
        "exit_code": gate_exit_code(gates),
    }
    return json.dumps(body, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
