"""How the charts of the web app look: colours, markers, axes, and texts that Plotly must not read as markup.

Owns what every chart shares. Leaves what is drawn, and every number, to `figures`.
Nothing here sets a font's colour or a solid background: the page's theme, light or dark, does.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import plotly.graph_objects as go

from ..plan import PRECISIONS
from ..report.charts import LOG_BEYOND
from ..report.rows import Row

Group = tuple[str, str]
"""Engine and precision: what a plan is coloured by."""

# Okabe and Ito's palette without black, which a dark page hides; then Paul Tol's muted one and a grey
# (https://personal.sron.nl/~pault/). Both hold under the common colour blindnesses.
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#F0E442",
    "#882255", "#999933", "#AA4499", "#44AA99", "#CC6677", "#117733", "#DDCC77", "#888888",
)  # fmt: skip
# Each has an open form and one with a dot, which show the verdict; the star is kept for the chosen plan. Their number
# and that of the colours share no divisor, so that a pair comes again only after 210 groups.
SYMBOLS = (
    "circle", "square", "diamond", "triangle-up", "cross", "x", "triangle-down", "pentagon", "hexagon",
    "diamond-tall", "diamond-wide", "triangle-left", "triangle-right", "octagon",
)  # fmt: skip
PATTERNS = ("", "/", "x", ".", "\\", "-", "+", "|")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
VERDICTS = {"meets": "", "undecided": "-open-dot", "misses": "-open"}
GREY = "#8a8a8a"  # reads on white and on black
EDGE = "rgba(128, 128, 128, 0.6)"  # a rim, without which yellow is lost on white
GRID = "rgba(128, 128, 128, 0.25)"
CLEAR = "rgba(0, 0, 0, 0)"
MAX_ROWS = 60  # more bars than that are not read, and make a page of several screens
ROW_PX = 22  # one line of a small font and some air
TITLE_CHARS = 44  # what a line of a title holds at 390 px
HOVER_CHARS = 44
_AXIS_PX = 52  # an axis's numbers and title
_LEGEND_PX = 340  # the width of a legend on a page of 390 px
_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "$": "&#36;"})


@dataclass(frozen=True, slots=True)
class Chart:
    """A figure, with its title in it, and `alt`: in one to four sentences what it shows."""

    title: str
    figure: go.Figure
    alt: str


@dataclass(frozen=True, slots=True)
class Style:
    """What tells one group from another: by colour, and without it by marker or pattern."""

    colour: str
    symbol: str
    pattern: str
    dash: str


@dataclass(frozen=True, slots=True)
class Mark:
    """One plan as a marker. `low` and `high` end its whisker; None: no whisker on that side."""

    x: float
    y: float
    hover: str
    verdict: str = ""
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Scale:
    """A numeric axis. `low` and `high` are as Plotly wants a range: powers of ten on a log axis."""

    log: bool
    low: float
    high: float

    def at(self, value: float) -> float:
        """Where an annotation for `value` stands; unlike a shape it takes powers of ten on a log axis."""
        return math.log10(value) if self.log else value

    def share(self, value: float) -> float:
        """How far along the axis `value` is: 0 at its start, 1 at its end; outside where it is not shown."""
        if self.log and value <= 0:
            return -math.inf
        return (self.at(value) - self.low) / (self.high - self.low)

    def axis(self, title: str) -> dict[str, Any]:
        """The axis for a layout."""
        made: dict[str, Any] = {
            "title": {"text": title + (" (log scale)" if self.log else ""), "font": {"size": 12}},
            "range": [self.low, self.high],
            "uirevision": "log" if self.log else "linear",  # a zoom on one of them means nothing on the other
            "automargin": True,
            "showgrid": True,
            "gridcolor": GRID,
            "zeroline": False,
        }
        if self.log:  # 1, 2, 5, 10 where they have room, in plain digits
            made |= {"type": "log", "dtick": "D2" if self.high - self.low < 2 else 1, "tickformat": "~r"}
        return made


def marker_trace(name: str, marks: Sequence[Mark], look: Style) -> dict[str, Any]:
    """One group of plans as markers: shape and colour tell the group, the filling tells the verdict."""
    # The legend shows a trace's first marker: a filled one, where there is one.
    marks = sorted(marks, key=lambda m: list(VERDICTS).index(m.verdict) if m.verdict in VERDICTS else -1)
    trace: dict[str, Any] = {
        "type": "scatter", "mode": "markers", "name": name, "x": [m.x for m in marks], "y": [m.y for m in marks],
        "marker": {
            "size": 11, "color": look.colour, "line": {"width": 1.5, "color": EDGE},
            "symbol": [look.symbol + VERDICTS.get(m.verdict, "") for m in marks],
        },
        "hovertext": [m.hover for m in marks], "hoverinfo": "text",
    }  # fmt: skip
    if any(m.low is not None or m.high is not None for m in marks):
        trace["error_x"] = {
            "type": "data", "symmetric": False, "thickness": 2, "width": 0, "color": look.colour,
            "array": [0.0 if m.high is None else max(0.0, m.high - m.x) for m in marks],
            "arrayminus": [0.0 if m.low is None else max(0.0, m.x - m.low) for m in marks],
        }  # fmt: skip
    return trace


def star_trace(mark: Mark, look: Style) -> dict[str, Any]:
    """The chosen plan's star, over its marker."""
    return {
        "type": "scatter", "mode": "markers", "name": "chosen plan", "x": [mark.x], "y": [mark.y],
        "marker": {"size": 18, "symbol": "star", "color": look.colour, "line": {"width": 1.5, "color": GREY}},
        "hovertext": [mark.hover], "hoverinfo": "text",
    }  # fmt: skip


def verdict_keys(verdicts: Iterable[str]) -> list[dict[str, Any]]:
    """Entries of the legend for the verdicts that occur; they draw nothing."""
    found = set(verdicts)
    return [
        {
            "type": "scatter", "mode": "markers", "name": verdict, "x": [None], "y": [None], "hoverinfo": "skip",
            "marker": {"size": 11, "color": GREY, "symbol": "circle" + mark, "line": {"width": 1.5, "color": EDGE}},
        }
        for verdict, mark in VERDICTS.items()
        if verdict in found
    ]  # fmt: skip


def bar_trace(
    name: str, y: Sequence[int], x: Sequence[float | None], look: Style, hover: Sequence[str], texts: Sequence[str] = ()
) -> dict[str, Any]:
    """One group of plans, or one segment of all, as horizontal bars; `texts` stand at their ends."""
    written = {"text": list(texts), "textposition": "outside", "textangle": 0, "constraintext": "none"}
    return {
        "type": "bar", "orientation": "h", "name": name, "x": list(x), "y": list(y), "width": 0.64,
        "marker": {"color": look.colour, "line": {"width": 0},
                   "pattern": {"shape": look.pattern, "fillmode": "overlay", "size": 7, "solidity": 0.25}},
        "hovertext": list(hover), "hoverinfo": "text", "cliponaxis": False, **(written if texts else {}),
    }  # fmt: skip


def printable(text: str) -> str:
    """`text` with a question mark for what has no glyph: control characters, marks that turn the direction."""
    return text if text.isprintable() else "".join(ch if ch.isprintable() else "?" for ch in text)


def plain(text: str) -> str:
    """`text` so that Plotly shows it as it is: no tag, no entity, no formula between dollar signs."""
    return printable(text).translate(_ESCAPES)


def wrapped(text: str, width: int) -> str:
    """`text` as `plain` has it, broken into lines of at most `width` characters."""
    clean = printable(text)
    if len(clean) <= width:
        return plain(clean)
    lines = textwrap.wrap(clean, width) if " " in clean else [clean[i : i + width] for i in range(0, len(clean), width)]
    return "<br>".join(map(plain, lines))


def groups_of(rows: Iterable[Row]) -> tuple[Group, ...]:
    """Every (engine, precision) pair of `rows` once, sorted: engines by name, precisions from wide to narrow."""

    def place(group: Group) -> tuple[str, int, str]:
        engine, precision = group
        return engine, PRECISIONS.index(precision) if precision in PRECISIONS else len(PRECISIONS), precision

    return tuple(sorted({(row.plan.engine, row.plan.precision) for row in rows}, key=place))


def style(place: int) -> Style:
    """The style of the group, plan or segment at `place`, counted from 0."""
    return Style(
        COLOURS[place % len(COLOURS)],
        SYMBOLS[place % len(SYMBOLS)],
        PATTERNS[place % len(PATTERNS)],
        DASHES[place % len(DASHES)],
    )


def styles(groups: Sequence[Group]) -> dict[Group, Style]:
    """A style for each group; no two have the same colour and symbol (up to 210), nor colour and pattern (120)."""
    return {group: style(place) for place, group in enumerate(dict.fromkeys(groups))}


def scale(
    values: Sequence[float], limit: float | None = None, room: float = 0.08, zero: bool = True, log: bool = True
) -> Scale:
    """The axis that shows `values`, and `limit` where that does not squeeze them.

    Args:
        values: at least one.
        room: what to leave free at the end, as a share of the axis.
        zero: begin a linear axis at 0.
        log: take a logarithmic one where the largest value is more than `LOG_BEYOND` times the smallest.
    """
    low, high = min(values), max(values)
    if log and low > 0 and high / low > LOG_BEYOND:
        if limit is not None and low / 10 <= limit <= high * 10:
            low, high = min(low, limit), max(high, limit)
        span = math.log10(high / low)
        return Scale(True, math.log10(low) - 0.05 * span, math.log10(high) + room * span)
    if zero:
        if limit is not None and limit <= high * 3:
            high = max(high, limit)
        return Scale(False, 0.0, high * (1 + room) or 1.0)
    if limit is not None and low / 1.5 <= limit <= high * 1.5:
        low, high = min(low, limit), max(high, limit)
    span = (high - low) or abs(high) or 1.0
    return Scale(False, low - room * span, high + room * span)


def places(names: Sequence[str], chosen: int | None = None, lines: bool = True) -> dict[str, Any]:
    """A y axis with a name at each of 0, 1, 2, ... from the top; two plans of one name keep their own lines.

    Args:
        names: short names, not yet escaped.
        chosen: the place that gets a star.
        lines: lead the eye from a name to its marker; a bar does without.
    """
    texts = [f"<b>★ {plain(name)}</b>" if i == chosen else plain(name) for i, name in enumerate(names)]
    return {
        "tickmode": "array",
        "tickvals": list(range(len(names))),
        "ticktext": texts,
        "tickfont": {"size": 11},
        "range": [len(names) - 0.4, -0.6],
        "automargin": True,
        "fixedrange": True,
        "showgrid": lines,
        "gridcolor": GRID,
        "zeroline": False,
    }


def still(made: dict[str, Any]) -> dict[str, Any]:
    """The layout without zoom and drag: a finger on a chart as high as the screen is to scroll the page."""
    return {**made, "xaxis": {**made["xaxis"], "fixedrange": True}, "dragmode": False}


def layout(title: str, plot_px: int, x: dict[str, Any], y: dict[str, Any], legend: Sequence[str]) -> dict[str, Any]:
    """A layout that fits a page of 390 px as well as a wide one.

    Args:
        title: not yet escaped; broken into lines, for Plotly breaks none.
        plot_px: height of the plot without title and legend.
        legend: the names in the legend, for the height it takes.
    """
    head, _, note = title.rpartition(" (")
    whole = not head or len(title) <= TITLE_CHARS
    text = (
        wrapped(title, TITLE_CHARS) if whole else f"{wrapped(head, TITLE_CHARS)}<br>{wrapped(f'({note}', TITLE_CHARS)}"
    )
    lower = 20 * text.count("<br>")  # Plotly takes the first line's place for that of them all
    top = 48 + lower  # the label of a limit stands between the title and the plot
    return {
        "title": {
            "text": text, "font": {"size": 15}, "automargin": False,
            "x": 0, "xref": "container", "xanchor": "left", "y": 1, "yref": "paper", "yanchor": "bottom",
            "pad": {"b": 26 + lower, "l": 4},
        },
        "height": top + plot_px + legend_px(legend) + _AXIS_PX,
        "margin": {"l": 8, "r": 16, "t": top, "b": 8},
        "paper_bgcolor": CLEAR,
        "plot_bgcolor": CLEAR,
        "xaxis": x,
        "yaxis": y,
        "legend": {
            "orientation": "h", "font": {"size": 12}, "bgcolor": CLEAR, "title": {"text": ""}, "itemsizing": "constant",
            # Only a legend that begins left of the plot and below it may be wider than the plot (plotly.js 4.1).
            "x": -0.001, "xanchor": "left", "y": -_AXIS_PX / plot_px, "yanchor": "top", "traceorder": "normal",
        },
        "showlegend": bool(legend),
        "hovermode": "closest",
        "hoverlabel": {"align": "left"},
        "uirevision": "inferplan",  # the same for ever: what was zoomed or hidden stays so when the page runs again
    }  # fmt: skip


def legend_px(names: Sequence[str]) -> int:
    """About how high a horizontal legend is on a narrow page, where every column is as wide as the longest name."""
    if not names:
        return 0
    columns = max(1, _LEGEND_PX // (48 + 7 * max(map(len, names))))
    return 20 * math.ceil(len(names) / columns) + 8


def limit_line(
    across: Literal["x", "y"], value: float, text: str, along: Scale
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The line of an SLA at `value` of the x or y axis, and its label, which stays where the line is out of sight.

    Returns:
        A shape and an annotation for a layout.
    """
    other = "y" if across == "x" else "x"
    line = {
        "type": "line", f"{across}ref": across, f"{other}ref": f"{other} domain",
        f"{across}0": value, f"{across}1": value, f"{other}0": 0, f"{other}1": 1,
        "line": {"color": GREY, "width": 2, "dash": "dash"}, "layer": "below",
    }  # fmt: skip
    share, label = along.share(value), plain(text)
    where: dict[str, Any]
    if across == "y":
        where = {"xref": "x domain", "x": 1, "xanchor": "right", "yref": "y", "y": along.at(value), "yanchor": "bottom"}
        if not 0 <= share <= 1:
            label += " ↑" if share > 1 else " ↓"
            where |= {"yref": "y domain", "y": min(max(share, 0), 1), "yanchor": "top" if share > 1 else "bottom"}
    else:
        side = "left" if share < 0.5 else "right"
        where = {"xref": "x", "x": along.at(value), "xanchor": side, "yref": "y domain", "y": 1, "yanchor": "bottom"}
        if not 0 <= share <= 1:
            label = f"{label} →" if share > 1 else f"← {label}"
            where |= {"xref": "x domain", "x": min(max(share, 0), 1)}
    return line, {**where, "text": label, "showarrow": False, "font": {"size": 12}}


def ratio_band(low: float, high: float) -> list[dict[str, Any]]:
    """Shapes: what counts as a tie, from `low` to `high` of the x axis, and a line at 1."""
    whole = {"xref": "x", "yref": "y domain", "y0": 0, "y1": 1, "layer": "below"}
    return [
        {"type": "rect", "x0": low, "x1": high, "fillcolor": GREY, "opacity": 0.2, "line": {"width": 0}, **whole},
        {"type": "line", "x0": 1, "x1": 1, "line": {"color": GREY, "width": 2}, **whole},
    ]


def legend(traces: Sequence[dict[str, Any]]) -> list[str]:
    """The names in the legend."""
    return [trace["name"] for trace in traces]


def figure(traces: list[dict[str, Any]], made: dict[str, Any]) -> go.Figure:
    """The figure of traces and a layout. Unchecked: to check each of 500 markers doubles the time; tests check all."""
    return go.Figure({"data": traces, "layout": made}, _validate=False)
