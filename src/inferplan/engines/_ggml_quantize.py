"""ggml's own quantizer, as the xllamacpp wheel brings it; imported by the converting process.

Owns the call. Leaves which tensor gets which type to `_llamacpp_convert`. The gguf package quantizes the simple types
in NumPy, but none of the K-quants, whose scales are searched for.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np


def quantize(data: Any, kind: Any) -> Any:
    """Rows of float32 as blocks of `kind`, a `gguf.GGMLQuantizationType`: bytes, a row of them for each row.

    The function is `ggml_quantize_chunk` of ggml.h, here without a matrix of importances.
    """
    rows, width = data.shape
    source = np.ascontiguousarray(data, dtype=np.float32)
    library = _library()
    row_bytes = int(library.ggml_row_size(int(kind), width))
    out = np.empty((rows, row_bytes), dtype=np.uint8)
    written = library.ggml_quantize_chunk(int(kind), source.ctypes.data, out.ctypes.data, 0, rows, width, None)
    if written != out.nbytes:
        raise RuntimeError(f"ggml wrote {written} bytes of {kind.name} for {rows} rows of {width}, not {out.nbytes}")
    return out


@cache
def _library() -> Any:
    import xllamacpp

    library = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    pointer, size, whole = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64
    library.ggml_row_size.argtypes, library.ggml_row_size.restype = (ctypes.c_int, whole), size
    library.ggml_quantize_chunk.argtypes = (ctypes.c_int, pointer, pointer, whole, whole, whole, pointer)
    library.ggml_quantize_chunk.restype = size
    return library
