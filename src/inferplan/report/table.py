"""The report as a table for a terminal: plain text for pipes, Rich for people.

Owns layout only. Leaves every cell and sentence to `words`; Rich is imported
where it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .rows import Report, Row
from .words import COLUMNS, NUMERIC, Fact, cells, choice, footnotes, header, title

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

# Given up one after the other where the terminal is narrow; what decides stays.
_DISPENSABLE = ("TPOT ms", "load s", "$/Mtok", "TTFT ms", "notes", "p95 ms", "tokens/s")
_STYLES = {"chosen": "bold green", "meets": "green", "misses": "red", "undecided": "yellow"}


def render_text(report: Report) -> str:
    """The whole report as plain text: header, table, footnotes, choice. No markup, no wrapping."""
    parts = [title(report), *_labelled(header(report)), ""]
    parts += plain_table(report)
    parts += ["", *_below(report), "", *_labelled(choice(report))]
    return "\n".join(map(one_line, parts)).rstrip() + "\n"


def rich_report(report: Report, width: int | None = None) -> Group:
    """What `render_text` says, for a Rich console of `width` columns: long lines wrap there."""
    from rich.console import Group
    from rich.text import Text

    return Group(
        *(Text(one_line(line)) for line in _labelled(header(report))),
        rich_table(report, width),
        *(Text(one_line(line), style="dim") for line in _below(report)),
        "",
        *(Text(one_line(line)) for line in _labelled(choice(report))),
    )


def plain_table(report: Report) -> list[str]:
    """The table as lines of columns as wide as they need; empty columns of notes included."""
    rows = _shown(report)
    if not rows:
        return ["There are no plans." if not report.rows else "No plan was started."]
    grid = [COLUMNS, *(tuple(map(one_line, row)) for row in cells(rows))]
    widths = [max(len(row[i]) for row in grid) for i in range(len(COLUMNS))]
    lines = ["  ".join(_pad(text, widths[i], COLUMNS[i]) for i, text in enumerate(row)).rstrip() for row in grid]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]


def rich_table(report: Report, width: int | None = None) -> Table:
    """The table for a Rich console.

    Args:
        width: columns of the terminal; the least needed columns are left out
            until the rest fits. None: all are kept.
    """
    from rich.table import Table
    from rich.text import Text

    rows = _shown(report)
    grid = [tuple(map(one_line, row)) for row in cells(rows)]
    kept = _fitting(grid, width)
    table = Table(title=Text(title(report)), caption=Text(_dropped(kept)) if len(kept) < len(COLUMNS) else None)
    for name in kept:
        numeric = name in NUMERIC
        table.add_column(Text(name), justify="right" if numeric else "left", no_wrap=name != "notes")
    for row, texts in zip(rows, grid, strict=True):
        by_name = dict(zip(COLUMNS, texts, strict=True))
        style = _STYLES.get(by_name["verdict"], "dim")
        shown = [Text(by_name[name], style=style if name == "verdict" else "") for name in kept]
        table.add_row(*shown, style="bold" if row.chosen else "")
    return table


def _shown(report: Report) -> list[Row]:
    """A terminal has no room for plans that were never started: a race leaves hundreds, and a footnote counts them."""
    return [row for row in report.rows if not row.not_started]


def _dropped(kept: Sequence[str]) -> str:
    return "not shown for want of width: " + ", ".join(name for name in COLUMNS if name not in kept)


def _fitting(grid: Sequence[Sequence[str]], width: int | None) -> list[str]:
    """The columns that fit `width`; notes wrap, so they count for a third of their length."""
    kept = list(COLUMNS)
    if width is None:
        return kept
    longest = {name: max([len(name), *(len(row[i]) for row in grid)]) for i, name in enumerate(COLUMNS)}
    longest["notes"] = max(12, min(longest["notes"], 30))
    for name in _DISPENSABLE:
        if sum(longest[n] + 3 for n in kept) + 1 <= width:
            break
        kept.remove(name)
    return kept


def one_line(text: str) -> str:
    """`text` on one line and without control characters: a reason or a name must not break, or drive, a terminal."""
    return "".join(ch if ch.isprintable() else " " for ch in text)


def _pad(text: str, width: int, column: str) -> str:
    return text.rjust(width) if column in NUMERIC else text.ljust(width)


def _below(report: Report) -> list[str]:
    count = sum(row.not_started for row in report.rows)
    if not count:
        return footnotes(report)
    what = f"Not listed: {count} plan{'s' * (count > 1)} ruled out by prediction, never started"
    return [f"{what}; `inferplan report {report.study.id} --format md` gives each one's reason.", *footnotes(report)]


def _labelled(facts: Sequence[Fact]) -> list[str]:
    width = max((len(fact.label) for fact in facts), default=0)
    return [f"{fact.label.ljust(width)}  {fact.text}" for fact in facts]
