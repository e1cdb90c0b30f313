"""The recorded decode step: it says what the library's code says, or is not used; and layers multiplied as one."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferplan.engines.transformers import TransformersEngine
from inferplan.plan import OptionValue, Plan
from tiny_models import CONFIGS, PROMPT, Make, greedy, library_model

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
TOKENS = 64
ROOM = 40


@pytest.fixture
def engine() -> Iterator[TransformersEngine]:
    made = TransformersEngine()
    yield made
    made.close()


@pytest.fixture
def step() -> Any:
    """The module of the recorded step; imported late, because it imports torch."""
    return importlib.import_module("inferplan.engines._transformers_step")


def _plan(precision: str = "fp32", **options: OptionValue) -> Plan:
    return Plan("tiny", "transformers", precision, 1, options=tuple(options.items()))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_recorded_step_gives_the_tokens_of_the_library(
    name: str, checkpoint_of: Make, engine: TransformersEngine
) -> None:
    actual = engine.load(_plan(), checkpoint_of(name))
    output = list(engine.generate(PROMPT, TOKENS))
    assert len(set(output)) > 4, "a constant output would hide errors"
    assert output == greedy(library_model(name), PROMPT, TOKENS)
    if name == "mistral-sliding":
        assert "library's code: no cache that grows" in actual.details["step"]
    else:
        assert actual.details["step"].startswith("recorded: ")


def test_the_librarys_code_runs_where_the_plan_asks_for_it(checkpoint_of: Make, engine: TransformersEngine) -> None:
    actual = engine.load(_plan(step="library"), checkpoint_of("qwen3"))
    assert actual.details["step"] == "the library's code"
    assert list(engine.generate(PROMPT, TOKENS)) == greedy(library_model("qwen3"), PROMPT, TOKENS)


def test_a_request_goes_on_beyond_the_longest_recording(
    checkpoint_of: Make, engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    importlib.import_module("transformers")
    monkeypatch.setattr(importlib.import_module("inferplan.engines._transformers_loop"), "_FAR", 16)
    engine.load(_plan(), checkpoint_of("llama-gqa-tied"))
    assert list(engine.generate(PROMPT, 150)) == greedy(library_model("llama-gqa-tied"), PROMPT, 150)


def test_a_recording_that_gives_other_values_is_not_used(
    checkpoint_of: Make, engine: TransformersEngine, step: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = importlib.import_module("inferplan.engines._transformers_loop")

    class Wrong(step.ScriptedStep):  # type: ignore[misc]
        def __call__(self, length: int, inputs: Any) -> Any:
            return super().__call__(length, inputs) * 1.001

    monkeypatch.setattr(loop.Loop.record, "__defaults__", (Wrong, 0.0))
    actual = engine.load(_plan(), checkpoint_of("gpt2"))
    assert actual.details["step"] == "the library's code: the recording gives other values"
    assert list(engine.generate(PROMPT, 8)) == greedy(library_model("gpt2"), PROMPT, 8)


def _program(step: Any, what: Callable[[Any, int], Any], lengths: tuple[int, ...] = (2, 3, 9)) -> Any:
    """What several runs of `what(tensor, length)` agree on."""
    recordings = []
    for length in lengths:
        given = torch.arange(float(ROOM))
        recordings.append(step.record(length, [given], lambda given=given, length=length: what(given, length)))
    return step.agree(recordings)


@settings(max_examples=25, deadline=None)
@given(length=st.integers(0, ROOM - 4), times=st.integers(0, 3))
def test_numbers_that_follow_the_length_do_so_at_lengths_that_were_not_recorded(length: int, times: int) -> None:
    step = importlib.import_module("inferplan.engines._transformers_step")

    def what(x: Any, n: int) -> Any:
        left, right = x.narrow(0, 0, n + 3).split([n + 1, 2])
        return torch.cat([left * 0.5, right.to(torch.float64).float()]).sum(dim=[0], keepdim=True) + n * times

    scripted = step.ScriptedStep(_program(step, what))
    given = torch.rand(ROOM)
    assert torch.equal(scripted(length, [given]), what(given, length))


@pytest.mark.parametrize(
    ("what", "why"),
    [
        (lambda x, n: x * float(x.sum()), "looks at a value"),
        (lambda x, n: x[x > 3], "looks at a value"),
        (lambda x, n: x.narrow(0, 0, n * n // 3), "does not follow the length"),
        (lambda x, n: x + 1 if n > 5 else x * 2, "different operations"),
        (lambda x, n: x + torch.tensor(float(n)), "made outside of torch"),
        (lambda x, n: x.reshape([2, ROOM // 2] if n > 5 else [2, 2, ROOM // 4]), "changes its length"),
        (lambda x, n: x * (0.5 if n > 5 else 0.25), "changes from step to step"),
    ],
)
def test_a_step_that_takes_several_ways_is_not_recorded(step: Any, what: Callable[..., Any], why: str) -> None:
    with pytest.raises(step.Unrecordable, match=why):
        _program(step, what)


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("gpt2", []),
        ("llama-gqa-tied", [("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")]),
        ("opt", [("q_proj", "k_proj", "v_proj")]),
    ],
)
def test_layers_with_one_input_are_multiplied_as_one(
    name: str, groups: list[tuple[str, ...]], checkpoint_of: Make, engine: TransformersEngine
) -> None:
    engine.load(_plan(), checkpoint_of(name))
    found = [tuple(sorted(layer.rpartition(".")[2] for layer in group)) for group in engine.model.siblings]
    assert sorted(set(found)) == sorted(tuple(sorted(group)) for group in groups)
    assert len(found) == 3 * len(groups)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_layers_multiplied_one_by_one_give_the_same(
    precision: str, checkpoint_of: Make, engine: TransformersEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, artifact = _plan(precision), checkpoint_of("qwen2")
    if precision == "int8":
        engine.convert(artifact, plan, tmp_path)
        artifact = tmp_path
    ids = torch.tensor([PROMPT])

    def logits() -> Any:
        engine.load(plan, artifact)
        with torch.inference_mode():
            return engine.model(input_ids=ids, use_cache=False).logits

    joined = logits()
    models = importlib.import_module("inferplan.engines._transformers_model")
    monkeypatch.setattr(models, "find_siblings", lambda *_: ())
    assert torch.allclose(joined, logits(), atol=1e-4)


def test_each_sibling_gets_its_own_part_in_any_order() -> None:
    siblings = importlib.import_module("inferplan.engines._transformers_siblings")
    calls: list[Any] = []

    class Counted(torch.nn.Linear):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            calls.append(x)
            return super().forward(x)

    linear = Counted(8, 12)
    group = siblings.Siblings(linear, [2, 4, 6])
    one, two = torch.rand(1, 3, 8), torch.rand(1, 3, 8)
    with torch.inference_mode():
        expected = {id(x): torch.nn.functional.linear(x, linear.weight, linear.bias) for x in (one, two)}
        for x, index, start, width in ((one, 2, 6, 6), (one, 0, 0, 2), (two, 1, 2, 4), (two, 1, 2, 4), (one, 1, 2, 4)):
            part = group.part(x, index)
            assert part.is_contiguous()
            assert torch.equal(part, expected[id(x)][..., start : start + width])
    assert len(calls) == 4, "asked for twice, or for another input, it multiplies anew"
