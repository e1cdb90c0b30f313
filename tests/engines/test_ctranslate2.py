"""The CTranslate2 engine: the contract through real workers, and each architecture against transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from inferplan import measure
from inferplan.engines.ctranslate2 import NOTES_NAME, CTranslate2Engine
from inferplan.errors import ArtifactError, EngineError, InputError, Unsupported
from inferplan.plan import Plan
from inferplan.testing import EngineContract, Reference
from tiny_models import CONFIGS, PROMPT, Make, greedy, library_model, reference_of

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("ctranslate2", reason="ctranslate2 is not installed: pip install inferplan[ctranslate2]")

TOKENS = 64


@pytest.fixture(scope="module")
def artifact_of(checkpoint_of: Make, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Converted to FP32, in this process: importing torch once is enough here."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(f"{name}-ctranslate2")
            CTranslate2Engine().convert(checkpoint_of(name), _plan(), made[name])
        return made[name]

    return make


def _plan(precision: str = "fp32", threads: int = 1, kv_cache: bool = True) -> Plan:
    return Plan("tiny", "ctranslate2", precision, threads, kv_cache)


@pytest.mark.slow
class TestCTranslate2Contract(EngineContract):
    engine = "ctranslate2"

    @pytest.fixture
    def checkpoint(self, checkpoint_of: Make) -> Path:
        return checkpoint_of("gpt2")

    @pytest.fixture
    def reference(self) -> Reference:
        return reference_of("gpt2")


@pytest.mark.parametrize("name", CONFIGS)
def test_fp32_gives_the_tokens_of_transformers(name: str, artifact_of: Make) -> None:
    expected = greedy(library_model(name), PROMPT, TOKENS)
    assert len(set(expected)) > 4, "a constant output would hide errors"
    engine = CTranslate2Engine()
    engine.load(_plan(), artifact_of(name))
    assert list(engine.generate(PROMPT, TOKENS)) == expected
    engine.close()


def test_what_ran_is_what_the_library_says(artifact_of: Make) -> None:
    engine = CTranslate2Engine()
    actual = engine.load(_plan(threads=2), artifact_of("gpt2"))
    assert (actual.dtype, actual.weights, actual.threads) == ("float32", "float32", 2)
    assert actual.details["compute_type"] == "float32"
    assert actual.kernel.split()[0] in ("DNNL", "MKL", "OpenBLAS", "Accelerate", "Ruy")
    engine.close()


def test_fp32_weights_are_never_called_int8(artifact_of: Make) -> None:
    with pytest.raises(EngineError, match=r"only 0\.0% .* in \S*model\.bin are INT8"):
        CTranslate2Engine().load(_plan("int8"), artifact_of("gpt2"))


def test_without_a_kv_cache_is_a_reason() -> None:
    assert "always keeps keys and values" in (CTranslate2Engine().unsupported(_plan(kv_cache=False)) or "")


def test_a_type_that_the_library_refuses_is_a_reason_in_its_words() -> None:
    import ctranslate2

    info = CTranslate2Engine().describe()
    can = ctranslate2.get_supported_compute_types("cpu")
    assert ("bf16" in info.precisions) == ("bfloat16" in can)
    assert ("bf16" in info.lacks) == ("bfloat16" not in can)
    assert all("float32" in reason for reason in info.lacks.values())


def test_an_architecture_that_the_converter_does_not_know_is_unsupported(tmp_path: Path) -> None:
    from transformers import CTRLConfig, CTRLLMHeadModel

    tiny = CTRLConfig(vocab_size=64, n_embd=16, n_layer=1, n_head=2, dff=16, n_positions=32)
    CTRLLMHeadModel(tiny).save_pretrained(tmp_path / "ctrl")
    with pytest.raises(Unsupported, match="CTRLConfig"):
        CTranslate2Engine().convert(tmp_path / "ctrl", _plan(), tmp_path)


def test_a_damaged_checkpoint_is_named_by_the_conversion(checkpoint_of: Make, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in checkpoint_of("gpt2").iterdir():
        data = file.read_bytes()
        (broken / file.name).write_bytes(data if file.suffix == ".json" else data[: len(data) // 2])
    with pytest.raises(ArtifactError, match=r"model\.safetensors"):
        CTranslate2Engine().convert(broken, _plan(), tmp_path)


def test_damaged_notes_are_named(artifact_of: Make, tmp_path: Path) -> None:
    for file in artifact_of("gpt2").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / NOTES_NAME).write_text("{")
    with pytest.raises(ArtifactError, match=NOTES_NAME):
        CTranslate2Engine().load(_plan(), tmp_path)


@pytest.mark.parametrize(
    ("prompt", "count", "why"), [((), 4, "no tokens"), ((320,), 4, "ids 0 to 319"), ((5,), 256, "context of 256")]
)
def test_a_request_that_cannot_be_is_refused(prompt: tuple[int, ...], count: int, why: str, artifact_of: Make) -> None:
    engine = CTranslate2Engine()
    engine.load(_plan(), artifact_of("gpt2"))
    with pytest.raises(InputError, match=why):
        engine.generate(prompt, count)
    engine.close()
    with pytest.raises(EngineError, match="before load"):
        engine.generate((5,), 1)


def test_a_missing_package_is_a_reason_with_the_remedy() -> None:
    code = (
        "import sys, importlib.metadata as m\n"
        "sys.modules['ctranslate2'] = None\n"
        "from inferplan.engines.ctranslate2 import CTranslate2Engine as E\n"
        "print(E().describe().lacks['engine'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=measure.worker_environment(), capture_output=True, text=True, check=True
    )
    assert "pip install inferplan[ctranslate2]" in done.stdout


def test_the_axis_reaches_the_environment_of_the_process() -> None:
    info = CTranslate2Engine().describe()
    if not info.axes:
        pytest.skip("this system's ctranslate2 has no waiting policy")
    for spin, plan in (("1000", _plan()), ("0", Plan("m", "ctranslate2", options=(("spin", 0),)))):
        assert measure.worker_environment(plan, info)["GOMP_SPINCOUNT"] == spin


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_recipe_gives_the_same_tokens(precision: str, checkpoint_of: Make, tmp_path: Path) -> None:
    plan = _plan(precision)
    script = measure.recipe(plan, str(checkpoint_of("gpt2")))
    assert script is not None
    (tmp_path / "recipe.py").write_text(script)
    ids = ",".join(map(str, PROMPT))
    command = [sys.executable, "recipe.py", "--ids", ids, "--tokens", "16"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    out = tmp_path / "made"
    out.mkdir()
    engine = CTranslate2Engine()
    engine.convert(checkpoint_of("gpt2"), plan, out)
    engine.load(plan, out)
    assert json.loads(done.stdout) == list(engine.generate(PROMPT, 16))
    engine.close()
