"""What the tests of engines share: tiny checkpoints, each made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiny_models import Make, write_checkpoint


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A directory with the model of that name in `tiny_models.CONFIGS`; tests that damage one copy it first."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = write_checkpoint(name, tmp_path_factory.mktemp(name))
        return made[name]

    return make
