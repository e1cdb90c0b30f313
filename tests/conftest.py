"""What every test gets: directories of its own, and repeatable examples.

Owns the isolation from the user's machine. Leaves the making of values to
`factories` and running at once to `turns`; imports nothing heavy, so that a single test starts at once.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

pytest_plugins = ["turns"]

pytest.register_assert_rewrite("inferplan.testing")  # its assertions tell what they compared, as those of tests do
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect `gpu` where there is no NVIDIA driver; looking for one must not import torch."""
    if shutil.which("nvidia-smi"):
        return
    left_out = [item for item in items if item.get_closest_marker("gpu")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("gpu")]


def _own(patch: pytest.MonkeyPatch, root: Path) -> None:
    patch.setenv("INFERPLAN_CACHE", str(root / "cache"))
    patch.setenv("INFERPLAN_STORE", str(root / "studies.sqlite"))
    patch.setenv("HF_HOME", str(root / "huggingface"))


@pytest.fixture(scope="session", autouse=True)
def _own_directories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test, nor any process that it starts, touches the user's own caches and studies."""
    with pytest.MonkeyPatch.context() as patch:
        _own(patch, tmp_path_factory.mktemp("user"))
        yield


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty artifact cache and an empty store for this test alone; the cache's directory."""
    _own(monkeypatch, tmp_path)
    return tmp_path / "cache"
