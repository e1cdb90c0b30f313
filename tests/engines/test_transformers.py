"""The transformers engine against the library's own `generate`, on tiny seeded models of several architectures."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from inferplan.engines._cpu import sums_bytes_exactly
from inferplan.engines.base import EngineInfo
from inferplan.engines.transformers import MIN_INT8_SHARE, TransformersEngine, native_recipe
from inferplan.errors import ArtifactError, EngineError, InputError, Unsupported
from inferplan.plan import Plan
from tiny_models import CONFIGS, PADDED, PROMPT, TOKENIZER_SIZE, VOCABULARY, Make, greedy, library_model

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

TOKENS = 64


@pytest.fixture(scope="session")
def int8_artifact(checkpoint_of: Make, tmp_path_factory: pytest.TempPathFactory) -> Make:
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(f"{name}-int8")
            TransformersEngine().convert(checkpoint_of(name), _plan(precision="int8"), made[name])
        return made[name]

    return make


@pytest.fixture
def engine() -> Iterator[TransformersEngine]:
    made = TransformersEngine()
    yield made
    made.close()


def _plan(precision: str = "fp32", kv_cache: bool = True, **options: str) -> Plan:
    return Plan("tiny", "transformers", precision, 1, kv_cache, options=tuple(options.items()))


def _reference(name: str, tokens: int) -> list[int]:
    return greedy(library_model(name), PROMPT, tokens)


@pytest.mark.parametrize("name", CONFIGS)
def test_fp32_gives_the_tokens_of_the_librarys_own_generate(
    name: str, checkpoint_of: Make, engine: TransformersEngine
) -> None:
    expected = _reference(name, TOKENS)
    assert len(set(expected)) > 4, "a constant output would hide errors"
    for kv_cache in (True, False):
        engine.load(_plan(kv_cache=kv_cache), checkpoint_of(name))
        assert list(engine.generate(PROMPT, TOKENS)) == expected, f"kv_cache={kv_cache}"


def test_a_padded_vocabularys_last_ids_are_chosen_too(checkpoint_of: Make) -> None:
    """What makes `PADDED` a test, here and in every other engine that is compared on `CONFIGS`."""
    from transformers import AutoTokenizer

    assert len(AutoTokenizer.from_pretrained(checkpoint_of(PADDED))) == TOKENIZER_SIZE
    assert max(_reference(PADDED, TOKENS)) >= TOKENIZER_SIZE


def test_eager_attention_gives_the_same_tokens_and_is_recorded(checkpoint_of: Make, engine: TransformersEngine) -> None:
    actual = engine.load(_plan(attention="eager"), checkpoint_of("llama-gqa-tied"))
    assert actual.attention == "eager"
    assert list(engine.generate(PROMPT, TOKENS)) == _reference("llama-gqa-tied", TOKENS)


@pytest.mark.parametrize("name", CONFIGS)
def test_int8_runs_every_linear_layer_in_int8_and_stays_close_to_fp32(
    name: str, int8_artifact: Make, engine: TransformersEngine
) -> None:
    actual = engine.load(_plan(precision="int8"), int8_artifact(name))
    assert actual.weights == "int8"
    assert actual.scheme == "dynamic"
    assert actual.quantized_share is not None
    assert actual.quantized_share >= MIN_INT8_SHARE
    assert len(list(engine.generate(PROMPT, TOKENS))) == TOKENS
    ids = torch.tensor([PROMPT])
    with torch.inference_mode():
        ours = engine.model(input_ids=ids, use_cache=False).logits[0]
        exact = library_model(name)(ids).logits[0]
        whole = _rounded(name, 255)(ids).logits[0]
        here = whole if sums_bytes_exactly() else _rounded(name, 127)(ids).logits[0]
    assert _apart(ours, here) < 0.02  # a value between two steps may fall to either
    assert 0 < _apart(ours if sums_bytes_exactly() else whole, exact) < 0.1


def _rounded(name: str, levels: int) -> Any:
    """The library's model at FP32 with what INT8 rounds: weights by output channel, activations by call to `levels`.

    They are 127 where the CPU cannot add products of full bytes (`sums_bytes_exactly`).
    """

    def round_input(_: Any, given: tuple[Any, ...]) -> Any:
        low, high = given[0].min().clamp(max=0), given[0].max().clamp(min=0)
        step = (high - low) / levels
        zero = (-low / step).round()
        return ((given[0] / step + zero).round().clamp(0, levels) - zero) * step

    model = library_model(name)
    for layer in model.modules():
        conv1d = type(layer).__name__ == "Conv1D"
        if conv1d or isinstance(layer, torch.nn.Linear):
            step = layer.weight.data.abs().amax(0 if conv1d else 1, keepdim=True) / 127
            step[step == 0] = 1.0  # the row of a padding token
            layer.weight.data = (layer.weight.data / step).round() * step  # a tied embedding is the same parameter
            layer.register_forward_pre_hook(round_input)
    return model


def _apart(ours: Any, theirs: Any) -> float:
    """The length of the difference, over that of the second."""
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("name", ["gpt2", "llama-gqa-tied", "qwen2"])
def test_the_artifact_holds_no_linear_weight_in_floating_point(name: str, int8_artifact: Make) -> None:
    header = _header(int8_artifact(name) / "model.safetensors")
    matrices = {key: item["dtype"] for key, item in header.items() if len(item["shape"]) == 2}
    tables = ("wpe.weight", "embed_tokens.weight") if name == "qwen2" else ("wpe.weight",)
    floats = [key for key, dtype in matrices.items() if dtype != "I8" and not key.endswith(tables)]
    assert floats == []
    assert "I8" in matrices.values()


def test_tied_embeddings_are_in_the_artifact_once(int8_artifact: Make) -> None:
    header = _header(int8_artifact("gpt2") / "model.safetensors")
    assert [key for key, item in header.items() if item["shape"] == [VOCABULARY, 64]] == ["transformer.wte.weight"]


def _header(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    header: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    del header["__metadata__"]
    return header


def test_fp32_linear_weights_left_in_an_int8_plan_are_an_error(
    int8_artifact: Make, engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    linears = importlib.import_module("inferplan.engines._transformers_linears")

    class Unpacked(linears.Int8Linear):  # type: ignore[misc, name-defined]
        def __init__(self, shape: tuple[int, int], *_: Any) -> None:
            torch.nn.Module.__init__(self)
            self.weight = torch.nn.Parameter(torch.zeros(shape), requires_grad=False)

        def forward(self, x: Any) -> Any:
            return torch.nn.functional.linear(x, self.weight)

    monkeypatch.setattr(importlib.import_module("inferplan.engines._transformers_model"), "Int8Linear", Unpacked)
    with pytest.raises(EngineError, match="ran in INT8"):
        engine.load(_plan(precision="int8"), int8_artifact("gpt2"))


def test_bf16_runs_its_products_in_bf16(checkpoint_of: Make, engine: TransformersEngine) -> None:
    if "bf16" in engine.describe().lacks:
        pytest.skip(engine.describe().lacks["bf16"])
    actual = engine.load(_plan(precision="bf16"), checkpoint_of("llama-gqa-tied"))
    assert actual.dtype == actual.weights == "bfloat16"
    assert "bfloat16" in actual.kernel
    assert "float32" not in actual.kernel
    assert len(list(engine.generate(PROMPT, 8))) == 8


def test_fp32_and_bf16_convert_writes_nothing(checkpoint_of: Make, tmp_path: Path) -> None:
    TransformersEngine().convert(checkpoint_of("gpt2"), _plan(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_sharded_checkpoint_gives_the_same_tokens(tmp_path: Path, engine: TransformersEngine) -> None:
    library_model("qwen2").save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    engine.load(_plan(), tmp_path)
    assert list(engine.generate(PROMPT, 8)) == _reference("qwen2", 8)


def test_checkpoint_of_the_bare_model_is_found_without_its_prefix(tmp_path: Path, engine: TransformersEngine) -> None:
    model = library_model("gpt2")
    model.save_pretrained(tmp_path)
    model.transformer.save_pretrained(tmp_path / "bare")
    shutil.copy(tmp_path / "bare" / "model.safetensors", tmp_path / "model.safetensors")
    engine.load(_plan(), tmp_path)
    assert list(engine.generate(PROMPT, 8)) == _reference("gpt2", 8)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("kept", [0, 5, 200, 20_000])
def test_truncated_weights_are_an_artifact_error_that_names_the_file(
    precision: str, kept: int, checkpoint_of: Make, int8_artifact: Make, tmp_path: Path, engine: TransformersEngine
) -> None:
    shutil.copytree((checkpoint_of if precision == "fp32" else int8_artifact)("gpt2"), tmp_path, dirs_exist_ok=True)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(ArtifactError, match=r"model\.safetensors"):
        engine.load(_plan(precision=precision), tmp_path)


def test_header_that_is_not_json_is_an_artifact_error(
    checkpoint_of: Make, tmp_path: Path, engine: TransformersEngine
) -> None:
    shutil.copytree(checkpoint_of("gpt2"), tmp_path, dirs_exist_ok=True)
    weights = tmp_path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[8:40] = b"\xff" * 32
    weights.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"model\.safetensors"):
        engine.load(_plan(), tmp_path)


def test_missing_tensor_is_named(checkpoint_of: Make, tmp_path: Path, engine: TransformersEngine) -> None:
    shutil.copytree(checkpoint_of("gpt2"), tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "n_layer": 4}))
    with pytest.raises(ArtifactError, match=r"h\.3\."):
        engine.load(_plan(), tmp_path)


def test_loading_an_fp32_checkpoint_as_int8_is_an_artifact_error(
    checkpoint_of: Make, engine: TransformersEngine
) -> None:
    with pytest.raises(ArtifactError, match="convert it again"):
        engine.load(_plan(precision="int8"), checkpoint_of("gpt2"))


def test_unknown_architecture_is_unsupported_with_its_name(tmp_path: Path, engine: TransformersEngine) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no_such_thing"}')
    with pytest.raises(Unsupported, match="no_such_thing"):
        engine.load(_plan(), tmp_path)


def test_closing_the_iterator_ends_the_request_and_the_next_one_is_right(
    checkpoint_of: Make, engine: TransformersEngine
) -> None:
    engine.load(_plan(step="library"), checkpoint_of("llama-gqa-tied"))
    calls = 0
    forward = engine.model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return forward(*args, **kwargs)

    engine.model.forward = counted
    first = engine.generate(PROMPT, 100)
    got = list(islice(first, 3))
    first.close()  # type: ignore[attr-defined]
    assert calls == 3
    assert got == list(engine.generate(PROMPT, 3))


def test_a_second_request_gives_the_same_and_a_longer_one_fits(checkpoint_of: Make, engine: TransformersEngine) -> None:
    engine.load(_plan(), checkpoint_of("gpt2"))
    once = list(engine.generate(PROMPT, 16))
    longer = list(engine.generate(PROMPT, 150))
    assert longer[:16] == once
    assert list(engine.generate(PROMPT, 16)) == once


@pytest.mark.parametrize(
    ("prompt", "tokens", "said"), [([], 4, "no tokens"), ([VOCABULARY], 4, str(VOCABULARY)), (PROMPT, 250, "256")]
)
def test_requests_that_cannot_be_answered_are_refused(
    prompt: list[int], tokens: int, said: str, checkpoint_of: Make, engine: TransformersEngine
) -> None:
    engine.load(_plan(), checkpoint_of("gpt2"))
    with pytest.raises(InputError, match=said):
        engine.generate(prompt, tokens)


def test_an_option_that_the_engine_lacks_is_rejected_with_the_known_values(engine: TransformersEngine) -> None:
    assert "sdpa" in (engine.unsupported(_plan(attention="flash")) or "")
    assert engine.unsupported(_plan(attention="eager")) is None


def test_missing_package_is_said_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("inferplan.engines.transformers")

    def absent(name: str) -> str:
        raise module.PackageNotFoundError(name)

    monkeypatch.setattr(module, "version", absent)
    info: EngineInfo = TransformersEngine().describe()
    assert "pip install torch transformers" in info.lacks["engine"]


def _run(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_and_describing_the_engine_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from inferplan.engines.transformers import TransformersEngine as E; E().describe(); "
        "print(any(n in sys.modules for n in ('torch', 'numpy')) or 'transformers' in sys.modules)"
    )
    assert _run(code).strip() == "False"


@pytest.mark.slow
def test_slim_import_leaves_the_compiler_out_and_nothing_patched(checkpoint_of: Make) -> None:
    code = """if True:
        import sys
        from pathlib import Path
        from inferplan.engines.transformers import TransformersEngine
        from inferplan.plan import Plan
        engine = TransformersEngine()
        actual = engine.load(Plan("tiny"), Path(sys.argv[1]))
        list(engine.generate([1, 2, 3], 4))
        assert actual.details["imports"] == "slim", actual
        held_back = ("torch._dynamo", "sympy", "scipy", "sklearn", "pandas", "torch.fx.experimental.symbolic_shapes")
        assert not [name for name in held_back if name in sys.modules]
        import torch, torch._dynamo
        assert torch._dynamo.__file__
        assert torch.compiler.disable.__module__ == "torch.compiler"
        assert torch.distributed.is_available.__module__ == "torch.distributed"
        from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex as real
        import transformers.masking_utils as masks
        with masks.TransformGetItemToIndex():
            pass
        assert isinstance(masks.TransformGetItemToIndex(), real)
        from transformers.utils import is_scipy_available
        import importlib.util
        assert is_scipy_available() == (importlib.util.find_spec("scipy") is not None)
    """
    _run(code, str(checkpoint_of("gpt2")))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_native_recipe_runs_the_plan_without_us(
    precision: str, checkpoint_of: Make, int8_artifact: Make, tmp_path: Path, engine: TransformersEngine
) -> None:
    plan = _plan(precision=precision)
    script = native_recipe(plan, str(checkpoint_of("gpt2")))
    assert "import inferplan" not in script
    assert "from inferplan" not in script
    (tmp_path / "recipe.py").write_text(script)
    arguments = ["--tokens", "12", "--ids", ",".join(map(str, PROMPT))]
    done = subprocess.run(
        [sys.executable, "-I", str(tmp_path / "recipe.py"), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    engine.load(plan, (int8_artifact if precision == "int8" else checkpoint_of)("gpt2"))
    assert json.loads(done.stdout.splitlines()[-1]) == list(engine.generate(PROMPT, 12))
