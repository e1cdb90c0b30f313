"""Regret against time: how far the best plan so far is from the true optimum, as a search goes on.

Owns the incumbent, the mean over seeds, the paired interval on a difference and the chart. Leaves searching, and what
is true, to `search_efficiency.py`.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inferplan.cost import Prices
from inferplan.measurement import Measurement
from inferplan.plan import Plan
from inferplan.ranking import Objective
from inferplan.result import results
from inferplan.search.goal import Goal
from inferplan.sla import SLA

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Steps = Sequence[tuple[float, float]]
"""When the incumbent changed, in seconds, and its true regret since then: 0.02 is 2% above the optimum."""
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Of the time of every plan once, at which the regret is printed."""
LEVEL = 0.95
# Okabe and Ito's palette, which holds under the common colour blindnesses; the dashes tell them apart without it.
_LINES = (
    ("#0072B2", "-"),
    ("#D55E00", "--"),
    ("#009E73", "-."),
    ("#CC79A7", ":"),
    ("#E69F00", (0, (5, 1, 1, 1, 1, 1))),
)
_REST = ("#666666", (0, (1, 2)))
_FLOOR = 1e-4  # of a regret, for the logarithmic axis


class Incumbent:
    """The best plan by what was measured so far, as the search itself would judge.

    That is the fastest of the plans that reached the furthest stage (a look, each longer rung, the heat with every
    request, the final or a measurement for its own sake) by that stage's requests, in a look or a heat by the fastest
    process; nobody's before a plan was measured that may meet the SLA.
    """

    def __init__(self, sla: SLA, cores: float) -> None:
        self._goal = Goal(sla, Objective("latency"), Prices(), cores)
        self._found: dict[tuple[int, int], dict[Plan, list[Measurement]]] = {}
        self._scores: dict[tuple[int, int], dict[Plan, float]] = {}

    def after(self, m: Measurement) -> Plan | None:
        """The incumbent after one more process."""
        stage = (0, len(m.samples)) if m.look else (1, 0)
        told = self._found.setdefault(stage, {}).setdefault(m.plan, [])
        told.append(m)
        scores = self._scores.setdefault(stage, {})
        found = [self._score([one]) for one in told] if m.look else [self._score(told)]
        if (best := min(found)) < math.inf:
            scores[m.plan] = best
        else:
            scores.pop(m.plan, None)
        reached = max((one for one, found in self._scores.items() if found), default=None)
        return None if reached is None else min(self._scores[reached], key=self._scores[reached].__getitem__)

    def _score(self, told: Sequence[Measurement]) -> float:
        """The latency that these processes show together; infinite where they leave their plan no chance."""
        (result,) = results([told[0].plan], told)
        r = self._goal.judge(result)
        return self._goal.score(r) if r.eligible and not self._goal.hopeless(r) else math.inf


def regret_at(steps: Steps, seconds: float) -> float | None:
    """The regret of the incumbent at that time; None before the first."""
    place = bisect_right(steps, (seconds, math.inf))
    return steps[place - 1][1] if place else None


def mean_at(many: Sequence[Steps], whole_s: Sequence[float], share: float) -> float | None:
    """Mean regret over seeds at a share of each one's `whole_s`; None while some seed has no incumbent."""
    found = [regret_at(steps, share * seconds) for steps, seconds in zip(many, whole_s, strict=True)]
    known = [regret for regret in found if regret is not None]
    return sum(known) / len(known) if found and len(known) == len(found) else None


def difference(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """Mean of `a` minus `b`, paired by seed, with its interval at `LEVEL`: percentile bootstrap over seeds."""
    import numpy as np
    from scipy.stats import bootstrap

    apart = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    middle = float(apart.mean())
    if len(apart) < 2 or np.ptp(apart) == 0:
        return middle, middle, middle
    found = bootstrap(
        (apart,), np.mean, confidence_level=LEVEL, method="percentile", rng=np.random.default_rng(0), batch=500
    )
    return middle, float(found.confidence_interval.low), float(found.confidence_interval.high)


def rows(size: int, steps: Mapping[str, Sequence[Steps]], whole_s: Sequence[float]) -> list[str]:
    """Rows of a table: at some shares of `whole_s`, each strategy's mean regret, and the first's less it."""
    first = next(iter(steps))
    lines = []
    for share in SHARES:
        for name, many in steps.items():
            mean = mean_at(many, whole_s, share)
            line = f"| {size} | {share:.0%} | {name} | {'-' if mean is None else f'{mean:.1%}'} |"
            pair = [
                [regret_at(one, share * s) for one, s in zip(of, whole_s, strict=True)] for of in (steps[first], many)
            ]
            known = [(a, b) for a, b in zip(*pair, strict=True) if a is not None and b is not None]
            if name == first or len(known) < len(whole_s):
                lines.append(f"{line} - |")
            else:
                middle, low, high = difference([a for a, _ in known], [b for _, b in known])
                lines.append(f"{line} {middle:+.1%} [{low:+.1%}, {high:+.1%}] |")
    return lines


def equal_time(steps: Sequence[Steps], ends_s: Sequence[float], ours: Sequence[Steps], within: float) -> str:
    """The last cells of a row: how often the best plan at its end is `within`, mean regret, ours less that.

    Seeds in which nothing had been found by then count as not within, and in no mean.

    Args:
        steps: of one strategy, a seed each.
        ends_s: when it was ended.
        ours: the searches that it is compared with, at their own ends.
    """
    pairs = [(last[-1][1], regret_at(one, end)) for one, end, last in zip(steps, ends_s, ours, strict=True) if last]
    known = [(mine, other) for mine, other in pairs if other is not None]
    if not known:
        return "| 0.0% | - | - |"
    near = sum(other <= within for _, other in known) / len(steps)
    middle, low, high = difference([mine for mine, _ in known], [other for _, other in known])
    mean = sum(other for _, other in known) / len(known)
    return f"| {near:.1%} | {mean:.1%} | {middle:+.1%} [{low:+.1%}, {high:+.1%}] |"


def chart(panels: Mapping[int, tuple[Mapping[str, Sequence[Steps]], Sequence[float]]], path: Path) -> None:
    """Mean regret against the share of `whole_s`, a panel a size, as an SVG file.

    Args:
        panels: by size, what `rows` takes.
    """
    import matplotlib
    import matplotlib.style
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    ours: dict[str, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "regret",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with matplotlib.style.context(["default", ours]):
        figure = Figure(figsize=(3.4 * len(panels) + 0.6, 3.4), layout="constrained")
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axis, (size, (steps, whole_s)) in zip(axes, panels.items(), strict=True):
            _draw(axis, size, steps, whole_s)
        axes[0].set_ylabel("mean regret")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=min(3, len(panels) + 1), frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        with path.open("w", encoding="utf-8") as file:
            FigureCanvasSVG(figure).print_svg(file, metadata=nothing)  # type: ignore[no-untyped-call]


def _draw(axes: Axes, size: int, steps: Mapping[str, Sequence[Steps]], whole_s: Sequence[float]) -> None:
    from matplotlib.ticker import FuncFormatter

    grid = [10 ** (-2.5 + 2.5 * i / 80) for i in range(81)]
    for place, (name, many) in enumerate(steps.items()):
        points = [(share, mean) for share in grid if (mean := mean_at(many, whole_s, share)) is not None]
        colour, dashes = _LINES[place] if place < len(_LINES) else _REST
        points = [(share, max(mean, _FLOOR)) for share, mean in points]
        # A step's start and the end say all of it; the file is a third of the size.
        kept = [one for i, one in enumerate(points) if i in (0, len(points) - 1) or one[1] != points[i - 1][1]]
        xs, ys = [share for share, _ in kept], [mean for _, mean in kept]
        axes.plot(xs, ys, color=colour, linestyle=dashes, label=name, drawstyle="steps-post")
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    axes.set_title(f"{size} plans", fontsize=9)
    axes.set_xlabel("share of the time that every plan once takes")
    axes.grid(which="major", alpha=0.25)
