"""Metrics, Constraint, SLA: what may be demanded of a plan, and how it is written.

Owns the one table of metrics, units, and the parser. Leaves the verdict to
`verdict`, the choice to `selection` (which hands these names on).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from .errors import SLAError, UnknownNameError

Kind = Literal["time", "memory", "rate", "money"]
Quantity = Literal["latency", "ttft", "tpot", "tokens_per_s", "peak_rss", "load", "cost"]
Op = Literal["<=", ">="]

UNITS: Mapping[Kind, Mapping[str, float]] = {
    "time": {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0},
    "memory": {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30},
    "rate": {"": 1.0, "tokens/s": 1.0, "tok/s": 1.0},
    "money": {"": 1.0, "USD": 1.0, "USD/Mtok": 1.0},
}


@dataclass(frozen=True, slots=True)
class Metric:
    """One thing that an SLA may bound.

    Attributes:
        name: as it is written in an SLA.
        quantity: what is observed.
        kind: which units apply; base units are seconds, bytes, tokens per second, USD per Mtok.
        op: the direction in which it can be bounded.
        q: which quantile over requests; None for what is seen once a process.
        help: a line for `--help`.
    """

    name: str
    quantity: Quantity
    kind: Kind
    op: Op
    q: float | None
    help: str


METRICS: Mapping[str, Metric] = {
    m.name: m
    for m in (
        Metric("p50", "latency", "time", "<=", 0.5, "median latency of a request; any p1 to p99.9 works"),
        Metric("p90", "latency", "time", "<=", 0.9, "latency that 90% of requests stay within"),
        Metric("p95", "latency", "time", "<=", 0.95, "latency that 95% of requests stay within"),
        Metric("p99", "latency", "time", "<=", 0.99, "latency that 99% of requests stay within"),
        Metric(
            "ttft", "ttft", "time", "<=", 0.5, "median time to first token; ttft_p95 and the like for other quantiles"
        ),
        Metric("ttft_p95", "ttft", "time", "<=", 0.95, "time to first token that 95% of requests stay within"),
        Metric(
            "tpot", "tpot", "time", "<=", 0.5, "median time per output token after the first; tpot_p95 and the like"
        ),
        Metric(
            "tokens_per_s", "tokens_per_s", "rate", ">=", 0.5, "median of a request's output tokens over its latency"
        ),
        Metric("peak_rss", "peak_rss", "memory", "<=", None, "peak memory of every process"),
        Metric("load", "load", "time", "<=", None, "time to load the model, of every process"),
        Metric("cost", "cost", "money", "<=", None, "USD per million output tokens, of every process"),
    )
}
_TIMED: Mapping[str, Quantity] = {"latency": "latency", "ttft": "ttft", "tpot": "tpot"}
_WORDS: Mapping[Quantity, str] = {"latency": "latency", "ttft": "time to first token", "tpot": "time per output token"}
_QUANTILE = re.compile(r"p(\d{1,2}(?:\.\d)?)")
_CONSTRAINT = re.compile(r"([A-Za-z_][\w.]*)\s*(<=|>=|==|=|<|>)\s*(.*)")
_NUMBER = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(.*)")


def find_metric(name: str) -> Metric:
    """The metric of that name: from the table, or any quantile of 1 to 99.9 of latency, TTFT or TPOT.

    `p95`, `p95_latency` and `latency_p95` are one; so are `p95_ttft` and `ttft_p95`, `p50_ttft` and `ttft`.

    Raises:
        UnknownNameError: there is none.
    """
    text = name.strip().lower()
    if text in METRICS:
        return METRICS[text]
    parts = text.split("_")
    quantiles = [part for part in parts if _QUANTILE.fullmatch(part)]
    words = [part for part in parts if part not in quantiles] or ["latency"]
    if len(quantiles) == 1 and len(words) == 1 and words[0] in _TIMED and 1 <= float(quantiles[0][1:]) <= 99.9:
        return _quantile_metric(_TIMED[words[0]], quantiles[0])
    raise UnknownNameError(
        "metric", name, METRICS, "Any quantile from p1 to p99.9 works, of ttft and tpot too: ttft_p90."
    )


def _quantile_metric(quantity: Quantity, text: str) -> Metric:
    percent = float(text[1:])
    name = f"p{percent:g}" if quantity == "latency" else quantity if percent == 50 else f"{quantity}_p{percent:g}"
    what = f"{_WORDS[quantity]} that {percent:g}% of requests stay within"
    return METRICS.get(name) or Metric(name, quantity, "time", "<=", round(percent / 100, 6), what)


@dataclass(frozen=True, slots=True)
class Constraint:
    """One bound on one metric. `str()` gives it back as it can be parsed.

    Attributes:
        limit: in base units: seconds, bytes, tokens per second, USD per Mtok.
        text: how it was written, without spaces; made from the rest when empty.

    Raises:
        SLAError: the limit is not positive and finite, or the direction is wrong.
    """

    metric: Metric
    op: Op
    limit: float
    text: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not self.text:
            unit = {"time": "s", "memory": "B", "rate": "tokens/s", "money": "USD/Mtok"}[self.metric.kind]
            object.__setattr__(self, "text", f"{self.metric.name}{self.op}{self.limit!r}{unit}")
        if not 0 < self.limit < math.inf:
            raise SLAError(f"{self.text!r}: the limit must be a positive finite number")
        if self.op != self.metric.op:
            side = "above" if self.metric.op == "<=" else "below"
            raise SLAError(
                f"{self.text!r}: {self.metric.name} can only be bounded from {side}: "
                f"write {self.text.replace(self.op, self.metric.op)}"
            )

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class SLA:
    """Constraints that must all hold.

    Raises:
        SLAError: there are none, or two bound the same metric.
    """

    constraints: tuple[Constraint, ...]

    def __post_init__(self) -> None:
        if not self.constraints:
            raise SLAError('the SLA is empty: give at least one constraint, for example "p50<=1500ms"')
        seen: dict[str, Constraint] = {}
        for constraint in self.constraints:
            name = constraint.metric.name
            if name in seen:
                raise SLAError(f"{name} is bounded twice, by {seen[name]} and {constraint}: keep one")
            seen[name] = constraint

    def __str__(self) -> str:
        return ", ".join(map(str, self.constraints))

    @classmethod
    def from_p50_ms(cls, ms: float) -> SLA:
        """The SLA `p50<=MSms`.

        Raises:
            SLAError: `ms` is not a positive finite number.
        """
        if not 0 < ms < math.inf:
            raise SLAError(f"the SLA must be a positive number of milliseconds, not {ms:g}")
        return parse_sla([f"p50<={ms:.15g}ms"])


def parse_sla(texts: Sequence[str]) -> SLA:
    """The SLA that `texts` say, one constraint each: `p50<=1500ms`, `peak_rss <= 800MB`.

    `<` and `>` mean `<=` and `>=`: no measurement tells them apart. Units are
    those of `UNITS`, in any case: `MB` is 10**6 bytes, `MiB` 2**20.

    Raises:
        SLAError: not `METRIC<=NUMBER UNIT`, no positive finite number with a
            known unit, the wrong direction, the same metric twice, or nothing.
        UnknownNameError: there is no such metric.
    """
    return SLA(tuple(_constraint(text) for text in texts))


def _constraint(text: str) -> Constraint:
    plain = text.strip().replace("\u2264", "<=").replace("\u2265", ">=")
    shape = _CONSTRAINT.fullmatch(plain)
    if shape is None:
        raise SLAError(f'{text!r} is not a constraint: write METRIC<=LIMIT, for example "p50<=1500ms"')
    name, sign, limit = shape.groups()
    metric = find_metric(name)
    if sign in ("=", "=="):
        raise SLAError(f"{text!r}: a measured figure never equals a limit: write {name}{metric.op}{limit}")
    op: Op = "<=" if sign.startswith("<") else ">="
    value, written = _limit(metric, limit, text)
    return Constraint(metric, op, value, f"{metric.name}{op}{written}")


def _limit(metric: Metric, limit: str, text: str) -> tuple[float, str]:
    """The limit in base units, and as it was written."""
    units = {name.lower(): (name, factor) for name, factor in UNITS[metric.kind].items()}
    known = ", ".join(name for name in UNITS[metric.kind] if name)
    shape = _NUMBER.fullmatch(limit.strip())
    if shape is None:
        raise SLAError(f"{text!r}: {limit!r} is not a number with a unit; units of {metric.name}: {known}")
    number, unit = shape.groups()
    if unit.strip().lower() not in units:
        problem = f"has no unit {unit.strip()!r}" if unit.strip() else f"needs a unit after {number}"
        raise SLAError(f"{text!r}: {metric.name} {problem}; units: {known}")
    name, factor = units[unit.strip().lower()]
    value = float(number) * factor
    if not 0 < value < math.inf:
        raise SLAError(f"{text!r}: the limit must be a positive finite number, not {number}")
    return value, f"{number}{name}"


def format_quantity(kind: Kind, value: float) -> str:
    """`value` (base units) for reading, three digits: `1.52 s`, `812 MB`, `23.1 tokens/s`, `0.214 USD/Mtok`."""
    if kind == "time":
        return f"{_digits(value)} s" if value >= 1 else f"{_digits(value * 1e3)} ms"
    if kind == "memory":
        return f"{_digits(value / 1e9)} GB" if value >= 1e9 else f"{_digits(value / 1e6)} MB"
    return f"{_digits(value)} {'tokens/s' if kind == 'rate' else 'USD/Mtok'}"


def _digits(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:#.3g}".rstrip(".")
