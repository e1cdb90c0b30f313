"""What the tests of engines share: tiny checkpoints, each made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiny_models import Make, write_checkpoint

_COUNTS_THREADS = "test_as_many_threads_work_as_were_asked_for"  # of the contract, which knows no marker of ours


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Beside another busy process a thread may find nothing left to do, and would not be counted."""
    for item in items:
        if item.name.startswith(_COUNTS_THREADS):
            item.add_marker("alone")


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A directory with the model of that name in `tiny_models.CONFIGS`; tests that damage one copy it first."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = write_checkpoint(name, tmp_path_factory.mktemp(name))
        return made[name]

    return make
