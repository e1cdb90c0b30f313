"""Graphs by onnxruntime-genai's model builder, as it has them in memory, in the converting process.

Owns calling the builder offline, without a tokenizer and without its files, and what it would get wrong. Leaves
quantization to `_onnxruntime_quantize`. Imports torch, transformers and onnx_ir.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import ArtifactError, InferplanError, Unsupported

# Types of model whose tokens were compared with those of transformers: what it builds of a Phi, for one, gives others.
CHECKED = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma"})
_CHECKED_ROPE = frozenset({"default", "llama3"})  # whose tokens were compared with those of transformers


def build(checkpoint: Path, any_type: bool) -> Any:
    """The builder's model of `checkpoint` at float32: the builder itself, with its graph as `.model`.

    Inputs: input_ids [1, sequence] and attention_mask [1, total] int64, past_key_values.N.key and .value
    [1, heads, past, size], and position_ids where rotation is no part of attention. Outputs: logits
    [1, 1, vocabulary], present.N.key and .value.

    Args:
        any_type: build types of model too that are not in `CHECKED`.

    Raises:
        ArtifactError: the checkpoint cannot be read.
        Unsupported: the builder refuses the model, with its reason, or is not installed.
    """
    try:
        from onnxruntime_genai.models import builder
    except ImportError as error:
        raise Unsupported(f"onnxruntime-genai's model builder cannot be imported: {error}") from error
    import onnx_ir as ir
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(checkpoint, local_files_only=True)
    except Exception as error:  # a damaged or unknown config shows as any error
        raise ArtifactError(f"{checkpoint}/config.json cannot be read: {error}") from error
    if why := not_followed(config):
        raise Unsupported(f"onnxruntime-genai's model builder would build this model wrongly: {why}")
    details = {"extra_kwargs": {}, "hf_name": str(config.model_type), "hf_config": config}
    options = {"hf_details": details, "prune_lm_head": True, "hf_remote": False, "hf_token": None}
    try:
        with (
            _captured(builder, None if any_type else config.model_type) as made,
            contextlib.redirect_stdout(io.StringIO()),
        ):
            builder.create_model(None, str(checkpoint), str(checkpoint), "fp32", "cpu", str(checkpoint), **options)
    except InferplanError:
        raise
    except Exception as error:  # NotImplementedError by name; anything where a config has not what it expects
        reason = " ".join((str(error) or type(error).__name__).split())[:400]
        raise Unsupported(f"onnxruntime-genai's model builder refuses this model: {reason}") from error
    built = made[0]
    built.model.graph.sort()
    for value in (*built.model.graph.inputs, *built.model.graph.outputs):
        if ".key" in value.name or ".value" in value.name:  # the builder leaves the last one open, for other caches
            value.shape = ir.Shape([*list(value.shape)[:-1], built.head_size])
    return built


def not_followed(config: Any) -> str | None:
    """A setting that the builder passes over without a word, or that was never compared; None where there is none."""
    rope = getattr(config, "rope_parameters", None) or {}
    if (kind := rope.get("rope_type", "default")) not in _CHECKED_ROPE:
        return f"rotary embeddings of type {kind!r} were not compared"
    if (factor := rope.get("partial_rotary_factor", 1.0)) != 1.0:
        return f"rotary embeddings of a part of each head ({factor}) were not compared"
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if window and window < config.max_position_embeddings:
        return f"it passes over the sliding window of {window}"
    return None


@contextmanager
def _captured(builder: Any, checked: str | None) -> Iterator[list[Any]]:
    """`checked`: a type of model that must be in `CHECKED`, if the builder has it at all.

    The graph is taken where the library would write its files, which would want a tokenizer and twice the disk.
    """
    base = builder.LlamaModel.__mro__[1]
    kept = {name: getattr(base, name) for name in ("make_model", "save_model", "make_genai_config", "save_processing")}
    made: list[Any] = []

    def make_model(self: Any, input_path: str) -> None:
        if checked is not None and checked not in CHECKED:
            raise Unsupported(f"what onnxruntime-genai's model builder makes of {checked!r} was not compared")
        if builder.GemmaModel in type(self).__mro__:  # the builder rounds this factor to two decimals
            self.embed_attrs["scale"] = float(self.hidden_size) ** 0.5
        kept["make_model"](self, input_path)

    def save_model(self: Any, out_dir: str) -> None:
        made.append(self)

    base.make_model, base.save_model = make_model, save_model
    base.make_genai_config = base.save_processing = lambda *_: None
    try:
        yield made
    finally:
        for name, function in kept.items():
            setattr(base, name, function)
