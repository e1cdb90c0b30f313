"""Controls: an SLA, an objective and prices as widgets, the same to start a study and to ask what if.

Owns how terms are asked for. Leaves what they mean to `sla`, `ranking` and `cost`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import streamlit as st

from ..cost import Prices
from ..selection import METRICS, SLA, Constraint, Metric, Objective, find_metric

SLIDER_MS = (200, 5000)
QUANTILES = ("p50", "p90", "p95", "p99")
_TIMED = {"latency": "latency of a request", "ttft": "time to first token (TTFT)", "tpot": "time per token (TPOT)"}
_UNTIMED = "nothing timed"
# The unit that each kind of limit is asked for in, and how many base units it is.
_UNITS = {"time": ("ms", 1e-3), "memory": ("MB", 1e6), "rate": ("tokens/s", 1.0), "money": ("USD/Mtok", 1.0)}
_STARTS = {"time": 1000.0, "memory": 1000.0, "rate": 10.0, "money": 10.0}
_WORDS = {"latency": "latency (p50)", "memory": "peak memory", "cost": "cost"}


def sla(key: str, default: SLA) -> tuple[str, ...]:
    """Constraints as text, in the order of the page; `key` tells this set of widgets from others.

    The first timed constraint of `default` is the one with the slider; the others are further ones.
    """
    first = next((c for c in default.constraints if c.metric.quantity in _TIMED), None)
    left, right = st.columns([1, 1], vertical_alignment="bottom")
    with left:
        quantities = [*_TIMED, _UNTIMED]
        quantity = st.selectbox(
            "SLA on the",
            quantities,
            index=quantities.index(first.metric.quantity if first else _UNTIMED),
            format_func=lambda name: _TIMED.get(name, name),
            key=f"{key}-quantity",
        )
    if quantity == _UNTIMED:
        return tuple(_further(key, None, [c for c in default.constraints if c != first]))
    with right:
        shown = list(dict.fromkeys([*QUANTILES, *([_quantile(first.metric)] if first else [])]))
        quantile = st.segmented_control(
            "percentile",
            shown,
            default=_quantile(first.metric) if first else "p50",
            required=True,
            key=f"{key}-quantile",
            help="p95: 95 of 100 requests must stay within the limit",
        )
    limit = limit_ms(key, first.limit * 1000 if first else 1500.0)
    metric = find_metric(quantile if quantity == "latency" else f"{quantity}_{quantile}")
    return (f"{metric.name}<={limit:.15g}ms", *_further(key, metric, [c for c in default.constraints if c != first]))


@dataclass(slots=True)
class _Limit:
    """A limit that two widgets show. Each has a number in its key that rises when the other one is moved.

    Writing into a widget's state instead would race: a click that comes before the page is drawn brings the old
    value of the widget that was written to, which then counts as moved.
    """

    ms: float
    slider: int = 0
    exact: int = 0


def limit_ms(key: str, start: float) -> float:
    """A slider from 200 to 5000 ms with an exact entry beside it; the entry may go beyond the slider."""
    low, high = SLIDER_MS
    limit: _Limit = st.session_state.setdefault(f"{key}-limit", _Limit(start))
    slider, exact = f"{key}-slider-{limit.slider}", f"{key}-exact-{limit.exact}"

    def from_slider() -> None:
        limit.ms = float(st.session_state[slider])
        limit.exact += 1

    def from_exact() -> None:
        if st.session_state[exact] is not None:
            limit.ms = float(st.session_state[exact])
            limit.slider += 1

    left, right = st.columns([3, 1], vertical_alignment="bottom")
    at = int(min(max(limit.ms, low), high))
    left.slider("limit, ms", low, high, value=at, step=10, key=slider, on_change=from_slider)
    right.number_input(
        "exact limit, ms", min_value=0.001, value=limit.ms, step=10.0, format="%.15g", key=exact, on_change=from_exact
    )
    return limit.ms


def _further(key: str, main: Metric | None, defaults: Sequence[Constraint]) -> list[str]:
    started = {c.metric.name: c for c in defaults}
    names = [name for name in dict.fromkeys([*METRICS, *started]) if main is None or name != main.name]
    chosen = st.multiselect(
        "further constraints",
        names,
        default=[name for name in started if name in names],
        format_func=lambda name: f"{name}: {find_metric(name).help}",
        key=f"{key}-further-{main.name if main else ''}",
        placeholder="none",
    )
    texts = []
    for name in chosen:
        metric = find_metric(name)
        unit, base = _UNITS[metric.kind]
        start = started[name].limit / base if name in started else _STARTS[metric.kind]
        value = st.number_input(
            f"{name} {'at most' if metric.op == '<=' else 'at least'}, {unit}",
            min_value=0.000001,
            value=float(f"{start:.10g}"),
            format="%.10g",
            key=f"{key}-{name}",
        )
        texts.append(f"{name}{metric.op}{value:.15g}{unit}")
    return texts


def _quantile(metric: Metric) -> str:
    return f"p{100 * (metric.q or 0.5):g}"


def objective(key: str, default: Objective) -> Objective:
    """What is minimised among the plans that meet the SLA."""
    names = list(get_args(Literal["latency", "memory", "cost"]))
    name = st.segmented_control(
        "minimize",
        names,
        default=default.metric,
        required=True,
        format_func=lambda name: _WORDS[name],
        key=f"{key}-objective",
        help="among the plans that meet the SLA",
    )
    return Objective(cast(Literal["latency", "memory", "cost"], name))


def prices(key: str, default: Prices) -> Prices:
    """Prices of a vCPU-hour and a GB-hour; the source is the default's until a price is changed.

    Raises:
        InputError: both are zero.
    """
    left, right = st.columns(2)
    cpu = left.number_input(
        "USD per vCPU-hour",
        min_value=0.0,
        value=default.usd_per_vcpu_hour,
        step=0.001,
        format="%.6g",
        key=f"{key}-vcpu",
    )
    memory = right.number_input(
        "USD per GB-hour of memory",
        min_value=0.0,
        value=default.usd_per_gb_hour,
        step=0.001,
        format="%.6g",
        key=f"{key}-gb",
    )
    same = (cpu, memory) == (default.usd_per_vcpu_hour, default.usd_per_gb_hour)
    return Prices(cpu, memory, default.source if same else "entered on the page")
