"""The app: its pages, and where they read and write. What Streamlit runs, again for every click.

Owns the navigation and the arguments after `--`. Leaves each page to its module.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import streamlit as st

from ..store import store_path
from . import compared, history, machine_page, start, study_page
from .parts import Place, give_way


def place_of(arguments: list[str]) -> Place:
    """The store and the models that the command line names: `streamlit run app.py -- --store PATH`."""
    parser = argparse.ArgumentParser(prog="app.py", description="The web app of inferplan.")
    parser.add_argument("--store", metavar="PATH")
    parser.add_argument("--models-dir", metavar="DIR", type=Path)
    given = parser.parse_args(arguments)
    return Place(store_path(given.store), given.models_dir)


def main() -> None:
    """Draw the page that the address names."""
    give_way()
    st.set_page_config(page_title="inferplan", page_icon=str(Path(__file__).with_name("icon.svg")), layout="wide")
    place = place_of(sys.argv[1:])
    study = st.Page(
        lambda: study_page.page(place, begin), title="Study", url_path="study", icon=":material/monitoring:"
    )
    begin = st.Page(lambda: start.page(place, study), title="New study", icon=":material/add:", default=True)
    pages = [
        begin,
        study,
        st.Page(
            lambda: history.page(place, study, begin), title="History", url_path="history", icon=":material/history:"
        ),
        st.Page(lambda: compared.page(place), title="Compare", url_path="compare", icon=":material/compare_arrows:"),
        st.Page(lambda: machine_page.page(place), title="Machine", url_path="machine", icon=":material/memory:"),
    ]
    st.navigation(pages, position="top").run()
