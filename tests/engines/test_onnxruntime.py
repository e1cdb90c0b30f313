"""The ONNX Runtime engine: the contract through real workers, and each architecture against transformers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferplan import measure
from inferplan.engines._onnxruntime_file import MODEL_NAME, NOTES_NAME, read_graph
from inferplan.engines.onnxruntime import OnnxRuntimeEngine
from inferplan.errors import ArtifactError, EngineError, InputError, Unsupported
from inferplan.plan import OptionValue, Plan
from inferplan.testing import EngineContract, Reference, first_difference
from tiny_models import CONFIGS, PROMPT, Make, greedy, library_model, reference_of

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install inferplan[onnxruntime]")
pytest.importorskip("onnx_ir", reason="onnx_ir is not installed: pip install inferplan[onnxruntime]")
pytest.importorskip(
    "onnxruntime_genai", reason="onnxruntime-genai is not installed: pip install inferplan[onnxruntime]"
)

TOKENS = 64
LLAMA = "llama-gqa-tied"
EXPORTED = ("gpt2", "gpt2-odd-vocabulary", "gpt2-large-epsilon", "gpt_neox", "opt", "mistral-sliding")
BUILT = tuple(name for name in CONFIGS if name not in EXPORTED)
ArtifactOf = Callable[..., Path]


@pytest.fixture(scope="module")
def artifact_of(checkpoint_of: Make, tmp_path_factory: pytest.TempPathFactory) -> ArtifactOf:
    made: dict[tuple[object, ...], Path] = {}

    def make(name: str, precision: str = "fp32", **options: Any) -> Path:
        key = (name, precision, *sorted(options.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp(f"{name}-{precision}")
            OnnxRuntimeEngine().convert(checkpoint_of(name), _plan(precision, **options), made[key])
        return made[key]

    return make


@pytest.fixture
def engine() -> Iterator[OnnxRuntimeEngine]:
    made = OnnxRuntimeEngine()
    yield made
    made.close()


@cache
def _expected(name: str, count: int = TOKENS) -> list[int]:
    """What transformers says, computed once for all tests."""
    return greedy(library_model(name), PROMPT, count)


def _plan(precision: str = "fp32", threads: int = 1, kv_cache: bool = True, **options: OptionValue) -> Plan:
    return Plan("tiny", "onnxruntime", precision, threads, kv_cache, options=tuple(options.items()))


def _copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target, dirs_exist_ok=True)
    return target


@pytest.mark.slow
class TestOnnxRuntimeContract(EngineContract):
    """A session with a loop of our own, on a graph by torch's exporter."""

    engine = "onnxruntime"

    @pytest.fixture
    def checkpoint(self, checkpoint_of: Make) -> Path:
        return checkpoint_of("gpt2")

    @pytest.fixture
    def reference(self) -> Reference:
        return reference_of("gpt2")


@pytest.mark.slow
class TestOnnxRuntimeGenaiContract(EngineContract):
    """onnxruntime-genai with a graph of its own."""

    engine = "onnxruntime"

    def plan(self, precision: str = "fp32", threads: int = 1, kv_cache: bool = True) -> Plan:
        return _plan(precision, threads, kv_cache, runner="genai")

    @pytest.fixture
    def checkpoint(self, checkpoint_of: Make) -> Path:
        return checkpoint_of(LLAMA)

    @pytest.fixture
    def reference(self) -> Reference:
        return reference_of(LLAMA)


@pytest.mark.parametrize("runner", ["session", "genai"])
@pytest.mark.parametrize("name", BUILT)
def test_graphs_of_the_builder_give_the_tokens_of_transformers(
    name: str, runner: str, artifact_of: ArtifactOf, engine: OnnxRuntimeEngine
) -> None:
    expected = _expected(name)
    assert len(set(expected)) > 4, "a constant output would hide errors"
    actual = engine.load(_plan(runner=runner), artifact_of(name))
    assert actual.details["graph"] == "builder"
    assert list(engine.generate(PROMPT, TOKENS)) == expected


@pytest.mark.parametrize(
    "name", ["gpt2", *(pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS if name != "gpt2")]
)
def test_graphs_of_the_exporter_give_the_tokens_of_transformers(
    name: str, artifact_of: ArtifactOf, engine: OnnxRuntimeEngine
) -> None:
    options: dict[str, Any] = {} if name in EXPORTED else {"graph": "export"}
    path = artifact_of(name, **options)
    expected = _expected(name)
    for kv_cache in (True, False):
        actual = engine.load(_plan(kv_cache=kv_cache, **options), path)
        assert (actual.details["graph"], actual.attention) == ("export", "GroupQueryAttention")
        assert actual.kv_cache is kv_cache
        assert list(engine.generate(PROMPT, TOKENS)) == expected


@pytest.mark.parametrize(
    ("kind", "settings_"),
    [
        (
            "gemma",
            {"hidden_size": 48, "num_key_value_heads": 1, "head_dim": 16},
        ),  # a width whose root is no short number
        (
            "llama",
            {
                "num_key_value_heads": 2,
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 50000.0,
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 64,
                },
            },
        ),
    ],
    ids=["gemma-width-48", "llama3-rope"],
)
def test_the_builder_keeps_every_digit_of_a_config(
    kind: str,
    settings_: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
    engine: OnnxRuntimeEngine,
    tmp_path: Path,
) -> None:
    monkeypatch.setitem(CONFIGS, "special", (kind, {**CONFIGS[LLAMA][1], **settings_}))
    model = library_model("special")
    checkpoint, out = tmp_path / "checkpoint", tmp_path / "out"
    model.save_pretrained(checkpoint)
    out.mkdir()
    engine.convert(checkpoint, _plan(graph="builder"), out)
    engine.load(_plan(), out)
    assert list(engine.generate(PROMPT, TOKENS)) == greedy(model, PROMPT, TOKENS)
    from inferplan.engines._onnxruntime_session import _Request

    runner = engine._runner
    request = _Request(runner._session, runner._inputs, len(PROMPT), runner._vocabulary)
    request.step(PROMPT, 0)
    with torch.inference_mode():
        wanted = model(torch.tensor([PROMPT])).logits[0, -1].numpy()
    assert np.abs(request._logits.ravel() - wanted).max() < 1e-4 * np.abs(wanted).max()


def test_genai_does_not_run_gpt2_and_says_what_its_builder_says(
    artifact_of: ArtifactOf, engine: OnnxRuntimeEngine
) -> None:
    with pytest.raises(Unsupported, match="gpt2 model is not currently supported"):
        engine.load(_plan(runner="genai"), artifact_of("gpt2"))


def test_what_the_builder_refuses_is_unsupported_when_it_is_asked_for(checkpoint_of: Make, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="gpt2 model is not currently supported"):
        OnnxRuntimeEngine().convert(checkpoint_of("gpt2"), _plan(graph="builder"), tmp_path)


def test_a_sliding_window_that_the_builder_passes_over_is_unsupported(checkpoint_of: Make, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="sliding window of 16"):
        OnnxRuntimeEngine().convert(checkpoint_of("mistral-sliding"), _plan(graph="builder"), tmp_path)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 2}, "refuses this model|cannot build"),
        ({"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}, "linear_attention"),
    ],
    ids=["bloom", "mamba"],
)
def test_an_architecture_that_nobody_can_draw_is_unsupported(config: dict[str, Any], why: str, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    checkpoint = tmp_path / "checkpoint"
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**config, vocab_size=64)).save_pretrained(checkpoint)
    with pytest.raises(Unsupported, match=why):
        OnnxRuntimeEngine().convert(checkpoint, _plan(), tmp_path)


@pytest.mark.slow
def test_a_type_that_the_builder_gets_wrong_is_exported(tmp_path: Path, engine: OnnxRuntimeEngine) -> None:
    """What onnxruntime-genai 0.18 builds of a Phi gives other tokens."""
    from transformers import PhiConfig, PhiForCausalLM

    torch.manual_seed(0)
    size: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
    model = PhiForCausalLM(PhiConfig(vocab_size=320, initializer_range=0.3, num_attention_heads=2, **size)).eval()
    checkpoint, out = tmp_path / "checkpoint", tmp_path / "out"
    model.save_pretrained(checkpoint)
    out.mkdir()
    engine.convert(checkpoint, _plan(), out)
    assert engine.load(_plan(), out).details["graph"] == "export"
    assert list(engine.generate(PROMPT, TOKENS)) == greedy(model, PROMPT, TOKENS)


@pytest.mark.parametrize(
    ("precision", "options", "kernel", "kinds"),
    [
        ("fp32", {}, "MatMul", "float32"),
        ("int8", {}, "MatMulNBits", "int8"),
        ("int8", {"int8": "rows"}, "DynamicQuantizeMatMul", "int8"),
        ("int4", {}, "MatMulNBits", "int4"),
        ("int4", {"head": "int8"}, "MatMulNBits", "int4, int8"),
        ("int4", {"block": 64}, "MatMulNBits", "int4"),
        ("int8", {"block": 128}, "MatMulNBits", "int8"),
    ],
)
@pytest.mark.parametrize("name", [LLAMA, "qwen2"])
def test_what_ran_is_what_lies_in_the_file(
    name: str,
    precision: str,
    options: dict[str, Any],
    kernel: str,
    kinds: str,
    artifact_of: ArtifactOf,
    engine: OnnxRuntimeEngine,
) -> None:
    path = artifact_of(name, precision, **options)
    actual = engine.load(_plan(precision, threads=2, **options), path)
    assert (actual.kernel, actual.weights, actual.threads) == (kernel, kinds.split(",")[0], 2)
    assert actual.quantized_share == (None if precision == "fp32" else 1.0)
    assert read_graph(path / MODEL_NAME).kinds == kinds
    if kernel == "MatMulNBits":
        import onnx_ir

        products = [node for node in onnx_ir.load(path / MODEL_NAME).graph if node.op_type == kernel]
        assert {node.attributes["block_size"].as_int() for node in products} == {options.get("block", 32)}
        assert actual.details["block_size"] == str(options.get("block", 32))


def test_every_linear_layer_of_gpt2_becomes_integers(artifact_of: ArtifactOf, tmp_path: Path) -> None:
    weights = read_graph(artifact_of("gpt2") / MODEL_NAME).weights
    linears = 3 * 4 + 1  # four for each layer, and the one that gives the logits
    assert (len(weights), sum(w.parameters for w in weights)) == (linears, 3 * 12 * 64 * 64 + 64 * 320)
    import onnx_ir

    from inferplan.engines._onnxruntime_quantize import quantize

    model = onnx_ir.load(artifact_of("gpt2") / MODEL_NAME)
    quantize(model.graph, "int8-rows", 127, 32)
    onnx_ir.save(model, tmp_path / MODEL_NAME)
    file = read_graph(tmp_path / MODEL_NAME)
    assert (file.integer_share, file.kinds, len(file.weights)) == (1.0, "int8", linears)


def test_weights_of_another_type_are_never_called_int8(artifact_of: ArtifactOf, engine: OnnxRuntimeEngine) -> None:
    with pytest.raises(EngineError, match=r"only 0\.0% .* in \S*model\.onnx are integers"):
        engine.load(_plan("int8"), artifact_of(LLAMA))
    with pytest.raises(EngineError, match="holds int8, and a plan of int4 runs int4"):
        engine.load(_plan("int4"), artifact_of(LLAMA, "int8"))
    with pytest.raises(EngineError, match="holds int8, and a plan of fp32 runs float32"):
        engine.load(_plan(), artifact_of(LLAMA, "int8"))


@pytest.mark.parametrize("runner", ["session", "genai"])
@pytest.mark.parametrize(("option", "precision"), [("spin", "int8"), ("arena", "int8"), ("prepack", "fp32")])
def test_no_option_changes_the_tokens(
    option: str, precision: str, runner: str, artifact_of: ArtifactOf, engine: OnnxRuntimeEngine
) -> None:
    outputs = []
    for value in (True, False):
        actual = engine.load(_plan(precision, runner=runner, **{option: value}), artifact_of(LLAMA, precision))
        assert actual.details[option] == ("on" if value else "off")
        outputs.append(list(engine.generate(PROMPT, 16)))
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("runner", ["session", "genai"])
def test_a_request_may_fill_the_whole_context(
    runner: str, checkpoint_of: Make, artifact_of: ArtifactOf, engine: OnnxRuntimeEngine
) -> None:
    engine.load(_plan(runner=runner), artifact_of(LLAMA))
    short = list(engine.generate(PROMPT, 4))
    output = list(engine.generate(PROMPT, 256 - len(PROMPT)))
    assert len(output) == 256 - len(PROMPT)
    assert first_difference(checkpoint_of(LLAMA), PROMPT, output) is None
    assert output[:4] == short


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        (_plan(kv_cache=False, runner="genai"), "genai always keeps keys and values"),
        (_plan(runner="genai", graph="export"), "not graph=export"),
        (_plan(int8="rows"), "option int8 is for plans of int8"),
        (_plan("int8", head="int8"), "option head is for plans of int4"),
        (_plan(block=64), "option block is for weights whose scales are by blocks"),
        (_plan("int8", int8="rows", block=64), "option block is for weights whose scales are by blocks"),
        (_plan("int8", prepack=False), "prepack=off is for plans of fp32"),
        (_plan("bf16"), "multiplies no bfloat16 on a CPU"),
    ],
    ids=str,
)
def test_a_combination_that_does_not_exist_is_a_reason(plan: Plan, why: str) -> None:
    assert why in (OnnxRuntimeEngine().unsupported(plan) or "")


def test_a_damaged_checkpoint_is_named_by_the_conversion(checkpoint_of: Make, tmp_path: Path) -> None:
    broken = _copy(checkpoint_of(LLAMA), tmp_path / "broken")
    data = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ArtifactError, match=r"model\.safetensors"):
        OnnxRuntimeEngine().convert(broken, _plan(), tmp_path)


@pytest.mark.parametrize("file", [MODEL_NAME, f"{MODEL_NAME}.data", NOTES_NAME, "genai_config.json"])
@pytest.mark.parametrize("left", [0.5, 0.0, None])
def test_a_file_that_is_cut_or_missing_is_named(
    file: str, left: float | None, artifact_of: ArtifactOf, tmp_path: Path
) -> None:
    path = _copy(artifact_of(LLAMA), tmp_path / "broken") / file
    data = path.read_bytes()
    path.unlink()
    if left is not None:
        path.write_bytes(data[: int(len(data) * left)])
    with pytest.raises(ArtifactError, match=file.replace(".", r"\.")):
        OnnxRuntimeEngine().load(_plan(), path.parent)


@settings(max_examples=30, deadline=None)
@given(cut=st.floats(0, 0.999))
def test_a_graph_cut_anywhere_is_no_graph(
    cut: float, artifact_of: ArtifactOf, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("cut") / MODEL_NAME
    data = (artifact_of(LLAMA) / MODEL_NAME).read_bytes()
    path.write_bytes(data[: int(len(data) * cut)])
    with pytest.raises(ArtifactError, match=r"model\.onnx is corrupt"):
        read_graph(path)


def test_a_graph_that_the_library_refuses_is_named(artifact_of: ArtifactOf, tmp_path: Path) -> None:
    broken = _copy(artifact_of(LLAMA), tmp_path / "broken")
    data = (broken / MODEL_NAME).read_bytes()
    (broken / MODEL_NAME).write_bytes(data.replace(b"GroupQueryAttention", b"GroupQueryAttentiom"))
    for runner in ("session", "genai"):
        with pytest.raises(ArtifactError, match=r"cannot load \S*model\.onnx"):
            OnnxRuntimeEngine().load(_plan(runner=runner), broken)


@settings(max_examples=30, deadline=None)
@given(
    width=st.integers(1, 140),
    out=st.integers(1, 9),
    bits=st.sampled_from([4, 8]),
    block=st.sampled_from([32, 64, 128]),
    seed=st.integers(0, 99),
)
def test_blocks_are_off_by_less_than_one_step(width: int, out: int, bits: int, block: int, seed: int) -> None:
    from inferplan.engines._onnxruntime_quantize import by_blocks

    weight = np.random.default_rng(seed).normal(size=(width, out)).astype(np.float32)
    weight[:, 0] = 0  # a block of nothing but zeros has no scale
    packed, scales = by_blocks(weight, bits, block)
    codes = packed if bits == 8 else np.stack([packed & 15, packed >> 4], axis=-1).reshape(out, -1, block)
    back = (codes.astype(np.float32) - (1 << (bits - 1))) * scales[..., None]
    error = np.abs(back.reshape(out, -1)[:, :width].T - weight)
    steps = np.repeat(np.abs(scales), block, axis=1)[:, :width].T
    assert (error <= steps * 1.001 + 1e-7).all()
    assert np.median(error / np.maximum(steps, 1e-9)) <= 0.5


@settings(max_examples=30, deadline=None)
@given(width=st.integers(1, 40), out=st.integers(1, 9), levels=st.sampled_from([63, 127]), seed=st.integers(0, 99))
def test_rows_are_off_by_at_most_half_a_step(width: int, out: int, levels: int, seed: int) -> None:
    from inferplan.engines._onnxruntime_quantize import by_rows

    weight = np.random.default_rng(seed).normal(size=(width, out)).astype(np.float32)
    weight[:, 0] = 0
    numbers, scale = by_rows(weight, levels)
    assert np.abs(numbers).max() <= levels
    assert (np.abs(numbers * scale - weight) <= scale * 0.501).all()


@pytest.mark.parametrize(
    ("prompt", "count", "why"), [((), 4, "no tokens"), ((320,), 4, "ids 0 to 319"), ((5,), 256, "context of 256")]
)
def test_a_request_that_cannot_be_is_refused(
    prompt: tuple[int, ...], count: int, why: str, artifact_of: ArtifactOf, engine: OnnxRuntimeEngine
) -> None:
    engine.load(_plan(), artifact_of(LLAMA))
    with pytest.raises(InputError, match=why):
        engine.generate(prompt, count)
    engine.close()
    with pytest.raises(EngineError, match="before load"):
        engine.generate((5,), 1)


def _said(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env=measure.worker_environment(), capture_output=True, text=True, check=True
    )
    return done.stdout


def test_a_missing_package_is_a_reason_with_the_remedy() -> None:
    said = _said(
        "import sys\n"
        "sys.modules['onnxruntime'] = None\n"
        "from inferplan.engines.onnxruntime import OnnxRuntimeEngine as E\n"
        "print(E().describe().lacks['engine'])"
    )
    assert "pip install inferplan[onnxruntime]" in said


def test_without_genai_only_its_runner_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inferplan.engines.onnxruntime._genai_version", lambda: "")
    engine = OnnxRuntimeEngine()
    assert engine.unsupported(_plan()) is None
    assert "pip install inferplan[onnxruntime]" in (engine.unsupported(_plan(runner="genai")) or "")


@pytest.mark.parametrize("runner", ["session", "genai"])
def test_the_measured_process_imports_no_library_of_the_conversion(runner: str, artifact_of: ArtifactOf) -> None:
    said = _said(
        "import sys\n"
        "from pathlib import Path\n"
        "from inferplan.engines.onnxruntime import OnnxRuntimeEngine as E\n"
        "from inferplan.plan import Plan\n"
        f"plan, path = Plan('m', 'onnxruntime', options=(('runner', {runner!r}),)), {str(artifact_of(LLAMA))!r}\n"
        "e = E(); e.load(plan, Path(path))\n"
        "assert len(list(e.generate((5, 17), 4))) == 4\n"
        "print(sorted({'torch', 'transformers', 'onnx', 'onnx_ir', 'onnxscript'} & set(sys.modules)))"
    )
    assert said.strip() == "[]"


@pytest.mark.parametrize(
    "plan", [_plan(), _plan("int8", kv_cache=False, spin=False), _plan("int4", runner="genai")], ids=str
)
def test_the_recipe_gives_the_same_tokens(
    plan: Plan, artifact_of: ArtifactOf, engine: OnnxRuntimeEngine, tmp_path: Path
) -> None:
    script = measure.recipe(plan, "some/model")
    assert script is not None
    (tmp_path / "recipe.py").write_text(script)
    path = artifact_of(LLAMA, plan.precision)
    command = [sys.executable, "recipe.py", str(path), "--ids", ",".join(map(str, PROMPT)), "--tokens", "16"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    engine.load(plan, path)
    assert json.loads(done.stdout.splitlines()[-1]) == list(engine.generate(PROMPT, 16))
