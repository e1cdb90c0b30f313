"""The web app: start a study, watch it, see what came of it, try other terms. Run by Streamlit.

Owns pages. Leaves measuring to a process of its own, every figure to `report`
and `selection`, and every word on a study to `report.words`.
"""
