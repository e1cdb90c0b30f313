"""The report as GitHub-flavoured Markdown.

Owns Markdown's layout and escaping. Leaves every cell and sentence to `words`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from .rows import Report
from .table import one_line
from .words import (
    COLUMNS,
    CONVERSION_COLUMNS,
    CONVERSION_NUMERIC,
    NUMERIC,
    Fact,
    cells,
    choice,
    conversions,
    footnotes,
    header,
    title,
)

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#~$@!])")


def escape(text: str) -> str:
    """`text` as it reads in Markdown: nothing in it is markup, a mention, or ends a table's cell."""
    # @ is broken by an entity: a backslash does not keep a name from being mentioned.
    return _SPECIAL.sub(r"\\\1", one_line(text).replace("&", "&amp;")).replace("\\@", "&#64;").replace("\\<", "&lt;")


def render_markdown(report: Report) -> str:
    """The whole report: header, table, footnotes, choice, recipe."""
    rows = report.rows
    lines = [f"# {escape(title(report))}", "", *_list(header(report)), ""]
    if rows:
        lines += table(COLUMNS, cells(rows), NUMERIC)
    else:
        lines.append("There are no plans.")
    lines += ["", *(f"- {escape(note)}" for note in footnotes(report)), "", "## The choice", ""]
    lines += _list(choice(report))
    lines += ["", "## Every plan, and why", ""]
    lines += table(("plan", "why"), [(row.plan.id, row.why or row.reason) for row in rows])
    if made := conversions(report):
        lines += ["", "## Converted models", "", *table(CONVERSION_COLUMNS, made, CONVERSION_NUMERIC)]
    if report.recipe and report.chosen:
        fence = "`" * max([3, *(len(run) + 1 for run in re.findall(r"`+", report.recipe))])
        lines += ["", "## The chosen plan without inferplan", "", fence, report.recipe.rstrip("\n"), fence]
    return "\n".join(lines) + "\n"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], numeric: frozenset[str] = frozenset()) -> list[str]:
    """A table as lines; every cell is escaped, columns in `numeric` are set to the right."""
    rule = ["---:" if name in numeric else ":---" for name in columns]
    body = [[escape(cell) for cell in row] for row in rows]
    return [_line([escape(name) for name in columns]), _line(rule), *map(_line, body)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _list(facts: Sequence[Fact]) -> list[str]:
    return [f"- **{escape(fact.label)}**: {escape(fact.text)}" for fact in facts]
