"""The transformers engine keeps the contract that every engine is held to, through real workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from inferplan import measure
from inferplan.plan import Plan
from inferplan.testing import EngineContract, Reference
from tiny_models import Make, reference_of

pytest.importorskip("torch")


@pytest.mark.slow
class TestTransformersContract(EngineContract):
    engine = "transformers"

    @pytest.fixture
    def checkpoint(self, checkpoint_of: Make) -> Path:
        return checkpoint_of("gpt2")

    @pytest.fixture
    def reference(self) -> Reference:
        return reference_of("gpt2")

    def test_the_reference_output_varies(self, reference: Reference) -> None:
        assert len(set(reference(self.prompts[0], self.max_tokens))) > 8, "equal tokens would prove little"


def test_a_report_gets_the_recipe_through_the_worker() -> None:
    script = measure.recipe(Plan("m", "transformers", "int8", 2), "some/model")
    assert script is not None
    compile(script, "recipe.py", "exec")
    assert "some/model" in script and "OMP_NUM_THREADS" in script


def test_an_engine_without_a_recipe_has_none() -> None:
    assert measure.recipe(Plan("m", "fake"), "m") is None
