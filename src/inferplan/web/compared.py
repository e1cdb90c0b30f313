"""The page that lays two studies side by side: the same plans, ratios with intervals.

Owns the choice of the two and the table. Leaves what is comparable, and what
an interval says, to `compare`.
"""

from __future__ import annotations

from typing import Any

import streamlit as st

from ..compare import METRICS, Comparison, compare
from ..errors import UnknownNameError
from ..report.numbers import MIB, MISSING
from ..report.rows import labels
from ..stats import Ratio
from ..store import Store, StudyRow
from . import figures, reading
from .history import name
from .outcome import chart
from .parts import Place, complaints, named, safe, shown, table_height

_FACTORS = {"peak_rss": 1 / MIB, "tokens_per_s": 1.0}
_UNITS = {"peak_rss": "MiB", "tokens_per_s": "tokens/s"}


def page(place: Place) -> None:
    """Choose A and B, then see every plan that both hold."""
    st.title("Compare two studies", anchor=False)
    with complaints():
        with Store(place.store) as store:
            rows = store.list_studies()
        if len(rows) < 2:
            st.info("It takes two studies to compare; the store has " + ("one." if rows else "none."))
            return
        a, b = _chosen(rows)
        comparison = _compared(place, a.id, b.id)
        _draw(comparison)


def _chosen(rows: tuple[StudyRow, ...]) -> tuple[StudyRow, StudyRow]:
    """The two, as the address names them, else the newest against the one before it.

    Raises:
        UnknownNameError: the address names a study that is not there.
    """
    places = {row.id: place for place, row in enumerate(rows)}
    defaults = []
    for key, usual in (("a", rows[1].id), ("b", rows[0].id)):
        wanted = st.query_params.get(key, usual)
        if wanted not in places:
            raise UnknownNameError("study", wanted, places, "Choose one on the history page.")
        defaults.append(places[wanted])
    left, right = st.columns(2)
    a = left.selectbox("A, to compare against", rows, index=defaults[0], format_func=name, key="compare-a")
    b = right.selectbox("B, that is compared", rows, index=defaults[1], format_func=name, key="compare-b")
    assert a is not None
    assert b is not None
    return a, b


def _compared(place: Place, a: str, b: str) -> Comparison:
    return compare(reading.see(place.store, a).study, reading.see(place.store, b).study)


def _draw(comparison: Comparison) -> None:
    for text in comparison.warnings:
        st.warning(safe(text))
    if comparison.synthetic:
        st.warning("Synthetic weights ran in at least one of them.", icon=":material/science:")
    metric = st.segmented_control(
        "metric",
        list(comparison.metrics),
        default=comparison.metrics[0],
        required=True,
        format_func=lambda name: METRICS[name].title,
        key="compare-metric",
        help="ratios are B over A",
    )
    columns = table(comparison, metric)
    st.dataframe(
        columns,
        hide_index=True,
        height=table_height(len(comparison.plans)),
        column_config=_columns(metric),
        placeholder=MISSING,
        alt=f"{METRICS[metric].title} of each plan in both studies",
    )
    st.caption(
        f"{METRICS[metric].title}: {METRICS[metric].help}. Where intervals do not tell the two apart, "
        "the table says that no difference is shown."
    )
    _ratios(comparison, metric)
    for which, plans in (("A", comparison.only_a), ("B", comparison.only_b)):
        if plans:
            st.caption(f"Only in {which}, not compared: {safe(', '.join(plan.id for plan in plans))}")
    for text in comparison.notes:
        st.caption(safe(text))


def table(comparison: Comparison, metric: str) -> dict[str, list[Any]]:
    """Columns of one metric, a row a plan; a plan that cannot be compared says why."""
    names = _names(metric)
    rows: list[dict[str, Any]] = []
    factor = _FACTORS.get(metric, 1000.0)
    for paired in comparison.plans:
        change = paired.change(metric)
        if change is None:
            figures_: tuple[Any, ...] = (shown(paired.problem or "not compared"), None, None, None, None, None)
        else:
            scaled = [None if value is None else value * factor for value in (change.a, change.b)]
            figures_ = (change.says, *scaled, change.ratio.value, change.ratio.low, change.ratio.high)
        rows.append(dict(zip(names, (named(paired.plan), *figures_), strict=True)))
    return {name: [row[name] for row in rows] for name in names}


def _names(metric: str) -> tuple[str, ...]:
    unit = _UNITS.get(metric, "ms")
    return ("plan", "says", f"A, {unit}", f"B, {unit}", "B / A", "low", "high")


def _columns(metric: str) -> dict[str, Any]:
    formats = dict(zip(_names(metric)[2:], ("%.1f", "%.1f", "%.3f", "%.3f", "%.3f"), strict=True))
    numbers = {name: st.column_config.NumberColumn(format=format) for name, format in formats.items()}
    return {**numbers, "says": st.column_config.TextColumn(width="medium")}


def _ratios(comparison: Comparison, metric: str) -> None:
    known = [(paired, change) for paired in comparison.plans if (change := paired.change(metric)) is not None]
    values: list[Ratio] = [change.ratio for _, change in known]
    note = "synthetic weights" if comparison.synthetic else ""
    names = labels((paired.plan for paired, _ in known), full=True)
    chart(figures.ratios(names, values, METRICS[metric].title, note))
