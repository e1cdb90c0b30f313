"""The four charts of the HTML report, as inline SVG drawn by matplotlib.

Owns colours, markers and alternative text. Leaves every number to `rows`;
matplotlib is imported where it draws, without pyplot and its global state.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .numbers import MIB, mebibytes, milliseconds, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .rows import Row

# Okabe and Ito's palette, which holds under the common colour blindnesses; the marker tells them apart without it.
STYLES = {
    "chosen": ("#0072B2", "*", 13),
    "meets": ("#009E73", "o", 7),
    "undecided": ("#E69F00", "^", 7),
    "misses": ("#D55E00", "X", 7),
    "not judged": ("#666666", "s", 6),
}
WIDTH_IN = 6.4
LOG_BEYOND = 20.0  # a linear axis hides the small values when the largest is so many times the smallest
LABEL_CHARS = 34


@dataclass(frozen=True, slots=True)
class Chart:
    """One picture: `svg` is a whole `<svg>` element that loads nothing; `alt` says what it shows."""

    title: str
    svg: str
    alt: str


def charts(rows: Sequence[Row], labels: Sequence[str], sla_s: float | None, synthetic: bool) -> tuple[Chart, ...]:
    """Latency, throughput, memory, and latency against memory; only those that have something to show.

    Args:
        rows: the plans in the order of the table; those without figures are left out.
        labels: a short name for each row.
        sla_s: the limit on the p50 latency in seconds, when there is one.
        synthetic: whether any of the plans runs synthetic weights, which every chart then says.
    """
    named = [(row, clip(label)) for row, label in zip(rows, labels, strict=True)]
    timed = [(row, label) for row, label in named if row.p50.value is not None]
    rated = [(row, label) for row, label in named if row.tokens_per_s is not None]
    sized = [(row, label) for row, label in named if row.peak_bytes is not None]
    both = [(row, label) for row, label in timed if row.peak_bytes is not None]
    note = " (synthetic weights)" if synthetic else ""
    made: list[Chart] = []
    if timed:
        made.append(_latency(timed, sla_s, note))
    if rated:
        values = [row.tokens_per_s or 0.0 for row, _ in rated]
        made.append(_bars("Throughput by plan" + note, "output tokens per second", rated, values, short, "tokens/s"))
    if sized:
        values = [(row.peak_bytes or 0) / MIB for row, _ in sized]
        made.append(_bars("Peak memory by plan" + note, "peak resident memory, MiB", sized, values, _whole, "MiB"))
    if both:
        made.append(_trade(both, sla_s, note))
    return tuple(made)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats on both numbers (smaller is better), by the first number."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(set(points)):
        if not front or y < front[-1][1]:
            front.append((x, y))
    return front


def _whole(value: float) -> str:
    return f"{value:.0f}"


def clip(label: str) -> str:
    """A label short enough for an axis: cut in the middle, where names differ least."""
    clean = "".join(ch if ch.isprintable() else "?" for ch in label)
    half = LABEL_CHARS // 2
    return clean if len(clean) <= LABEL_CHARS else f"{clean[: half - 1]}…{clean[-half:]}"


def kind(row: Row) -> str:
    """Which of `STYLES` a plan is drawn in."""
    if row.chosen:
        return "chosen"
    return row.verdict if row.verdict in STYLES else "not judged"


def _latency(rows: list[tuple[Row, str]], sla_s: float | None, note: str) -> Chart:
    def draw(axes: Axes) -> None:
        for place, (row, _) in enumerate(rows):
            mid = (row.p50.value or 0.0) * 1000
            low = mid if row.p50.low is None else row.p50.low * 1000
            high = mid if row.p50.high is None else row.p50.high * 1000
            colour, marker, size = STYLES[kind(row)]
            axes.errorbar(
                mid, place, xerr=[[max(0.0, mid - low)], [max(0.0, high - mid)]],
                color=colour, marker=marker, markersize=size, capsize=3, elinewidth=1.4, label=kind(row),
            )  # fmt: skip
        if sla_s is not None:
            _sla_line(axes, sla_s)
        values = [(row.p50.value or 0.0) * 1000 for row, _ in rows]
        _scale(axes, "x", values, "p50 latency, ms, with its 95% interval")
        _name_rows(axes, [label for _, label in rows])
        _legend(axes)

    alt = "p50 latency by plan. " + "; ".join(f"{label}: {milliseconds(row.p50.value)} ms" for row, label in rows)
    alt += "" if sla_s is None else f". The SLA is {milliseconds(sla_s)} ms"
    title = "p50 latency by plan" + note
    return Chart(title, _svg(draw, _height(len(rows)), title, alt, "lat"), alt)


def _bars(
    title: str,
    axis: str,
    rows: list[tuple[Row, str]],
    values: list[float],
    text: Callable[[float], str],
    unit: str,
) -> Chart:
    def draw(axes: Axes) -> None:
        for place, ((row, _), value) in enumerate(zip(rows, values, strict=True)):
            axes.barh(place, value, height=0.64, color=STYLES[kind(row)][0], label=kind(row))
            axes.text(value, place, f" {text(value)}{' ★' if row.chosen else ''}", va="center", fontsize=8)
        axes.set_xlim(0, (max(values) or 1.0) * 1.16)
        axes.set_xlabel(axis)
        _name_rows(axes, [label for _, label in rows])
        _legend(axes)

    pairs = zip(rows, values, strict=True)
    alt = f"{title}. " + "; ".join(f"{label}: {text(value)} {unit}" for (_, label), value in pairs)
    return Chart(title, _svg(draw, _height(len(rows)), title, alt, unit[:3].lower()), alt)


def _trade(rows: list[tuple[Row, str]], sla_s: float | None, note: str) -> Chart:
    points = [((row.p50.value or 0.0) * 1000, (row.peak_bytes or 0) / MIB) for row, _ in rows]
    front = pareto_front(points)

    def draw(axes: Axes) -> None:
        axes.step(*zip(*front, strict=True), where="post", color="#555555", linewidth=1.6, linestyle=":",
                  label="Pareto front", zorder=1)  # fmt: skip
        for (row, label), (x, y) in zip(rows, points, strict=True):
            colour, marker, size = STYLES[kind(row)]
            axes.plot(x, y, linestyle="", color=colour, marker=marker, markersize=size, label=kind(row), zorder=2)
            if row.chosen:
                axes.annotate(label, (x, y), xytext=(8, 8), textcoords="offset points", fontsize=8)
        if sla_s is not None:
            _sla_line(axes, sla_s)
        _scale(axes, "x", [x for x, _ in points], "p50 latency, ms")
        axes.set_ylabel("peak resident memory, MiB")
        axes.margins(y=0.14)
        axes.grid(axis="both", color="#e2e2e2", linewidth=0.6)
        _legend(axes)

    on_front = [label for (_, label), point in zip(rows, points, strict=True) if point in front]
    alt = f"p50 latency against peak memory of {len(rows)} plans. On the Pareto front: {', '.join(on_front)}"
    if chosen := next(((row, label) for row, label in rows if row.chosen), None):
        row, label = chosen
        alt += f". Chosen: {label}, {milliseconds(row.p50.value)} ms, {mebibytes(row.peak_bytes)} MiB"
    title = "Latency against memory" + note
    return Chart(title, _svg(draw, min(max(4.4, _height(len(rows))), 6.6), title, alt, "par"), alt)


def _height(count: int) -> float:
    return 1.5 + 0.26 * count


def _sla_line(axes: Axes, sla_s: float) -> None:
    axes.axvline(
        sla_s * 1000, color="#111111", linestyle="--", linewidth=1.2, label=f"SLA {milliseconds(sla_s)} ms", zorder=1
    )


def _scale(axes: Axes, which: str, values: Sequence[float], label: str) -> None:
    if min(values) > 0 and max(values) / min(values) > LOG_BEYOND:
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value, 1)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(f"{label} (log scale)")
    else:
        axes.set_xlim(left=0)
        axes.set_xlabel(label)


def _name_rows(axes: Axes, labels: list[str]) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(axis="x", color="#e2e2e2", linewidth=0.6)


def _legend(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    once = {label: handle for handle, label in zip(handles, labels, strict=True)}
    order = [*STYLES, *(label for label in once if label not in STYLES)]
    shown = [label for label in order if label in once]
    axes.legend(
        [once[label] for label in shown], shown,
        loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=5, frameon=False, fontsize=8,
        handletextpad=0.4, columnspacing=1.2,
    )  # fmt: skip


def _svg(draw: Callable[[Axes], None], height_in: float, title: str, alt: str, name: str) -> str:
    """Draw and tidy: no prolog, no namespaces, no metadata, ids of its own, readable by a screen reader."""
    import matplotlib
    import matplotlib.style
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    ours: dict[str, Any] = {
        "svg.fonttype": "none",  # text stays text: smaller, can be found and selected
        "svg.hashsalt": name,
        "text.parse_math": False,  # a model's name may hold a dollar sign
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
    }
    out = io.StringIO()
    with matplotlib.style.context(["default", ours]):
        figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
        draw(figure.add_subplot())
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        FigureCanvasSVG(figure).print_svg(out, metadata=nothing)  # type: ignore[no-untyped-call]
    return _inline(out.getvalue(), title, alt, name)


def _inline(text: str, title: str, alt: str, name: str) -> str:
    from html import escape

    text = text[text.index("<svg") :]
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.S)  # `*{}` would reach the whole page
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href=", "href=")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = text.replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    head = f'<svg role="img" aria-label="{escape(alt)}"'
    text = text.replace("<svg", head, 1)
    return re.sub(r"(<svg[^>]*>)", lambda m: f"{m.group(1)}<title>{escape(title)}</title>", text, count=1).strip()
