"""The fake engine keeps the contract that real engines are held to."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from inferplan.testing import EngineContract, Reference


class TestFakeEngine(EngineContract):
    engine = "fake"
    max_tokens = 16

    @pytest.fixture
    def checkpoint(self, tmp_path: Path) -> Path:
        path = tmp_path / "checkpoint"
        path.mkdir()
        return path

    @pytest.fixture
    def reference(self) -> Reference:
        def chain(prompt: Sequence[int], count: int) -> list[int]:
            state, out = hashlib.sha256(bytes(prompt)).digest(), []
            for _ in range(count):
                state = hashlib.sha256(state).digest()
                out.append(state[0])
            return out

        return chain
