"""Parts: what every page shares: text made safe, errors, marks, and where things are.

Owns the few words of markup that pages use. Leaves what they say to `report.words`.
"""

from __future__ import annotations

import os
import re
import string
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePath

import streamlit as st

from .. import locks, measure, prepare
from ..engines import HIDDEN, engine_names
from ..engines.base import EngineInfo
from ..errors import InferplanError
from ..plan import Plan
from ..report import Row
from ..report.words import Fact

_PUNCTUATION = re.compile("([" + re.escape(string.punctuation) + "])")
# An address becomes a link whatever is escaped in it; a character without width takes it apart.
_LINK, _JOINER = re.compile(r"(:(?=//)|www|@)", re.IGNORECASE), "\u2060"
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


_LAST_IN_THE_QUEUE = 19  # nice(2): where both cores are busy this gets some hundredth of one


@dataclass(frozen=True, slots=True)
class Place:
    """Where this app reads and writes: its store, and the directory whose models it offers."""

    store: Path
    models: Path | None = None


def give_way() -> None:
    """While a study is timed, draw with what it leaves over: this thread, not the server, goes to the end of the queue.

    A thread that has given way cannot take its place back, so it is done by each run for itself; Linux alone has it.
    """
    if sys.platform == "linux" and locks.holder() is not None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LAST_IN_THE_QUEUE)


def shown(text: object) -> str:
    """`text` for a table or a list: without control characters, and without those that turn the reading direction."""
    return _UNSEEN.sub("?", str(text)).replace("\n", " ")


def named(plan: Plan) -> str:
    """The plan's id for a table or a list; of a model in a directory its name alone, for the path fits no column."""
    model = PurePath(plan.model)
    short = plan.id.replace(plan.model, model.name, 1) if model.is_absolute() else plan.id
    return shown(short)


def safe(text: object) -> str:
    """`text` as Markdown that shows just that: no link, no formula, no HTML, no control characters."""
    return _PUNCTUATION.sub(r"\\\1", _LINK.sub(f"\\1{_JOINER}", shown(text)))


@contextmanager
def complaints() -> Iterator[None]:
    """Show what is wrong with what was asked, in the words of the command line, instead of a traceback."""
    try:
        yield
    except InferplanError as err:
        st.error(safe(err), icon=":material/error:")


@contextmanager
def noted(wrong: list[InferplanError]) -> Iterator[None]:
    """Keep what is wrong for the end of the page, so that the controls after it are drawn all the same."""
    try:
        yield
    except InferplanError as err:
        wrong.append(err)


def facts(found: Iterable[Fact]) -> None:
    """Labelled sentences, one a line."""
    st.markdown("  \n".join(f"**{safe(fact.label)}:** {safe(fact.text)}" for fact in found))


def marks(row: Row) -> list[str]:
    """What to know of a plan before its figures are believed, as Markdown badges beside the figures."""
    found = [_badge("synthetic weights", "orange")] if row.synthetic else []
    if row.oversubscribed:
        found.append(_badge("oversubscribed: more threads than cores", "orange"))
    if row.disturbed:
        found.append(_badge(f"{row.disturbed} disturbed samples left out", "orange"))
    if row.cut:
        found.append(_badge(f"{row.cut} requests cut short", "orange"))
    if row.p95.value is None and row.p50.value is not None:
        found.append(_badge(f"no p95: {row.p50.n} requests are too few", "gray"))
    return found


def _badge(text: str, colour: str) -> str:
    return f":{colour}-badge[{safe(text)}]"


VERDICTS = {
    "meets": ":green-badge[meets]",
    "misses": ":red-badge[misses]",
    "undecided": ":orange-badge[undecided]",
}
"""Each word stands beside its colour: the colour is never the only sign."""


@st.cache_resource(show_spinner="Asking the engines what they can do here", ttl=3600)
def engines() -> dict[str, EngineInfo]:
    """What each engine says of itself on this machine; asked once an hour, each in a process of its own."""
    return prepare.describe_engines(name for name in engine_names() if name not in HIDDEN)


@lru_cache(maxsize=64)
def recipe(plan_id: str, checkpoint: str) -> str | None:
    """Code that runs the plan with its engine alone."""
    return measure.recipe(Plan.parse(plan_id), checkpoint)


def table_height(rows: int, most: int = 640) -> int:
    """Pixels of a table: all its rows where they fit, else a part that scrolls."""
    return min(38 + 35 * max(rows, 1), most)
