"""The llama.cpp engine: the contract through real workers, and each architecture against transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from inferplan import measure
from inferplan.engines._gguf_file import read_gguf
from inferplan.engines._llamacpp_architectures import architecture
from inferplan.engines.llamacpp import MODEL_NAME, LlamaCppEngine
from inferplan.errors import ArtifactError, EngineError, InputError, Unsupported
from inferplan.measurement import Request, Trial
from inferplan.plan import OptionValue, Plan
from inferplan.testing import EngineContract, RealModel, Reference, busy_tasks, first_difference
from tiny_models import CONFIGS, PROMPT, Make, greedy, library_model, reference_of

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("xllamacpp", reason="xllamacpp is not installed: pip install inferplan[llamacpp]")

TOKENS = 64
GELU_TIE = 0.01  # of logits that reach 13: llama.cpp's table of GELU moves them by up to 0.006 here
NOT_IN_LLAMACPP = {"opt": "learned positions", "mistral-sliding": "sliding window of 16"}
ArtifactOf = Callable[..., Path]


@pytest.fixture(scope="module")
def artifact_of(checkpoint_of: Make, tmp_path_factory: pytest.TempPathFactory) -> ArtifactOf:
    made: dict[tuple[str, str], Path] = {}

    def make(name: str, precision: str = "fp32") -> Path:
        key = (name, precision)
        if key not in made:
            made[key] = tmp_path_factory.mktemp(f"{name}-{precision}")
            LlamaCppEngine().convert(checkpoint_of(name), _plan(precision), made[key])
        return made[key]

    return make


@pytest.fixture
def engine() -> Iterator[LlamaCppEngine]:
    made = LlamaCppEngine()
    yield made
    made.close()


def _plan(precision: str = "fp32", threads: int = 1, kv_cache: bool = True, **options: OptionValue) -> Plan:
    return Plan("tiny", "llamacpp", precision, threads, kv_cache, options=tuple(options.items()))


@pytest.mark.slow
class TestLlamaCppContract(EngineContract):
    engine = "llamacpp"

    @pytest.fixture
    def checkpoint(self, checkpoint_of: Make) -> Path:
        return checkpoint_of("llama-gqa-tied")

    @pytest.fixture
    def reference(self) -> Reference:
        return reference_of("llama-gqa-tied")

    @pytest.mark.alone
    @pytest.mark.parametrize(("decode", "prefill"), [(1, 2), (2, 1)])
    def test_decode_and_prefill_have_threads_of_their_own(self, decode: int, prefill: int, real: RealModel) -> None:
        plan = Plan("tiny", self.engine, "fp32", decode, options=(("prefill_threads", prefill),))
        seen = real.watch(plan)
        assert busy_tasks(seen["task_cpu_s"]) == decode, seen
        assert busy_tasks(seen["prefill_task_cpu_s"]) == prefill, seen

    def test_keys_and_values_take_the_room_of_their_type(self, real: RealModel) -> None:
        peaks = {}
        for kind in ("f32", "f16"):
            plan = Plan("tiny", self.engine, "fp32", options=(("kv_type", kind),))
            memory = self.run(plan, real.artifact, real.info, real.prompts()[:1]).memory
            assert memory is not None and memory.peak_bytes is not None
            peaks[kind] = memory.peak_bytes
        numbers = 2 * 30 * 192 * 1024  # keys and values, layers, heads times their width, first room
        assert numbers <= peaks["f32"] - peaks["f16"] <= 3 * numbers, "two bytes fewer for each, and noise"


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="this system does not tell what is mapped")
@pytest.mark.parametrize("mapped", [True, False])
def test_weights_are_mapped_or_read(mapped: bool, artifact_of: ArtifactOf, engine: LlamaCppEngine) -> None:
    file = artifact_of("gpt2")
    engine.load(_plan(mmap=mapped), file)
    assert (str(file / MODEL_NAME) in Path("/proc/self/maps").read_text()) == mapped


@pytest.mark.parametrize("name", sorted(set(CONFIGS) - set(NOT_IN_LLAMACPP)))
def test_fp32_gives_the_tokens_of_transformers(
    name: str, checkpoint_of: Make, artifact_of: ArtifactOf, engine: LlamaCppEngine
) -> None:
    actual = engine.load(_plan(), artifact_of(name))
    output = list(engine.generate(PROMPT, TOKENS))
    assert len(set(output)) > 4, "a constant output would hide errors"
    if "gelu" in actual.details:
        assert first_difference(checkpoint_of(name), PROMPT, output, GELU_TIE) is None
    else:
        assert output == greedy(library_model(name), PROMPT, TOKENS)


@pytest.mark.parametrize(("name", "why"), NOT_IN_LLAMACPP.items())
def test_what_llamacpp_would_run_wrongly_is_unsupported(
    name: str, why: str, checkpoint_of: Make, tmp_path: Path
) -> None:
    with pytest.raises(Unsupported, match=why):
        LlamaCppEngine().convert(checkpoint_of(name), _plan(), tmp_path)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"model_type": "mamba"}, "does not convert 'mamba'"),
        ({"model_type": "gpt2", "activation_function": "relu", "n_embd": 8}, "with gelu_new only"),
        (
            {"model_type": "llama", "num_attention_heads": 2, "hidden_size": 8, "rope_scaling": {"type": "linear"}},
            "rotary embeddings of type 'linear'",
        ),
    ],
)
def test_settings_that_would_be_passed_over_are_unsupported(config: dict[str, object], why: str) -> None:
    with pytest.raises(Unsupported, match=why):
        architecture(config).settings(config)


def test_a_tensor_without_a_place_is_unsupported() -> None:
    llama = architecture({"model_type": "llama"})
    assert llama.place("model.layers.3.self_attn.q_proj.weight") == ("blk.3.attn_q.weight", "pairs")
    assert llama.place("model.layers.3.self_attn.rotary_emb.inv_freq") is None
    with pytest.raises(Unsupported, match=r"model\.layers\.0\.adapter\.weight"):
        llama.place("model.layers.0.adapter.weight")


@pytest.mark.parametrize(
    ("precision", "kinds"), [("bf16", "BF16"), ("int8", "Q8_0"), ("int4", "Q4_0, Q8_0"), ("fp32", "F32")]
)
def test_what_ran_is_what_lies_in_the_file(
    precision: str, kinds: str, artifact_of: ArtifactOf, engine: LlamaCppEngine
) -> None:
    actual = engine.load(_plan(precision), artifact_of("llama-gqa-tied", precision))
    assert actual.details["types"] == kinds
    assert actual.quantized_share == (1.0 if precision.startswith("int") else None)
    assert actual.kernel.startswith("ggml ")


def test_weights_of_another_type_are_never_called_int8(artifact_of: ArtifactOf, engine: LlamaCppEngine) -> None:
    with pytest.raises(EngineError, match=r"only 0\.0% .* in \S*model\.gguf are integers"):
        engine.load(_plan("int8"), artifact_of("gpt2"))
    with pytest.raises(EngineError, match="holds Q8_0, and a plan of int4 runs Q4_0"):
        engine.load(_plan("int4"), artifact_of("gpt2", "int8"))


@pytest.mark.parametrize(
    "options",
    [
        {"mmap": False},
        {"flash": "off"},
        {"flash": "on"},
        {"kv_type": "f16"},
        {"prefill_threads": 1},
        {"ubatch": 64},
        {"repack": False},
    ],
    ids=lambda options: "-".join(options),
)
def test_every_option_runs(options: dict[str, OptionValue], artifact_of: ArtifactOf, engine: LlamaCppEngine) -> None:
    plan = Plan("tiny", "llamacpp", "int8", options=tuple(options.items()))
    engine.load(plan, artifact_of("gpt2", "int8"))
    assert len(list(engine.generate(PROMPT, 8))) == 8


def test_a_request_longer_than_the_first_context_gives_the_same_start(
    artifact_of: ArtifactOf, engine: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inferplan.engines.llamacpp._FIRST_CONTEXT", 64)
    engine.load(_plan(), artifact_of("llama-gqa-tied"))
    short = list(engine.generate(PROMPT, 16))
    assert list(engine.generate(PROMPT, 128))[:16] == short


def test_a_request_may_fill_the_whole_context(
    checkpoint_of: Make, artifact_of: ArtifactOf, engine: LlamaCppEngine
) -> None:
    engine.load(_plan(), artifact_of("gpt2"))
    output = list(engine.generate(PROMPT, 256 - len(PROMPT)))
    assert len(output) == 256 - len(PROMPT)
    assert first_difference(checkpoint_of("gpt2"), PROMPT, output, GELU_TIE) is None


def test_heads_that_are_no_whole_blocks_cannot_be_kept_as_q8_0(artifact_of: ArtifactOf, engine: LlamaCppEngine) -> None:
    with pytest.raises(Unsupported, match="blocks of 32; a head here has 16"):
        engine.load(_plan("int8", kv_type="q8_0"), artifact_of("gpt2", "int8"))


def test_values_as_q8_0_need_flash_attention() -> None:
    for plan in (_plan(kv_type="q8_0"), _plan("int8", kv_type="q8_0", flash="off")):
        assert "only with flash attention" in (LlamaCppEngine().unsupported(plan) or "")
    assert LlamaCppEngine().unsupported(_plan("int8", kv_type="q8_0")) is None


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system cannot pin a process")
def test_threads_that_spin_beside_a_busy_neighbour_are_recognized(artifact_of: ArtifactOf) -> None:
    """A plan with 2 threads becomes many times slower then (benchmarks/waiting_policy.py): no such sample counts."""
    cpus = tuple(sorted(os.sched_getaffinity(0)))[:2]
    # Long enough that the neighbour gets a turn within each, and ended where it took most of the turns.
    requests = tuple(Request(index, PROMPT, 200) for index in range(6))
    plan = _plan(threads=2, spin=300_000)
    trial = Trial(plan, artifact_of("llama-gqa-tied"), 1, requests, cpus=cpus, cut_after_s=2.0)
    info, watch = measure.describe("llamacpp"), measure.Watch(cores=2)
    alone = measure.measure(trial, info, watch)
    busy = f"import os\nos.sched_setaffinity(0, [{cpus[0]}])\nwhile True: pass"
    neighbour = subprocess.Popen([sys.executable, "-c", busy])
    try:
        beside = measure.measure(trial, info, watch)
    finally:
        neighbour.kill()
        neighbour.wait()
    assert (alone.status, beside.status) == ("ok", "ok"), beside.reason
    fastest = min(sample.latency_s for sample in alone.samples)
    assert any(sample.disturbed for sample in beside.samples)
    assert all(sample.disturbed for sample in beside.samples if sample.latency_s > 4 * fastest)


def test_without_a_kv_cache_is_a_reason() -> None:
    assert "always keeps keys and values" in (LlamaCppEngine().unsupported(_plan(kv_cache=False)) or "")


def test_a_damaged_checkpoint_is_named_by_the_conversion(checkpoint_of: Make, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in checkpoint_of("gpt2").iterdir():
        data = file.read_bytes()
        (broken / file.name).write_bytes(data if file.suffix == ".json" else data[: len(data) // 2])
    with pytest.raises(ArtifactError, match=r"model\.safetensors"):
        LlamaCppEngine().convert(broken, _plan(), tmp_path)


@pytest.mark.parametrize("cut", [2, 20, 300, 5000, -40])
def test_a_file_cut_anywhere_is_named(cut: int, artifact_of: ArtifactOf, tmp_path: Path) -> None:
    path = tmp_path / MODEL_NAME
    path.write_bytes((artifact_of("gpt2") / MODEL_NAME).read_bytes()[:cut])
    with pytest.raises(ArtifactError, match=r"model\.gguf is corrupt"):
        read_gguf(path)


@pytest.mark.parametrize(
    ("prompt", "count", "why"), [((), 4, "no tokens"), ((320,), 4, "ids 0 to 319"), ((5,), 256, "context of 256")]
)
def test_a_request_that_cannot_be_is_refused(
    prompt: tuple[int, ...], count: int, why: str, artifact_of: ArtifactOf, engine: LlamaCppEngine
) -> None:
    engine.load(_plan(), artifact_of("gpt2"))
    with pytest.raises(InputError, match=why):
        engine.generate(prompt, count)
    engine.close()
    with pytest.raises(EngineError, match="before load"):
        engine.generate((5,), 1)


def test_a_missing_package_is_a_reason_with_the_remedy() -> None:
    code = (
        "import sys\n"
        "sys.modules['xllamacpp'] = None\n"
        "from inferplan.engines.llamacpp import LlamaCppEngine as E\n"
        "print(E().describe().lacks['engine'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=measure.worker_environment(), capture_output=True, text=True, check=True
    )
    assert "pip install inferplan[llamacpp]" in done.stdout


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_recipe_gives_the_same_tokens(
    precision: str, artifact_of: ArtifactOf, engine: LlamaCppEngine, tmp_path: Path
) -> None:
    plan = _plan(precision)
    script = measure.recipe(plan, "some/model")
    assert script is not None
    (tmp_path / "recipe.py").write_text(script)
    file = artifact_of("gpt2", precision)
    command = [sys.executable, "recipe.py", str(file / MODEL_NAME), "--ids", ",".join(map(str, PROMPT))]
    done = subprocess.run([*command, "--tokens", "16"], cwd=tmp_path, capture_output=True, text=True, check=True)
    engine.load(plan, file)
    assert json.loads(done.stdout.splitlines()[-1]) == list(engine.generate(PROMPT, 16))


@pytest.mark.parametrize(
    ("plan", "file", "made"),
    [
        (_plan(), "model.gguf", "convert_hf_to_gguf.py some/model --outtype f32 --outfile model.gguf\n"),
        (_plan("int8"), "model.gguf", "--outtype q8_0 --outfile model.gguf\n"),
        (_plan("int4"), "model-q4_0.gguf", "--output-tensor-type q8_0 model.gguf model-q4_0.gguf Q4_0\n"),
        (
            _plan("int4", int4="q4_k"),
            "model-q4_k.gguf",
            "--output-tensor-type q6_k model.gguf model-q4_k.gguf Q4_K_S\n",
        ),
        (_plan("q5_k"), "model.gguf", "or the Q5_K file of some/model as it is."),
    ],
    ids=str,
)
def test_the_recipe_says_where_its_file_comes_from(plan: Plan, file: str, made: str) -> None:
    script = LlamaCppEngine().native_recipe(plan, "some/model")
    compile(script, "recipe.py", "exec")
    assert f"python recipe.py {file} --prompt" in script
    assert made in script
