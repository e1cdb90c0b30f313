"""Progress of a study on a terminal, in a pipe, or not at all.

Owns what is shown while a study runs. Draws between samples only, never from a
thread of its own: while a request is timed, nothing here runs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, TextIO

from .measurement import Measurement
from .plan import Plan
from .result import PlanResult
from .study import Event, PlanDone, PlanStarted, SampleTaken, Study

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

Style = Literal["live", "plain", "quiet"]
_MIB = 1 << 20
_REDRAW_S = 0.2  # drawing takes some 10 ms, between requests


def choose_style(quiet: bool, stream: TextIO) -> Style:
    """`live` on a terminal, `plain` lines elsewhere, `quiet` when asked for."""
    if quiet:
        return "quiet"
    return "live" if stream.isatty() else "plain"


class Progress:
    """Shows a study as it runs. Everything goes to `stream`; answers belong on standard output."""

    def __init__(self, study: Study, style: Style, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._style: Style = style
        self._study = study
        self._now: tuple[Plan, int] | None = None
        self._taken = 0
        self._disturbed = sum(result.disturbed_count for result in study.results)
        self._remaining = 0
        self._walls: list[float] = []
        self._began = 0.0
        self._drawn = 0.0
        self._live: Live | None = None
        self._results: dict[Plan, PlanResult] = {}

    @contextmanager
    def showing(self) -> Iterator[Progress]:
        """Keep a live table on the terminal for as long as the study runs."""
        if self._style != "live":
            yield self
            return
        from rich.console import Console
        from rich.live import Live

        self._refresh(self._study)
        console = Console(file=self._stream)
        with Live(self._table(), console=console, auto_refresh=False, vertical_overflow="ellipsis") as live:
            self._live = live
            try:
                yield self
            finally:
                self._now = None
                live.update(self._table(), refresh=True)
                self._live = None

    def tell(self, text: str) -> None:
        """Something to say once, between requests."""
        if self._style == "quiet":
            return
        try:
            if self._live is not None:
                self._live.console.print(text, markup=False, highlight=False)
            else:
                print(text, file=self._stream, flush=True)
        except BrokenPipeError:  # nobody reads the progress any more; the study is not about that
            self._style = "quiet"

    def __call__(self, event: Event) -> None:
        """Take in one event of `study.run` and draw what it changes."""
        if isinstance(event, PlanStarted):
            self._now, self._remaining = (event.plan, event.round), event.remaining
            self._taken, self._began = 0, time.perf_counter()
            self._draw(force=True)
        elif isinstance(event, SampleTaken):
            self._taken += 1
            self._disturbed += bool(event.sample.disturbed)
            self._draw(force=False)
        elif isinstance(event, PlanDone):
            self._walls.append(event.measurement.wall_s)
            if self._style == "plain":
                self.tell(self._line(event.measurement, event.study))
            self._refresh(event.study)
            self._draw(force=True)

    def _refresh(self, study: Study) -> None:
        self._study = study
        self._results = {result.plan: result for result in study.results}

    def _draw(self, force: bool) -> None:
        now = time.perf_counter()
        if self._live is not None and (force or now - self._drawn > _REDRAW_S):
            self._drawn = now
            self._live.update(self._table(), refresh=True)

    def _eta(self) -> str:
        if not self._walls:
            return ""
        seconds = self._remaining * sum(self._walls) / len(self._walls)
        return f"about {duration(seconds)} left" if self._remaining else "almost done"

    def _line(self, measurement: Measurement, study: Study) -> str:
        done = len(study.measurements)
        result = next(r for r in study.results if r.plan == measurement.plan)
        name = f"[{done}/{done + self._remaining}] {measurement.plan.id} round {measurement.round}"
        if measurement.status != "ok":
            return f"{name}: {measurement.status}: {measurement.reason}"
        return f"{name}: {', '.join(_figures(result))}; {self._eta()}"

    def _table(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        title = f"study {self._study.id}: {self._study.sla}"
        if self._study.synthetic:
            title += " (synthetic weights)"
        caption = ", ".join(filter(None, [self._eta(), f"{self._disturbed} disturbed samples" * bool(self._disturbed)]))
        table = Table(title=Text(title), caption=Text(caption), expand=False)
        table.add_column("plan", no_wrap=True, overflow="ellipsis", min_width=12)  # gives way on a narrow terminal
        for heading, width in (("state", 21), ("p50", 9), ("tokens/s", 8), ("peak memory", 11)):
            table.add_column(heading, justify="left" if heading == "state" else "right", no_wrap=True, min_width=width)
        for plan in self._study.plans:
            result = self._results.get(plan) or PlanResult(plan, ())
            state, style = self._state(result)
            p50, rate, peak = _cells(result)
            table.add_row(Text(plan.id), Text(state, style=style), p50, rate, peak)
        return table

    def _state(self, result: PlanResult) -> tuple[str, str]:
        if self._now is not None and self._now[0] == result.plan:
            return f"round {self._now[1]}, request {self._taken + 1}", "bold cyan"
        if result.status == "waiting":
            return "ruled out" if result.left_out else "waiting", "dim"
        if result.status == "ok" and result.looked_at:
            return "ruled out by a look" if result.left_out else "looked at", "dim" if result.left_out else "green"
        if result.status == "ok":
            return f"measured, {result.processes} process{'es' * (result.processes != 1)}", "green"
        return f"{result.status}: {result.reason}"[:60], "red"


def _cells(result: PlanResult) -> tuple[str, str, str]:
    p50, rate, peak = result.latency(0.5).value, result.tokens_per_s_mean, result.peak_bytes
    return (
        "" if p50 is None else f"{p50 * 1000:.1f} ms",
        "" if rate is None else f"{rate:.1f}",
        "" if peak is None else f"{peak / _MIB:.0f} MiB",
    )


def _figures(result: PlanResult) -> list[str]:
    p50, rate, peak = _cells(result)
    named = [f"p50 {p50}" if p50 else "", f"{rate} tokens/s" if rate else "", f"peak {peak}" if peak else ""]
    if result.disturbed_count:
        named.append(f"{result.disturbed_count} disturbed")
    return [text for text in named if text]


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `1.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
