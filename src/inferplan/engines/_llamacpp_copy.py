"""A ready GGUF file with its weights as they are and its vocabulary named by ids; imported by the converting process.

Owns what is copied and what is left out. Leaves the reason for the vocabulary to `_llamacpp_convert`. Needs gguf.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from ..errors import ArtifactError, Unsupported
from ._gguf_file import read_gguf
from ._llamacpp_convert import EMBEDDING, add_vocabulary

# The reader's own (counts and version), what the writer sets itself, and the tokenizer, which ids take the place of.
_LEFT_OUT = ("GGUF.", "general.architecture", "general.alignment", "tokenizer.")


def copy(source: Path, out: Path) -> None:
    """Write `source` as `out`, every tensor as its bytes are. One tensor is in memory at a time.

    Raises:
        ArtifactError: the file is corrupt or truncated.
        Unsupported: it is one part of several, or no language model.
    """
    header = read_gguf(source)
    if header.metadata.get("split.count", 1) not in (0, 1):
        raise Unsupported(f"{source} is one part of {header.metadata['split.count']}: merge them into one file first")
    if EMBEDDING not in header.tensors:
        raise Unsupported(f"{source} has no tensor {EMBEDDING}: it is not a language model")
    try:
        reader: Any = gguf.GGUFReader(source)
    except Exception as error:  # gguf checks little: damage shows as any error of struct, NumPy or an enum
        raise ArtifactError(f"{source} is a corrupt or truncated GGUF file ({error}). Download it again.") from error
    architecture = str(header.metadata.get("general.architecture", ""))
    writer = gguf.GGUFWriter(out, architecture)
    sized = f"{architecture}.vocab_size"
    for field in reader.fields.values():
        if field.name.startswith(_LEFT_OUT) or field.name == sized:
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    add_vocabulary(writer, architecture, header.tensors[EMBEDDING].shape[0])
    for tensor in reader.tensors:
        shape = tuple(reversed(tensor.shape.tolist()))
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.float32), tensor.n_bytes, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in reader.tensors:
        writer.write_tensor_data(tensor.data)
    writer.close()
