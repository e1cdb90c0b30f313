"""The project's own files agree with one another: requirements, pins, version, workflow.

Owns what a fresh machine depends on before any code runs. Leaves the code to
the other tests; installing from nothing is what `.ci/run` does.
"""

from __future__ import annotations

import re
import subprocess
import tomllib
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import inferplan
from inferplan.cli import main
from inferplan.engines import BUILTIN

ROOT = Path(__file__).resolve().parent.parent


def _read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads(_read("pyproject.toml"))["project"]
    return project


def _dependencies() -> list[str]:
    return list(_project()["dependencies"])


def _extras() -> dict[str, list[str]]:
    extras: dict[str, list[str]] = _project()["optional-dependencies"]
    return extras


def _all_requirements() -> list[Requirement]:
    extras = [line for name, lines in _extras().items() for line in lines if name != "engines"]
    return [Requirement(line) for line in [*_dependencies(), *extras]]


def _pins() -> dict[str, str]:
    lines = [line for line in _read("constraints.txt").splitlines() if line and not line.startswith("#")]
    pairs = [line.split("==") for line in lines]
    return {canonicalize_name(name): version for name, version in pairs}


def test_requirements_txt_is_the_projects_dependencies() -> None:
    lines = [line for line in _read("requirements.txt").splitlines() if line and not line.startswith("#")]
    assert lines == _dependencies()


def test_conda_environment_is_the_projects_dependencies_and_python() -> None:
    text = _read("environment.yml")
    assert re.findall(r'^ {6}- "(.+)"$', text, re.MULTILINE) == _dependencies()
    assert f"  - python{_project()['requires-python']}\n" in text
    assert "conda itself was not run" in text


def test_the_engines_of_the_default_install_are_extras_of_their_own() -> None:
    (line,) = _extras()["engines"]
    own = Requirement(line)
    assert own.name == "inferplan"
    assert own.extras == set(_extras()) & set(BUILTIN)
    assert "[dev,engines]" in _read("Makefile")


@pytest.mark.parametrize("requirement", _all_requirements(), ids=lambda r: r.name)
def test_every_requirement_has_a_pin_that_it_admits(requirement: Requirement) -> None:
    pins = _pins()
    name = canonicalize_name(requirement.name)
    assert name in pins, f"{name} has no pin in constraints.txt"
    assert requirement.specifier.contains(pins[name])


def test_torch_is_pinned_to_the_release_that_was_measured() -> None:
    assert _pins()["torch"] == "2.13.0"


def test_the_version_is_written_once() -> None:
    assert "version" in _project()["dynamic"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", inferplan.__version__)
    assert f"## {inferplan.__version__}" in _read("CHANGELOG.md")


def test_the_console_command_is_the_cli() -> None:
    target = _project()["scripts"]["inferplan"]
    assert target == f"{main.__module__}:{main.__name__}"
    installed = [point.value for point in entry_points(group="console_scripts", name="inferplan")]
    assert set(installed) <= {target}


def test_make_offers_the_targets_that_the_readme_names() -> None:
    targets = set(re.findall(r"^([a-z]+):", _read("Makefile"), re.MULTILINE))
    assert {"install", "run", "test", "check", "bench", "clean"} <= targets
    assert set(re.findall(r"\bmake ([a-z]+)\b", _read("README.md"))) <= targets


def test_make_run_is_the_line_that_the_readme_shows() -> None:
    recipe = " ".join(_read("Makefile").replace("\\\n", " ").split())
    found = re.search(r"\$\(BIN\)/(inferplan optimize [^;]+);", recipe)
    assert found is not None
    assert found[1] in " ".join(_read("README.md").replace("\\\n", " ").split())


def test_the_readme_shows_the_two_commands_that_work_forever() -> None:
    readme = _read("README.md")
    assert "python benchmark.py --sla_ms 1500 --models distilgpt2 gpt2 --threads 1 2 4 --max_new_tokens 64" in readme
    assert "streamlit run app.py" in readme


def test_ci_runs_the_readmes_test_command_and_the_workflow_runs_ci() -> None:
    assert "make --no-print-directory test" in _read(".ci/run")
    assert re.findall(r"- run: (.+)", _read(".github/workflows/ci.yml")) == ["bash .ci/run"]
    subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], check=True)


def test_links_between_documents_lead_somewhere() -> None:
    documents = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    dead = [
        f"{document.relative_to(ROOT)} -> {link}"
        for document in documents
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8"))
        if "://" not in link and not (document.parent / link).exists()
    ]
    assert not dead
