"""What the charts say in words: titles, the sentences of a text alternative, and what a plan tells when pointed at.

Owns those texts. Leaves the choice of what to say to `figures`, numbers as text to `report.numbers`.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..report.numbers import dollars, interval_ms, mebibytes, milliseconds, short
from ..report.rows import Row
from ..report.words import notes
from ._styles import HOVER_CHARS, plain, printable, wrapped

NAMED = 6  # plans that a text alternative names


def titled(title: str, note: str, shown: int = 0, of: int = 0) -> str:
    """A chart's title with its note, and how many plans it shows where that is not all of them."""
    some = f", {shown} of {of} plans" if shown < of else ""
    return printable(title + some + (f" ({note})" if note else ""))


def sentences(*parts: str) -> str:
    """The parts that say something, each as a sentence."""
    return " ".join(f"{part}." for part in parts if part)


def listed(names: Sequence[str], most: int = NAMED, between: str = ", ") -> str:
    """The first `most` of `names`, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return between.join(names[:most]) + more


def plans(count: int, of: int = 0) -> str:
    """`1 plan`, `7 plans`, `the first 60 of 500 plans`."""
    if count < of:
        return f"the first {count} of {of} plans"
    return f"{count} plan{'' if count == 1 else 's'}"


def left_out(count: int, what: str) -> str:
    """The end of a sentence: how many plans lack `what`; empty for none."""
    if not count:
        return ""
    return f"; {count} without {what} {'is' if count == 1 else 'are'} left out"


def hover(row: Row) -> str:
    """A plan's id, figures, verdict and notes, a line each, escaped for Plotly."""
    lines = [
        f"<b>{wrapped(row.plan.id, HOVER_CHARS)}</b>",
        f"p50 {interval_ms(row.p50)} ms",
        f"p95 {milliseconds(row.p95.value)} ms",
        f"TTFT {milliseconds(row.ttft.value)} ms",
        f"{short(row.tokens_per_s)} tokens/s",
        f"peak {mebibytes(row.peak_bytes)} MiB",
    ]
    if row.usd_per_mtok is not None:
        lines.append(f"{dollars(row.usd_per_mtok)} USD per Mtok")
    verdict = {"meets": "meets the SLA", "misses": "misses the SLA"}.get(row.verdict, row.verdict or row.status)
    lines.append(f"<b>chosen</b>, {plain(verdict)}" if row.chosen else plain(verdict))
    lines += [wrapped(note, HOVER_CHARS) for note in notes(row)]
    return "<br>".join(lines)
