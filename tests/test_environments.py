"""Environments of their own: whole or not at all, found by engine, and kept apart from ours."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from inferplan import _pip, artifacts, environments, measure
from inferplan.environments import RECIPES, STAMP, Recipe
from inferplan.errors import InputError, UnknownNameError
from inferplan.measurement import Request, Trial
from inferplan.plan import Plan
from tiny_wheels import wheel

TINY = Recipe(
    engine="fake",
    requirements=("tiny-engine==1.0", "tiny-extra==1.0"),
    unwanted=("tiny-extra",),
    check="tiny_engine",
    disk_bytes=1,
    note="for tests",
)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheels")
    wheel(directory, "tiny-engine")
    wheel(directory, "tiny-extra")
    wheel(directory, "nvidia-cublas")
    wheel(directory, "tiny-torch", needs="nvidia-cublas")
    wheel(directory, "tiny-broken", code="import no_such_library_of_tiny_broken")
    return directory


def _install(wheels: Path, lines: list[str] | None = None) -> environments.Environment:
    told: list[str] = [] if lines is None else lines
    return environments.install("tiny", told.append, pip_args=["--no-index", "--find-links", str(wheels)])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> Iterator[environments.Environment]:
    """One environment for the tests that only look at it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(environments.VARIABLE, str(tmp_path_factory.mktemp("environments")))
        patch.setitem(RECIPES, "tiny", TINY)
        ours = tmp_path_factory.mktemp("ours")  # what inferplan's own Python sees is not what that one has
        shutil.unpack_archive(wheels / "tiny_engine-1.0-py3-none-any.whl", ours, "zip")
        patch.setenv("PYTHONPATH", str(ours))
        environment = _install(wheels)
        patch.delenv("PYTHONPATH")
        yield environment


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place where nothing is installed yet, and a recipe; the directory of its environment."""
    monkeypatch.setenv(environments.VARIABLE, str(tmp_path))
    monkeypatch.setitem(RECIPES, "tiny", TINY)
    return tmp_path / "tiny"


def test_environments_lie_in_the_cache_and_are_no_artifacts(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(environments.VARIABLE, raising=False)
    assert environments.directory() == cache / "environments"
    (cache / "environments" / "tiny").mkdir(parents=True)
    (cache / "environments" / "tiny" / STAMP).write_text("{}")
    assert artifacts.artifacts() == ()


def test_what_was_installed_is_told(made: environments.Environment) -> None:
    assert made == environments.installed("tiny")
    assert made.made_from == TINY.requirements
    assert made.libraries["tiny-engine"] == "1.0"
    assert list(made.path.rglob("tiny_engine.py")), "what lies in PYTHONPATH passed for installed"
    assert "tiny-extra" not in made.libraries, "what is unwanted was left in"
    assert made.bytes > 1 << 20  # pip alone is larger
    assert made.current


def test_an_engine_runs_from_its_environment_and_others_from_ours(made: environments.Environment) -> None:
    assert environments.interpreter("fake") == (str(made.python),)
    assert environments.interpreter("transformers") == (sys.executable,)
    code = "import sys; print(sys.prefix)"
    done = subprocess.run([made.python, "-c", code], capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == made.path


def test_a_plan_is_measured_in_the_environment_of_its_engine(made: environments.Environment, tmp_path: Path) -> None:
    """It has no package of ours: the worker needs the standard library alone."""
    info = measure.describe("fake")
    assert "engine" not in info.lacks, info.lacks
    plan = Plan("m", "fake")
    assert measure.convert(plan, tmp_path, tmp_path) == ("ok", "")
    assert measure.worker_command("fake")[0] == str(made.python)
    trial = Trial(plan, tmp_path, 1, (Request(0, (1, 2), 3),))
    done = measure.measure(trial, info, measure.Watch(cores=1, judge=False))
    assert (done.status, done.reason, len(done.samples)) == ("ok", "", 1)


def test_packages_that_lie_beside_inferplan_are_not_seen_from_there(
    made: environments.Environment, tmp_path: Path
) -> None:
    package = Path(environments.__file__).parent
    (tmp_path / "inferplan").mkdir()
    for file in package.glob("*.py"):
        shutil.copy(file, tmp_path / "inferplan")
    shutil.copytree(package / "engines", tmp_path / "inferplan" / "engines")
    (tmp_path / "tiny_engine.py").write_text("raise SystemExit('ours was imported in place of theirs')")
    (tmp_path / "inferplan" / "probe.py").write_text(
        "import json, os, sys, tiny_engine, inferplan.worker\n"
        "print(json.dumps([tiny_engine.__file__, inferplan.worker.__file__, os.environ['PYTHONPATH'], sys.argv]))"
    )
    command = [str(made.python), str(tmp_path / "inferplan" / "_elsewhere.py"), "inferplan.probe", "--argument"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(tmp_path / "theirs")])}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    theirs, ours, path, argv = json.loads(done.stdout)
    assert Path(theirs).is_relative_to(made.path)
    assert Path(ours) == tmp_path / "inferplan" / "worker.py"
    assert path == str(tmp_path / "theirs")
    assert argv[1:] == ["--argument"]


def test_what_is_installed_is_not_installed_again(made: environments.Environment, wheels: Path) -> None:
    lines: list[str] = []
    assert _install(wheels, lines) == made
    assert lines == [f"tiny is installed already: {made.path}"]


def test_other_requirements_are_noticed_and_never_replace_what_works(
    made: environments.Environment, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RECIPES, "tiny", Recipe("fake", ("tiny-engine==2.0",), (), "tiny_engine", 1, ""))
    found = environments.installed("tiny")
    assert found is not None
    assert not found.current
    with pytest.raises(InputError, match="remove tiny first"):
        _install(wheels)
    assert made.python.exists()


@pytest.mark.parametrize("stamp", [None, "", "{", "[]", '{"made_from": 3}'])
def test_an_environment_without_a_whole_stamp_is_none(stamp: str | None, tiny: Path) -> None:
    python = tiny / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    if stamp is not None:
        (tiny / STAMP).write_text(stamp)
    assert environments.installed("tiny") is None
    assert environments.interpreter("fake") == (sys.executable,)


def test_an_environment_whose_python_is_gone_is_none(made: environments.Environment, tiny: Path) -> None:
    tiny.mkdir()
    shutil.copy(made.path / STAMP, tiny)
    assert environments.installed("tiny") is None


def test_removing_frees_it_and_removing_nothing_is_nothing(tiny: Path) -> None:
    assert environments.remove("tiny") is None
    tiny.mkdir()
    (tiny / "file").write_bytes(bytes(1000))
    assert environments.remove("tiny") == 1000
    assert not tiny.exists()


def test_too_little_space_is_said_before_anything_is_made(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "tiny", Recipe("fake", ("x",), (), "x", 1 << 60, ""))
    with pytest.raises(InputError, match=rf"free some space, or set {environments.VARIABLE}"):
        environments.install("tiny", lambda _: None)
    assert not tiny.exists()


def test_an_unknown_environment_names_the_known() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean vllm"):
        environments.install("vlm", lambda _: None)


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(environments.VARIABLE, str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"file.* cannot be written"):
        environments.install("vllm", lambda _: None)


def test_an_interrupted_installation_leaves_nothing(tiny: Path) -> None:
    def interrupt(line: str) -> None:
        if line.startswith("asking pip"):
            assert tiny.is_dir()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        environments.install("tiny", interrupt)
    assert not tiny.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("requirement", "check", "why"),
    [
        ("tiny-torch", "tiny_torch", "CUDA build of torch for tiny .*nvidia-cublas"),
        ("tiny-missing", "tiny_missing", "there is no build for this system and Python"),
        ("tiny-broken", "tiny_broken", "does not import.*no_such_library_of_tiny_broken"),
    ],
)
def test_what_cannot_be_installed_says_why_and_leaves_nothing(
    requirement: str, check: str, why: str, tiny: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RECIPES, "tiny", Recipe("fake", (requirement,), (), check, 1, ""))
    with pytest.raises(InputError, match=why):
        _install(wheels)
    assert not tiny.exists()


def test_what_pip_started_ends_with_an_interruption(tmp_path: Path) -> None:
    """A build in a process of a process, as pip starts them."""
    if not hasattr(os, "killpg"):
        pytest.skip("this system has no groups of processes")
    beat = tmp_path / "beat"
    child = f"import time\nwhile True:\n open({str(beat)!r}, 'a').write('x')\n time.sleep(0.05)"
    code = (
        f"import os, subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', {child!r}])\n"
        f"while not os.path.exists({str(beat)!r}): time.sleep(0.02)\nprint(1)\ntime.sleep(60)"
    )

    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _pip.run([sys.executable, "-c", code], interrupt, "")
    size = beat.stat().st_size
    time.sleep(0.3)
    assert beat.stat().st_size == size


def test_an_index_that_cannot_be_reached_is_said() -> None:
    """Port 9 of this machine: nobody listens there."""
    call = ["download", "--no-deps", "--retries", "1", "--index-url", "http://127.0.0.1:9/simple", "tiny-missing"]
    with pytest.raises(InputError, match=r"tiny cannot be had: the package index cannot be reached"):
        _pip.run_pip(call, lambda _: None, "tiny cannot be had")
