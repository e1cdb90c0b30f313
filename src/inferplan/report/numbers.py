"""Numbers as people read them: milliseconds, MiB, dollars, intervals.

Owns the one place where base units become text. Leaves what is shown, and
where, to the tables and pages.
"""

from __future__ import annotations

import math

from ..stats import Estimate

MISSING = "—"
MIB = 1 << 20


def finite(value: float | None) -> float | None:
    """`value`, or None when it is missing, infinite or not a number."""
    return value if value is not None and math.isfinite(value) else None


def short(value: float | None, digits: int = 3) -> str:
    """`value` with `digits` significant digits, never in powers of ten; a dash when missing."""
    value = finite(value)
    if value is None:
        return MISSING
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(decimals, 12)}f}"


def milliseconds(seconds: float | None) -> str:
    """Seconds as milliseconds, three digits or all of the whole ones."""
    value = finite(seconds)
    return MISSING if value is None else short(value * 1000)


def mebibytes(count: float | None) -> str:
    """Bytes as whole MiB."""
    value = finite(count)
    return MISSING if value is None else f"{value / MIB:.0f}"


def dollars(value: float | None) -> str:
    """US dollars with three digits."""
    return short(value)


def percent(ratio: float | None, digits: int = 2) -> str:
    """A share as percent: 0.034 is `3.4%`."""
    value = finite(ratio)
    return MISSING if value is None else f"{short(value * 100, digits)}%"


def interval_ms(estimate: Estimate) -> str:
    """`12.3 [11.9, 12.8]` in milliseconds; a side without a bound is a dash."""
    if finite(estimate.value) is None:
        return MISSING
    text = milliseconds(estimate.value)
    if estimate.low is None and estimate.high is None:
        return text
    return f"{text} [{milliseconds(estimate.low)}, {milliseconds(estimate.high)}]"
