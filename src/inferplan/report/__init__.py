"""Selection -> table, CSV, JSON, Markdown, HTML: what a study says, in each format.

Owns the formats' names. Pure: nothing here measures, and only `write_csvs`
writes. A format's libraries are imported when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..errors import UnknownNameError
from .csvfiles import chosen_plan_csv, results_csv, summary_csv, write_csvs
from .html import render_html
from .jsonfile import render_json
from .markdown import render_markdown
from .rows import Report, Row, report_of
from .table import render_text, rich_report, rich_table

__all__ = [
    "FORMATS",
    "Report",
    "Row",
    "chosen_plan_csv",
    "render",
    "render_text",
    "report_of",
    "results_csv",
    "rich_report",
    "rich_table",
    "summary_csv",
    "write_csvs",
]

FORMATS: Mapping[str, Callable[[Report], str]] = {
    "table": render_text,
    "csv": summary_csv,
    "json": render_json,
    "md": render_markdown,
    "html": render_html,
}


def render(report: Report, format: str) -> str:
    """The report as text in one of `FORMATS`; `csv` is the summary, a row a plan.

    Raises:
        UnknownNameError: there is no such format.
    """
    if format not in FORMATS:
        raise UnknownNameError("report format", format, FORMATS)
    return FORMATS[format](report)
