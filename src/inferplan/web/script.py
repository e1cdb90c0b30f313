"""What `streamlit run` is given by `inferplan web`: the app, and nothing else."""

from inferplan.web.app import main

main()
