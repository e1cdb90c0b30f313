"""Conversion of a checkpoint to GGUF, tensor by tensor; imported by the converting process only. Needs gguf and NumPy.

Owns types and the vocabulary: every token is named by its id, `17,` for 17. Leaves names and settings to
`_llamacpp_architectures`.

Why not the model's own tokenizer: the server of llama.cpp keeps back a token whose bytes are no whole character and
then leaves it out of the stream; it forbids end-of-sequence tokens when told to go on past them, where the reference
chooses freely; and ids come only with probabilities, which means sorting the vocabulary at every token. A vocabulary
of this kind (RWKV's, which knows no special tokens) has none of this, and the text of a token tells its id.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import quantize as quantize_simple

from .._files import read_config
from ..errors import Unsupported
from ._ggml_quantize import quantize as quantize_searching
from ._llamacpp_architectures import Architecture, Change, architecture
from ._safetensors import Entry, TensorFile, TensorFiles

_NORMAL = 1  # llama.cpp's token type of an ordinary token
# The first and the last layer are kept wider than 4 bits, as llama.cpp's own quantizer does: one matrix when tied.
_WIDER = {"Q4_0": "Q8_0", "Q4_K": "Q6_K"}
_FILE_TYPES = {"F32": "ALL_F32", "Q4_K": "MOSTLY_Q4_K_S"}  # the others: MOSTLY_ and the type's name
EMBEDDING = "token_embd.weight"
_ENDS = (EMBEDDING, "output.weight")


@dataclass(frozen=True, slots=True)
class _Planned:
    """A tensor to be written: where it is read from, what becomes of it, its shape and type there."""

    name: str
    file: TensorFile
    entry: Entry
    change: Change
    shape: tuple[int, ...]
    kind: Any


def convert(checkpoint: Path, wanted: str, out: Path) -> None:
    """Write the model of `checkpoint` as the GGUF file `out`. One tensor is in memory at a time.

    Args:
        wanted: the type of the linear layers by its name in GGUF, `F32`, `BF16`, `Q8_0`, `Q4_0` or `Q4_K`.

    Raises:
        ArtifactError: the checkpoint is corrupt or incomplete.
        Unsupported: llama.cpp does not run the architecture, or one of its settings, with the reason.
    """
    config = read_config(checkpoint)
    kind = architecture(config)
    settings = kind.settings(config)
    files = TensorFiles(checkpoint)
    try:
        planned = list(_plan(files, kind, wanted))
        vocabulary = next((p.shape[0] for p in planned if p.name == EMBEDDING), 0)
        if not vocabulary:
            raise Unsupported(f"{files.first_path} has no token embedding")
        writer = gguf.GGUFWriter(out, kind.name)
        _describe(writer, kind, settings, wanted)
        add_vocabulary(writer, kind.name, vocabulary)
        for p in planned:
            writer.add_tensor_info(p.name, p.shape, np.dtype(np.float32), _bytes(p), raw_dtype=p.kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        heads = int(settings["attention.head_count"]), int(settings.get("attention.head_count_kv", 0))
        for p in planned:
            data = np.ascontiguousarray(_changed(_read(p), p.change, *heads))
            writer.write_tensor_data(_quantized(data, p.kind))
        writer.close()
    finally:
        files.close()


def add_vocabulary(writer: Any, architecture: str, size: int) -> None:
    """A vocabulary that names each of `size` tokens by its id."""
    writer.add_uint32(f"{architecture}.vocab_size", size)
    writer.add_tokenizer_model("rwkv")
    writer.add_token_list([f"{token}," for token in range(size)])
    writer.add_token_types([_NORMAL] * size)


def _plan(files: TensorFiles, kind: Architecture, wanted: str) -> Iterator[_Planned]:
    names = set(files.where)
    for name, (file, entry) in files.where.items():
        placed = kind.place(name)
        if placed is None or (kind.name in ("gpt2", "gemma") and placed[0] == "output.weight" and _tied(names)):
            continue
        full, change = placed
        shape = tuple(reversed(entry.shape)) if change == "transpose" else entry.shape
        yield _Planned(full, file, entry, change, shape, _type(full, shape, wanted))


def _tied(names: set[str]) -> bool:
    """Whether the embedding is there to stand for the last layer; both architectures always tie them."""
    return any(name.endswith(("wte.weight", "embed_tokens.weight")) for name in names)


def _type(name: str, shape: tuple[int, ...], wanted: str) -> Any:
    """The type of a tensor: norms, biases and positions stay in float32."""
    if len(shape) < 2 or not name.endswith(".weight") or name.startswith("position_embd"):
        return gguf.GGMLQuantizationType.F32
    chosen = _WIDER.get(wanted, wanted) if name in _ENDS else wanted
    kind = gguf.GGMLQuantizationType[chosen]
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    if shape[-1] % block:
        raise Unsupported(f"{name} has rows of {shape[-1]}, and {chosen} needs a multiple of {block}")
    return kind


def _quantized(data: Any, kind: Any) -> Any:
    if kind.name == "F32":
        return data
    return quantize_searching(data, kind) if kind.name.endswith("_K") else quantize_simple(data, kind)


def _bytes(planned: _Planned) -> int:
    block, nbytes = gguf.GGML_QUANT_SIZES[planned.kind]
    return int(prod(planned.shape) // block * nbytes)


def _describe(writer: Any, kind: Architecture, settings: dict[str, int | float | bool], wanted: str) -> None:
    for name, value in settings.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}[type(value)]
        add(f"{kind.name}.{name}", value)
    writer.add_file_type(int(gguf.LlamaFileType[_FILE_TYPES.get(wanted, f"MOSTLY_{wanted}")]))


def _read(planned: _Planned) -> Any:
    """The tensor as float32."""
    raw = bytearray(planned.entry.nbytes)
    planned.file.read_into(memoryview(raw), planned.entry.offset)
    kind = planned.entry.dtype
    if kind == "BF16":
        data = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    elif kind in ("F32", "F16", "F64"):
        data = np.frombuffer(raw, {"F32": "<f4", "F16": "<f2", "F64": "<f8"}[kind]).astype(np.float32)
    else:
        raise Unsupported(f"{planned.name} is stored as {kind}: give a checkpoint of floating-point weights")
    return data.reshape(planned.entry.shape)


def _changed(data: Any, change: Change, heads: int, heads_kv: int) -> Any:
    if change == "transpose":
        return data.T
    if change == "add-one":
        return data + 1
    if change in ("pairs", "pairs-kv"):
        # Hugging Face turns element i of a head with element i + half; llama.cpp turns neighbours.
        count = heads_kv if change == "pairs-kv" else heads
        halves = data.reshape(count, 2, data.shape[0] // count // 2, *data.shape[1:])
        return halves.swapaxes(1, 2).reshape(data.shape)
    if change == "split-qkv":
        by_head = data.reshape(heads, 3, data.shape[0] // heads // 3, *data.shape[1:])
        return by_head.swapaxes(0, 1).reshape(data.shape)
    return data
