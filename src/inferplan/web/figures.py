"""The Plotly charts of the web app, each with its text alternative: the door to them all.

Owns those of a study's rows. Leaves those of raw requests to `_requests`, looks to `_styles`, words to `_captions`.
Texts inside a figure are escaped for Plotly; `title` and `alt` of a `Chart` are plain text, for the page to escape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..report.charts import clip as clip  # one rule for names, here and in the HTML report
from ..report.charts import pareto_front
from ..report.numbers import MIB, interval_ms, mebibytes, short
from ..report.rows import Row
from ..report.rows import labels as names_of
from ..sla import SLA
from . import _captions as says
from . import _styles as looks
from ._requests import TimeSplit, ecdf, ratios, time_parts, time_split
from ._styles import MAX_ROWS, Chart, Group, Mark, Scale, groups_of, plain, printable, wrapped

__all__ = [
    "Chart",
    "Group",
    "TimeSplit",
    "ecdf",
    "groups_of",
    "latency",
    "memory",
    "plain",
    "ratios",
    "throughput",
    "time_parts",
    "time_split",
    "trade_off",
]


@dataclass(frozen=True, slots=True)
class _Shown:
    """A plan in a chart: its short name, and its number in the axis's unit."""

    row: Row
    name: str
    value: float

    @property
    def group(self) -> Group:
        return self.row.plan.engine, self.row.plan.precision


def trade_off(rows: Sequence[Row], sla: SLA, note: str = "", groups: Sequence[Group] = ()) -> Chart | None:
    """p50 latency against peak memory, with the Pareto front of what is shown; None without a plan that has both.

    Args:
        rows: in the order of the table; those without figures are left out.
        note: said in the title, for example `synthetic weights`.
        groups: every group of the study (`groups_of`), so that a filtered chart keeps its colours.
    """
    shown = [s for s in _shown(rows, _p50_ms) if s.row.peak_bytes is not None]
    if not shown:
        return None
    points = [(s.value, _mib(s.row)) for s in shown]
    front = pareto_front(points)
    p50, peak = _limit(sla, "p50", 1e3), _limit(sla, "peak_rss", 1 / MIB)
    x = looks.scale([a for a, _ in points], p50 and p50[0])
    y = looks.scale([b for _, b in points], peak and peak[0], room=0.16, zero=False)
    line = {
        "type": "scatter", "mode": "lines", "name": "Pareto front", "hoverinfo": "skip",
        "x": [a for a, _ in front], "y": [b for _, b in front],
        "line": {"shape": "hv", "color": looks.GREY, "width": 2, "dash": "dot"},
    }  # fmt: skip
    traces = [line, *_markers(shown, [b for _, b in points], groups)]
    title = says.titled("Latency against memory", note)
    made = looks.layout(title, 380, x.axis("p50 latency, ms"), y.axis("peak memory, MiB"), looks.legend(traces))
    marks = [looks.limit_line("x", *p50, x)] if p50 else []
    marks += [looks.limit_line("y", *peak, y)] if peak else []
    made["shapes"] = [shape for shape, _ in marks]
    made["annotations"] = [label for _, label in marks] + [
        _pointed(s.name, s.value, b, x, y) for s, (_, b) in zip(shown, points, strict=True) if s.row.chosen
    ]
    best = set(front)
    on_front = [s for s, point in zip(shown, points, strict=True) if point in best]
    fastest = min(shown, key=lambda s: s.value)
    alt = says.sentences(
        f"p50 latency against peak memory of {says.plans(len(shown))}"
        + says.left_out(len(rows) - len(shown), "both figures"),
        f"{_chosen(shown, _both)}; the SLA is {sla}",
        "On the Pareto front: " + says.listed([f"{s.name} ({_both(s)})" for s in on_front]),
        f"Fastest: {fastest.name}, {short(fastest.value)} ms",
    )
    return Chart(title, looks.figure(traces, made), alt)


def latency(rows: Sequence[Row], sla: SLA, note: str = "", groups: Sequence[Group] = ()) -> Chart | None:
    """p50 latency by plan with its interval, and the SLA on it; None without a p50. Arguments as in `trade_off`."""
    measured = _shown(rows, _p50_ms)
    if not measured:
        return None
    shown, p50 = _first(measured), _limit(sla, "p50", 1e3)
    x = looks.scale([ms for s in shown for ms in (s.value, *_bounds_ms(s.row)) if ms is not None], p50 and p50[0])
    traces = _markers(shown, list(range(len(shown))), groups, whiskers=True)
    title = says.titled("p50 latency by plan", note, len(shown), len(measured))
    made = _by_plan(title, shown, x.axis("p50 latency, ms, with 95% interval"), traces)
    if p50:
        shape, label = looks.limit_line("x", *p50, x)
        made |= {"shapes": [shape], "annotations": [label]}
    ordered = sorted(measured, key=lambda s: s.value)
    alt = says.sentences(
        f"p50 latency of {_counted(shown, measured, rows)}",
        f"{_chosen(measured, lambda s: f'{interval_ms(s.row.p50)} ms')}; the SLA is {sla}",
        "Fastest: " + says.listed([f"{s.name} {short(s.value)} ms" for s in ordered]),
    )
    return Chart(title, looks.figure(traces, made), alt)


def throughput(rows: Sequence[Row], note: str = "", groups: Sequence[Group] = ()) -> Chart | None:
    """Mean output tokens per second by plan; None without one. Arguments as in `trade_off`."""
    shown = _shown(rows, lambda row: row.tokens_per_s)
    return _bars("Throughput by plan", "output tokens per second", "tokens/s", shown, rows, note, groups)


def memory(rows: Sequence[Row], note: str = "", groups: Sequence[Group] = ()) -> Chart | None:
    """Peak memory by plan; None without one. Arguments as in `trade_off`."""
    shown = _shown(rows, lambda row: None if row.peak_bytes is None else _mib(row))
    return _bars("Peak memory by plan", "peak memory, MiB", "MiB", shown, rows, note, groups)


def _bars(
    title: str, axis: str, unit: str, measured: list[_Shown], rows: Sequence[Row], note: str, groups: Sequence[Group]
) -> Chart | None:
    if not measured:
        return None
    shown = _first(measured)
    differ = len({s.row.verdict for s in shown}) > 1  # one verdict for all is said once, not on every bar
    traces = []
    for group, look in looks.styles((*groups, *groups_of(s.row for s in shown))).items():
        mine = [(place, s) for place, s in enumerate(shown) if s.group == group]
        if mine:
            values, hover = [s.value for _, s in mine], [says.hover(s.row) for _, s in mine]
            texts = [_at_the_end(s, differ) for _, s in mine]
            traces.append(looks.bar_trace(_group_name(group), [p for p, _ in mine], values, look, hover, texts))
    full = says.titled(title, note, len(shown), len(measured))
    x = looks.scale([s.value for s in shown], room=0.3, log=False)
    made = _by_plan(full, shown, x.axis(axis), traces, lines=False)
    made["barmode"] = "overlay"  # a place holds one bar
    rising = unit == "MiB"
    ordered = sorted(measured, key=lambda s: s.value if rising else -s.value)
    alt = says.sentences(
        f"{title} of {_counted(shown, measured, rows)}",
        _chosen(measured, lambda s: f"{short(s.value)} {unit}"),
        "✕ misses the SLA, ? is undecided" if differ else "",
        ("Least: " if rising else "Most: ") + says.listed([f"{s.name} {short(s.value)} {unit}" for s in ordered]),
    )
    return Chart(full, looks.figure(traces, made), alt)


def _markers(
    shown: list[_Shown], ys: Sequence[float], groups: Sequence[Group], whiskers: bool = False
) -> list[dict[str, Any]]:
    """A trace a group, an entry of the legend a verdict, and the chosen plan's star."""
    marks: dict[Group, list[Mark]] = {}
    stars = []
    all_looks = looks.styles((*groups, *groups_of(s.row for s in shown)))
    for s, y in zip(shown, ys, strict=True):
        low, high = _bounds_ms(s.row) if whiskers else (None, None)
        mark = Mark(s.value, y, says.hover(s.row), s.row.verdict, low, high)
        marks.setdefault(s.group, []).append(mark)
        if s.row.chosen:
            stars.append(looks.star_trace(mark, all_looks[s.group]))
    drawn = [looks.marker_trace(_group_name(g), marks[g], look) for g, look in all_looks.items() if g in marks]
    return [*drawn, *looks.verdict_keys(s.row.verdict for s in shown), *stars]


def _shown(rows: Sequence[Row], value: Callable[[Row], float | None]) -> list[_Shown]:
    """The rows that have the figure, each with its name among all of them."""
    names = names_of((row.plan for row in rows), full=True)
    found = zip(rows, names, map(value, rows), strict=True)
    return [_Shown(row, clip(name), number) for row, name, number in found if number is not None]


def _first(measured: list[_Shown]) -> list[_Shown]:
    """No more than `MAX_ROWS`, in their order; the chosen plan is among them."""
    shown = measured[:MAX_ROWS]
    later = [s for s in measured[MAX_ROWS:] if s.row.chosen]
    return shown[: MAX_ROWS - len(later)] + later


def _by_plan(
    title: str, shown: list[_Shown], x: dict[str, Any], traces: list[dict[str, Any]], lines: bool = True
) -> dict[str, Any]:
    chosen = next((place for place, s in enumerate(shown) if s.row.chosen), None)
    y = looks.places([s.name for s in shown], chosen, lines)
    return looks.still(looks.layout(title, looks.ROW_PX * len(shown) + 20, x, y, looks.legend(traces)))


def _pointed(name: str, a: float, b: float, x: Scale, y: Scale) -> dict[str, Any]:
    """The chosen plan's name, on the side that has room, in lines short enough for a narrow page."""
    left, low = x.share(a) < 0.5, y.share(b) < 0.7
    return {
        "x": x.at(a), "y": y.at(b), "text": wrapped(name, 22), "showarrow": False, "font": {"size": 12},
        "xanchor": "left" if left else "right", "align": "left" if left else "right", "xshift": 8 if left else -8,
        "yanchor": "bottom" if low else "top", "yshift": 6 if low else -6,
    }  # fmt: skip


def _group_name(group: Group) -> str:
    return plain(clip(" ".join(group)))


def _p50_ms(row: Row) -> float | None:
    return None if row.p50.value is None else row.p50.value * 1e3


def _bounds_ms(row: Row) -> tuple[float | None, float | None]:
    low, high = row.p50.low, row.p50.high
    return None if low is None else low * 1e3, None if high is None else high * 1e3


def _mib(row: Row) -> float:
    return (row.peak_bytes or 0) / MIB


def _limit(sla: SLA, metric: str, factor: float) -> tuple[float, str] | None:
    """The limit on `metric` in units of the axis, and how it is written; None where the SLA has none."""
    found = next((c for c in sla.constraints if c.metric.name == metric), None)
    return None if found is None else (found.limit * factor, str(found))


def _both(s: _Shown) -> str:
    return f"{short(s.value)} ms, {mebibytes(s.row.peak_bytes)} MiB"


def _chosen(shown: list[_Shown], figures: Callable[[_Shown], str]) -> str:
    chosen = next((s for s in shown if s.row.chosen), None)
    return "None of them is chosen" if chosen is None else f"Chosen: {printable(chosen.row.plan.id)}, {figures(chosen)}"


def _counted(shown: list[_Shown], measured: list[_Shown], rows: Sequence[Row]) -> str:
    return says.plans(len(shown), len(measured)) + says.left_out(len(rows) - len(measured), "the figure")


def _at_the_end(s: _Shown, differ: bool) -> str:
    """What stands at the end of a bar: its number, and a sign of the verdict where that differs among plans."""
    sign = {"misses": "✕", "undecided": "?"}.get(s.row.verdict, "") if differ else ""
    return " ".join(filter(None, [short(s.value), "★" * s.row.chosen, sign]))
