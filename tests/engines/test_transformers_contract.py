"""The transformers engine keeps the contract that every engine is held to, through real workers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from inferplan import measure
from inferplan.plan import Plan
from inferplan.testing import EngineContract, Reference

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A seeded GPT-2 with spread-out weights, so that greedy output varies."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(7)
    config = GPT2Config(
        vocab_size=128,
        n_positions=256,
        n_embd=64,
        n_layer=2,
        n_head=4,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
    )
    path = tmp_path_factory.mktemp("tiny-gpt2")
    GPT2LMHeadModel(config).save_pretrained(path)
    return path


@pytest.mark.slow
class TestTransformersContract(EngineContract):
    engine = "transformers"

    @pytest.fixture
    def checkpoint(self, tiny: Path) -> Path:
        return tiny

    @pytest.fixture
    def reference(self, tiny: Path) -> Reference:
        from transformers import GPT2LMHeadModel

        model = GPT2LMHeadModel.from_pretrained(tiny).eval()

        def greedy(prompt: Sequence[int], count: int) -> list[int]:
            ids = torch.tensor([list(prompt)])
            with torch.inference_mode():
                for _ in range(count):
                    ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
            return [int(token) for token in ids[0, len(prompt) :]]

        return greedy

    def test_the_reference_output_varies(self, reference: Reference) -> None:
        assert len(set(reference(self.prompts[0], self.max_tokens))) > 8, "equal tokens would prove little"


def test_a_report_gets_the_recipe_through_the_worker() -> None:
    script = measure.recipe(Plan("m", "transformers", "int8", 2), "some/model")
    assert script is not None
    compile(script, "recipe.py", "exec")
    assert "some/model" in script and "OMP_NUM_THREADS" in script


def test_an_engine_without_a_recipe_has_none() -> None:
    assert measure.recipe(Plan("m", "fake"), "m") is None
