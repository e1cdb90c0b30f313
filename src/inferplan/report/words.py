"""What every format says in words: the header, the notes of a plan, and the choice.

Owns those sentences and the cells of the table, once. Leaves layout and
escaping to each format.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from ..measurement import Converted
from ..selection import Ranked
from ..sla import format_quantity
from ..stats import MIN_PROCESSES
from ..workload import Prompt
from .numbers import MISSING, dollars, interval_ms, mebibytes, milliseconds, percent, short
from .rows import Report, Row, labels

COLUMNS = (
    "plan",
    "precision",
    "threads",
    "KV cache",
    "p50 ms [95% interval]",
    "p95 ms",
    "TTFT ms",
    "TPOT ms",
    "tokens/s",
    "peak MiB",
    "load s",
    "$/Mtok",
    "verdict",
    "notes",
)
NUMERIC = frozenset(COLUMNS[2:3] + COLUMNS[4:12])
CONVERSION_COLUMNS = ("model", "engine", "precision", "conversion s", "MiB", "token check")
CONVERSION_NUMERIC = frozenset(CONVERSION_COLUMNS[3:5])


@dataclass(frozen=True, slots=True)
class Fact:
    """One labelled sentence."""

    label: str
    text: str


def title(report: Report) -> str:
    """`inferplan study ID`, and `synthetic weights` where that is what ran."""
    return f"inferplan study {report.study.id}" + (" (synthetic weights)" if report.study.synthetic else "")


def header(report: Report) -> tuple[Fact, ...]:
    """What every result says of itself: machine, concurrency, lengths, models, SLA, state of the study."""
    study = report.study
    machine = study.machine
    facts = [
        Fact("machine", f"{machine.cpu_model}, {machine.cores_granted:g} cores granted, "
             f"{mebibytes(machine.memory_granted_bytes)} MiB, {machine.system}"),
        Fact("workload", f"{concurrency(report)}; {len(study.workload.prompts)} prompts of {prompt_lengths(report)}; "
             f"{output_lengths(report)} output tokens each, decoded greedily"),
    ]  # fmt: skip
    for checkpoint in study.checkpoints:
        source = "" if checkpoint.synthetic else f"{checkpoint.provenance}, "
        revision = f", revision {checkpoint.revision[:12]}" if checkpoint.revision else ""
        facts.append(
            Fact("model", f"{checkpoint.name}: {source}{weights(checkpoint.weights, checkpoint.synthetic)}{revision}")
        )
    facts.append(Fact("SLA", f"{study_sla(report)}; minimize {report.selection.objective.metric}"))
    taken = sum(row.samples for row in report.rows)
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(study.created_at))
    state = "ended by its limits" if study.ended else "finished"
    state = state if study.finished else "not finished, so this may change"
    if not study.settings.watch_outside:
        facts.append(Fact("noise", "outside signals were not watched: no sample is known to be undisturbed"))
    if study.reuse:
        facts.append(Fact("reuse", study.reuse))
    facts.append(Fact("study", f"{study.id}, started {when}, {state}; {taken} samples counted"))
    return tuple(facts)


def weights(text: str, synthetic: bool) -> str:
    """What the weights are; says `synthetic weights` whatever the checkpoint's own words are."""
    return text if not synthetic or "synthetic weights" in text else f"synthetic weights, {text}".rstrip(", ")


def study_sla(report: Report) -> str:
    """The constraints that were judged."""
    return str(report.selection.sla)


def concurrency(report: Report) -> str:
    """How many requests were in flight, in words."""
    count = report.study.workload.concurrency
    return "one request at a time" if count == 1 else f"{count} requests at a time"


def prompt_lengths(report: Report) -> str:
    """Smallest to largest prompt in tokens, as measured; in characters before anything was."""
    tokens = [s.prompt_tokens for r in report.selection.ranked for s in r.result.all_samples]
    return f"{span(tokens)} tokens" if tokens else _unmeasured(report.study.workload.prompts)


def output_lengths(report: Report) -> str:
    """Smallest to largest output in tokens, as asked for."""
    workload = report.study.workload
    return span([workload.output_tokens(i) for i in range(len(workload.prompts))])


def span(values: Sequence[int]) -> str:
    """`7` or `7 to 19`."""
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low} to {high}"


def _unmeasured(prompts: Sequence[Prompt]) -> str:
    exact = [p.prompt_tokens for p in prompts if p.prompt_tokens is not None]
    return f"{span(exact)} tokens" if len(exact) == len(prompts) else f"{span([p.chars for p in prompts])} characters"


def cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The text of each of `COLUMNS`, a tuple a row."""
    return [
        (
            ("* " if row.chosen else "") + label,
            row.plan.precision,
            str(row.plan.threads),
            "on" if row.plan.kv_cache else "off",
            interval_ms(row.p50),
            milliseconds(row.p95.value),
            milliseconds(row.ttft.value),
            milliseconds(row.tpot.value),
            short(row.tokens_per_s),
            mebibytes(row.peak_bytes),
            short(row.load_s.value),
            dollars(row.usd_per_mtok),
            "chosen" if row.chosen else row.verdict or row.status.replace("_", " "),
            "; ".join(notes(row)),
        )
        for row, label in zip(rows, labels(row.plan for row in rows), strict=True)
    ]


def notes(row: Row) -> list[str]:
    """What to know of one plan before its figures are believed."""
    found = ["synthetic weights"] if row.synthetic else []
    if row.status not in ("ok", "waiting"):
        found.append(row.reason or row.status.replace("_", " "))
    elif row.status == "ok" and row.reason:
        found.append(row.reason)
    if row.oversubscribed:
        found.append("oversubscribed")
    if row.disturbed:
        found.append(f"{row.disturbed} disturbed, left out")
    if row.cut:
        found.append(f"{row.cut} cut short")
    if row.actual is not None and row.actual.threads != row.plan.threads:
        found.append(f"ran {row.actual.threads} threads")
    if row.reused:
        found.append(f"{len(row.reused)} of {row.processes} processes reused")
    if row.converted is not None and row.converted.unchecked:
        found.append(f"not checked: {row.converted.unchecked}")
    return found


def conversions(report: Report) -> list[tuple[str, ...]]:
    """The text of each of `CONVERSION_COLUMNS`, a tuple an artifact, in the order of the plans that load it."""
    found: dict[tuple[str, ...], None] = {}
    for row in report.rows:
        if (made := row.converted) is not None:
            cells = short(made.seconds), mebibytes(made.bytes), token_check(made)
            found[(row.plan.model, row.plan.engine, row.plan.precision, *cells)] = None
    return list(found)


def token_check(made: Converted) -> str:
    """How an artifact's tokens compare with the reference's, or why that is not known."""
    check = made.check
    if check is None:
        return f"not checked: {made.unchecked}" if made.unchecked else MISSING
    needed = "all but ties" if check.minimum is None else percent(check.minimum)
    return (
        f"{percent(check.agreement, 3)} of {check.steps} tokens are the best of {check.reference} at float32 "
        f"(it takes {needed}{f'; only {check.distinct} different ones, which proves little' if check.weak else ''}); "
        f"{short(check.seconds)} s{f'; not checked: {made.unchecked}' if made.unchecked else ''}"
    )


def footnotes(report: Report, *, starred: bool = True) -> list[str]:
    """What the table needs to be read rightly; only what applies to it.

    Args:
        starred: the table marks the chosen plan with a star, as `cells` does.
    """
    rows, found = report.rows, []
    if starred and report.chosen is not None:
        found.append("* is the chosen plan.")
    timed = [row for row in rows if row.p50.n]
    if timed:
        found.append("Figures are over undisturbed requests; an interval holds for the requests and processes seen.")
    without = [row.p95 for row in timed if row.p95.value is None]
    if without:
        # Hazen's positions: a point at q needs 0.5 / (1 - q) observations; a bound needs what `needed` says.
        counts, need = span([e.n for e in without]), max(e.needed for e in without)
        short_cut = ", or too many were cut short" if any(row.cut for row in timed) else ""
        found.append(
            f"p95 {MISSING}: {counts} requests a plan are too few to have one{short_cut}; "
            f"it takes 10, and {need or 59} to bound it."
        )
    elif loose := [row.p95 for row in timed if row.p95.needed]:
        found.append(
            f"p95 is a point without an upper bound: {span([e.n for e in loose])} requests a plan, a bound takes "
            f"{max(e.needed for e in loose)}."
        )
    if any(row.p50.n and row.p50.value is not None and row.p50.low is None and row.p50.high is None for row in timed):
        found.append("A p50 without an interval has fewer than 6 requests.")
    if timed and all(row.processes < MIN_PROCESSES for row in timed):
        count = span([row.processes for row in timed])
        found.append(
            f"{count} {'process' if count == '1' else 'processes'} a plan; "
            f"a claim about processes in general takes {MIN_PROCESSES}."
        )
    if any(row.disturbed for row in rows):
        known = [row for row in rows if row.disturbed and row.p50_all.value is not None]
        both = ", ".join(f"{milliseconds(row.p50_all.value)} ms for {row.plan}" for row in known)
        left_in = f" With those samples left in, p50 is {both}." if both else ""
        found.append(f"Disturbed: something else took CPU time or memory.{left_in}")
    if studies := _reused(report):
        found.append(f"Reused: processes that earlier studies of this machine measured, {', '.join(studies)}.")
    if any(row.usd_per_mtok is not None for row in rows):
        prices = report.selection.prices
        found.append(
            f"$/Mtok: USD per million output tokens at {prices.usd_per_vcpu_hour:g} USD a vCPU-hour and "
            f"{prices.usd_per_gb_hour:g} USD a GB-hour ({prices.source}); idle time is not billed."
        )
    if report.study.synthetic:
        found.append("synthetic weights: timings and memory are true, the text that comes out means nothing.")
    return found


def _reused(report: Report) -> list[str]:
    """The studies that figures were taken over from, each with the day on which it measured them."""
    shown = {id for row in report.rows for id in row.reused}
    began: dict[str, float] = {}
    for one in report.study.measurements:
        if one.reused_from in shown:
            began[one.reused_from] = min(one.started_at, began.get(one.reused_from, one.started_at))
    return [f"{id} ({time.strftime('%Y-%m-%d', time.gmtime(at))})" for id, at in began.items()]


def choice(report: Report) -> tuple[Fact, ...]:
    """The outcome, a labelled sentence each: what and why, or why nothing, and what to do."""
    selection = report.selection
    if selection.outcome == "chosen":
        return _chosen(report)
    facts: list[Fact] = []
    if selection.outcome == "undecided":
        facts.append(Fact("undecided", f"these samples do not show whether a plan meets {selection.sla}"))
        facts.append(Fact("to settle it", selection.settle or "take more rounds"))
    elif selection.outcome == "nothing_measured":
        states = {row.status for row in report.rows}
        why = "no plan could be measured"
        if "waiting" in states:
            why = "no plan is measured yet"
        elif "ruled out" in states:
            why = "prediction rules every plan out (--strategy exhaustive measures them nevertheless)"
        facts.append(Fact("no plan chosen", f"{why}, so none is known to meet {selection.sla}"))
    else:
        facts.append(Fact("no plan chosen", f"no plan meets {selection.sla}"))
    if selection.nearest is not None:
        near = selection.nearest
        facts.append(Fact("nearest", near.text))
        facts.append(Fact("exceeds the SLA by", percent(near.excess)))
        reach = ", ".join(near.feasible) or "none: its sample is too small to bound its latency"
        facts.append(Fact("smallest SLA it could meet", reach))
    return (*facts, *_remarks(report))


def _chosen(report: Report) -> tuple[Fact, ...]:
    selection, row = report.selection, report.chosen
    winner = selection.winner
    if winner is None or row is None:
        return ()
    facts = [
        Fact("chosen plan", winner.plan.id + (" (synthetic weights)" if row.synthetic else "")),
        Fact("figures", figures(row)),
        Fact("verdict", "; ".join(f"{j.why} ({j.confidence})" for j in winner.judgements)),
        Fact("margin", margin(winner)),
        Fact("why", winner.reason),
    ]
    if selection.runner_up is not None:
        facts.append(Fact("runner-up", f"{selection.runner_up.plan.id}: {selection.runner_up.reason}"))
        facts.append(Fact("taking it instead", instead(winner, selection.runner_up)))
    else:
        facts.append(Fact("runner-up", _nearest_looked_at(report)))
    if selection.tie:
        facts.append(Fact("tie", selection.tie))
    return (*facts, *_remarks(report))


def _nearest_looked_at(report: Report) -> str:
    """Where no other plan is shown to meet the SLA: the best of those that a race looked at, or that there is none."""
    looks = (row for row in report.rows if row.status in ("ruled out", "looked at") and row.p50.value is not None)
    if (near := next(looks, None)) is not None:
        return f"none was confirmed; the nearest that was looked at is {near.plan}: {near.reason}"
    if undecided := sum(row.verdict == "undecided" for row in report.rows):
        return f"no other plan is shown to meet the SLA; {undecided} undecided"
    unstarted = sum(not row.processes and row.status in ("waiting", "ruled out") for row in report.rows)
    if not unstarted:
        return "no other plan meets the SLA"
    what = "1 plan was" if unstarted == 1 else f"{unstarted} plans were"
    return f"no other plan that was measured meets the SLA; {what} not started"


def figures(row: Row) -> str:
    """The main figures of one plan in a line."""
    parts = [
        f"p50 {interval_ms(row.p50)} ms",
        f"TTFT {milliseconds(row.ttft.value)} ms",
        f"{short(row.tokens_per_s)} tokens/s",
        f"peak memory {mebibytes(row.peak_bytes)} MiB",
    ]
    if row.usd_per_mtok is not None:
        parts.append(f"{dollars(row.usd_per_mtok)} USD per Mtok")
    if row.process_spread is not None:
        parts.append(f"slowest process {row.process_spread:.3f} times the fastest")
    return ", ".join(parts)


def margin(ranked: Ranked) -> str:
    """How far within each limit a plan is, relative to the limit."""
    known = [(j.constraint, j.margin) for j in ranked.judgements if j.margin is not None]
    return ", ".join(
        f"{percent(abs(value))} {'within' if value >= 0 else 'beyond'} {constraint}" for constraint, value in known
    )


def instead(winner: Ranked, other: Ranked) -> str:
    """What the runner-up would cost: latency, memory and money as changes from the winner."""
    ratio = other.ratio.value if other.ratio is not None else _over(other.p50_s, winner.p50_s)
    parts = [_change("latency", ratio), _change("peak memory", _over(other.peak_bytes, winner.peak_bytes))]
    parts.append(_change("cost", _over(other.usd_per_mtok, winner.usd_per_mtok)))
    if other.usd_per_mtok is not None:
        parts.append(f"({format_quantity('money', other.usd_per_mtok)})")
    return ", ".join(part for part in parts if part).replace(", (", " (") or "not known"


def _over(a: float | None, b: float | None) -> float | None:
    return None if a is None or not b else a / b


def _change(what: str, ratio: float | None) -> str:
    if ratio is None:
        return ""
    return f"{what} {100 * (ratio - 1):+.1f}%"


def _remarks(report: Report) -> tuple[Fact, ...]:
    facts = [Fact("note", note) for note in report.selection.notes]
    if report.study.ended and report.study.finished:
        facts.append(Fact("limit", report.study.ended))
    if report.study.synthetic:
        facts.append(Fact("note", "synthetic weights: the choice holds for speed and memory of this architecture only"))
    count = len(report.study.workload.prompts)
    if count < 5:
        facts.append(Fact("note", f"{count} prompts: too few to speak for others"))
    return tuple(facts)
