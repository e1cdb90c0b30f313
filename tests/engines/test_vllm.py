"""The vLLM engine: the contract through real workers in its own environment, and architectures against transformers.

Nearly all of it needs `inferplan engines install vllm`, in the user's own place, and is skipped without.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from inferplan import environments, measure
from inferplan._remote_engine import open_engine
from inferplan.engines.base import Engine, EngineInfo
from inferplan.engines.vllm import FIRST_ROOM, VllmEngine
from inferplan.errors import ArtifactError, EngineError, InputError, Unsupported
from inferplan.measurement import Measurement, Request, Trial
from inferplan.plan import OptionValue, Plan
from inferplan.testing import EngineContract, Reference
from tiny_models import CONFIGS, PROMPT, Make, greedy, library_model, write_checkpoint

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

OURS = environments.directory()  # before the tests are given an empty cache of their own
TOKENS = 64
installed = pytest.mark.skipif(
    environments.installed("vllm") is None, reason="vllm is not installed: inferplan engines install vllm"
)
patient = pytest.mark.timeout(1800)  # vLLM takes 10 s and more to start, and minutes where others use the cores


@pytest.fixture(scope="module", autouse=True)
def _users_environments() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(environments.VARIABLE, str(OURS))
        yield


@pytest.fixture(scope="module")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Make:
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = write_checkpoint(name, tmp_path_factory.mktemp(name), width=2)
        return made[name]

    return make


@pytest.fixture(scope="module")
def info() -> EngineInfo:
    return measure.describe("vllm")


@pytest.fixture(scope="module")
def process(info: EngineInfo) -> Engine:
    """One process for many tests: importing vLLM is most of their time."""
    return open_engine("vllm", measure.worker_environment(_plan(), info))


@pytest.fixture
def engine(process: Engine) -> Iterator[Engine]:
    yield process
    process.close()


def _library(name: str) -> Any:
    """The tiny model of that name, twice as wide: vLLM has no attention for heads of 16."""
    return library_model(name, width=2)


def _plan(precision: str = "fp32", threads: int = 1, kv_cache: bool = True, **options: OptionValue) -> Plan:
    return Plan("tiny", "vllm", precision, threads, kv_cache, options=tuple(options.items()))


def _copy(source: Path, to: Path, **settings: Any) -> Path:
    """The checkpoint with other settings."""
    to.mkdir()
    for file in source.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**config, **settings}))
    return to


@installed
@patient
@pytest.mark.slow
class TestVllmContract(EngineContract):
    engine = "vllm"

    @pytest.fixture
    def checkpoint(self, checkpoint_of: Make) -> Path:
        return checkpoint_of("llama-gqa-tied")

    @pytest.fixture
    def reference(self) -> Reference:
        model = _library("llama-gqa-tied")

        def tokens(prompt: Sequence[int], count: int) -> list[int]:
            return greedy(model, prompt, count)

        return tokens

    def run(self, plan: Plan, artifact: Path, info: EngineInfo, prompts: Sequence[Sequence[int]]) -> Measurement:
        requests = tuple(Request(i, tuple(ids), self.max_tokens) for i, ids in enumerate(prompts))
        return measure.measure(Trial(plan, artifact, 1, requests), info, measure.Watch(cores=2, judge=False))


@installed
@patient
@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_fp32_gives_the_tokens_of_transformers(name: str, checkpoint_of: Make, engine: Engine) -> None:
    expected = greedy(_library(name), PROMPT, TOKENS)
    assert len(set(expected)) > 4, "a constant output would hide errors"
    engine.load(_plan(), checkpoint_of(name))
    assert list(engine.generate(PROMPT, TOKENS)) == expected


@installed
@patient
@pytest.mark.slow
def test_layers_that_see_a_window_between_others_have_room(engine: Engine, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    _, settings = CONFIGS["gemma"]
    wide = {**settings, "hidden_size": 128, "head_dim": 32, "num_hidden_layers": 6, "sliding_window": 16}
    layers = ["sliding_attention"] * 5 + ["full_attention"]
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gemma3_text", **wide, layer_types=layers)).eval()
    model.save_pretrained(tmp_path)
    engine.load(_plan(), tmp_path)
    assert list(engine.generate(PROMPT, 200)) == greedy(model, PROMPT, 200)


@installed
@patient
@pytest.mark.slow
def test_what_ran_is_read_from_the_model(checkpoint_of: Make, engine: Engine, info: EngineInfo) -> None:
    for precision in info.precisions:
        actual = engine.load(_plan(precision), checkpoint_of("llama-gqa-tied"))
        kind = {"fp32": "float32", "bf16": "bfloat16"}[precision]
        assert (actual.dtype, actual.weights, actual.threads) == (kind, kind, 1)
        assert (actual.details["kv_type"], actual.details["kv_tokens"]) == (kind, "256")
        blocks = 256 // 128 + 1
        assert int(actual.details["kv_bytes"]) == 2 * 3 * 2 * 32 * 128 * blocks * (4 if precision == "fp32" else 2)


@installed
@patient
@pytest.mark.slow
def test_a_request_longer_than_the_first_room_is_answered(checkpoint_of: Make, engine: Engine, tmp_path: Path) -> None:
    long = _copy(checkpoint_of("llama-untied"), tmp_path / "long", max_position_embeddings=2 * FIRST_ROOM)
    engine.load(_plan(), long)
    model = _library("llama-untied")
    prompt = [i * 7 % 320 for i in range(FIRST_ROOM + 3)]
    assert list(engine.generate(prompt, 4)) == greedy(model, prompt, 4)


@installed
@patient
@pytest.mark.slow
def test_a_request_that_cannot_be_is_refused(checkpoint_of: Make, engine: Engine) -> None:
    engine.load(_plan(), checkpoint_of("gpt2"))
    for prompt, count, why in (((), 4, "no tokens"), ((320,), 4, "ids 0 to 319"), ((5,), 256, "context of 256")):
        with pytest.raises(InputError, match=why):
            engine.generate(prompt, count)
    engine.close()
    with pytest.raises(EngineError, match="before load"):
        engine.generate((5,), 1)


@installed
@patient
@pytest.mark.slow
def test_heads_that_vllm_has_no_attention_for_are_unsupported(engine: Engine, tmp_path: Path) -> None:
    library_model("gpt2").save_pretrained(tmp_path)
    with pytest.raises(Unsupported, match="no attention on a CPU for heads of 16; it has for 32, 64"):
        engine.load(_plan(), tmp_path)


@installed
@patient
@pytest.mark.slow
def test_an_architecture_that_vllm_does_not_know_is_unsupported(
    checkpoint_of: Make, engine: Engine, tmp_path: Path
) -> None:
    for name, architecture in (("ctrl", "CTRLLMHeadModel"), ("no_such_model", "NoSuchForCausalLM")):
        other = _copy(checkpoint_of("gpt2"), tmp_path / name, architectures=[architecture], model_type=name)
        with pytest.raises(Unsupported, match="vLLM does not run this model"):
            engine.load(_plan(), other)


@installed
@patient
@pytest.mark.slow
def test_compiled_it_gives_the_same_tokens(checkpoint_of: Make, info: EngineInfo, tmp_path: Path) -> None:
    if True not in {axis.name: axis.values for axis in info.axes}["compile"]:
        pytest.skip("there is no C++ compiler")
    plan = _plan(compile=True)
    env = {**measure.worker_environment(plan, info), "VLLM_CACHE_ROOT": str(tmp_path)}
    engine = open_engine("vllm", {**env, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)})
    actual = engine.load(plan, checkpoint_of("llama-gqa-tied"))
    assert actual.details["compile"] == "inductor"
    assert list(engine.generate(PROMPT, TOKENS)) == greedy(_library("llama-gqa-tied"), PROMPT, TOKENS)


@installed
@patient
@pytest.mark.slow
def test_the_recipe_gives_the_same_tokens(checkpoint_of: Make, tmp_path: Path) -> None:
    script = measure.recipe(_plan(), str(checkpoint_of("llama-gqa-tied")))
    assert script is not None
    (tmp_path / "recipe.py").write_text(script)
    python = environments.interpreter("vllm")
    command = [*python, "recipe.py", "--ids", ",".join(map(str, PROMPT)), "--tokens", "16"]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == greedy(_library("llama-gqa-tied"), PROMPT, 16)


@installed
@pytest.mark.parametrize(
    ("plan", "why"),
    [
        (_plan(kv_cache=False), "always keeps keys and values"),
        (_plan("int8"), "quantizes nothing"),
        (_plan("int4"), "INT4 weights only from a checkpoint that another tool"),
        (_plan(compile="yes"), "compile cannot be 'yes'"),
    ],
    ids=lambda value: value.id if isinstance(value, Plan) else "",
)
def test_what_cannot_run_is_a_reason(plan: Plan, why: str, process: Engine) -> None:
    assert why in (process.unsupported(plan) or "")


@installed
def test_a_cut_file_is_named_before_vllm_is_started(checkpoint_of: Make, process: Engine, tmp_path: Path) -> None:
    broken = _copy(checkpoint_of("gpt2"), tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(ArtifactError, match=r"model\.safetensors is truncated"):
        process.load(_plan(), broken)
    (broken / "config.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"config\.json cannot be read"):
        process.load(_plan(), broken)


@installed
def test_threads_and_waiting_reach_the_environment_of_the_process(info: EngineInfo) -> None:
    env = measure.worker_environment(_plan(threads=2, spin=0), info)
    assert (env["OMP_NUM_THREADS"], env["GOMP_SPINCOUNT"]) == ("2", "0")
    assert env["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"


def test_without_its_environment_it_is_a_reason_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(environments.VARIABLE, str(tmp_path))
    lacks = measure.describe("vllm").lacks
    assert "inferplan engines install vllm" in lacks.get("engine", "") or VllmEngine().describe().version


def test_the_recipe_is_a_program_whatever_the_names_hold() -> None:
    plan = Plan('a"""b\\', "vllm", "bf16", 2)
    text = VllmEngine().native_recipe(plan, "dir with 'quotes'/\"model\"")
    compile(text, "recipe.py", "exec")
    assert "'bfloat16'" in text
