"""The recorded space: it is added to, one process after the other, and never from another machine."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from test_weights import tiny_model

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))  # scripts, not a package

import record_space

from inferplan import machine
from inferplan.plan import Plan

pytestmark = pytest.mark.slow


def held(plan: Plan, **changed: Any) -> dict[str, Any]:
    """A record of one process of `plan`, made here, without samples or rates."""
    process = {"status": "crashed", "reason": "the first", "wall_s": 1.0}
    row = {"id": plan.id, "converted_s": 2.0, "converted_bytes": 3, "processes": [process]}
    about = {
        "format": "inferplan recorded space",
        "version": 1,
        "machine": record_space._machine(machine.detect()),
        "recorded": ["2026-01-01 00:00", "2026-01-01 01:00"],
        "libraries": {},
        "max_tokens": 4,
        "models": {},
    }
    return {**about, **changed, "plans": [row]}


def written(out: Path, data: dict[str, Any]) -> None:
    out.write_bytes(gzip.compress(json.dumps(data).encode()))


def read(out: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(gzip.decompress(out.read_bytes()))
    return data


def test_a_record_is_added_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model(tmp_path / "model")
    plan = Plan(str(model), "transformers", "fp32", 1, True)
    out, keep = tmp_path / "space.json.gz", tmp_path / "kept.jsonl"
    written(out, held(plan))
    base = [
        "--models",
        str(model),
        "--engines",
        "transformers",
        "--precisions",
        "fp32",
        "--threads",
        "1",
        "--tokens",
        "4",
    ]
    base += ["--kv-cache", "on", "--prompts", "2", "--out", str(out), "--keep", str(keep)]

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["record_space.py", *base, *arguments])
        record_space.main()

    run("--rounds", "2")
    assert [m.round for m in record_space.kept(keep)] == [2]  # the first process is held already
    for _ in range(2):  # to pack twice adds nothing twice
        run("--pack")
    (row,) = read(out)["plans"]
    assert [process["status"] for process in row["processes"]] == ["crashed", "ok"]
    assert row["processes"][0]["reason"] == "the first"
    assert row["converted_s"] == 2.0
    assert read(out)["recorded"][0] == "2026-01-01 00:00" < read(out)["recorded"][1]
    assert len(row["processes"][1]["samples"]) == 2

    for arguments in (["--rounds", "3"], ["--pack"]):
        with pytest.raises(SystemExit, match="other weights or requests"):
            run("--prompts", "1", *arguments)
    keep.unlink()
    with pytest.raises(SystemExit, match="holds no process: record some first"):
        run("--pack")
    run("--rounds", "1", "--again")
    run("--pack", "--again")
    (row,) = read(out)["plans"]
    assert [process["status"] for process in row["processes"]] == ["ok"]
    assert row["converted_s"] == 2.0

    for other in ({"machine": "another, 64 cores"}, {"libraries": {"torch": "1.0"}}, {"max_tokens": 64}):
        written(out, held(plan, **other))
        before = out.read_bytes()
        for arguments in (["--rounds", "2"], ["--pack"]):
            with pytest.raises(SystemExit, match=r"holds .*, here .*: give another --out"):
                run(*arguments)
        assert out.read_bytes() == before
