"""Conversion of a checkpoint for CTranslate2, with the library's own converter, in the converting process.

Owns the vocabulary (each token is named by its id: only ids are ever exchanged, so that padding and tokens without a
text are all alike) and the reasons of a refusal. Leaves the layout of the weights to the library.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from ctranslate2.converters.transformers import TransformersConverter

from .._files import context_length, read_config
from ..errors import ArtifactError, InferplanError, Unsupported
from ._safetensors import TensorFiles

_NEOX_THETA = 10_000
_PLAIN_HEADS = ("llama", "qwen2", "gpt_neox")


class _Ids:
    """Stands in for a tokenizer, which the converter asks for names that are replaced afterwards."""

    bos_token = eos_token = pad_token = unk_token = "0"
    unk_token_id = 0
    chat_template = None
    special_tokens_map: dict[str, list[str]] = {}  # noqa: RUF012 (read only)

    def get_vocab(self) -> dict[str, int]:
        return {"0": 0}

    def convert_ids_to_tokens(self, token: int) -> str:
        return str(token)

    def convert_tokens_to_ids(self, token: str) -> int:
        return int(token)


class _Converter(TransformersConverter):  # type: ignore[misc]
    def load_model(self, model_class: Any, model_name_or_path: str, **options: Any) -> Any:
        try:
            model = model_class.from_pretrained(
                model_name_or_path, **{**options, "dtype": torch.float32, "local_files_only": True}
            )
        except Exception as error:  # a damaged checkpoint shows as any error
            raise ArtifactError(f"{model_name_or_path}/config.json and its weights cannot be read: {error}") from error
        rope = getattr(model.config, "rope_parameters", None) or {}
        if model.config.model_type == "gpt_neox":  # the loader reads names that transformers 5 has given up
            model.config.rotary_pct = rope.get("partial_rotary_factor", 1.0)
            model.embed_out = model.get_output_embeddings()
            if rope.get("rope_theta", _NEOX_THETA) != _NEOX_THETA:
                raise Unsupported(f"ctranslate2 runs gpt_neox with a rotary base of {_NEOX_THETA} only")
        return model

    def load_tokenizer(self, tokenizer_class: Any, model_name_or_path: str, **options: Any) -> Any:
        return _Ids()


def convert(checkpoint: Path, quantization: str, out: Path) -> dict[str, int | None]:
    """Fill the directory `out`; the vocabulary's size and the longest sequence.

    Raises:
        ArtifactError: the checkpoint is corrupt or incomplete.
        Unsupported: the converter refuses the model, with its reason.
    """
    config = read_config(checkpoint)
    TensorFiles(checkpoint).close()  # a truncated file is named before anything long is begun
    if why := _not_followed(config):
        raise Unsupported(f"ctranslate2 would run this {config.get('model_type')} wrongly: {why}")
    try:
        spec = _Converter(str(checkpoint))._load()
        vocabulary = int(spec.get_vocabulary_size())
        spec.register_vocabulary([str(token) for token in range(vocabulary)])
        epsilon = config.get("layer_norm_epsilon", config.get("layer_norm_eps"))
        if spec.config.layer_norm_epsilon is None and epsilon is not None:
            spec.config.layer_norm_epsilon = epsilon  # some loaders leave it to the runtime, which takes 1e-5
        spec.validate()
    except InferplanError:
        raise
    except Exception as error:  # the loaders raise ValueError, KeyError, NotImplementedError, AttributeError
        reason = str(error).partition(" (supported configurations")[0] or type(error).__name__
        raise Unsupported(f"ctranslate2's converter refuses this model: {' '.join(reason.split())[:400]}") from error
    spec.optimize(quantization=quantization)
    spec.save(str(out))
    return {"vocabulary": vocabulary, "context": context_length(config)}


def _not_followed(config: dict[str, Any]) -> str | None:
    """A setting that the library's converter passes over without a word; None where there is none."""
    if config.get("model_type") in _PLAIN_HEADS and config.get("head_dim"):
        usual = config["hidden_size"] // config["num_attention_heads"]
        if config["head_dim"] != usual:
            return f"head_dim is {config['head_dim']}, and it takes hidden_size / num_attention_heads, {usual}"
    for name in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        if config.get(name):
            return f"it passes over {name}"
    return None
