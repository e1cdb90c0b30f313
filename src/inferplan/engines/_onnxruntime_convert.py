"""Conversion of a checkpoint to an ONNX file with its weights beside it, in the converting process.

Owns which maker draws the graph, the files of an artifact and its notes. Leaves graphs to `_onnxruntime_builder` and
`_onnxruntime_export`, integers to `_onnxruntime_quantize`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx_ir as ir

from .._files import context_length, read_config
from ..errors import Unsupported
from ._onnxruntime_file import MODEL_NAME, NOTES_NAME
from ._onnxruntime_fuse import fuse
from ._onnxruntime_genai import CONFIG_NAME, genai_config
from ._onnxruntime_quantize import Scheme, quantize
from ._safetensors import TensorFiles

DATA_NAME = "model.onnx.data"
_REMEDY = "pip install inferplan[onnxruntime]"
_INLINE_BYTES = 256  # smaller constants stay in the graph, where the library's optimizer reads them


def convert(
    checkpoint: Path, scheme: Scheme | None, head: Scheme | None, levels: int, block: int, graph: str, out: Path
) -> None:
    """Fill the directory `out`.

    Args:
        scheme: how weights become integers; None: they stay float32.
        head: the same for the last layer.
        block: weights that share a scale where the scheme has blocks.
        levels: largest absolute value of an int8 weight that has its scale by rows.
        graph: who draws it: `builder` (onnxruntime-genai's), `export` (torch's exporter), or `auto`: the builder where
            its tokens are known to be right.

    Raises:
        ArtifactError: the checkpoint is corrupt or incomplete, with the file's name.
        Unsupported: nobody can draw the model, with the reason.
    """
    config = read_config(checkpoint)
    TensorFiles(checkpoint).close()  # a truncated file is named before anything long is begun
    if "quantization_config" in config:
        raise Unsupported(
            "the checkpoint is quantized already (quantization_config in config.json); give plain weights"
        )
    built, refusal = (
        (None, "not asked: the plan says graph=export") if graph == "export" else _built(checkpoint, graph == "builder")
    )
    if built is None and graph == "builder":
        raise Unsupported(refusal)
    model = _exported(checkpoint) if built is None else built.model
    if scheme is not None:
        quantize(model.graph, scheme, levels, block, head)
    logits: Any = next(value for value in model.graph.outputs if value.name == "logits").shape
    vocabulary = int(logits[-1])
    context = context_length(config) or 0
    if built is not None:
        inputs = [str(value.name) for value in model.graph.inputs]
        (out / CONFIG_NAME).write_text(genai_config(config, built, vocabulary, inputs), encoding="utf-8")
    ir.save(model, out / MODEL_NAME, external_data=DATA_NAME, size_threshold_bytes=_INLINE_BYTES)
    notes = {
        "graph": "export" if built is None else "builder",
        "builder": refusal,
        "vocabulary": vocabulary,
        "context": context,
        "scheme": scheme or "",
        "levels": levels if scheme == "int8-rows" else 0,
        "block": block if scheme in ("int8-blocks", "int4-blocks") else 0,
        "files": {path.name: path.stat().st_size for path in sorted(out.iterdir())},
    }
    (out / NOTES_NAME).write_text(json.dumps(notes, indent=1), encoding="utf-8")


def _built(checkpoint: Path, any_type: bool) -> tuple[Any | None, str]:
    """The builder with its graph, or None and its refusal."""
    try:
        from ._onnxruntime_builder import build

        return build(checkpoint, any_type), ""
    except Unsupported as refusal:
        return None, str(refusal)
    except ImportError as error:
        return None, f"a package that onnxruntime-genai's model builder needs is missing: {error}"


def _exported(checkpoint: Path) -> ir.Model:
    try:
        from ._onnxruntime_export import export
    except ImportError as error:
        raise Unsupported(f"exporting takes a package that is missing: {error}: {_REMEDY}") from error
    model: ir.Model = export(checkpoint)
    fuse(model.graph)
    return model
