"""The web app, for `streamlit run app.py`; the same as `inferplan web`. No logic lives here."""

import sys
from pathlib import Path

# Runs from a checkout that was not installed. Streamlit runs this file at every click: the path is put there once.
if (source := str(Path(__file__).resolve().parent / "src")) not in sys.path:
    sys.path.insert(0, source)

from inferplan.web.app import main

main()
