"""Which Hugging Face architectures llama.cpp runs, and what it calls their settings and tensors; standard library only.

Owns names, settings and the order of a tensor's rows. Leaves reading, quantizing and writing to `_llamacpp_convert`.
The names are llama.cpp's own: github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/constants.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import Unsupported

Change = Literal["", "transpose", "pairs", "pairs-kv", "add-one", "split-qkv"]
"""What becomes of a tensor: Conv1D is transposed; rows of Q and K are ordered so that those which a rotary embedding
turns together are neighbours; a norm that stores its weight less one gets it back; QKV by head becomes Q, K, V."""
Settings = dict[str, int | float | bool]

_LAYER = re.compile(r"^(.*\.)?(?:layers|h)\.(\d+)\.(.+)$")
_IGNORED = re.compile(r"(rotary_emb\.inv_freq|\.attn\.bias|\.attn\.masked_bias|\.attention\.(masked_)?bias)$")


@dataclass(frozen=True, slots=True)
class Architecture:
    """One architecture of llama.cpp.

    Attributes:
        name: llama.cpp's name, the prefix of its settings.
        settings: reads them from a config.json; raises Unsupported for what llama.cpp would pass over.
        outer: tensors outside the layers, ours -> theirs, without `.weight`.
        inner: those inside one layer.
        changes: by llama.cpp's name without the layer.
    """

    name: str
    settings: Callable[[Mapping[str, Any]], Settings]
    outer: Mapping[str, str]
    inner: Mapping[str, str]
    changes: Mapping[str, Change]

    def place(self, tensor: str) -> tuple[str, Change] | None:
        """llama.cpp's name of a checkpoint's tensor and what becomes of it; None: it is not needed.

        Raises:
            Unsupported: llama.cpp has no place for it.
        """
        if _IGNORED.search(tensor):
            return None
        base, _, part = tensor.rpartition(".")
        if part not in ("weight", "bias"):
            raise Unsupported(f"llama.cpp has no place for the tensor {tensor} in {self.name}")
        if found := _LAYER.match(base):
            theirs = self.inner.get(found[3])
            full = f"blk.{found[2]}.{theirs}.{part}"
        else:
            theirs = self.outer.get(base.removeprefix("model.").removeprefix("transformer.").removeprefix("gpt_neox."))
            full = f"{theirs}.{part}"
        if theirs is None:
            raise Unsupported(f"llama.cpp has no place for the tensor {tensor} in {self.name}")
        return full, self.changes.get(f"{theirs}.{part}", self.changes.get(theirs, ""))


def architecture(config: Mapping[str, Any]) -> Architecture:
    """The architecture of a config.json.

    Raises:
        Unsupported: llama.cpp has none, or we do not convert it.
    """
    kind = config.get("model_type")
    if kind in _NOT_IN_LLAMACPP:
        raise Unsupported(f"llama.cpp does not run {kind}: {_NOT_IN_LLAMACPP[kind]}")
    if kind not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise Unsupported(f"the llamacpp engine does not convert {kind!r}; it converts {known}")
    return ARCHITECTURES[kind]


_NOT_IN_LLAMACPP = {"opt": "it has no graph for its learned positions with their offset"}


def _rope(config: Mapping[str, Any]) -> tuple[float, float]:
    """Base of the rotary frequencies and the share of each head that is turned, from either layout of config.json."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise Unsupported(f"the llamacpp engine does not convert rotary embeddings of type {kind!r}")
    base = rope.get("rope_theta", config.get("rope_theta", config.get("rotary_emb_base", 10000.0)))
    share = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", config.get("rotary_pct", 1.0)))
    return float(base), float(share)


def _heads(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Heads, heads of keys and values, and the size of one."""
    heads = int(config["num_attention_heads"])
    size = int(config.get("head_dim") or config["hidden_size"] // heads)
    return heads, int(config.get("num_key_value_heads") or heads), size


def _refuse_window(config: Mapping[str, Any]) -> None:
    if config.get("sliding_window") and config.get("use_sliding_window", True):
        raise Unsupported(
            f"llama.cpp runs {config['model_type']} without its sliding window of {config['sliding_window']} tokens"
        )


def _refuse_activation(config: Mapping[str, Any], *known: str) -> None:
    found = config.get("activation_function") or config.get("hidden_activation") or config.get("hidden_act")
    if found is not None and found not in known:
        raise Unsupported(f"llama.cpp runs {config['model_type']} with {known[0]} only, and this one has {found}")


def _llama_like(config: Mapping[str, Any]) -> Settings:
    _refuse_window(config)
    if config["model_type"] == "gemma":
        _refuse_activation(config, "gelu_pytorch_tanh", "gelu")  # "gelu" in old files; transformers takes tanh for it
    else:
        _refuse_activation(config, "silu")
    heads, heads_kv, size = _heads(config)
    base, _ = _rope(config)
    return {
        "context_length": int(config["max_position_embeddings"]),
        "embedding_length": int(config["hidden_size"]),
        "block_count": int(config["num_hidden_layers"]),
        "feed_forward_length": int(config["intermediate_size"]),
        "attention.head_count": heads,
        "attention.head_count_kv": heads_kv,
        "attention.key_length": size,
        "attention.value_length": size,
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.dimension_count": size,
        "rope.freq_base": base,
    }


def _gpt2(config: Mapping[str, Any]) -> Settings:
    _refuse_activation(config, "gelu_new", "gelu_pytorch_tanh")
    for name in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        if config.get(name):
            raise Unsupported(f"llama.cpp passes over {name} of this gpt2")
    width = int(config["n_embd"])
    return {
        "context_length": int(config["n_positions"]),
        "embedding_length": width,
        "block_count": int(config["n_layer"]),
        "feed_forward_length": int(config.get("n_inner") or 4 * width),
        "attention.head_count": int(config["n_head"]),
        "attention.layer_norm_epsilon": float(config.get("layer_norm_epsilon", 1e-5)),
    }


def _gpt_neox(config: Mapping[str, Any]) -> Settings:
    _refuse_activation(config, "gelu", "gelu_new", "gelu_fast")
    heads, _, size = _heads(config)
    base, share = _rope(config)
    return {
        "context_length": int(config["max_position_embeddings"]),
        "embedding_length": int(config["hidden_size"]),
        "block_count": int(config["num_hidden_layers"]),
        "feed_forward_length": int(config["intermediate_size"]),
        "attention.head_count": heads,
        "attention.layer_norm_epsilon": float(config["layer_norm_eps"]),
        "rope.dimension_count": int(size * share),
        "rope.freq_base": base,
        "use_parallel_residual": bool(config.get("use_parallel_residual", True)),
    }


_OUTER = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
_INNER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_PAIRS: dict[str, Change] = {"attn_q": "pairs", "attn_k": "pairs-kv"}
_GEMMA: dict[str, Change] = dict.fromkeys(("attn_norm", "ffn_norm", "output_norm"), "add-one")
_CONV1D: dict[str, Change] = dict.fromkeys(
    ("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight"), "transpose"
)
ARCHITECTURES = {
    "gpt2": Architecture(
        "gpt2",
        _gpt2,
        {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm", "lm_head": "output"},
        {
            "ln_1": "attn_norm",
            "attn.c_attn": "attn_qkv",
            "attn.c_proj": "attn_output",
            "ln_2": "ffn_norm",
            "mlp.c_fc": "ffn_up",
            "mlp.c_proj": "ffn_down",
        },
        _CONV1D,
    ),
    "llama": Architecture("llama", _llama_like, _OUTER, _INNER, _PAIRS),
    "mistral": Architecture("llama", _llama_like, _OUTER, _INNER, _PAIRS),
    "qwen2": Architecture("qwen2", _llama_like, _OUTER, _INNER, {}),
    "qwen3": Architecture("qwen3", _llama_like, _OUTER, _INNER, {}),
    "gemma": Architecture("gemma", _llama_like, _OUTER, _INNER, _GEMMA),
    "gpt_neox": Architecture(
        "gptneox",
        _gpt_neox,
        {"embed_in": "token_embd", "final_layer_norm": "output_norm", "embed_out": "output"},
        {
            "input_layernorm": "attn_norm",
            "attention.query_key_value": "attn_qkv",
            "attention.dense": "attn_output",
            "post_attention_layernorm": "ffn_norm",
            "mlp.dense_h_to_4h": "ffn_up",
            "mlp.dense_4h_to_h": "ffn_down",
        },
        {"attn_qkv": "split-qkv"},
    ),
}
