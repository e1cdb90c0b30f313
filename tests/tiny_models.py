"""Tiny seeded checkpoints of many architectures, for the tests of engines, and what transformers says of them.

Owns weights that are spread out, so that greedy output varies and a wrong bias or norm is noticed. Needs torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PROMPT = (5, 17, 3, 42, 8, 99, 23)
VOCABULARY = 320
PADDED = "llama-padded-vocabulary"
TOKENIZER_SIZE = 300  # of `PADDED`; its weights have rows for ids beyond, as if to reach a round number
_ROPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": 64,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 256,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", _GPT2),
    "gpt2-odd-vocabulary": ("gpt2", {**_GPT2, "vocab_size": 317}),
    "gpt2-large-epsilon": ("gpt2", {**_GPT2, "layer_norm_epsilon": 0.3}),
    "llama-gqa-tied": ("llama", {**_ROPE, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "llama-untied": ("llama", {**_ROPE, "num_key_value_heads": 4, "tie_word_embeddings": False}),
    PADDED: ("llama", {**_ROPE, "num_key_value_heads": 2, "tie_word_embeddings": False}),
    "llama-theta-100000": (
        "llama",
        {**_ROPE, "num_key_value_heads": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}},
    ),
    "qwen2": ("qwen2", {**_ROPE, "num_key_value_heads": 2, "tie_word_embeddings": False}),
    "qwen3": ("qwen3", {**_ROPE, "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True}),
    "gpt_neox": ("gpt_neox", {**_ROPE, "tie_word_embeddings": False}),
    "opt": ("opt", {**_ROPE, "ffn_dim": 96, "word_embed_proj_dim": 64, "init_std": 0.2}),
    "gemma": ("gemma", {**_ROPE, "num_key_value_heads": 1, "head_dim": 16, "tie_word_embeddings": True}),
    "mistral-sliding": (
        "mistral",
        {**_ROPE, "num_key_value_heads": 2, "sliding_window": 16, "tie_word_embeddings": False},
    ),
}
_WIDTHS = {"hidden_size", "intermediate_size", "head_dim", "n_embd", "ffn_dim", "word_embed_proj_dim"}
Make = Callable[[str], Path]


def library_model(name: str, width: int = 1) -> Any:
    """transformers' own model of that name in `CONFIGS`, `width` times as wide; the same weights every time."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, settings = CONFIGS[name]
    settings = {key: width * value if key in _WIDTHS else value for key, value in settings.items()}
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings)).eval()
    for parameter in model.parameters():  # biases and norms start at 0 and 1: a wrong one would not be noticed
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def write_checkpoint(name: str, directory: Path, width: int = 1) -> Path:
    """Fill `directory` with that model; the padded one has a tokenizer, which knows fewer ids than the weights."""
    library_model(name, width).save_pretrained(directory)
    if name == PADDED:
        from tokenizers import Tokenizer
        from tokenizers.models import WordLevel

        words = {str(token): token for token in range(TOKENIZER_SIZE)}
        Tokenizer(WordLevel(words, unk_token="0")).save(str(directory / "tokenizer.json"))
        told = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "0", "bos_token": "1", "eos_token": "2"}
        (directory / "tokenizer_config.json").write_text(json.dumps(told))
    return directory


def greedy(model: Any, prompt: Sequence[int], count: int) -> list[int]:
    """The reference's own greedy tokens, `count` of them, end of sequence ignored."""
    import torch

    ids = torch.tensor([list(prompt)])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    found: list[int] = out[0, len(prompt) :].tolist()
    return found


def reference_of(name: str) -> Callable[[Sequence[int], int], list[int]]:
    """What `EngineContract` compares with: greedy tokens of the model of that name."""
    model = library_model(name)
    return lambda prompt, count: greedy(model, prompt, count)
