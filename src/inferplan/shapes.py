"""Shape: the sizes of a transformer, from its config.json alone; standard library only.

Owns parameter counts, bytes of weights and of the KV cache, and FLOPs. Leaves how long any of
it takes to `predict`, and reading a config to `_files`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ModelError

_BITS = {"fp32": 32.0, "bf16": 16.0, "fp16": 16.0, "f32": 32.0, "f16": 16.0}
_SCALE_BITS = 0.5  # of a block-wise quantized weight: a float16 scale for each 32, as GGUF's q4_0 has it
_INT8_BITS = 8.0  # one scale a row: next to nothing
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of one transformer; all counts are of elements, not bytes.

    Attributes:
        architecture: the config's `model_type`.
        layers, hidden, heads, kv_heads, head_dim, vocabulary: as the config has them.
        linear_per_layer: elements of the weight matrices of one layer.
        matrices_per_layer: how many those are: `q`, `k` and `v` count as one where they are stored as one.
        vectors_per_layer: elements of norms and biases of one layer.
        embedding: elements of the input embedding.
        last_layer: elements of the matrix that gives the logits, tied or not.
        tied: the last layer is the input embedding.
        other: the rest: position embeddings, final norm, projections around the layers.
    """

    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    linear_per_layer: int
    matrices_per_layer: int
    vectors_per_layer: int
    embedding: int
    last_layer: int
    tied: bool
    other: int

    @property
    def parameters(self) -> int:
        """All parameters, a tied last layer once: what the checkpoint's files hold."""
        per_layer = self.linear_per_layer + self.vectors_per_layer
        return self.layers * per_layer + self.embedding + (0 if self.tied else self.last_layer) + self.other

    @property
    def linear(self) -> int:
        """Elements of the matrices that one token is multiplied with: those of all layers, and the last layer."""
        return self.layers * self.linear_per_layer + self.last_layer

    def weight_bytes(self, precision: str) -> int:
        """Bytes of all parameters at `precision`, the scales of block-wise types included.

        Raises:
            ModelError: `precision` does not say its bits.
        """
        return round(self.parameters * bits(precision) / 8)

    def kv_bytes_per_token(self, element_bytes: float) -> int:
        """Bytes that the KV cache grows by with each token; `element_bytes` 4 for FP32, 2 for BF16."""
        return round(2 * self.layers * self.kv_heads * self.head_dim * element_bytes)

    def prefill_flops(self, tokens: int) -> float:
        """FLOPs of a prefill of `tokens`: two a weight and token, causal attention, one row of logits."""
        attention = 4 * self.layers * self.heads * self.head_dim * tokens * (tokens + 1) / 2
        return 2.0 * self.layers * self.linear_per_layer * tokens + attention + 2.0 * self.last_layer

    def decode_flops(self, context: int) -> float:
        """FLOPs of one decode step that sees `context` tokens, itself included."""
        return 2.0 * self.linear + 4.0 * self.layers * self.heads * self.head_dim * context


def bits(precision: str) -> float:
    """Bits of one weight at `precision`, of our names (`int4`) or a GGUF file's (`q4_1`), scales included.

    Raises:
        ModelError: the name does not say its bits.
    """
    if precision in _BITS:
        return _BITS[precision]
    found = re.match(r"(?:int|i?q)(\d)", precision)
    if found is None:
        raise ModelError(f"the precision {precision!r} does not say how many bits a weight has: use one such as int8")
    count = float(found[1])
    return _INT8_BITS if precision == "int8" else count + _SCALE_BITS


def shape_of(config: Mapping[str, Any]) -> Shape:
    """The shape that a model's config.json describes.

    gpt2, opt and gpt_neox have rules of their own; everything else is read by the
    keys that llama has, with what is known of qwen2, qwen3, gemma and mistral.

    Raises:
        ModelError: a key that is needed is missing or no positive whole number (named), or the
            model is a mixture of experts, whose tokens read only a part of the weights.
    """
    nested = config.get("text_config")
    if isinstance(nested, Mapping) and "hidden_size" not in config:
        config = nested
    for key in _EXPERTS:
        if isinstance(config.get(key), int) and config[key] > 1:
            raise ModelError(f"the config has {key} {config[key]}: a mixture of experts cannot be predicted yet")
    return _READERS.get(str(config.get("model_type")), _llama)(config)


def _int(config: Mapping[str, Any], *keys: str, default: int | None = None) -> int:
    """The first of `keys` that the config has."""
    for key in keys:
        value = config.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ModelError(f"the config's {key} must be a positive whole number, not {value!r}")
        return value
    if default is None:
        name = str(config.get("model_type") or "no model_type")
        raise ModelError(
            f"the config ({name}) has no {keys[0]}, which its shape cannot be told without: give the config.json of "
            "a decoder such as gpt2, llama, qwen2, opt, gpt_neox or gemma"
        )
    return default


def _tied(config: Mapping[str, Any], default: bool) -> bool:
    return bool(config.get("tie_word_embeddings", default))


def _gpt2(config: Mapping[str, Any]) -> Shape:
    hidden, heads = _int(config, "n_embd"), _int(config, "n_head")
    inner = _int(config, "n_inner", default=4 * hidden)
    embedding = _int(config, "vocab_size") * hidden
    return Shape(
        architecture="gpt2",
        layers=_int(config, "n_layer"),
        hidden=hidden,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        vocabulary=embedding // hidden,
        linear_per_layer=4 * hidden * hidden + 2 * hidden * inner,
        matrices_per_layer=4,
        vectors_per_layer=(3 + 1 + 1 + 4) * hidden + inner,  # biases of qkv, o, down; two norms; bias of up
        embedding=embedding,
        last_layer=embedding,
        tied=_tied(config, True),
        other=_int(config, "n_positions", "n_ctx") * hidden + 2 * hidden,
    )


def _gpt_neox(config: Mapping[str, Any]) -> Shape:
    hidden, heads = _int(config, "hidden_size"), _int(config, "num_attention_heads")
    inner = _int(config, "intermediate_size")
    embedding = _int(config, "vocab_size") * hidden
    attention_bias = 4 * hidden if config.get("attention_bias", True) else 0
    return Shape(
        architecture="gpt_neox",
        layers=_int(config, "num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        vocabulary=embedding // hidden,
        linear_per_layer=4 * hidden * hidden + 2 * hidden * inner,
        matrices_per_layer=4,
        vectors_per_layer=attention_bias + inner + hidden + 4 * hidden,
        embedding=embedding,
        last_layer=embedding,
        tied=_tied(config, False),
        other=2 * hidden,
    )


def _opt(config: Mapping[str, Any]) -> Shape:
    hidden, heads = _int(config, "hidden_size"), _int(config, "num_attention_heads")
    inner, vocabulary = _int(config, "ffn_dim"), _int(config, "vocab_size")
    width = _int(config, "word_embed_proj_dim", default=hidden)
    norm = 2 * hidden if config.get("layer_norm_elementwise_affine", True) else 0
    biases = 5 * hidden + inner if config.get("enable_bias", True) else 0
    last_norm = config.get("do_layer_norm_before", True) and not config.get("_remove_final_layer_norm", False)
    positions = _int(config, "max_position_embeddings") + 2  # its position embedding starts at 2
    around = 0 if width == hidden else 2 * width * hidden
    return Shape(
        architecture="opt",
        layers=_int(config, "num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        vocabulary=vocabulary,
        linear_per_layer=4 * hidden * hidden + 2 * hidden * inner,
        matrices_per_layer=6,
        vectors_per_layer=biases + 2 * norm,
        embedding=vocabulary * width,
        last_layer=vocabulary * width,
        tied=_tied(config, True),
        other=positions * hidden + (norm if last_norm else 0) + around,
    )


def _llama(config: Mapping[str, Any]) -> Shape:
    kind = str(config.get("model_type"))
    hidden, heads = _int(config, "hidden_size"), _int(config, "num_attention_heads")
    inner = _int(config, "intermediate_size")
    kv_heads = _int(config, "num_key_value_heads", default=heads)
    head_dim = _int(config, "head_dim", default={"qwen3": 128, "gemma": 256}.get(kind, hidden // heads))
    queries, keys = heads * head_dim, kv_heads * head_dim
    embedding = _int(config, "vocab_size") * hidden
    biases = 0
    if kind == "qwen2":  # always, whatever its config says
        biases = queries + 2 * keys
    elif config.get("attention_bias", False):
        biases = queries + 2 * keys + hidden
    if config.get("mlp_bias", False):
        biases += 2 * inner + hidden
    head_norms = 2 * head_dim if kind.startswith(("qwen3", "gemma3")) else 0
    norms = 4 if kind.startswith(("gemma2", "gemma3")) else 2
    return Shape(
        architecture=kind,
        layers=_int(config, "num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocabulary=embedding // hidden,
        linear_per_layer=2 * hidden * queries + 2 * hidden * keys + 3 * hidden * inner,
        matrices_per_layer=7,
        vectors_per_layer=biases + head_norms + norms * hidden,
        embedding=embedding,
        last_layer=embedding,
        tied=_tied(config, kind.startswith("gemma")),
        other=hidden,
    )


_READERS = {"gpt2": _gpt2, "gpt_neox": _gpt_neox, "opt": _opt}
