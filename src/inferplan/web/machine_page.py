"""The page about this machine: what it is, what works here, what would disturb a study.

Owns nothing but the page. Leaves every finding to `doctor`.
"""

from __future__ import annotations

import streamlit as st

from .. import doctor, locks
from .parts import Place, complaints, engines, safe


def page(place: Place) -> None:
    """What `inferplan doctor --quick` says."""
    st.title("This machine", anchor=False)
    with complaints():
        diagnosis = doctor.diagnose(place.store, engines=engines(), quick=True)
        st.code("\n".join(doctor.lines(diagnosis)), language=None, wrap_lines=True)
        who = locks.holder()
        if who is not None:
            st.info(f"Measuring now: {safe(who)}. Whatever else runs here disturbs it.")
        st.caption("`inferplan doctor` in a terminal also measures the read bandwidth, which takes seconds.")
