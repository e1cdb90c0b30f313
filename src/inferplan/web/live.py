"""A study while it runs: a table that fills, the best plan so far, what is left.

Owns what is drawn every few seconds. Each look reads only what is new, because
whatever this page computes is taken from the cores that are being timed.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import streamlit as st

from .. import locks
from ..plan import Plan
from ..progress import duration
from ..report.numbers import MIB, MISSING
from ..result import PlanResult
from ..search.exhaustive import Exhaustive
from ..store import TrialRow
from ..study import RACES, Study
from . import jobs, reading
from .parts import Place, give_way, named, safe, shown, table_height
from .reading import Seen

# A look costs some 40 ms of one core, most of it in Streamlit itself; in a process of 20 s nobody needs more of them.
REFRESH_S = 8.0

_STATES = {
    "starting": "It starts: models are resolved and converted before anything is timed.",
    "running": "It runs in a process of its own: this page may be closed.",
}


@st.fragment(run_every=REFRESH_S)
def watch(place: Place, id: str) -> None:
    """Draw the study as it is now, again and again; the whole page again once it has ended."""
    give_way()
    job = jobs.find(place.store, id)
    state = jobs.state(job) if job is not None else "ended"
    if state == "ended":
        st.rerun()
    seen, trials = reading.glance(place.store, id)
    _state(place, seen.study, state)
    if st.button("Cancel", key="cancel", help="keeps what was measured; it can be resumed"):
        assert job is not None
        jobs.cancel(job)
        st.toast("It ends after cleaning up; what was measured is kept.")
    _progress(seen)
    _best(seen, sum(trial.disturbed for trial in trials))
    st.dataframe(
        table(seen.study, seen.results, trials, running=state == "running"),
        hide_index=True,
        height=table_height(len(seen.results)),
        column_config=_COLUMNS,
        placeholder=MISSING,
        alt="each plan with its state and its figures so far",
    )


def _state(place: Place, study: Study, state: jobs.State) -> None:
    if state == "waiting":
        who = locks.holder()
        whom = f" ({who})" if who else ""
        st.info(f"It waits: one timed study at a time on a machine, and another holds it{safe(whom)}.")
        return
    said = jobs.log(place.store, study.id, 1)
    st.info(_STATES[state] + (f" Last word: {safe(said[-1])}" if said else ""))


def _progress(seen: Seen) -> None:
    done = seen.study.measurements
    if seen.study.settings.strategy in RACES:  # what is left of a race depends on what it will see
        st.markdown(f"{len(done)} processes so far; a race starts few of the {len(seen.study.plans)} plans")
        return
    left = remaining(seen)
    share = len(done) / max(len(done) + left, 1)
    text = f"{len(done)} of {len(done) + left} processes"
    if done and left:
        text += f", about {duration(left * sum(m.wall_s for m in done) / len(done))} left"
    st.progress(min(share, 1.0), text=text)


@lru_cache(maxsize=8)
def remaining(seen: Seen) -> int:
    """Processes that the search still wants; exact for the current round, an estimate for later ones."""
    study = seen.study
    search = Exhaustive(
        study.plans,
        study.sla,
        study.objective,
        study.prices,
        study.machine.cores_granted,
        rounds=study.settings.rounds,
        all_rounds=study.settings.all_rounds,
        done=study.measurements,
    )
    return search.remaining


def _best(seen: Seen, disturbed: int) -> None:
    study = seen.study
    view = reading.judge(seen, study.sla, study.objective, study.prices)
    winner = view.selection.winner
    best = "none is shown to meet the SLA yet"
    if winner is not None and winner.p50_s is not None:
        best = f"{named(winner.plan)}, p50 {winner.p50_s * 1000:.0f} ms"
    st.markdown(
        f"**Best plan so far:** {safe(best)}  \n"
        f"**Disturbed samples so far:** {disturbed} (other processes took the machine; such a sample is taken again)"
    )


_COLUMNS = {
    "plan": st.column_config.TextColumn(width="medium"),
    "state": st.column_config.TextColumn(width="medium"),
    "p50 ms": st.column_config.NumberColumn(format="%.1f"),
    "tokens/s": st.column_config.NumberColumn(format="%.1f"),
    "peak MiB": st.column_config.NumberColumn(format="%.0f"),
    "reason": st.column_config.TextColumn(width="large"),
}


def table(
    study: Study, results: tuple[PlanResult, ...], trials: tuple[TrialRow, ...], *, running: bool
) -> dict[str, list[Any]]:
    """Columns of the live table, a row a plan in the order of the space, then those that cannot run here."""
    now = trials[-1] if running and trials and trials[-1].status == "interrupted" else None
    rows = [_row(result, now, running) for result in results]
    rows += [_blank(plan, "cannot run here", why) for plan, why in study.rejected]
    return {name: [row[name] for row in rows] for name in _blank(study.space.plans[0], "", "")}


def _blank(plan: Plan, state: str, reason: str) -> dict[str, Any]:
    figures = {"p50 ms": None, "tokens/s": None, "peak MiB": None, "samples": None}
    return {"plan": named(plan), "state": state, **figures, "reason": shown(reason)}


def _row(result: PlanResult, now: TrialRow | None, running: bool) -> dict[str, Any]:
    peak, p50 = result.peak_bytes, result.latency(0.5).value
    state, reason = _of_plan(result, now, running)
    return {
        **_blank(result.plan, state, reason),
        "p50 ms": None if p50 is None else p50 * 1000,
        "tokens/s": result.tokens_per_s_mean,
        "peak MiB": None if peak is None else peak / MIB,
        "samples": len(result.samples) or None,
    }


def _of_plan(result: PlanResult, now: TrialRow | None, running: bool) -> tuple[str, str]:
    if now is not None and now.plan_id == result.plan.id:
        return "measuring", f"round {now.round}, {now.samples} requests done"
    if result.status == "ok":
        if result.looked_at and result.left_out:
            return "ruled out by a look", result.left_out
        disturbed = f"{result.disturbed_count} disturbed samples left out" if result.disturbed_count else ""
        what = "looked at" if result.looked_at else "measured"
        return f"{what}, {result.processes} process{'es' * (result.processes != 1)}", disturbed
    if result.status == "waiting":
        if result.left_out:
            return "ruled out", result.left_out
        return ("waiting", "") if running else ("skipped", "the study ended before it")
    if result.status == "interrupted":
        return ("waiting", "interrupted before; will be taken again") if running else ("interrupted", result.reason)
    return result.status.replace("_", " "), result.reason
