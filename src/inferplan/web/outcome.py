"""What came of a study: the choice, what if the terms were others, charts, the table, downloads.

Owns the order of these on the page. Re-selects from what was measured whenever a
term moves; nothing is run. Figures and sentences are those of `report`.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import streamlit as st

from ..models import Checkpoint
from ..report import Row, chosen_plan_csv, render, results_csv, summary_csv
from ..report.numbers import MIB, MISSING, dollars, interval_ms, mebibytes, milliseconds, short
from ..report.rows import labels
from ..report.words import choice, footnotes, header, margin, notes
from ..selection import SLA, parse_sla
from ..store import Store
from . import controls, figures, reading
from .figures import Chart
from .parts import VERDICTS, Place, complaints, facts, give_way, marks, named, recipe, safe, shown, table_height
from .reading import Seen, View

_OUTCOMES = {
    "none_meets": "No plan meets {sla}",
    "undecided": "Undecided: these samples do not show whether a plan meets {sla}",
    "nothing_measured": "Nothing is measured, so no plan is known to meet {sla}",
}
_FAILURES = 12
_COMPARED_AT_MOST = 6  # curves that can still be told apart in one chart


@st.fragment
def outcome(place: Place, id: str) -> None:
    """Everything that was measured, judged under the terms that are set here."""
    give_way()
    seen = reading.see(place.store, id)
    with complaints():
        view = _what_if(seen)
        _choice(view)
        rows = _filtered(view)
        _charts(view, rows)
        _table(view, rows)
        _downloads(place, view)


def _what_if(seen: Seen) -> View:
    """The study judged under its own terms, or under those that are set here."""
    study = seen.study
    turn = st.session_state.get(f"turn-{study.id}", 0)
    key = f"if-{study.id}-{turn}"
    with st.expander("What if: another SLA, objective, memory limit or price", key=f"if-{study.id}-open"):
        st.caption("Re-selects from what was measured; nothing is run again.")
        sla = parse_sla(controls.sla(key, study.sla))
        objective = controls.objective(key, study.objective)
        prices = controls.prices(key, study.prices)
        if st.button("Back to the terms of the study", key=f"{key}-back"):
            st.session_state[f"turn-{study.id}"] = turn + 1  # new widgets, with the study's terms in them
            st.rerun(scope="fragment")
    same = _alike(sla, study.sla) and (objective, prices) == (study.objective, study.prices)
    if same:
        return reading.judge(seen, study.sla, study.objective, study.prices)
    st.info(f"What if: {safe(sla)}, minimize {objective.metric}. The study itself asked for {safe(study.sla)}.")
    return reading.judge(seen, sla, objective, prices)


def _alike(one: SLA, other: SLA) -> bool:
    """Whether they ask for the same, in whatever order and units."""
    asked, had = ({(c.metric.name, c.op): c.limit for c in sla.constraints} for sla in (one, other))
    return asked.keys() == had.keys() and all(abs(asked[k] - had[k]) <= 1e-9 * had[k] for k in had)


def _choice(view: View) -> None:
    selection, row = view.selection, view.chosen
    with st.container(border=True, key="choice"):
        if selection.winner is None or row is None:
            st.header(safe(_OUTCOMES.get(selection.outcome, "No plan is chosen").format(sla=selection.sla)))
            facts(choice(view.report))
            _failures(view)
            return
        st.caption("Chosen plan")
        st.header(safe(row.plan.id), anchor=False)
        badges = [VERDICTS[selection.winner.verdict], f":gray-badge[{safe(margin(selection.winner))}]", *marks(row)]
        st.markdown(" ".join(badges))
        _figures(row)
        facts(fact for fact in choice(view.report) if fact.label not in ("chosen plan", "figures"))
        _reproduce(view, row)


def _failures(view: View) -> None:
    """Why plans failed, where that is all there is to tell."""
    failed = [row for row in view.rows if row.reason and row.status not in ("ok", "waiting")]
    if view.selection.outcome == "nothing_measured" and failed:
        st.markdown("\n".join(f"- {safe(row.plan.id)}: {safe(row.why or row.reason)}" for row in failed[:_FAILURES]))
        if len(failed) > _FAILURES:
            st.caption(f"and {len(failed) - _FAILURES} more, in the table")


def _figures(row: Row) -> None:
    every = (
        ("p50 [95% interval], ms", interval_ms(row.p50)),
        ("p95 [95% interval], ms", interval_ms(row.p95)),
        ("tokens/s", short(row.tokens_per_s)),
        ("TTFT, ms", milliseconds(row.ttft.value)),
        ("TPOT, ms", milliseconds(row.tpot.value)),
        ("peak memory, MiB", mebibytes(row.peak_bytes)),
        ("USD per Mtok", dollars(row.usd_per_mtok)),
        ("load, s", short(row.load_s.value)),
    )
    with st.container(horizontal=True):
        for label, value in every:
            st.metric(label, value, border=True, width="content")


def _reproduce(view: View, row: Row) -> None:
    plan = row.plan
    part = st.expander("Run this plan yourself", key=f"run-{view.study.id}", on_change="rerun")
    if not part.open:  # its engine writes the code, in a process of its own: only when somebody looks
        return
    with part:
        sla = [part for c in view.selection.sla.constraints for part in ("--sla", str(c))]
        st.caption("Measure it again:")
        st.code(shlex.join(["inferplan", "bench", plan.id, *sla]), language="bash", wrap_lines=True)
        checkpoint: Checkpoint | None = row.checkpoint
        found = recipe(plan.id, str(checkpoint.path) if checkpoint else plan.model)
        if found:
            st.caption("Run it with its engine alone, without inferplan:")
            st.code(found, language="python")


def _filtered(view: View) -> list[Row]:
    """The plans that charts and table show."""
    every = list(view.rows)
    plans = [row.plan for row in every]
    axes: Mapping[str, Callable[[Row], object]] = {
        "model": lambda r: r.plan.model,
        "engine": lambda r: r.plan.engine,
        "precision": lambda r: r.plan.precision,
        "threads": lambda r: r.plan.threads,
        "KV cache": lambda r: "on" if r.plan.kv_cache else "off",
        **{name: _option(name) for name in sorted({name for plan in plans for name, _ in plan.options})},
        "state": _state,
    }
    with st.expander(f"Filter the {len(every)} plans"):
        for name, of in axes.items():
            values = list(dict.fromkeys(str(of(row)) for row in every))
            if len(values) > 1:
                kept = st.pills(name, values, selection_mode="multi", key=f"filter-{view.study.id}-{name}")
                every = [row for row in every if not kept or str(of(row)) in kept]
    if not every:
        st.warning("No plan is left: take a filter away.")
    return every


def _option(name: str) -> Callable[[Row], object]:
    return lambda row: row.plan.option(name, "default")


def _state(row: Row) -> str:
    return "chosen" if row.chosen else row.verdict or row.status.replace("_", " ")


_VIEWS = ("latency and memory", "p50", "tokens/s", "peak memory", "distribution", "where the time goes")


def _charts(view: View, rows: list[Row]) -> None:
    st.header("Trade-offs", anchor=False)
    note = "synthetic weights" if any(row.synthetic for row in rows) else ""
    kind = st.segmented_control(
        "chart", _VIEWS, default=_VIEWS[0], required=True, key="chart", label_visibility="collapsed"
    )
    sla, groups = view.selection.sla, figures.groups_of(view.rows)  # of all, so that a filter changes no colour
    made: Chart | None
    if kind == _VIEWS[0]:
        made = figures.trade_off(rows, sla, note, groups)
    elif kind == _VIEWS[1]:
        made = figures.latency(rows, sla, note, groups)
    elif kind == _VIEWS[2]:
        made = figures.throughput(rows, note, groups)
    elif kind == _VIEWS[3]:
        made = figures.memory(rows, note, groups)
    else:
        made = _of_requests(view, rows, kind, note)
    chart(made)


def chart(made: Chart | None) -> None:
    """A chart with its text alternative below it."""
    if made is None:
        st.caption("Nothing of this was measured.")
        return
    st.plotly_chart(made.figure, alt=made.alt, config={"displaylogo": False, "displayModeBar": False})
    st.caption(safe(made.alt))


def _of_requests(view: View, rows: list[Row], kind: str, note: str) -> Chart | None:
    """Charts over requests: of the plans that are picked, the chosen one and the next by default."""
    timed = [row.plan.id for row in rows if row.p50.value is not None]
    picked = st.multiselect(
        "plans", timed, default=_first(view, timed), max_selections=_COMPARED_AT_MOST, key=f"picked-{view.study.id}"
    )
    results = [result for result in view.seen.results if result.plan.id in picked]
    results.sort(key=lambda result: timed.index(result.plan.id))
    names = labels((result.plan for result in results), full=True)
    if kind == _VIEWS[5]:
        return figures.time_split(results, names, note)
    limit = next((c.limit for c in view.selection.sla.constraints if c.metric.quantity == "latency"), None)
    return figures.ecdf(results, names, limit, note)


def _first(view: View, timed: list[str]) -> list[str]:
    chosen = view.chosen
    first = [chosen.plan.id] if chosen and chosen.plan.id in timed else []
    return [*first, *(id for id in timed if id not in first)][:3]


_COLUMNS = {
    **{
        name: st.column_config.NumberColumn(format="%.1f")
        for name in ("p50 ms", "p50 low", "p50 high", "p95 ms", "TTFT ms", "TPOT ms", "tokens/s")
    },
    "peak MiB": st.column_config.NumberColumn(format="%.0f"),
    "load s": st.column_config.NumberColumn(format="%.2f"),
    "USD/Mtok": st.column_config.NumberColumn(format="%.3f"),
    "why": st.column_config.TextColumn(width="large"),
    "notes": st.column_config.TextColumn(width="medium"),
}


def _table(view: View, rows: list[Row]) -> None:
    st.header("All plans", anchor=False)
    st.dataframe(
        columns(rows),
        hide_index=True,
        height=table_height(len(rows)),
        column_config=_COLUMNS,
        placeholder=MISSING,
        alt="each plan with its verdict, figures and reason; a click on a heading sorts",
    )
    st.caption("  \n".join(safe(text) for text in footnotes(view.report, starred=False)))


def columns(rows: Iterable[Row]) -> dict[str, list[Any]]:
    """The table by column: numbers as numbers, so that they sort as such; None where there is no figure."""
    every = list(rows)
    of: Mapping[str, Callable[[Row], Any]] = {
        "plan": lambda r: named(r.plan),
        "state": _state,
        "p50 ms": lambda r: _ms(r.p50.value),
        "p50 low": lambda r: _ms(r.p50.low),
        "p50 high": lambda r: _ms(r.p50.high),
        "p95 ms": lambda r: _ms(r.p95.value),
        "TTFT ms": lambda r: _ms(r.ttft.value),
        "TPOT ms": lambda r: _ms(r.tpot.value),
        "tokens/s": lambda r: r.tokens_per_s,
        "peak MiB": lambda r: None if r.peak_bytes is None else r.peak_bytes / MIB,
        "load s": lambda r: r.load_s.value,
        "USD/Mtok": lambda r: r.usd_per_mtok,
        "notes": lambda r: shown("; ".join(notes(r))),
        "why": lambda r: shown(r.why or r.reason),
        "samples": lambda r: r.samples,
        "processes": lambda r: r.processes,
    }
    return {name: [value(row) for row in every] for name, value in of.items()}


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000


def _downloads(place: Place, view: View) -> None:
    """Files, each made when it is asked for."""
    study = view.study

    def exported() -> str:
        with Store(place.store) as store:
            return json.dumps(store.export_study(study.id), indent=1)

    offered: tuple[tuple[str, str, Callable[[], str]], ...] = (
        ("results.csv", "text/csv", lambda: results_csv(view.report)),
        ("summary.csv", "text/csv", lambda: summary_csv(view.report)),
        ("chosen_plan.csv", "text/csv", lambda: chosen_plan_csv(view.report)),
        ("report.json", "application/json", lambda: render(view.report, "json")),
        ("report.html", "text/html", lambda: render(view.report, "html")),
        (f"study-{study.id}.json", "application/json", exported),
    )
    st.header("Take it with you", anchor=False)
    with st.container(horizontal=True):
        for name, mime, make in offered:
            st.download_button(name, make, file_name=name, mime=mime, key=f"download-{name}", on_click="ignore")
    st.caption("The last one is the whole study with its raw samples; `inferplan import` and the history page read it.")


def told(view: View) -> None:
    """What was measured, where, and with which models and requests."""
    short = [fact.text for fact in header(view.report) if fact.label in ("workload", "SLA")]
    st.caption("  \n".join(safe(text) for text in short))
    with st.expander("What was measured, and where"):
        facts(header(view.report))
