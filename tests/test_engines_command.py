"""`inferplan engines`: a row for every engine whatever is installed, and what install and remove do and refuse."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from inferplan import _pip, cli, engines_command, environments
from inferplan.engines import HIDDEN, engine_names
from inferplan.engines.base import Axis
from tiny_wheels import wheel

ENTRY = "[inferplan.engines]\nabsent = no_such_module_of_absent:Engine\n"


def listed(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    assert cli.main(["engines", "--json"]) == 0
    return {row["name"]: row for row in json.loads(capsys.readouterr().out)}


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What is said on standard error; the exit code is 2."""
    assert cli.main(["engines", *arguments]) == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def rows() -> dict[str, engines_command.EngineRow]:
    return {row.name: row for row in engines_command.rows()}


def test_every_engine_has_a_row_installed_or_not(rows: dict[str, engines_command.EngineRow]) -> None:
    assert set(rows) == set(engine_names()) - HIDDEN
    for row in rows.values():
        assert bool(row.reason) == (row.state != "installed")
        assert bool(row.precisions) == (row.state == "installed")
        if row.state == "installed":
            assert row.version
            assert row.bytes is not None and row.bytes > 0


def test_an_engine_that_is_not_there_says_why_and_how_to_install_it(
    cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(environments.VARIABLE, str(cache))
    vllm = listed(capsys)["vllm"]
    assert (vllm["state"], vllm["bytes"]) == ("not installed", None)
    assert vllm["install"] == "inferplan engines install vllm"
    assert "not installed" in vllm["reason"]
    assert cli.main(["engines"]) == 0
    assert "to install: inferplan engines install vllm" in capsys.readouterr().out


def test_an_engine_of_another_package_that_does_not_import_is_a_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "absent-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: absent\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY)
    (info / "RECORD").write_text("absent-1.0.dist-info/METADATA,,\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    row = listed(capsys)["absent"]
    assert row["state"] == "does not work"
    assert "no_such_module_of_absent" in row["reason"]
    assert "comes with the package absent" in refused(capsys, "install", "absent")
    assert "pip uninstall absent" in refused(capsys, "remove", "absent")


def test_the_text_shows_options_what_is_lacking_and_where_it_lies() -> None:
    row = engines_command.EngineRow(
        name="mine",
        state="installed",
        version="1.2",
        precisions=("fp32", "int8"),
        axes=(Axis("spin", (True, False), "turns"),),
        lacks={"bf16": "no such instructions"},
        reason="",
        bytes=3 << 30,
        place="/somewhere",
        install="pip install mine",
        ready=("q4_1", "q4_k"),
    )
    assert list(engines_command.lines([row])) == [
        "mine  1.2  fp32 int8  3.00 GiB",
        "    lacks bf16: no such instructions",
        "    ready GGUF files of q4_1 q4_k",
        "    --option spin=on,off  turns",
        "    in /somewhere",
    ]


def test_requirements_of_an_extra_and_without_one_are_told_apart() -> None:
    wanted = engines_command.requirements("llamacpp")
    assert [line.partition("<")[0].partition(">")[0] for line in wanted] == ["xllamacpp"]
    own = engines_command.requirements(None)
    assert any(line.startswith("torch") for line in own)
    assert not any("extra" in line or line.startswith("xllamacpp") for line in own)


@pytest.mark.parametrize("action", ["install", "remove"])
def test_an_unknown_engine_names_the_nearest(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Did you mean vllm?" in refused(capsys, action, "vlm")
    assert "unknown engine 'fake'" in refused(capsys, action, "fake")
    assert "needs the name of an engine" in refused(capsys, action)


def test_a_list_of_one_engine_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "takes no name" in refused(capsys, "list", "vllm")


def test_an_engine_without_a_build_for_this_cpu_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert "vllm has no build of its own for this CPU" in refused(capsys, "install", "vllm", "--native")


def test_a_build_without_its_tools_says_which(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(environments.VARIABLE, str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    said = refused(capsys, "install", "llamacpp", "--native")
    assert "needs cmake and c++ or g++ or clang++" in said


def test_what_comes_with_inferplan_is_not_removed(capsys: pytest.CaptureFixture[str]) -> None:
    assert "it comes with inferplan" in refused(capsys, "remove", "transformers", "--yes")


def test_removing_asks_first(cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(environments.VARIABLE, str(cache))
    assert cli.main(["engines", "remove", "vllm"]) == 0
    assert "vllm is not installed" in capsys.readouterr().out
    (cache / "vllm").mkdir(parents=True)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert "give --yes" in refused(capsys, "remove", "vllm")
    assert (cache / "vllm").is_dir()
    assert cli.main(["engines", "remove", "vllm", "--yes"]) == 0
    assert not (cache / "vllm").exists()


def test_installing_what_is_there_needs_no_network(
    capsys: pytest.CaptureFixture[str], rows: dict[str, engines_command.EngineRow]
) -> None:
    here = [name for name, row in rows.items() if row.state == "installed" and engines_command.requirements(name)]
    if not here:
        pytest.skip("no engine of an extra is installed")
    assert cli.main(["engines", "install", here[0], "--pip-arg=--no-index"]) == 0
    assert capsys.readouterr().out.startswith(f"{here[0]} {rows[here[0]].version}: ")


def test_an_extra_that_wants_other_versions_than_inferplan_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel(tmp_path, "filelock", "0.1")
    wheel(tmp_path, "tiny-clash", needs="filelock<1")
    wanted = {None: ("filelock>=3",), "ctranslate2": ("tiny-clash",)}
    monkeypatch.setattr(engines_command, "requirements", wanted.__getitem__)
    pip = ["--pip-arg=--dry-run", "--pip-arg=--no-index", f"--pip-arg=--find-links={tmp_path}"]
    assert "ctranslate2 cannot be installed" in refused(capsys, "install", "ctranslate2", *pip)
    call = ["install", "--dry-run", "--no-index", "--find-links", str(tmp_path), "tiny-clash"]
    _pip.run_pip(call, lambda _: None, "without the constraint it can be")
