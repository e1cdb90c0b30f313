"""The same study twice: does the choice hold?

Runs `benchmark.py` two times with the same arguments, one after the other, and compares: the winners, and,
where they differ, whether the two are a tie or undistinguished by the first study's own samples. Exits with
1 when the second choice contradicts the first.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from inferplan.compare import compare, render_comparison
from inferplan.result import PlanResult
from inferplan.stats import paired_ratio
from inferplan.store import Store
from inferplan.study import Study, load

ROOT = Path(__file__).resolve().parent.parent


def study(store: Path, arguments: list[str]) -> Study:
    with tempfile.TemporaryDirectory() as out:
        command = [
            sys.executable,
            str(ROOT / "benchmark.py"),
            *arguments,
            "--store",
            str(store),
            "--out",
            out,
            "--quiet",
        ]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if done.returncode not in (0, 3, 4):
        raise SystemExit(f"benchmark.py ended with {done.returncode}")
    with Store(store) as opened:
        return load(opened, "latest")


def result_of(study: Study, plan_id: str) -> PlanResult:
    return next(result for result in study.results if result.plan.id == plan_id)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        first, second = (study(Path(folder) / "store.db", sys.argv[1:]) for _ in range(2))
    print(render_comparison(compare(first, second)))
    winners = [s.select().winner for s in (first, second)]
    names = [winner.plan.id if winner else "none" for winner in winners]
    print(json.dumps({"first": names[0], "second": names[1]}))
    if names == ["none", "none"]:
        print("neither study chose a plan: nothing to compare")
        return 1
    if names[0] == names[1]:
        print("the same winner twice")
        return 0
    if "none" in names:
        print("one study chose a plan and the other none")
        return 1
    pairs = [result_of(first, name).latencies_by_request for name in names]
    ratio = paired_ratio(pairs[1], pairs[0])
    relation = ratio.relation()
    figures = f"{ratio.value} [{ratio.low}, {ratio.high}]: {relation}"
    print(f"different winners; in the first study the second's winner takes {figures}")
    return 0 if relation == "tie" else 1


if __name__ == "__main__":
    sys.exit(main())
