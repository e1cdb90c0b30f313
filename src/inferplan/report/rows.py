"""Report and Row: a study with its selection, and what each format shows of one plan.

Owns which figures a plan has (a failed one has none). Leaves numbers as base
units; `words` and the formats turn them into text.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from ..measurement import Actual, Converted
from ..models import Checkpoint
from ..plan import Plan
from ..result import PlanResult
from ..selection import Ranked, Selection
from ..stats import Estimate
from ..study import Study

NO_REQUESTS = Estimate(None, None, None, None, None, 0, "requests")
NO_PROCESSES = Estimate(None, None, None, None, None, 0, "processes")


@dataclass(frozen=True, slots=True)
class Report:
    """What there is to tell: a study, the choice made from it, and how to run that choice.

    Attributes:
        recipe: code and environment that run the chosen plan with its engine
            alone; None where the caller has none to give.
    """

    study: Study
    selection: Selection
    recipe: str | None = None
    _rows: list[tuple[Row, ...]] = field(default_factory=list, init=False, repr=False, compare=False)  # made once

    @property
    def rows(self) -> tuple[Row, ...]:
        """A row a plan: by p50 latency, then peak memory, then those without figures, then the rejected."""
        if not self._rows:
            self._rows.append(self._made())
        return self._rows[0]

    def _made(self) -> tuple[Row, ...]:
        winner = self.selection.winner.plan if self.selection.winner else None
        measured = tuple(_row(self.study, ranked, ranked.plan == winner) for ranked in self.selection.ranked)
        return measured + tuple(_rejected(self.study, plan, why) for plan, why in self.study.rejected)

    @property
    def chosen(self) -> Row | None:
        """The row of the chosen plan; None when none is chosen."""
        return next((row for row in self.rows if row.chosen), None)


@dataclass(frozen=True, slots=True)
class Row:
    """One plan. Times in seconds, memory in bytes; None, or an empty Estimate, where there is no figure.

    Attributes:
        status: how its last process ended; `waiting` before the first, `unsupported` when rejected, `ruled out`
            where the search was done with it before it was measured for its own sake, `looked at` where all that is
            known of it is a look that did not do that.
        reason: why the status is not `ok`.
        verdict: `meets`, `misses` or `undecided`; empty for a plan that was not judged.
        why: why it was chosen, or why it lost.
        disturbed: samples left out because something outside disturbed them.
        cut: samples ended early, whose latency is only known from below.
        p50_all, p95_all: the latency with the disturbed samples left in.
        process_spread: largest over smallest p50 of its processes.
        converted: the artifact that it loads; None where it loads the checkpoint as it is.
        reused: for each of its processes that was taken over, the study that measured it.
    """

    plan: Plan
    status: str
    reason: str
    chosen: bool = False
    verdict: str = ""
    why: str = ""
    on_pareto: bool = False
    processes: int = 0
    samples: int = 0
    disturbed: int = 0
    cut: int = 0
    p50: Estimate = NO_REQUESTS
    p95: Estimate = NO_REQUESTS
    p50_all: Estimate = NO_REQUESTS
    p95_all: Estimate = NO_REQUESTS
    ttft: Estimate = NO_REQUESTS
    tpot: Estimate = NO_REQUESTS
    tokens_per_s: float | None = None
    output_tokens: float | None = None
    peak_bytes: int | None = None
    load_s: Estimate = NO_PROCESSES
    startup_s: Estimate = NO_PROCESSES
    usd_per_mtok: float | None = None
    process_spread: float | None = None
    oversubscribed: bool = False
    actual: Actual | None = None
    converted: Converted | None = None
    checkpoint: Checkpoint | None = None
    reused: tuple[str, ...] = ()

    @property
    def not_started(self) -> bool:
        """Whether the search was done with it before any process of it was started."""
        return self.status == "ruled out" and self.processes == 0

    @property
    def synthetic(self) -> bool:
        """Whether its weights are made up."""
        return self.checkpoint is not None and self.checkpoint.synthetic


def report_of(study: Study, *, recipe: str | None = None) -> Report:
    """The report of what `study` has measured so far, under its own terms. Pure."""
    return Report(study, study.select(), recipe)


def labels(plans: Iterable[Plan], *, full: bool = False) -> tuple[str, ...]:
    """A name for each plan: the model, and what its other columns do not say (engine and device where they differ).

    Args:
        full: add precision, threads and cache, for where there are no other columns.
    """
    every = tuple(plans)
    several = len({plan.engine for plan in every}) > 1
    devices = len({plan.device for plan in every}) > 1
    names = []
    for plan in every:
        parts = [plan.model]
        parts += [plan.engine] if several else []
        parts += [plan.device] if devices else []
        if full:
            parts += [plan.precision, f"t{plan.threads}", "kv" if plan.kv_cache else "nokv"]
        defaults = Plan(plan.model, plan.engine, plan.precision, plan.threads, plan.kv_cache, plan.device)
        parts += [plan.id.removeprefix(defaults.id).strip("/").replace("/", " ")] if plan.options else []
        names.append(" ".join(parts))
    return tuple(names)


def _rejected(study: Study, plan: Plan, why: str) -> Row:
    return Row(plan, "unsupported", why, why=f"unsupported: {why}", checkpoint=study.checkpoint(plan.model))


def _row(study: Study, ranked: Ranked, chosen: bool) -> Row:
    result = ranked.result
    ruled_out = bool(result.left_out) and (result.looked_at or not result.measurements)
    looked_at = result.looked_at and result.status == "ok"
    bare = Row(
        plan=result.plan,
        status="ruled out" if ruled_out else "looked at" if looked_at else result.status,
        reason=result.left_out if ruled_out else result.reason or (ranked.reason if looked_at else ""),
        chosen=chosen,
        why=ranked.reason,
        processes=result.processes,
        samples=len(result.samples),
        disturbed=result.disturbed_count,
        cut=result.cut_count,
        oversubscribed=result.oversubscribed,
        actual=result.actual,
        converted=next((m.converted for m in reversed(result.measurements) if m.converted is not None), None),
        checkpoint=study.checkpoint(result.plan.model),
    )
    # A process of a failed plan may have ended well before: its samples are in results.csv, never the plan's figures.
    return bare if result.failed or not result.processes else _with_figures(bare, ranked, result)


def _with_figures(row: Row, ranked: Ranked, result: PlanResult) -> Row:
    return replace(
        row,
        verdict="" if row.status in ("ruled out", "looked at") else ranked.verdict,
        on_pareto=ranked.on_pareto,
        p50=result.latency(0.5),
        p95=result.latency(0.95),
        p50_all=result.latency(0.5, include_disturbed=True),
        p95_all=result.latency(0.95, include_disturbed=True),
        ttft=result.ttft(0.5),
        tpot=result.tpot(0.5),
        tokens_per_s=result.tokens_per_s_mean,
        output_tokens=result.output_tokens_mean,
        peak_bytes=result.peak_bytes,
        load_s=result.load_s,
        startup_s=result.startup_s,
        usd_per_mtok=ranked.usd_per_mtok,
        process_spread=result.process_spread,
        reused=tuple(m.reused_from for m in result.ok_measurements if m.reused_from),
    )
