"""Conversion of a checkpoint to OpenVINO's own format: traced, its cache turned into state, its weights made small.

Owns the graph around the weights and what the weights are stored as. Leaves the module that is traced to `_traced`.
Imported by the converting process only: it needs torch, transformers and openvino, and nothing else.

Why not optimum-intel: it pins an older transformers, which passes over settings that this one writes, and the tokens
go wrong without an error (issue 4). Why not nncf: it brings scikit-learn, pandas and usage reports over the network,
and rounding a row of weights takes few lines.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from openvino import opset15 as ops
from openvino.frontend import FrontEndManager
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

from ..errors import Unsupported
from ._openvino_file import MODEL_NAME, mark_as_stored
from ._traced import Decoder, decoder

GROUPS = (128, 64, 32)  # of INT4: the largest that divides the rows of all layers; 64 in SmolLM2, whose rows have 576
_INT8_MAX, _INT4_MAX = 127, 15
_ACTIVATIONS = frozenset({"Gelu", "Relu", "Swish"})


@dataclass(frozen=True, slots=True)
class _Weight:
    """A constant that linear layers multiply with, or that tokens are looked up in: (rows, columns), float32."""

    node: Any
    linear: bool
    table: bool

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.node.output(0).shape
        return rows, columns


def convert(checkpoint: Path, precision: str, out: Path) -> dict[str, Any]:
    """Write the model of `checkpoint` into the directory `out`; what the engine must know of it.

    Raises:
        ArtifactError: the checkpoint is corrupt or incomplete, with the file's name.
        Unsupported: the architecture cannot be converted, with the reason.
    """
    made = decoder(checkpoint, last_only=True)
    model = _with_state(_translated(made), made)
    if precision == "fp32":
        _part_activations(model)
    group = _store(model, precision, made.vocabulary)
    model.validate_nodes_and_infer_types()
    ov.save_model(model, out / MODEL_NAME, compress_to_fp16=False)
    if precision == "bf16":
        mark_as_stored(out / MODEL_NAME)
    return {
        "vocabulary": made.vocabulary,
        "context": made.context,
        "window": min(made.windows, default=0),
        "group_size": group,
    }


def _translated(made: Decoder) -> Any:
    """The traced module as OpenVINO's graph, with named inputs and outputs and sizes where they are known.

    By the front end itself: the convenience function around it reports each call over the network.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer warns of every size that it reads
        traced = torch.jit.trace(made, made.example(), check_trace=False)
        source = TorchScriptPythonDecoder(traced, example_input=made.example())
        frontend = FrontEndManager().load_by_framework("pytorch")
        try:
            model = frontend.convert(frontend.load(source))
        except Exception as error:  # the front end raises errors of several kinds
            reason = " ".join(str(error).split())[:400]
            raise Unsupported(f"OpenVINO's converter refuses this model: {reason}") from error
    model._source = source  # its constants are views of the module's weights
    for port, name in zip(model.inputs, made.input_names, strict=True):
        port.get_tensor().set_names({name})
        port.get_node().set_friendly_name(name)
    for port, name in zip(model.outputs, made.output_names, strict=True):
        port.get_tensor().set_names({name})
    sizes = [size for layer in made.layers for size in ((layer.heads, layer.key_size), (layer.heads, layer.value_size))]
    for port, (heads, size) in zip(model.inputs[3:], sizes, strict=True):
        port.get_node().set_partial_shape(ov.PartialShape([-1, heads, -1, size]))
    for port in model.inputs[:3]:
        port.get_node().set_partial_shape(ov.PartialShape([-1, -1]))
    model.validate_nodes_and_infer_types()
    return model


def _with_state(model: Any, made: Decoder) -> Any:
    """Keys and values become variables of the model, ordered anew by `beam_idx`, as the pipelines expect them."""
    batch = ops.gather(ops.shape_of(model.input("input_ids")), ops.constant(np.array([0])), ops.constant(0))
    beams = ops.parameter(ov.PartialShape([-1]), ov.Type.i32, name="beam_idx")
    beams.output(0).get_tensor().set_names({"beam_idx"})
    kept = []
    for past, present in zip(made.past_names, made.output_names[1:], strict=True):
        port, name = model.input(past), past + present
        shape = port.get_partial_shape()
        heads, size = (ops.constant(np.array([shape[axis].get_length()])) for axis in (1, 3))
        nothing = ops.broadcast(
            ops.constant(np.float32(0)), ops.concat([batch, heads, ops.constant(np.array([0])), size], axis=0)
        )
        ordered = ops.gather(ops.read_value(nothing, name, ov.Type.f32, shape), beams, ops.constant(0))
        for consumer in port.get_target_inputs():
            consumer.replace_source_output(ordered.output(0))
        kept.append(ops.assign(model.output(present).get_node().input_value(0).get_node(), name))
    inputs = [model.input(name).get_node() for name in made.input_names[:3]]
    return ov.Model([model.output("logits").get_node()], kept, [*inputs, beams], "decoder")


def _part_activations(model: Any) -> None:
    """Keep the device from computing a layer and the activation after it in one.

    In float32 it orders the weights of such a layer once for one row and once more for several, and keeps both: 101 MiB
    more for SmolLM2-135M, whose tokens come no faster by it. An axis put in and taken out costs nothing.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() not in _ACTIVATIONS:
            continue
        source, consumers = node.input_value(0), node.output(0).get_target_inputs()
        if source.get_node().get_type_name() in ("MatMul", "Add"):
            node.input(0).replace_source_output(ops.unsqueeze(source, ops.constant(0)).output(0))
            again = ops.squeeze(node.output(0), ops.constant(0))
            for consumer in consumers:
                consumer.replace_source_output(again.output(0))


def _store(model: Any, precision: str, vocabulary: int) -> int:
    """Replace the weights by what `precision` keeps of them; the group size of INT4, else 0."""
    found = list(_weights(model, vocabulary))
    if precision == "bf16":
        for weight in found:
            _replace(weight, _as_bf16(weight.node))
    group = _group([w for w in found if not w.table]) if precision == "int4" else 0
    for weight in found if precision in ("int8", "int4") else ():
        narrow = group and not weight.table
        _replace(weight, _as_int4(weight.node, group) if narrow else _as_int8(weight.node))
    return group


def _weights(model: Any, vocabulary: int) -> Iterator[_Weight]:
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or node.get_element_type() != ov.Type.f32 or len(node.shape) != 2:
            continue
        uses = [(port.get_node().get_type_name(), port.get_index()) for port in node.output(0).get_target_inputs()]
        linear = ("MatMul", 1) in uses
        looked_up = ("Gather", 0) in uses
        if linear or (looked_up and node.shape[0] >= vocabulary):
            yield _Weight(node, linear, looked_up or node.shape[0] == vocabulary)


def _replace(weight: _Weight, output: Any) -> None:
    for consumer in weight.node.output(0).get_target_inputs():
        consumer.replace_source_output(output)


def _group(weights: list[_Weight]) -> int:
    columns = {weight.shape[1] for weight in weights}
    for size in GROUPS:
        if all(count % size == 0 for count in columns):
            return size
    raise Unsupported(f"INT4 needs rows of a multiple of {GROUPS[-1]} numbers; here they have {sorted(columns)}")


def _as_bf16(node: Any) -> Any:
    rounded = torch.from_numpy(node.data.copy()).to(torch.bfloat16).view(torch.uint16).numpy()
    return ops.convert(_constant(rounded, rounded.shape, ov.Type.bf16), ov.Type.f32).output(0)


def _as_int8(node: Any) -> Any:
    """Each row with a scale of its own, symmetric."""
    data = node.data
    scale = np.abs(data).max(axis=1, keepdims=True) / _INT8_MAX
    scale[scale == 0] = 1
    stored = ops.constant(np.rint(data / scale).astype(np.int8))
    return ops.multiply(ops.convert(stored, ov.Type.f32), ops.constant(scale.astype(np.float32))).output(0)


def _as_int4(node: Any, group: int) -> Any:
    """Each group of a row with a scale and a zero point of its own."""
    rows, columns = node.shape
    data = node.data.reshape(rows, columns // group, group)
    low, high = np.minimum(data.min(axis=2, keepdims=True), 0), np.maximum(data.max(axis=2, keepdims=True), 0)
    scale = (high - low) / _INT4_MAX
    scale[scale == 0] = 1
    zero = np.clip(np.rint(-low / scale), 0, _INT4_MAX)
    stored = np.clip(np.rint(data / scale) + zero, 0, _INT4_MAX).astype(np.uint8)
    numbers = ops.convert(_packed(stored), ov.Type.f32)
    centred = ops.subtract(numbers, ops.convert(_packed(zero.astype(np.uint8)), ov.Type.f32))
    scaled = ops.multiply(centred, ops.constant(scale.astype(np.float32)))
    return ops.reshape(scaled, ops.constant(np.array([rows, columns])), False).output(0)


def _packed(numbers: Any) -> Any:
    """A constant of 4-bit numbers, two in a byte, the first in the low half."""
    flat = numbers.reshape(-1)
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    pairs = flat[0::2] | (flat[1::2] << 4)
    return _constant(pairs, numbers.shape, ov.Type.u4)


def _constant(data: Any, shape: tuple[int, ...], kind: Any) -> Any:
    """A constant of a type that NumPy does not know. It copies: a view would outlive the array."""
    return ov.op.Constant(ov.Tensor(data, ov.Shape(list(shape)), kind), shared_memory=False)
