"""Memory before processes: a plan whose weights do not fit is a row, and nothing of it is started."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inferplan import machine, measure, prepare, study
from inferplan.artifacts import artifacts
from inferplan.engines.base import EngineInfo
from inferplan.measurement import Measurement, Trial
from inferplan.models import Checkpoint
from inferplan.plan import Plan, Space
from inferplan.prepare import Preparation
from inferplan.selection import SLA, Objective
from inferplan.store import Store
from inferplan.study import Settings, Study
from inferplan.workload import Prompt, Workload

MIB = 2**20
WORKLOAD = Workload((Prompt(text="one prompt"), Prompt(text="another")), max_new_tokens=3)


@pytest.fixture(scope="module")
def infos() -> dict[str, EngineInfo]:
    """The fake engine, converting for INT8 alone, as the transformers engine does."""
    return {"fake": replace(measure.describe("fake"), converts=("int8",))}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A directory that the fake engine loads as it is."""
    path = tmp_path / "weights"
    path.mkdir()
    (path / "fake.json").write_text("{}")
    return path


def checkpoint(path: Path, name: str = "m", parameters: int = 100 * MIB) -> Checkpoint:
    return Checkpoint(name, path, "synthetic", "synthetic weights, seed 0", f"hash of {name}", parameters)


def ready(infos: dict[str, EngineInfo], memory_bytes: int, *checkpoints: Checkpoint) -> Preparation:
    return prepare.prepare(checkpoints, WORKLOAD, (), infos, lambda text: None, memory_bytes=memory_bytes)


def reason(found: object) -> str:
    """Why an artifact was refused; it must have been, for want of memory."""
    assert isinstance(found, tuple), f"{found} was not refused"
    assert found[0] == "out_of_memory"
    return str(found[1])


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The command of every process that is started from here on; they run as ever."""
    commands: list[object] = []

    class Seen(subprocess.Popen[Any]):
        def __init__(self, args: Any, *rest: Any, **options: Any) -> None:
            commands.append(args)
            super().__init__(args, *rest, **options)

    monkeypatch.setattr(subprocess, "Popen", Seen)
    return commands


def run(
    asked: Study, store: Path, prepared: Preparation, infos: dict[str, EngineInfo], take: study.Take = measure.measure
) -> Study:
    with Store(store) as opened:
        study.save_header(opened, asked)
        return study.run(asked, opened, prepared, infos, watch=measure.Watch(cores=2, judge=False), take=take)


def new_study(*checkpoints: Checkpoint, precisions: tuple[str, ...] = ("fp32",)) -> Study:
    return Study(
        id="study",
        created_at=time.time(),
        space=Space(tuple(c.name for c in checkpoints), ("fake",), precisions, kv_cache=(True,)),
        workload=WORKLOAD,
        sla=SLA.from_p50_ms(60_000),
        objective=Objective(),
        machine=machine.detect(),
        settings=Settings(rounds=1),
        checkpoints=checkpoints,
    )


def test_a_refused_plan_is_a_row_and_the_study_goes_on(
    infos: dict[str, EngineInfo], weights: Path, tmp_path: Path
) -> None:
    models = checkpoint(weights, "large"), checkpoint(weights, "small", parameters=10 * MIB)
    done = run(new_study(*models), tmp_path / "store.db", ready(infos, 256 * MIB, *models), infos)
    large, small = done.results
    assert (large.status, small.status) == ("out_of_memory", "ok")
    assert large.reason.startswith("not started: large at fp32 needs 400 MiB")
    assert "256 MiB are granted" in large.reason
    assert len(small.samples) == 2
    with Store(tmp_path / "store.db") as store:
        assert study.load(store, done.id).results[0].reason == large.reason


def test_no_process_is_started_for_a_refused_plan(
    infos: dict[str, EngineInfo], weights: Path, tmp_path: Path, cache: Path, started: list[object]
) -> None:
    asked = new_study(checkpoint(weights), precisions=("fp32", "int8"))
    taken: list[Plan] = []

    def take(trial: Trial, info: EngineInfo, watch: measure.Watch, keep: measure.Keep) -> Measurement:
        taken.append(trial.plan)
        return measure.measure(trial, info, watch, keep)

    started.clear()  # what `detect` asked of the system
    tight = ready(infos, 64 * MIB, *asked.checkpoints)
    assert {r.status for r in run(asked, tmp_path / "a.db", tight, infos, take).results} == {"out_of_memory"}
    assert (started, taken) == ([], [])
    assert artifacts(cache) == ()

    roomy = ready(infos, 4096 * MIB, *asked.checkpoints)
    assert {r.status for r in run(asked, tmp_path / "b.db", roomy, infos, take).results} == {"ok"}
    assert len(taken) == 2
    assert len(started) == 3, "two plans, one conversion"


def test_int8_runs_where_fp32_does_not_fit_once_its_artifact_is_there(
    infos: dict[str, EngineInfo], weights: Path, tmp_path: Path, cache: Path
) -> None:
    model, int8 = checkpoint(weights), Plan("m", "fake", "int8")
    refused = reason(ready(infos, 256 * MIB, model).artifact(int8))
    assert refused.startswith("not started: converting m to int8 for fake needs 400 MiB")

    assert isinstance(ready(infos, 512 * MIB, model).artifact(int8), Path)  # another day, with more memory
    asked = new_study(model, precisions=("fp32", "int8"))
    done = run(asked, tmp_path / "store.db", ready(infos, 256 * MIB, model), infos)
    assert {r.plan.precision: r.status for r in done.results} == {"fp32": "out_of_memory", "int8": "ok"}


def test_a_converted_artifact_counts_as_its_files_on_disk(
    infos: dict[str, EngineInfo], weights: Path, cache: Path
) -> None:
    model, int8 = checkpoint(weights, parameters=0), Plan("m", "fake", "int8")
    made = ready(infos, MIB, model).artifact(int8)
    assert isinstance(made, Path)
    size = (made / "fake.json").stat().st_size
    assert ready(infos, size, model).artifact(int8) == made
    assert "m at int8" in reason(ready(infos, size - 1, model).artifact(int8))


@pytest.mark.parametrize(("precision", "mebibytes"), [("fp32", 400), ("bf16", 200), ("fp16", 200), ("int4", 50)])
def test_a_checkpoint_loaded_as_it_is_counts_by_parameters_and_precision(
    infos: dict[str, EngineInfo], weights: Path, precision: str, mebibytes: int
) -> None:
    plan, model = Plan("m", "fake", precision), checkpoint(weights)
    assert ready(infos, mebibytes * MIB, model).artifact(plan) == weights
    assert f"needs {mebibytes} MiB" in reason(ready(infos, mebibytes * MIB - 1, model).artifact(plan))


def _a_file(path: Path) -> Path:
    file = path / "model.q4_k"
    file.write_bytes(bytes(1000))
    return file


def _a_directory(path: Path) -> Path:
    (path / "model.safetensors").write_bytes(bytes(1000))
    (path / "notes.txt").write_bytes(bytes(5000))
    return path


@pytest.mark.parametrize("made", [_a_file, _a_directory])
def test_a_precision_of_an_engines_own_counts_by_the_files_of_weights(
    infos: dict[str, EngineInfo], tmp_path: Path, made: Callable[[Path], Path]
) -> None:
    path = made(tmp_path)
    plan, model = Plan("m", "fake", "q4_k"), checkpoint(path)
    assert ready(infos, 1000, model).artifact(plan) == path
    assert "m at q4_k" in reason(ready(infos, 999, model).artifact(plan))


def test_a_plan_on_another_device_is_not_held_against_the_hosts_memory(
    infos: dict[str, EngineInfo], weights: Path
) -> None:
    plan = Plan("m", "fake", "fp32", device="cuda")
    assert ready(infos, MIB, checkpoint(weights)).artifact(plan) == weights


def test_the_memory_is_what_the_machine_grants_unless_told_otherwise(
    infos: dict[str, EngineInfo], weights: Path
) -> None:
    granted = machine.detect().memory_granted_bytes
    fitting, beyond = checkpoint(weights, "fits", granted // 4), checkpoint(weights, "beyond", granted // 4 + 1)
    here = prepare.prepare((fitting, beyond), WORKLOAD, (), infos, lambda text: None)
    assert here.memory_bytes == granted == Preparation(infos, {}, {}, lambda text: None).memory_bytes
    assert here.artifact(Plan("fits", "fake")) == weights
    assert "beyond at fp32" in reason(here.artifact(Plan("beyond", "fake")))


# --- a disk that is full ---------------------------------------------------------------------------------------------

_CONVERT = """
import json, sys
from pathlib import Path
from inferplan import measure, prepare
from inferplan.artifacts import artifacts, cache_dir
from inferplan.models import Checkpoint
from inferplan.plan import Plan
from inferplan.workload import Prompt, Workload

info, model = {"fake": measure.describe("fake")}, Checkpoint("m", Path(sys.argv[1]), "local", "float32", "hash", 1)
cache_dir().mkdir(exist_ok=True)
FILL
ready = prepare.prepare((model,), Workload((Prompt(text="one"),)), (), info, print, memory_bytes=1 << 30)
status, reason = ready.artifact(Plan("m", "fake"))
left = [path.name for path in cache_dir().iterdir() if path.name != "filler"]
FREE
again = prepare.Preparation(info, {"m": model}, {}, print).artifact(Plan("m", "fake"))
print(json.dumps([status, reason, left, len(artifacts()), str(again)]))
"""
_FILL = """
try:
    with (cache_dir() / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(1024))
except OSError:
    pass
"""
_LIMIT = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))"
_UNLIMIT = "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))"


def _a_full_tmpfs(cache: Path) -> tuple[list[str], str]:
    """A real disk of 64 KiB that is full, in a namespace of its own."""
    mount = f"mount -t tmpfs -o size=64k tmpfs {cache}"
    cache.mkdir()
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "sh", "-c", mount], check=False).returncode:
        pytest.skip("no namespace of our own to be had here")
    code = _CONVERT.replace("FILL", _FILL).replace("FREE", "(cache_dir() / 'filler').unlink()")
    return ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$@"', "sh"], code


def _a_limit_on_files(cache: Path) -> tuple[list[str], str]:
    return [], _CONVERT.replace("FILL", _LIMIT).replace("FREE", _UNLIMIT)


@pytest.mark.skipif(os.name != "posix", reason="limits and namespaces of POSIX")
@pytest.mark.parametrize(
    ("disk", "words"), [(_a_full_tmpfs, "No space left on device"), (_a_limit_on_files, "File too large")]
)
def test_a_conversion_that_meets_a_full_disk_says_so_and_leaves_nothing(
    disk: Callable[[Path], tuple[list[str], str]], words: str, cache: Path, weights: Path
) -> None:
    start, code = disk(cache)
    done = subprocess.run(
        [*start, sys.executable, "-B", "-c", code, str(weights)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    status, reason, left, made, again = json.loads(done.stdout.splitlines()[-1])
    assert status == "failed"
    assert words in reason
    assert reason.startswith(f"the artifact cache {cache} cannot be written: ")
    assert "INFERPLAN_CACHE" in reason
    assert left == [".locks"]
    assert made == 1, "with room again it is made"
    assert again.startswith(str(cache))


def test_what_is_converted_is_told_with_its_time_and_size(
    infos: dict[str, EngineInfo], weights: Path, cache: Path
) -> None:
    told: list[str] = []
    prepared = Preparation(infos, {"m": checkpoint(weights)}, {}, told.append, memory_bytes=4096 * MIB)
    int8 = Plan("m", "fake", "int8")
    assert prepared.converted(int8) is None, "nothing is made yet"
    made = prepared.artifact(int8)
    assert isinstance(made, Path)
    assert told[0].startswith("converting m to int8 for fake")
    assert told[1].startswith("converted m to int8 for fake: ")
    found = prepared.converted(int8)
    assert found is not None
    assert found.bytes == (made / "fake.json").stat().st_size
    assert (found.check, found.unchecked) == (None, ""), "an engine without a model has nothing to check"
    assert prepared.converted(Plan("m", "fake")) is None, "loaded as it is"
    again = Preparation(infos, {"m": checkpoint(weights)}, {}, told.append, memory_bytes=4096 * MIB)
    assert again.artifact(int8) == made
    assert again.converted(int8) == found
    assert len(told) == 2
