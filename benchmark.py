"""A thin door to `inferplan`, kept for those who know this command. No logic here."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))  # runs from a checkout that was not installed

from inferplan.cli import benchmark_main

if __name__ == "__main__":
    sys.exit(benchmark_main())
