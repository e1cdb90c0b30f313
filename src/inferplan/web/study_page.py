"""The page of one study: watched while it runs, judged when it has ended.

Owns which of the two is shown, and what can be done with a study that stopped.
"""

from __future__ import annotations

import streamlit as st

from ..errors import UnknownNameError
from ..report.words import title
from ..store import Store
from . import jobs, reading
from .live import watch
from .outcome import outcome, told
from .parts import Place, complaints, safe
from .reading import Seen


def page(place: Place, start: st.Page) -> None:
    """The study that the address names, else the newest."""
    with complaints():
        id = _which(place)
        if id is None:
            st.title("No study yet")
            st.page_link(start, label="Start the first one", icon=":material/add:")
            return
        _study(place, id)


def _which(place: Place) -> str | None:
    """The id of the study to show; None when the store has none.

    Raises:
        UnknownNameError: the address names a study that is not there.
    """
    named = st.query_params.get("study", "")
    with Store(place.store) as store:
        ids = store.study_ids()
    if not named or named in ids:
        return named or (ids[0] if ids else None)
    raise UnknownNameError("study", named, ids, "Choose one on the history page.")


def _study(place: Place, id: str) -> None:
    seen = reading.see(place.store, id)
    study = seen.study
    view = reading.judge(seen, study.sla, study.objective, study.prices)
    st.title(safe(title(view.report)), anchor=False)
    if study.synthetic:
        st.warning(
            "Synthetic weights: time and memory are those of the architecture, the text that comes out means nothing.",
            icon=":material/science:",
        )
    job = jobs.find(place.store, id)
    running = job is not None and jobs.state(job) != "ended"
    told(view)
    if running:
        watch(place, id)
        return
    if not study.finished:
        _stopped(place, seen, job)
    outcome(place, id)


def _stopped(place: Place, seen: Seen, job: jobs.Job | None) -> None:
    """A study that did not come to its end: why, and how to go on."""
    study = seen.study
    done = sum(trial.status != "interrupted" for trial in seen.trials)
    st.warning(f"This study did not come to its end. Processes measured, and kept: {done}.")
    said = jobs.log(place.store, study.id)
    if said:
        with st.expander("What its process said last", expanded=done == 0):
            st.code("\n".join(said), language=None, wrap_lines=True)
    if study.settings.private and (job is None or job.given):
        st.caption("Its prompts are kept only as hashes: resume it from a terminal, with the same prompts.")
        return
    if st.button("Resume", type="primary", key="resume", help="goes on where it ended"):
        with complaints():
            jobs.start(place.store, study.id, job.flags if job else ())
            st.rerun()
