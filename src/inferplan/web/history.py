"""The page of all studies in the store: open, export, delete, take one in.

Owns the list. Leaves each study to its own page.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import streamlit as st

from ..errors import InputError
from ..store import Store, StudyRow
from ..study import take_in
from . import jobs
from .parts import Place, complaints, safe, shown, table_height

_MOST_IMPORT_MB = 50


def page(place: Place, open_study: st.Page, start: st.Page) -> None:
    """Draw the list and what can be done with a study."""
    st.title("History", anchor=False)
    with complaints():
        with Store(place.store) as store:
            rows = store.list_studies()
        if rows:
            _list(place, rows)
            _one(place, rows, open_study)
        else:
            st.info("The store has no study yet.")
            st.page_link(start, label="Start the first one", icon=":material/add:")
        _import(place)


def _list(place: Place, rows: Sequence[StudyRow]) -> None:
    st.dataframe(
        {
            "study": [row.id for row in rows],
            "started": [when(row.created_at) for row in rows],
            "state": [_state(place, row) for row in rows],
            "models": [shown(" ".join(row.header["space"]["models"])) for row in rows],
            "SLA": [shown(_sla(row.header)) for row in rows],
            "processes": [row.trials for row in rows],
            "samples": [row.samples for row in rows],
            "weights": ["synthetic weights" if _synthetic(row.header) else "" for row in rows],
        },
        hide_index=True,
        height=table_height(len(rows), 420),
        alt="every study in the store, newest first",
    )


def when(seconds: float) -> str:
    """Local date and time."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def name(row: StudyRow) -> str:
    """A study in a list to choose from."""
    return shown(f"{row.id}: {' '.join(row.header['space']['models'])}, {_sla(row.header)}")


def _state(place: Place, row: StudyRow) -> str:
    job = jobs.find(place.store, row.id)
    if job is not None and (state := jobs.state(job)) != "ended":
        return state
    return "finished" if row.finished else "stopped"


def _sla(header: Any) -> str:
    return ", ".join(constraint["text"] for constraint in header["sla"]["constraints"])


def _synthetic(header: Any) -> bool:
    return any(checkpoint["provenance"] == "synthetic" for checkpoint in header["checkpoints"])


def _one(place: Place, rows: Sequence[StudyRow], open_study: st.Page) -> None:
    chosen = st.selectbox("study", rows, format_func=name, key="history-study")
    if chosen is None:
        return
    with st.container(horizontal=True):
        if st.button("Open", type="primary", key="open"):
            st.switch_page(open_study, query_params={"study": chosen.id})
        st.download_button(
            "Export",
            lambda: _export(place, chosen.id),
            file_name=f"study-{chosen.id}.json",
            mime="application/json",
            key="export",
            on_click="ignore",
        )
        if st.button("Delete", key="delete"):
            _delete(place, chosen)


def _export(place: Place, id: str) -> str:
    with Store(place.store) as store:
        return json.dumps(store.export_study(id), indent=1)


@st.dialog("Delete this study?")
def _delete(place: Place, row: StudyRow) -> None:
    st.markdown(f"{safe(name(row))}  \n{row.trials} processes and {row.samples} samples go with it, for good.")
    with st.container(horizontal=True):
        if st.button("Delete it", type="primary", key="delete-yes"):
            with complaints():
                job = jobs.find(place.store, row.id)
                if job is not None and jobs.state(job) != "ended":
                    raise InputError(f"study {row.id} is running: cancel it first")
                with Store(place.store) as store:
                    store.delete_study(row.id)
                jobs.forget(place.store, row.id)
                st.rerun()
        if st.button("Keep it", key="delete-no"):
            st.rerun()


def _import(place: Place) -> None:
    with st.expander("Take in a study that was exported"):
        file = st.file_uploader("a file that Export or `inferplan export` wrote", type=["json"],
                                max_upload_size=_MOST_IMPORT_MB, key="import")  # fmt: skip
        if file is None or not st.button("Take it in", key="import-yes"):
            return
        with complaints():
            with Store(place.store) as store:
                id = take_in(store, file.getvalue(), file.name)
            st.toast(f"Study {safe(id)} is in the store.")
            st.rerun()
