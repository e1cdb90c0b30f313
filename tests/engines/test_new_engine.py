"""The tutorial about an engine of one's own: its package installs, is found, passes the contract and is measured."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "new-engine.md"
_MOST_LINES = 60  # issue 4: a new engine in under 60 lines
_FILES = {"pyproject.toml": 0, "stock_engine.py": 1, "test_stock_engine.py": 2}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tutorial's files, as a reader would write them."""
    blocks = re.findall(r"^```(?:toml|python)\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == len(_FILES)
    root = tmp_path_factory.mktemp("package")
    for name, place in _FILES.items():
        (root / name).write_text(blocks[place], encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def environment(package: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables with which Python finds the installed package."""
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    _run([*pip, "--target", str(target), str(package)], dict(os.environ))
    return {**os.environ, "PYTHONPATH": str(target)}


def _run(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_engine_has_fewer_lines_than_promised(package: Path) -> None:
    assert len((package / "stock_engine.py").read_text(encoding="utf-8").splitlines()) < _MOST_LINES


@pytest.mark.slow
@pytest.mark.timeout(900)  # a whole contract, each test of which starts processes that import torch
def test_the_engine_of_another_package_passes_the_contract(package: Path, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(package)]
    said = _run([*command, str(package / "test_stock_engine.py")], environment)
    assert "passed" in said
    assert "skipped" not in said


def test_the_engine_of_another_package_is_listed(environment: dict[str, str]) -> None:
    assert "stock" in _run([sys.executable, "-m", "inferplan", "engines"], environment)
