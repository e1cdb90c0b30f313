"""The report as one HTML file that opens offline and loads nothing.

Owns what goes where on the page; `page` holds the template, `charts` the
pictures. Everything that a user or an engine wrote is escaped by Jinja2.
"""

from __future__ import annotations

from .charts import charts
from .page import PAGE
from .rows import Report, labels
from .words import (
    COLUMNS,
    CONVERSION_COLUMNS,
    CONVERSION_NUMERIC,
    NUMERIC,
    cells,
    choice,
    conversions,
    footnotes,
    header,
    title,
)

_FLAGS = {"meets": "meets", "misses": "misses", "undecided": "undecided", "chosen": "meets"}


def render_html(report: Report) -> str:
    """The whole report as a page: choice, charts, table, a reason for each plan, and the native recipe."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    rows = report.rows
    names = labels((row.plan for row in rows), full=True)
    pictures = charts(rows, names, _p50_limit_s(report), report.study.synthetic)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(PAGE).render(
        title=title(report),
        headline=_headline(report),
        outcome=report.selection.outcome,
        header=header(report),
        choice=choice(report),
        # Our own SVG, whose texts matplotlib and `charts` have escaped: the one thing that is not escaped again.
        charts=[(chart.title, Markup(chart.svg)) for chart in pictures],
        columns=COLUMNS,
        kinds={**dict.fromkeys(NUMERIC, "num"), "notes": "wrap"},
        table=[
            (row.chosen, dict(zip(COLUMNS, texts, strict=True))) for row, texts in zip(rows, cells(rows), strict=True)
        ],
        flags=_FLAGS,
        footnotes=footnotes(report),
        reasons=[
            (row.plan.id, row.chosen, row.verdict or row.status.replace("_", " "), row.why or row.reason)
            for row in rows
        ],
        conversion_columns=CONVERSION_COLUMNS,
        conversion_numeric=CONVERSION_NUMERIC,
        conversions=conversions(report),
        zip=zip,
        recipe=report.recipe if report.chosen else None,
        synthetic=report.study.synthetic,
    )


def _headline(report: Report) -> str:
    selection = report.selection
    if selection.winner is not None:
        return selection.winner.plan.id
    return {
        "none_meets": f"No plan meets {selection.sla}",
        "undecided": "Undecided with these samples",
        "nothing_measured": "Nothing is measured",
    }.get(selection.outcome, "No plan is chosen")


def _p50_limit_s(report: Report) -> float | None:
    return next((c.limit for c in report.selection.sla.constraints if c.metric.name == "p50"), None)
