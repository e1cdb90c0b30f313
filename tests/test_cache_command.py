"""`inferplan cache`: what lies there, and removing it without harm to what runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from inferplan import artifacts, cli, locks
from inferplan.agreement import RECORD_FILE
from inferplan.artifacts import artifact_key, ensure

MIB = 1 << 20
DAY_S = 86_400


@pytest.fixture(autouse=True)
def own_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine's lock of this test alone: other studies may run here."""
    path = tmp_path / "lock" / "machine.lock"
    monkeypatch.setattr(locks, "lock_path", lambda: path)
    return path


def artifact(
    name: str, *, mebibytes: int = 1, days: float = 0, check: dict[str, object] | None = None, **note: str
) -> Path:
    """An artifact that was last used so many days ago."""

    def make(out: Path) -> None:
        (out / "weights").write_bytes(bytes(mebibytes * MIB))

    path = ensure(artifact_key(name), make, note=note)
    if check is not None:
        (path / RECORD_FILE).write_text(json.dumps(check))
    then = time.time() - days * DAY_S
    os.utime(path / artifacts.NOTE_FILE, (then, then))
    return path


@pytest.fixture
def filled(cache: Path) -> dict[str, Path]:
    """Four artifacts, and an engine's environment that must not be taken for one."""
    check = {
        "steps": 192,
        "agreement": 0.974,
        "minimum": 0.8,
        "largest_gap": 0.1,
        "distinct": 60,
        "reference": "transformers 5",
        "seconds": 2.0,
    }
    kind = "converted model"
    made = {
        "llama": artifact("a", mebibytes=2, kind=kind, model="gpt2", engine="llamacpp", precision="int8",
                          check={"key": "k", "check": check, "unchecked": ""}),
        "old": artifact("b", days=40, kind=kind, model="gpt2", engine="ctranslate2", precision="fp32"),
        "synthetic": artifact("c", days=2, kind="synthetic weights", model="gpt2", what="gpt2, synthetic"),
        "unnamed": artifact("d", model="tiny", what="tiny.gguf as safetensors"),
    }  # fmt: skip
    (cache / "environments" / "vllm").mkdir(parents=True)
    (cache / "environments" / "inferplan.json").write_text("{}")
    (cache / "hashes").mkdir(exist_ok=True)
    return made


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `inferplan cache` printed; it must have ended well."""
    code = cli.main(["cache", *arguments])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["cache", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_an_empty_cache_is_said(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "it is empty" in run(capsys)
    assert "the artifact cache is empty" in run(capsys, "prune", "--all", "--yes")
    assert json.loads(run(capsys, "list", "--json")) == {
        "path": str(cache),
        "bytes": 0,
        "artifacts": [],
        "unfinished": [],
    }
    assert not cache.exists(), "looking makes nothing"


def test_the_list_names_kinds_sizes_ages_and_checks(
    filled: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = run(capsys).splitlines()
    assert lines[1].split()[:5] == ["kind", "model", "engine", "precision", "MiB"]
    (llama,) = [line for line in lines if "llamacpp" in line]
    assert llama.split()[:6] == ["converted", "model", "gpt2", "llamacpp", "int8", "2.0"]
    assert "97.4% of 192" in llama
    (old,) = [line for line in lines if "ctranslate2" in line]
    assert "40 days ago" in old
    assert sum(line.startswith("synthetic weights") for line in lines) == 1
    assert sum(line.startswith("dequantized GGUF") for line in lines) == 1
    assert "total: 4 artifacts, 5.0 MiB" in lines
    assert "inferplan engines" in lines[-1]


def test_the_list_as_json_and_of_some(filled: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    told = json.loads(run(capsys, "list", "--json", "--engine", "llamacpp"))
    (one,) = told["artifacts"]
    assert (told["bytes"], one["bytes"], one["path"]) == (2 * MIB, 2 * MIB, str(filled["llama"]))
    assert one["check"]["agreement"] == 0.974
    assert "total: 1 artifact of 4, 1.0 MiB" in run(capsys, "--model", "tiny")


@pytest.mark.parametrize(
    ("chosen", "gone"),
    [
        (["--all"], {"llama", "old", "synthetic", "unnamed"}),
        (["--older-than", "30d"], {"old"}),
        (["--older-than", "36h"], {"old", "synthetic"}),
        (["--engine", "llamacpp"], {"llama"}),
        (["--model", "gpt2"], {"llama", "old", "synthetic"}),
        (["--model", "gpt2", "--older-than", "1w"], {"old"}),
        (["--engine", "transformers"], set()),
    ],
)
def test_prune_removes_what_fits_every_filter(
    chosen: list[str], gone: set[str], filled: dict[str, Path], cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    would = run(capsys, "prune", *chosen, "--dry-run")
    assert all(path.is_dir() for path in filled.values())
    said = run(capsys, "prune", *chosen, "--yes")
    assert {name for name, path in filled.items() if not path.exists()} == gone
    assert (cache / "environments" / "vllm").is_dir()
    assert not list(cache.glob(".making-*"))
    if gone:
        size = f"{sum(2 if name == 'llama' else 1 for name in gone)}.0 MiB"
        assert size in would and f"freed {size}" in said
    else:
        assert "nothing to prune" in said


def test_using_an_artifact_makes_it_young_again(filled: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    ensure(filled["old"].name, lambda out: pytest.fail("made again"), note={})
    assert "nothing to prune" in run(capsys, "prune", "--older-than", "30d", "--yes")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["prune"], "say what to prune"),
        (["prune", "--all", "--model", "gpt2"], "--all alone"),
        (["prune", "--older-than", "month"], "'month' is not a duration such as 30d"),
        (["prune", "--model", "gtp2", "--yes"], "Did you mean gpt2"),
        (["--engine", "lamacpp"], "Did you mean llamacpp"),
        (["prune", "--all", "--json"], "--json is of `inferplan cache list`"),
        (["list", "--dry-run"], "--dry-run is of `inferplan cache prune`"),
        (["prune", "--all"], "not removing 4 artifacts, 5.0 MiB without being asked: give --yes"),
    ],
)
def test_bad_arguments_remove_nothing(
    arguments: list[str], why: str, filled: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert why in refused(capsys, *arguments)
    assert all(path.is_dir() for path in filled.values())


@pytest.mark.skipif(os.name != "posix", reason="a terminal of our own is a POSIX thing")
@pytest.mark.parametrize(("answer", "kept"), [("n", True), ("", True), ("y", False)])
def test_prune_asks_on_a_terminal(answer: str, kept: bool, filled: dict[str, Path], tmp_path: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    code = (
        "import pathlib\nfrom inferplan import cli, locks\n"
        f"locks.lock_path = lambda: pathlib.Path({str(tmp_path / 'lock')!r})\n"
        "raise SystemExit(cli.main(['cache', 'prune', '--all']))"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdin=theirs, stdout=subprocess.PIPE, text=True)
    os.write(ours, f"{answer}\n".encode())
    out = child.communicate(timeout=60)[0]
    os.close(ours)
    os.close(theirs)
    assert child.returncode == 0
    assert "Remove 4 artifacts, 5.0 MiB? [y/N]" in out
    assert ("kept" in out) == kept
    assert all(path.exists() == kept for path in filled.values())


def test_nothing_is_removed_while_a_timed_study_runs(
    filled: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with locks.machine_lock("20261123-120000-abcd"):
        why = refused(capsys, "prune", "--all", "--yes")
        assert "study 20261123-120000-abcd" in why
        assert "prune when it has ended" in why
        run(capsys, "prune", "--all", "--dry-run")
    assert all(path.is_dir() for path in filled.values())
    run(capsys, "prune", "--all", "--yes")


def test_what_another_process_is_at_work_on_is_left_alone(
    filled: dict[str, Path], cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun, end = threading.Event(), threading.Event()

    def make(out: Path) -> None:
        (out / "half").write_bytes(bytes(MIB))
        begun.set()
        end.wait(30)

    maker = threading.Thread(target=ensure, args=(artifact_key("new"), make), kwargs={"note": {"model": "new"}})
    maker.start()
    assert begun.wait(30)
    try:
        with artifacts.held(filled["old"]):
            assert "being made now" in run(capsys)
            said = run(capsys, "prune", "--all", "--yes")
    finally:
        end.set()
        maker.join()
    assert "freed 4.0 MiB: 3 artifacts removed" in said
    assert "left alone, another process is at work on it: converted model gpt2" in said
    assert filled["old"].is_dir()
    assert [a.note for a in artifacts.artifacts(cache) if a.path != filled["old"]] == [{"model": "new"}]


def test_what_a_killed_maker_left_is_shown_and_pruned(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half = cache / f".making-{artifact_key('half')}"
    half.mkdir(parents=True)
    (half / "data").write_bytes(bytes(3 * MIB))
    assert "3.0 MiB, left by a process that was killed" in run(capsys)
    (one,) = json.loads(run(capsys, "--json"))["unfinished"]
    assert (one["bytes"], one["held"]) == (3 * MIB, False)
    assert "freed 3.0 MiB" in run(capsys, "prune", "--older-than", "1d", "--yes")
    assert not half.exists()


def test_a_removal_that_is_killed_leaves_no_artifact(filled: dict[str, Path], cache: Path, tmp_path: Path) -> None:
    code = (
        "import os, pathlib, shutil\nfrom inferplan import artifacts\n"
        f"(found,) = [a for a in artifacts.artifacts() if a.key == {filled['llama'].name!r}]\n"
        "real = shutil.rmtree\n"
        "def killed(path, *rest, **named):\n    os._exit(9) if pathlib.Path(path).exists() else None\n"
        "shutil.rmtree = killed\nartifacts.remove(found)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert filled["llama"] not in [a.path for a in artifacts.artifacts(cache)]
    (left,) = artifacts.unfinished(cache)
    assert left.bytes >= 2 * MIB
    artifacts.sweep(cache)
    assert artifacts.unfinished(cache) == ()
