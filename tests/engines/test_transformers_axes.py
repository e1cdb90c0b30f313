"""The transformers engine's own axes: compile, quantizer, spin, large pages; and the reasons where they cannot be."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from inferplan import measure
from inferplan.engines.transformers import MIN_INT8_SHARE, TransformersEngine, native_recipe
from inferplan.errors import ArtifactError, Unsupported
from inferplan.plan import OptionValue, Plan
from tiny_models import PROMPT, Make, greedy, library_model

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
needs_torchao = pytest.mark.skipif(
    importlib.util.find_spec("torchao") is None, reason="torchao is not installed: pip install inferplan[torchao]"
)
QUANTIZED = [("int8", 0.1), ("int4", 0.5)]
TOKENS = 48


@pytest.fixture(scope="module")
def torchao_artifact(checkpoint_of: Make, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    made: dict[tuple[str, str], Path] = {}

    def make(name: str, precision: str) -> Path:
        key = (name, precision)
        if key not in made:
            made[key] = tmp_path_factory.mktemp(f"{name}-{precision}")
            TransformersEngine().convert(checkpoint_of(name), _plan(precision, quantizer="torchao"), made[key])
        return made[key]

    return make


@pytest.fixture
def engine() -> Iterator[TransformersEngine]:
    made = TransformersEngine()
    yield made
    made.close()


def _plan(precision: str = "fp32", threads: int = 1, kv_cache: bool = True, **options: OptionValue) -> Plan:
    return Plan("tiny", "transformers", precision, threads, kv_cache, options=tuple(options.items()))


def _has_compiler() -> bool:
    return TransformersEngine().unsupported(_plan(compile=True)) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "llama-gqa-tied"])
def test_compiled_once_for_every_length_and_the_same_tokens(
    name: str, checkpoint_of: Make, engine: TransformersEngine
) -> None:
    if not _has_compiler():
        pytest.skip("no C++ compiler here")
    counters: Any = importlib.import_module("torch._dynamo.utils").counters
    counters.clear()
    actual = engine.load(_plan(compile=True), checkpoint_of(name))
    assert actual.details["step"] == "compiled"
    assert list(engine.generate(PROMPT, 200)) == greedy(library_model(name), PROMPT, 200)
    assert counters["stats"]["unique_graphs"] == 1, "it was compiled again for another length"


def test_compile_is_unsupported_for_a_model_that_cannot_be_recorded(
    checkpoint_of: Make, engine: TransformersEngine
) -> None:
    if not _has_compiler():
        pytest.skip("no C++ compiler here")
    with pytest.raises(Unsupported, match=r"torch\.compile cannot take this model's step: no cache that grows"):
        engine.load(_plan(compile=True), checkpoint_of("mistral-sliding"))


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        (_plan(kv_cache=False, compile=True), "takes the KV cache"),
        (_plan(step="library", compile=True), "leave step as it is"),
        (_plan("int8", compile=True), "packed weights of fbgemm"),
        (_plan(quantizer="torchao"), "fp32 is not quantized"),
        (_plan("int4", quantizer="own"), "no INT4 of our own|not installed"),
        (_plan(spin=5), "spin cannot be 5"),
    ],
)
def test_what_does_not_go_together_is_a_reason(plan: Plan, why: str) -> None:
    reason = TransformersEngine().unsupported(plan)
    assert reason is not None
    assert importlib.import_module("re").search(why, reason), reason


def test_a_missing_compiler_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no-such-compiler is not on the PATH" in (TransformersEngine().unsupported(_plan(compile=True)) or "")


def test_without_torchao_its_precision_and_its_quantizer_are_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("inferplan.engines.transformers")
    present = module.version

    def absent(name: str) -> str:
        if name == "torchao":
            raise module.PackageNotFoundError(name)
        return str(present(name))

    monkeypatch.setattr(module, "version", absent)
    engine = TransformersEngine()
    for plan in (_plan("int4"), _plan("int8", quantizer="torchao")):
        assert "pip install inferplan[torchao]" in (engine.unsupported(plan) or "")
    assert engine.unsupported(_plan("int8")) is None


@needs_torchao
@pytest.mark.parametrize(("precision", "largest_error"), QUANTIZED)
@pytest.mark.parametrize("name", ["gpt2-odd-vocabulary", "llama-gqa-tied", "opt"])
def test_torchao_runs_every_linear_layer_in_its_kernel_and_stays_close_to_fp32(
    name: str,
    precision: str,
    largest_error: float,
    torchao_artifact: Callable[[str, str], Path],
    engine: TransformersEngine,
) -> None:
    actual = engine.load(_plan(precision, quantizer="torchao"), torchao_artifact(name, precision))
    assert (actual.weights, actual.scheme) == (precision, "weight-only")
    assert precision.removeprefix("int") in actual.kernel
    assert (actual.quantized_share or 0) >= MIN_INT8_SHARE
    assert actual.details["step"].startswith("recorded")
    assert len(list(engine.generate(PROMPT, TOKENS))) == TOKENS
    with torch.inference_mode():
        ours = engine.model(input_ids=torch.tensor([PROMPT]), use_cache=False).logits[0]
        theirs = library_model(name)(torch.tensor([PROMPT])).logits[0]
    assert 0 < (ours - theirs).norm() / theirs.norm() < largest_error


@needs_torchao
def test_a_torchao_artifact_and_our_own_are_not_taken_for_each_other(
    checkpoint_of: Make, torchao_artifact: Callable[[str, str], Path], engine: TransformersEngine, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match="convert it again"):
        engine.load(_plan("int8"), torchao_artifact("opt", "int8"))
    engine.convert(checkpoint_of("opt"), _plan("int8"), tmp_path)
    with pytest.raises(ArtifactError, match="convert it again"):
        engine.load(_plan("int8", quantizer="torchao"), tmp_path)


@needs_torchao
def test_a_width_that_is_no_whole_groups_is_unsupported(tmp_path: Path, engine: TransformersEngine) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=32, n_embd=40, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    (tmp_path / "out").mkdir()
    with pytest.raises(Unsupported, match=r"groups of 32 columns, and .* has 40"):
        engine.convert(tmp_path, _plan("int4"), tmp_path / "out")


@needs_torchao
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_the_recipe_with_torchao_gives_the_same_tokens(
    precision: str,
    checkpoint_of: Make,
    torchao_artifact: Callable[[str, str], Path],
    engine: TransformersEngine,
    tmp_path: Path,
) -> None:
    plan = _plan(precision, quantizer="torchao", spin=0)
    text = native_recipe(plan, str(checkpoint_of("gpt2-odd-vocabulary")))
    assert "inferplan" not in text
    assert "'GOMP_SPINCOUNT': '0'" in text or sys.platform != "linux"
    engine.load(plan, torchao_artifact("gpt2-odd-vocabulary", precision))
    assert _answer(text, tmp_path) == list(engine.generate(PROMPT, 12))


def _answer(recipe: str, folder: Path) -> list[int]:
    """The 12 tokens that the recipe, run without this package, gives for `PROMPT`."""
    (folder / "recipe.py").write_text(recipe)
    command = [sys.executable, "-I", str(folder / "recipe.py"), "--tokens", "12", "--ids", ",".join(map(str, PROMPT))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: list[int] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_the_recipe_of_a_compiled_plan_gives_the_same_tokens(checkpoint_of: Make, tmp_path: Path) -> None:
    if not _has_compiler():
        pytest.skip("no C++ compiler here")
    text = native_recipe(_plan(compile=True), str(checkpoint_of("gpt2")))
    assert "torch.compile(model.forward)" in text
    assert _answer(text, tmp_path) == greedy(library_model("gpt2"), PROMPT, 12)


@pytest.mark.skipif(sys.platform != "linux", reason="another OpenMP library")
def test_the_environment_has_the_plans_spin_and_pages() -> None:
    info = measure.describe("transformers")
    for plan, spin, pages in ((_plan(), "300000", "1"), (_plan(spin=0, huge_pages=0), "0", "0")):
        env = measure.worker_environment(plan, info)
        assert (env["GOMP_SPINCOUNT"], env["THP_MEM_ALLOC_ENABLE"]) == (spin, pages)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="another OpenMP library")
def test_a_waiting_thread_burns_cpu_time_only_where_the_plan_lets_it_spin() -> None:
    code = (
        "import time, torch; torch.set_num_threads(2); x = torch.rand(512, 512); x @ x; torch.rand(10**6).exp_()\n"
        "before = time.process_time(); time.sleep(1); print(time.process_time() - before)"
    )
    info = measure.describe("transformers")
    burnt = {}
    for spin in (0, 30_000_000_000):
        env = measure.worker_environment(_plan(threads=2, spin=spin), info)
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        burnt[spin] = float(done.stdout)
    assert burnt[30_000_000_000] > 5 * burnt[0]
