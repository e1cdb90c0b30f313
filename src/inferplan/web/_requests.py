"""Charts of raw requests, of where their time goes, and of ratios between two studies.

Owns their figures and sentences, and the formula of `time_parts`. Leaves the charts of a study's rows to
`figures`, which hands these names on; looks to `_styles`, words to `_captions`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ..report.charts import clip as clip  # one rule for names, here and in the HTML report
from ..report.numbers import milliseconds, percent, short
from ..result import PlanResult
from ..stats import TIE_WITHIN, Ratio
from . import _captions as says
from . import _styles as looks
from ._styles import MAX_ROWS, Chart, Mark, plain, printable, wrapped

MAX_CURVES = 10  # more lines than that are not told apart


@dataclass(frozen=True, slots=True)
class TimeSplit:
    """Mean seconds of one request of a plan by where they go, as `time_parts` has it; None where not known."""

    prefill_s: float
    decode_s: float
    after_s: float
    start_and_load_s: float | None
    between_s: float | None

    @property
    def segments(self) -> dict[str, float]:
        """Seconds by what they went to; what is not known counts as nothing."""
        return {
            "prefill": self.prefill_s,
            "decode": self.decode_s,
            "after the last token": self.after_s,
            "start and load": self.start_and_load_s or 0.0,
            "between requests": self.between_s or 0.0,
        }

    @property
    def main(self) -> dict[str, float]:
        """The segments that take at least a thousandth of the whole: the others would not be seen."""
        return {part: value for part, value in self.segments.items() if value and value >= self.total_s / 1000}

    @property
    def total_s(self) -> float:
        """All of it."""
        return sum(self.segments.values())


@dataclass(frozen=True, slots=True)
class _Curve:
    """What an ECDF is drawn from: ascending times of requests seen in full, lower bounds of those cut short."""

    result: PlanResult
    name: str
    times_ms: tuple[float, ...]
    cut_ms: tuple[float, ...]

    @property
    def n(self) -> int:
        return len(self.times_ms) + len(self.cut_ms)

    @property
    def top(self) -> float:
        return len(self.times_ms) / self.n


def ecdf(results: Sequence[PlanResult], labels: Sequence[str], sla_s: float | None, note: str = "") -> Chart | None:
    """The share of requests answered within a time, a curve a plan; None without an undisturbed request in full.

    A request that was cut short is known from below only: it counts among all requests and never as answered, so
    that the curve of its plan stops below 1. A failed plan has no curve.

    Args:
        labels: a name for each result.
        sla_s: the limit on the latency in seconds, when there is one.
    """
    found = [_curve(r, label) for r, label in zip(results, labels, strict=True) if r.samples and not r.failed]
    if not found:
        return None
    curves = found[:MAX_CURVES]
    x = looks.scale([ms for c in curves for ms in c.times_ms], None if sla_s is None else sla_s * 1e3)
    traces: list[dict[str, Any]] = []
    for look, curve in zip(map(looks.style, range(len(curves))), curves, strict=True):
        traces.append({
            "type": "scatter", "mode": "lines", "name": plain(curve.name),
            "x": [curve.times_ms[0], *curve.times_ms], "y": [k / curve.n for k in range(len(curve.times_ms) + 1)],
            "line": {"shape": "hv", "width": 2, "color": look.colour, "dash": look.dash},
            "hovertext": wrapped(curve.result.plan.id, looks.HOVER_CHARS),
            "hovertemplate": "%{hovertext}<br>%{y:.1%} of requests within %{x:.4~g} ms<extra></extra>",
        })  # fmt: skip
    y = {**looks.scale([1.0], room=0.04).axis("share of requests"), "tickformat": ".0%", "fixedrange": True}
    title = says.titled("Distribution of latencies", note, len(curves), len(found))
    made = looks.layout(title, 300, x.axis("latency, ms"), y, looks.legend(traces))
    if sla_s is not None:
        shape, label = looks.limit_line("x", sla_s * 1e3, f"SLA {milliseconds(sla_s)} ms", x)
        made |= {"shapes": [shape], "annotations": [label]}
    cut = [c for c in curves if c.cut_ms]
    stops = says.listed([f"{c.name} at {percent(c.top)}, {len(c.cut_ms)} of {c.n} cut short" for c in cut])
    alt = says.sentences(
        f"Share of requests answered within a time, of {says.plans(len(curves), len(found))}"
        + says.left_out(len(results) - len(found), "an undisturbed request in full"),
        _within(curves, sla_s),
        f"Requests cut short are known from below only, so these curves stop below 100%: {stops}" if cut else "",
    )
    return Chart(title, looks.figure(traces, made), alt)


def time_parts(result: PlanResult) -> TimeSplit | None:
    """Where the time of a plan's mean request goes; None for a failed plan, or where a request was cut short.

    Over undisturbed requests, with t_1 and t_n the times of the first and the last token:

        prefill = mean(t_1), decode = mean(t_n - t_1), after = mean(latency - t_n)

    Over the processes that ended well, spread over all their requests (disturbed ones took time too):

        start and load = sum(startup_s + load_s) / requests
        between        = sum(wall_s - startup_s - load_s - sum of latencies) / requests

    `between` is warm-up, reading the outside signals, and ending the process; never less than zero. Both are None
    where a process does not tell its times.
    """
    done = result.samples
    if result.failed or not done or result.cut_count or not all(s.token_times_s for s in done):
        return None
    processes = result.ok_measurements
    requests = sum(len(m.samples) for m in processes)
    starting = [m.startup_s + m.load_s for m in processes if m.startup_s is not None and m.load_s is not None]
    start_s = between_s = None
    if len(starting) == len(processes) and all(m.wall_s > 0 for m in processes):
        busy_s = sum(starting) + sum(s.latency_s for m in processes for s in m.samples)
        start_s = sum(starting) / requests
        between_s = max(0.0, sum(m.wall_s for m in processes) - busy_s) / requests
    return TimeSplit(
        prefill_s=fmean(s.ttft_s for s in done),
        decode_s=fmean(s.token_times_s[-1] - s.token_times_s[0] for s in done),
        after_s=fmean(s.latency_s - s.token_times_s[-1] for s in done),
        start_and_load_s=start_s,
        between_s=between_s,
    )


def time_split(results: Sequence[PlanResult], labels: Sequence[str], note: str = "") -> Chart | None:
    """Mean seconds of a request by where they go, a bar a plan; None without a plan whose requests ran in full.

    The segments and their formula are those of `time_parts`: prefill, decode, after the last token, and the
    process's start, load and pauses, spread over its requests.
    """
    pairs = list(zip(results, labels, strict=True))
    known = [(r, clip(label), parts) for r, label in pairs if (parts := time_parts(r)) is not None]
    if not known:
        return None
    shown = known[:MAX_ROWS]
    traces: list[dict[str, Any]] = []
    for place, part in enumerate(known[0][2].segments):
        values = [parts.segments[part] for _, _, parts in shown]
        hover = [
            f"<b>{wrapped(r.plan.id, looks.HOVER_CHARS)}</b><br>"
            f"{part}: {short(value)} s, {percent(value / parts.total_s if parts.total_s else None)} of the whole"
            for (r, _, parts), value in zip(shown, values, strict=True)
        ]
        if any(part in parts.main for _, _, parts in shown):
            traces.append(looks.bar_trace(part, range(len(shown)), values, looks.style(place), hover))
    x = looks.scale([parts.total_s for _, _, parts in shown], room=0.04, log=False)
    title = says.titled("Where the time of a request goes", note, len(shown), len(known))
    y = looks.places([name for _, name, _ in shown], lines=False)
    height = looks.ROW_PX * len(shown) + 20
    made = looks.layout(title, height, x.axis("mean seconds of a request"), y, looks.legend(traces))
    made = {**looks.still(made), "barmode": "stack"}
    unknown = sum(parts.between_s is None for _, _, parts in shown)
    alt = says.sentences(
        f"Mean seconds of a request of {says.plans(len(shown), len(known))} by where they go"
        + says.left_out(len(pairs) - len(known), "requests in full"),
        says.listed([_split_says(name, parts) for _, name, parts in shown], says.NAMED // 2, "; "),
        "Start, load and pauses are those of the process, spread over its requests"
        + (f"; of {says.plans(unknown)} they are not known" if unknown else ""),
    )
    return Chart(title, looks.figure(traces, made), alt)


def _split_says(name: str, parts: TimeSplit) -> str:
    return f"{name} " + ", ".join(f"{part} {short(value)} s" for part, value in parts.main.items())


def ratios(names: Sequence[str], values: Sequence[Ratio], title: str, note: str = "") -> Chart | None:
    """Ratios B over A with their intervals, a line at 1 and a band of 3% around it; None without a ratio.

    A filled marker: the interval does not include 1. An open one: no difference is shown.

    Args:
        names: of what is compared, one a ratio.
        title: what the ratios are of, `p50 latency`.
    """
    found = [(clip(n), r, r.value) for n, r in zip(names, values, strict=True) if r.value is not None]
    if not found:
        return None
    shown = found[:MAX_ROWS]
    differ = [r.relation() in ("faster", "slower") for _, r, _ in shown]
    marks = [
        Mark(value, place, _ratio_says(name, r, value), "meets" if differs else "misses", r.low, r.high)
        for place, ((name, r, value), differs) in enumerate(zip(shown, differ, strict=True))
    ]
    band = (1 / (1 + TIE_WITHIN), 1 + TIE_WITHIN)
    ends = [end for m in marks for end in (m.x, m.low, m.high) if end is not None]
    x = looks.scale([*ends, *band], zero=False)
    full = says.titled(f"{title}, B over A", note, len(shown), len(found))
    y = looks.places([name for name, _, _ in shown])
    made = looks.layout(full, looks.ROW_PX * len(shown) + 20, x.axis("ratio B/A, with its interval"), y, [])
    made = {**looks.still(made), "shapes": looks.ratio_band(*band)}
    alt = says.sentences(
        f"{printable(title)}, B over A: {len(found)} ratio{'' if len(found) == 1 else 's'}"
        + says.left_out(len(names) - len(found), "a ratio"),
        f"The interval excludes 1 for {sum(differ)} of them; within 3% is a tie",
        says.listed([f"{name} {value:.3f}" for name, _, value in shown]),
    )
    return Chart(full, looks.figure([looks.marker_trace("B/A", marks, looks.style(0))], made), alt)


def _curve(result: PlanResult, label: str) -> _Curve:
    values, bounds = result.latencies()
    return _Curve(result, clip(label), tuple(sorted(v * 1e3 for v in values)), tuple(b * 1e3 for b in bounds))


def _within(curves: list[_Curve], sla_s: float | None) -> str:
    """The share of each plan's requests that took no longer than the limit; without one, the slowest of each."""
    if sla_s is None:
        return "Slowest request: " + says.listed([f"{c.name} {short(c.times_ms[-1])} ms" for c in curves])
    limit_ms, said = sla_s * 1e3, []
    for c in curves:
        at_least = "at least " if any(ms < limit_ms for ms in c.cut_ms) else ""
        said.append(f"{c.name} {at_least}{percent(bisect_right(c.times_ms, limit_ms) / c.n)} of {c.n} requests")
    return f"Within the SLA of {milliseconds(sla_s)} ms: {says.listed(said)}"


def _ratio_says(name: str, ratio: Ratio, value: float) -> str:
    bounds = ", no interval"
    if ratio.low is not None and ratio.high is not None:
        bounds = f" [{ratio.low:.3f}, {ratio.high:.3f}]"
    return f"<b>{wrapped(name, looks.HOVER_CHARS)}</b><br>B/A {value:.3f}{bounds}<br>{ratio.n} compared"
