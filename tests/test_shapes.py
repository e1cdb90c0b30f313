"""Shapes: sizes of a transformer from its config alone, against the library's own models."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferplan.errors import ModelError
from inferplan.models import SHIPPED
from inferplan.shapes import bits, shape_of
from tiny_models import CONFIGS, library_model


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_of_the_library_model_is_counted(name: str) -> None:
    model = library_model(name)
    shape = shape_of(json.loads(model.config.to_json_string(use_diff=False)))
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    in_layers = sum(p.numel() for key, p in model.named_parameters() if p.dim() == 2 and _in_a_layer(key))
    assert shape.layers * shape.linear_per_layer == in_layers


def _in_a_layer(key: str) -> bool:
    return any(part in key for part in ("layers.", ".h."))


@pytest.mark.parametrize(
    ("name", "parameters"), [("gpt2", 124_439_808), ("distilgpt2", 81_912_576), ("smollm2-135m-instruct", 134_515_008)]
)
def test_shipped_models_have_their_published_counts(name: str, parameters: int) -> None:
    config: dict[str, Any] = json.loads((SHIPPED[name].config / "config.json").read_text(encoding="utf-8"))
    assert shape_of(config).parameters == parameters


def test_grouped_query_attention_keeps_fewer_keys_and_values() -> None:
    wide = shape_of(CONFIGS["llama-untied"][1] | {"model_type": "llama"})
    narrow = shape_of(CONFIGS["llama-gqa-tied"][1] | {"model_type": "llama"})
    assert wide.kv_bytes_per_token(4) == 2 * narrow.kv_bytes_per_token(4) == 2 * 3 * 64 * 4


@given(st.integers(1, 500), st.integers(1, 500))
def test_more_tokens_take_more_flops(a: int, b: int) -> None:
    shape = shape_of(CONFIGS["qwen2"][1] | {"model_type": "qwen2"})
    assert (shape.prefill_flops(a) < shape.prefill_flops(b)) == (a < b)
    assert (shape.decode_flops(a) < shape.decode_flops(b)) == (a < b)
    assert shape.prefill_flops(1) == shape.decode_flops(1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": None}, "no hidden_size"),
        ({"hidden_size": "wide"}, "hidden_size must be a positive whole number"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_local_experts": 8}, "mixture of experts"),
    ],
)
def test_a_config_that_tells_too_little_is_refused_by_its_key(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        shape_of(CONFIGS["llama-untied"][1] | {"model_type": "llama"} | change)


@pytest.mark.parametrize(
    ("precision", "count"), [("fp32", 32), ("bf16", 16), ("int8", 8), ("int4", 4.5), ("q4_k", 4.5), ("q8_0", 8.5)]
)
def test_a_precision_says_its_bits(precision: str, count: float) -> None:
    assert bits(precision) == count


def test_a_precision_that_does_not_say_its_bits_is_refused() -> None:
    with pytest.raises(ModelError, match="tiny"):
        bits("tiny")
