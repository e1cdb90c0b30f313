"""Makes a directory that holds a Llama of 1.17 billion parameters, with made-up weights.

For predictions to be tried on a model an order of magnitude larger than the shipped ones. The shape is that of
Llama 3.2 1B (its config.json on the hub) but for three things: the vocabulary, and with it the tokenizer, is
SmolLM2's, whose package is here; the last layer has weights of its own; the rotary embedding is the plain one.
Timings are those of any weights of this shape; texts mean nothing. The weights are drawn so that a quantized model can
still be told from a broken one: a token's embedding dominates what the layers add to it, so that their rounding errors
stay small, and the last layer does not know it, so that the next token is another one.

    python benchmarks/llama_1b.py build/llama-1b
    cd build && python ../benchmarks/record_space.py --models llama-1b --kv-cache on --threads 1 2 --rounds 1
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from _common import say

from inferplan import models
from inferplan._files import tokenizer_files
from inferplan.weights import save_stream

SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "dtype": "float32",
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"},
    "tie_word_embeddings": False,
    "use_cache": True,
}
_FROM = "smollm2-135m-instruct"
_VOCABULARY = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")
_ADDED = 0.3  # what all layers add to a token's embedding, of its length
_SEED = 0


def tensors(config: Mapping[str, int]) -> dict[str, tuple[tuple[int, ...], float]]:
    """By name, the shape and the standard deviation of each; 0: all are ones."""
    hidden, inner, size = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    heads, kv_heads = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    plain, layers = 1 / math.sqrt(hidden), config["num_hidden_layers"]
    adding = _ADDED / math.sqrt(2 * layers)
    found: dict[str, tuple[tuple[int, ...], float]] = {
        "model.embed_tokens.weight": ((config["vocab_size"], hidden), 1.0)
    }
    for layer in range(layers):
        at = f"model.layers.{layer}"
        found |= {
            f"{at}.input_layernorm.weight": ((hidden,), 0.0),
            f"{at}.self_attn.q_proj.weight": ((heads, hidden), plain),
            f"{at}.self_attn.k_proj.weight": ((kv_heads, hidden), plain),
            f"{at}.self_attn.v_proj.weight": ((kv_heads, hidden), plain),
            f"{at}.self_attn.o_proj.weight": ((hidden, heads), adding / math.sqrt(heads)),
            f"{at}.post_attention_layernorm.weight": ((hidden,), 0.0),
            f"{at}.mlp.gate_proj.weight": ((inner, hidden), plain),
            f"{at}.mlp.up_proj.weight": ((inner, hidden), plain),
            f"{at}.mlp.down_proj.weight": ((hidden, inner), adding / math.sqrt(inner)),
        }
    return found | {"model.norm.weight": ((hidden,), 0.0), "lm_head.weight": ((config["vocab_size"], hidden), plain)}


def drawn(shapes: Mapping[str, tuple[tuple[int, ...], float]]) -> Iterator[bytes]:
    """The tensors as they lie in a file, float32."""
    import numpy as np

    draw = np.random.default_rng(_SEED)
    for shape, spread in shapes.values():
        if not spread:
            yield np.ones(shape, np.float32).tobytes()
        else:
            yield (draw.standard_normal(shape, np.float32) * np.float32(spread)).tobytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args().directory
    like = models.resolve(_FROM, notify=say).path
    vocabulary = json.loads((like / "config.json").read_text(encoding="utf-8"))
    directory.mkdir(parents=True, exist_ok=True)
    for file in tokenizer_files(like):
        shutil.copy(file, directory / file.name)
    config = {**SHAPE, **{key: vocabulary[key] for key in _VOCABULARY}}
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    shapes = tensors(config)
    count = sum(math.prod(shape) for shape, _ in shapes.values())
    say(f"drawing {count / 1e6:.0f} million parameters")
    save_stream(directory / "model.safetensors", {name: shape for name, (shape, _) in shapes.items()}, drawn(shapes))
    print(f"{directory}: Llama 3.2 1B's shape, tokenizer of {_FROM}, weights drawn with seed {_SEED}")


if __name__ == "__main__":
    main()
