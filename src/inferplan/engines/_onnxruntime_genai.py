"""Greedy generation with onnxruntime-genai: its own loop, one generator for each request.

Owns its settings: room for keys and values as the request needs it, and no token that ends a request. Leaves the graph
to the conversion, and checking the request to the engine.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ArtifactError

CONFIG_NAME = "genai_config.json"


class GenaiRunner:
    """One model and the requests it answers; arguments as for `SessionRunner`."""

    def __init__(self, path: Path, threads: int, *, arena: bool, entries: Mapping[str, str]) -> None:
        import onnxruntime_genai

        self._library = onnxruntime_genai
        session = {
            "intra_op_num_threads": threads,
            "inter_op_num_threads": 1,
            "enable_cpu_mem_arena": arena,
            **entries,
        }
        try:
            config = onnxruntime_genai.Config(str(path.parent))
            config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
            self._model: Any = onnxruntime_genai.Model(config)
        except Exception as error:  # the library raises RuntimeError and classes of its own
            raise ArtifactError(
                f"onnxruntime-genai cannot load {path}: {error}. Delete its directory to have it made again."
            ) from error

    @property
    def providers(self) -> str:
        """What runs the nodes, as the library says."""
        return str(self._model.device_type)

    def tokens(self, prompt: Sequence[int], max_tokens: int) -> Iterator[int]:
        """`max_tokens` token ids, each as it appears."""
        search = self._library.GeneratorParams(self._model)
        # The cache has room for max_length tokens from the start, so it is not the model's whole context.
        search.set_search_options(do_sample=False, max_length=len(prompt) + max_tokens, past_present_share_buffer=True)
        generator = self._library.Generator(self._model, search)
        generator.append_tokens(np.array(prompt, np.int32))
        for _ in range(max_tokens):
            generator.generate_next_token()
            yield int(generator.get_next_tokens()[0])


def genai_config(config: Mapping[str, Any], built: Any, vocabulary: int, inputs: Sequence[str]) -> str:
    """The library's genai_config.json for a decoder that its builder made.

    Args:
        config: the checkpoint's config.json.
        built: the builder, which knows the sizes.
        vocabulary: how many logits a position has.
        inputs: names of the graph's inputs.
    """
    named = [name for name in ("input_ids", "attention_mask", "position_ids") if name in inputs]
    past, present = "past_key_values.%d", "present.%d"
    decoder = {
        "session_options": {"log_id": "inferplan", "provider_options": []},
        "filename": "model.onnx",
        "head_size": built.head_size,
        "hidden_size": built.hidden_size,
        "inputs": {
            **{name: name for name in named},
            "past_key_names": f"{past}.key",
            "past_value_names": f"{past}.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": f"{present}.key",
            "present_value_names": f"{present}.value",
        },
        "num_attention_heads": built.num_attn_heads,
        "num_hidden_layers": built.num_layers,
        "num_key_value_heads": built.num_kv_heads,
    }
    model = {
        "type": config["model_type"],
        "bos_token_id": 0,
        # No id ends a request: with the model's own, it would stop there, and min_length would forbid that token, which
        # the reference chooses freely. An id beyond the vocabulary is refused by the library.
        "eos_token_id": [],
        "pad_token_id": 0,
        "vocab_size": vocabulary,
        "context_length": built.context_length,
        "decoder": decoder,
    }
    search = {"do_sample": False, "num_beams": 1, "max_length": built.context_length}
    return json.dumps({"model": model, "search": {**search, "past_present_share_buffer": True}}, indent=1)
