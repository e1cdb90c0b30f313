"""The web app, for `streamlit run app.py`; the same as `inferplan web`. No logic lives here."""

from inferplan.web.app import main

main()
