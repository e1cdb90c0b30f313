"""The OpenVINO engine: the contract for both pipelines through real workers, and architectures against transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from inferplan import measure
from inferplan.engines._openvino_file import DATA_NAME, MODEL_NAME, read_model
from inferplan.engines._openvino_properties import check_ran, properties, told
from inferplan.engines.openvino import NOTES_NAME, OpenVinoEngine
from inferplan.errors import ArtifactError, EngineError, InputError, Unsupported
from inferplan.measurement import Request, Trial
from inferplan.plan import OptionValue, Plan
from inferplan.testing import EngineContract, Reference
from tiny_models import CONFIGS, PROMPT, Make, greedy, library_model, reference_of

np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("openvino_genai", reason="openvino-genai is not installed: pip install inferplan[openvino]")

TOKENS = 64
PIPELINES = ("stateful", "paged")
ArtifactOf = Callable[..., Path]


@pytest.fixture(scope="module")
def artifact_of(checkpoint_of: Make, tmp_path_factory: pytest.TempPathFactory) -> ArtifactOf:
    """Converted in this process: importing torch once is enough here."""
    made: dict[tuple[str, str], Path] = {}

    def make(name: str, precision: str = "fp32") -> Path:
        key = (name, precision)
        if key not in made:
            made[key] = tmp_path_factory.mktemp(f"{name}-{precision}")
            OpenVinoEngine().convert(checkpoint_of(name), _plan(precision), made[key])
        return made[key]

    return make


@pytest.fixture
def engine() -> Iterator[OpenVinoEngine]:
    made = OpenVinoEngine()
    yield made
    made.close()


def _plan(precision: str = "fp32", threads: int = 1, kv_cache: bool = True, **options: OptionValue) -> Plan:
    return Plan("tiny", "openvino", precision, threads, kv_cache, options=tuple(options.items()))


@pytest.mark.slow
class TestOpenVinoContract(EngineContract):
    engine = "openvino"

    @pytest.fixture
    def checkpoint(self, checkpoint_of: Make) -> Path:
        return checkpoint_of("llama-gqa-tied")

    @pytest.fixture
    def reference(self) -> Reference:
        return reference_of("llama-gqa-tied")


@pytest.mark.slow
class TestOpenVinoPagedContract(TestOpenVinoContract):
    """The pipeline with a scheduler, whose default answers a repeated prompt from its prefix cache."""

    def plan(self, precision: str = "fp32", threads: int = 1, kv_cache: bool = True) -> Plan:
        return _plan(precision, threads, kv_cache, pipeline="paged")


ARCHITECTURES = [
    name if name in ("gpt2", "llama-gqa-tied") else pytest.param(name, marks=pytest.mark.slow)
    for name in sorted(set(CONFIGS) - {"mistral-sliding"})
]


@cache
def _reference(name: str, count: int = TOKENS) -> list[int]:
    return greedy(library_model(name), PROMPT, count)


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_fp32_gives_the_tokens_of_transformers(
    name: str, pipeline: str, artifact_of: ArtifactOf, engine: OpenVinoEngine
) -> None:
    expected = _reference(name)
    assert len(set(expected)) > 4, "a constant output would hide errors"
    engine.load(_plan(pipeline=pipeline), artifact_of(name))
    assert list(engine.generate(PROMPT, TOKENS)) == expected


def test_a_sliding_window_is_kept_or_refused(artifact_of: ArtifactOf, engine: OpenVinoEngine) -> None:
    engine.load(_plan(), artifact_of("mistral-sliding"))
    assert list(engine.generate(PROMPT, TOKENS)) == _reference("mistral-sliding")
    with pytest.raises(Unsupported, match="sliding window of 16"):
        engine.load(_plan(pipeline="paged"), artifact_of("mistral-sliding"))


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_an_end_of_sequence_in_the_directory_does_not_end_a_request(
    pipeline: str, artifact_of: ArtifactOf, engine: OpenVinoEngine, tmp_path: Path
) -> None:
    expected = _reference("gpt2")
    for file in artifact_of("gpt2").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": expected[3]}))
    engine.load(_plan(pipeline=pipeline), tmp_path)
    assert list(engine.generate(PROMPT, TOKENS)) == expected


def test_the_default_precision_of_the_device_is_noticed(artifact_of: ArtifactOf) -> None:
    """What is read back is what runs: without a hint it is bfloat16 where the CPU has it, and then no FP32 plan."""
    import openvino
    import openvino_genai

    _, ran = told(lambda: openvino_genai.LLMPipeline(str(artifact_of("gpt2")), "CPU"))
    fast = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert ran["INFERENCE_PRECISION_HINT"] == ("bf16" if fast else "f32")
    with pytest.raises(EngineError, match="was asked for"):
        check_ran(_plan(), ran)


@dataclass(frozen=True)
class Node:
    """What the device runs: its kind, the precision, shapes of its inputs, and the layers it was made from."""

    kind: str
    precision: str
    inputs: list[str]
    about: str


def _nodes(plan: Plan, artifact: Path) -> list[Node]:
    import openvino

    asked = {name: value for name, value in properties(plan).items() if name != "ATTENTION_BACKEND"}
    compiled: Any = openvino.Core().compile_model(str(artifact / MODEL_NAME), "CPU", asked)
    found = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        told = {name: node.get_rt_info()[name].astype(str) for name in ("layerType", "runtimePrecision")}
        names = node.get_rt_info()["originalLayersNames"].astype(str)
        shapes = [str(port.get_partial_shape()) for port in node.inputs()]
        found.append(Node(told["layerType"], told["runtimePrecision"], shapes, names))
    return found


def test_every_kernel_of_an_fp32_plan_runs_in_float32(artifact_of: ArtifactOf) -> None:
    nodes = _nodes(_plan(), artifact_of("llama-gqa-tied"))
    assert {node.precision for node in nodes if node.kind == "FullyConnected"} == {"f32"}
    assert not {"bf16", "f16", "i8"} & {node.precision for node in nodes}


def test_int8_layers_run_on_their_integers(artifact_of: ArtifactOf) -> None:
    nodes = _nodes(_plan("int8"), artifact_of("llama-gqa-tied", "int8"))
    assert {node.precision for node in nodes if node.kind == "FullyConnected"} == {"i8"}


def test_the_device_knows_attention_with_its_cache_and_repeats_no_keys(artifact_of: ArtifactOf) -> None:
    """Otherwise each token would copy the keys and values of all before it, once for each head of the query."""
    attention = [n for n in _nodes(_plan(), artifact_of("llama-gqa-tied")) if n.kind == "ScaledDotProductAttention"]
    assert len(attention) == CONFIGS["llama-gqa-tied"][1]["num_hidden_layers"]
    for node in attention:
        assert len(node.inputs) == 8, "queries, keys, values, mask, scale, and the state: beams, past keys and values"
        assert node.inputs[1] == node.inputs[6] == "[?,2,?,16]"


def test_an_fp32_layer_is_ordered_for_the_kernels_once(artifact_of: ArtifactOf) -> None:
    """An activation that is fused into its layer would be missing here, and the layer's weights be kept twice."""
    nodes = _nodes(_plan(), artifact_of("llama-gqa-tied"))
    assert sum("Swish" in n.about for n in nodes if n.kind == "Eltwise") == 3
    assert not [n for n in nodes if n.kind == "FullyConnected" and "Swish" in n.about]


@pytest.mark.parametrize(
    ("precision", "kinds", "kv_type"), [("int8", "i8", "u8"), ("int4", "u4, i8", "u8"), ("fp32", "f32", "f32")]
)
def test_what_ran_is_what_the_device_says(
    precision: str, kinds: str, kv_type: str, artifact_of: ArtifactOf, engine: OpenVinoEngine
) -> None:
    actual = engine.load(_plan(precision, threads=2), artifact_of("llama-gqa-tied", precision))
    assert (actual.dtype, actual.threads) == ("float32", 2)
    assert (actual.details["types"], actual.details["kv_cache_precision"]) == (kinds, kv_type)
    assert actual.quantized_share == (1.0 if precision.startswith("int") else None)
    assert actual.scheme == ("dynamic" if precision.startswith("int") else "")
    assert actual.details["inference_precision"] == "f32"


def test_bf16_is_run_where_the_device_says_that_it_can(artifact_of: ArtifactOf, engine: OpenVinoEngine) -> None:
    info = engine.describe()
    if "bf16" not in info.precisions:
        assert "does not compute in bfloat16" in info.lacks["bf16"]
        return
    actual = engine.load(_plan("bf16"), artifact_of("gpt2", "bf16"))
    assert (actual.dtype, actual.weights, actual.details["types"]) == ("bfloat16", "bfloat16", "bf16")
    assert len(list(engine.generate(PROMPT, 8))) == 8


@pytest.mark.parametrize(("precision", "kept"), [("int8", 0.01), ("int4", 0.13), ("bf16", 0.005)])
def test_stored_weights_stay_near_those_of_the_checkpoint(precision: str, kept: float, artifact_of: ArtifactOf) -> None:
    """Rounding to a step of the largest of a row, or of a group, moves weights by so much of their size."""
    exact, stored = (_weights(artifact_of("llama-gqa-tied", name)) for name in ("fp32", precision))
    assert exact.keys() == stored.keys()
    assert len(exact) == 3 * 7 + 1
    for name, weight in exact.items():
        error = float(np.linalg.norm(weight - stored[name]) / np.linalg.norm(weight))
        assert 0 < error < kept, name


def _weights(artifact: Path) -> dict[str, Any]:
    """The weights that each linear layer multiplies with, computed by the library from what is stored."""
    import openvino as ov

    found = {}
    for node in ov.Core().read_model(artifact / MODEL_NAME).get_ordered_ops():
        if node.get_type_name() == "MatMul":
            alone = ov.Model([node.input_value(1)], [], "weights")
            found[node.get_friendly_name()] = ov.Core().compile_model(
                alone, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
            )([])[0]
    return found


def test_weights_of_another_type_are_never_called_int8(artifact_of: ArtifactOf, engine: OpenVinoEngine) -> None:
    with pytest.raises(EngineError, match=r"only 0\.0% .* in \S*openvino_model\.xml are integers"):
        engine.load(_plan("int8"), artifact_of("gpt2"))
    with pytest.raises(EngineError, match="holds i8, and a plan of int4 runs u4"):
        engine.load(_plan("int4"), artifact_of("gpt2", "int8"))


def test_rows_that_are_no_whole_groups_cannot_be_int4(checkpoint_of: Make, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    odd = GPT2Config(vocab_size=64, n_embd=36, n_layer=1, n_head=2, n_positions=32)
    GPT2LMHeadModel(odd).save_pretrained(tmp_path / "odd")
    with pytest.raises(Unsupported, match=r"multiple of 32 .* \[36, 144\]"):
        OpenVinoEngine().convert(tmp_path / "odd", _plan("int4"), tmp_path)


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize(
    "options",
    [{"kv_type": "f32"}, {"kv_type": "f16"}, {"dynamic_quantization": 0}, {"dynamic_quantization": 128}],
    ids=lambda options: "-".join(map(str, next(iter(options.items())))),
)
def test_every_option_runs_and_is_read_back(
    options: dict[str, OptionValue], pipeline: str, artifact_of: ArtifactOf, engine: OpenVinoEngine
) -> None:
    plan = Plan("tiny", "openvino", "int8", options=(("pipeline", pipeline), *options.items()))
    actual = engine.load(plan, artifact_of("gpt2", "int8"))
    assert actual.attention == pipeline
    assert actual.details["kv_cache_precision"] == options.get("kv_type", "u8")
    assert actual.details["dynamic_quantization_group_size"] == str(options.get("dynamic_quantization", 32))
    assert actual.scheme == ("weight-only" if options.get("dynamic_quantization") == 0 else "dynamic")
    assert len(list(engine.generate(PROMPT, 8))) == 8


def test_integers_of_activations_belong_to_integer_weights() -> None:
    why = OpenVinoEngine().unsupported(_plan(dynamic_quantization=32))
    assert "INT8 and INT4 plans only, not fp32" in (why or "")
    assert OpenVinoEngine().unsupported(_plan("int8", dynamic_quantization=64)) is None


@pytest.mark.parametrize(("precision", "kv_type"), [("fp32", "bf16"), ("int8", "bf16"), ("bf16", "f32")])
def test_pages_hold_no_type_that_their_kernel_cannot_read(precision: str, kv_type: str) -> None:
    engine = OpenVinoEngine()
    if why := engine.describe().lacks.get(precision):
        pytest.skip(why)
    assert "pipeline=paged cannot keep" in (
        engine.unsupported(_plan(precision, pipeline="paged", kv_type=kv_type)) or ""
    )
    assert engine.unsupported(_plan(precision, kv_type=kv_type)) is None


def test_without_a_kv_cache_is_a_reason() -> None:
    assert "always keeps keys and values" in (OpenVinoEngine().unsupported(_plan(kv_cache=False)) or "")


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_request_may_fill_the_whole_context(pipeline: str, artifact_of: ArtifactOf, engine: OpenVinoEngine) -> None:
    engine.load(_plan(pipeline=pipeline), artifact_of("gpt2"))
    count = 256 - len(PROMPT)
    assert list(engine.generate(PROMPT, count)) == _reference("gpt2", count)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"model_type": "mamba2_of_another_world"}, "no causal language model of that type"),
        ({"model_type": "llama", "rope_scaling": {"type": "dynamic"}}, "of type 'dynamic'"),
        ({"model_type": "llama4_text", "layer_types": ["chunked_attention"]}, "layers of type chunked_attention"),
        ({"model_type": "llama", "quantization_config": {}}, "quantized already"),
    ],
)
def test_what_cannot_be_traced_is_unsupported(
    config: dict[str, object], why: str, checkpoint_of: Make, tmp_path: Path
) -> None:
    weights = checkpoint_of("gpt2") / "model.safetensors"
    (tmp_path / weights.name).write_bytes(weights.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(Unsupported, match=why):
        OpenVinoEngine().convert(tmp_path, _plan(), tmp_path)


def test_attention_that_is_no_scaled_dot_product_is_unsupported(tmp_path: Path) -> None:
    from transformers import BloomConfig, BloomForCausalLM

    BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=16, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    with pytest.raises(Unsupported, match="bloom"):
        OpenVinoEngine().convert(tmp_path, _plan(), tmp_path)


def test_a_damaged_checkpoint_is_named_by_the_conversion(checkpoint_of: Make, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in checkpoint_of("gpt2").iterdir():
        data = file.read_bytes()
        (broken / file.name).write_bytes(data if file.suffix == ".json" else data[: len(data) // 2])
    with pytest.raises(ArtifactError, match=r"model\.safetensors"):
        OpenVinoEngine().convert(broken, _plan(), tmp_path)


@pytest.mark.parametrize(("name", "cut"), [(MODEL_NAME, 0), (MODEL_NAME, 4000), (MODEL_NAME, -40), (DATA_NAME, -1)])
def test_a_file_cut_anywhere_is_named(name: str, cut: int, artifact_of: ArtifactOf, tmp_path: Path) -> None:
    for file in artifact_of("gpt2").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:cut])
    with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
        read_model(tmp_path)


@pytest.mark.parametrize("name", [MODEL_NAME, DATA_NAME, NOTES_NAME])
def test_a_missing_file_is_named(name: str, artifact_of: ArtifactOf, engine: OpenVinoEngine, tmp_path: Path) -> None:
    for file in artifact_of("gpt2").iterdir():
        if file.name != name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
        engine.load(_plan(), tmp_path)


@pytest.mark.parametrize(
    ("prompt", "count", "why"), [((), 4, "no tokens"), ((320,), 4, "ids 0 to 319"), ((5,), 256, "context of 256")]
)
def test_a_request_that_cannot_be_is_refused(
    prompt: tuple[int, ...], count: int, why: str, artifact_of: ArtifactOf, engine: OpenVinoEngine
) -> None:
    engine.load(_plan(), artifact_of("gpt2"))
    with pytest.raises(InputError, match=why):
        engine.generate(prompt, count)
    engine.close()
    with pytest.raises(EngineError, match="before load"):
        engine.generate((5,), 1)


def test_loading_leaves_standard_output_as_it_was(
    artifact_of: ArtifactOf, engine: OpenVinoEngine, capfd: pytest.CaptureFixture[str]
) -> None:
    print("before")
    engine.load(_plan(), artifact_of("gpt2"))
    print("after")
    assert capfd.readouterr().out.split() == ["before", "after"]


def test_a_missing_package_is_a_reason_with_the_remedy() -> None:
    code = (
        "import sys\n"
        "sys.modules['openvino_genai'] = None\n"
        "from inferplan.engines.openvino import OpenVinoEngine as E\n"
        "print(E().describe().lacks['engine'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=measure.worker_environment(), capture_output=True, text=True, check=True
    )
    assert "pip install inferplan[openvino]" in done.stdout


def test_running_a_converted_model_imports_neither_torch_nor_transformers(artifact_of: ArtifactOf) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from inferplan.engines.openvino import OpenVinoEngine\n"
        "from inferplan.plan import Plan\n"
        "engine = OpenVinoEngine()\n"
        f"engine.load(Plan('tiny', 'openvino'), Path({str(artifact_of('gpt2'))!r}))\n"
        "assert len(list(engine.generate([5, 17], 2))) == 2\n"
        "engine.close()\n"
        "print(sorted({'torch', 'transformers', 'nncf'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=measure.worker_environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_nothing_is_reported_to_anybody(checkpoint_of: Make, tmp_path: Path) -> None:
    """OpenVINO keeps a count of its reports below the home directory, and sends them from a process that it forks."""
    out = tmp_path / "out"
    out.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path))
        assert measure.convert(_plan(), checkpoint_of("gpt2"), out) == ("ok", "")
        trial = Trial(_plan(), out, 1, (Request(0, PROMPT, 4),))
        assert measure.measure(trial, measure.describe("openvino"), measure.Watch(cores=2, judge=False)).status == "ok"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_with_one_thread_bf16_goes_without_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    """The contract runs it where there is AMX: without this the library divides by zero there."""
    monkeypatch.setattr("inferplan.engines._cpu.cpu_flags", lambda: frozenset({"avx512_bf16", "amx_bf16"}))
    info = OpenVinoEngine().describe()
    assert info.variables(_plan("bf16", 1)) == {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}
    assert "'AVX512_CORE_BF16'" in OpenVinoEngine().native_recipe(_plan("bf16", 1), "some/model")
    assert info.variables(_plan("bf16", 2)) == info.variables(_plan("fp32", 1)) == {}
    monkeypatch.setattr("inferplan.engines._cpu.cpu_flags", lambda: frozenset({"avx512_bf16"}))
    assert OpenVinoEngine().describe().variables(_plan("bf16", 1)) == {}


@pytest.mark.parametrize(("precision", "pipeline"), [("fp32", "stateful"), ("int8", "paged")])
def test_the_recipe_gives_the_same_tokens(
    precision: str, pipeline: str, artifact_of: ArtifactOf, engine: OpenVinoEngine, tmp_path: Path
) -> None:
    plan = _plan(precision, pipeline=pipeline)
    script = measure.recipe(plan, "some/model")
    assert script is not None
    (tmp_path / "recipe.py").write_text(script)
    directory = artifact_of("gpt2", precision)
    command = [sys.executable, "recipe.py", str(directory), "--ids", ",".join(map(str, PROMPT)), "--tokens", "16"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    engine.load(plan, directory)
    assert json.loads(done.stdout.splitlines()[-1]) == list(engine.generate(PROMPT, 16))
