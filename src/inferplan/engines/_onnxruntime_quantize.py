"""Integer weights for an ONNX graph: linear layers by rows or by blocks, and the table of input embeddings.

Owns the arithmetic and the nodes that multiply with integers. Leaves building the graph to its makers. Imports onnx_ir;
one matrix is in memory at a time beside the finished ones.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ._onnxruntime_fuse import remove_unused

Scheme = Literal["int8-rows", "int8-blocks", "int4-blocks"]
ACCURACY_LEVEL = 4  # of MatMulNBits: activations become int8 as they are used; lower levels compute in float32
_CONTRIB = "com.microsoft"
_ROWS_AT_ONCE = 4096  # bounds the float32 copies while a matrix is divided into blocks
_Floats = NDArray[np.float32]


def quantize(graph: ir.Graph, scheme: Scheme, levels: int, block: int, head: Scheme | None = None) -> None:
    """Turn every product with a constant matrix, and the table that input_ids choose from, into integers.

    Args:
        block: weights that share a scale where the scheme has blocks.
        levels: largest absolute value of an int8 weight in `int8-rows`: 127, or 63 where the CPU would overflow.
        head: scheme of the last layer, which gives the logits; as `scheme` when None.
    """
    for node in list(graph):
        if node.op_type == "MatMul" and (weight := _matrix(graph, node.inputs[1])) is not None:
            last = any(value.name == "logits" for value in node.outputs)
            chosen = head if last and head is not None else scheme
            name = str(node.inputs[1].name)  # type: ignore[union-attr]
            _multiply(graph, node, _integers(graph, name, weight, chosen, levels, block), chosen, block)
            del weight
        elif node.op_type == "Gather" and node.inputs[1] is not None and node.inputs[1].name == "input_ids":
            _embedding(graph, node)
    remove_unused(graph)


def by_rows(weight: _Floats, levels: int) -> tuple[NDArray[np.int8], _Floats]:
    """[in, out] -> int8 [in, out] and one scale for each output [out]."""
    scale = np.abs(weight).max(axis=0) / levels
    scale[scale == 0] = 1.0
    return np.rint(weight / scale).astype(np.int8), scale.astype(np.float32)


def by_blocks(weight: _Floats, bits: int, block: int) -> tuple[NDArray[np.uint8], _Floats]:
    """[in, out] -> packed [out, blocks, bytes] and scales [out, blocks], as MatMulNBits has them without zero points.

    The number of largest size in a block gets the code that reaches furthest, -8 of 4 bits.
    """
    width, out = weight.shape
    blocks, middle = -(-width // block), 1 << (bits - 1)
    packed = np.empty((out, blocks, block * bits // 8), np.uint8)
    scales = np.empty((out, blocks), np.float32)
    for start in range(0, out, _ROWS_AT_ONCE):
        rows = np.zeros((min(_ROWS_AT_ONCE, out - start), blocks * block), np.float32)
        rows[:, :width] = weight[:, start : start + len(rows)].T
        rows = rows.reshape(len(rows), blocks, block)
        furthest = np.take_along_axis(rows, np.abs(rows).argmax(axis=2)[..., None], axis=2)
        scale = furthest / -middle
        codes = np.rint(np.divide(rows, scale, out=np.zeros_like(rows), where=scale != 0)) + middle
        codes = np.clip(codes, 0, 2 * middle - 1).astype(np.uint8)
        packed[start : start + len(rows)] = codes if bits == 8 else codes[..., ::2] | codes[..., 1::2] << 4
        scales[start : start + len(rows)] = scale[..., 0]
    return packed, scales


def _matrix(graph: ir.Graph, value: ir.Value | None) -> _Floats | None:
    if value is None or value.name not in graph.initializers or value.const_value is None:
        return None
    if len(value.const_value.shape) != 2 or value.const_value.dtype != ir.DataType.FLOAT:
        return None
    return value.const_value.numpy()


def _integers(graph: ir.Graph, name: str, weight: _Floats, scheme: Scheme, levels: int, block: int) -> list[ir.Value]:
    """The initializers that stand for `weight`: the integers, then their scales."""
    numbers: NDArray[Any]
    if scheme == "int8-rows":
        numbers, scales = by_rows(weight, levels)
    else:
        numbers, scales = by_blocks(weight, _bits(scheme), block)
    return [constant(graph, f"{name}.{scheme}", numbers), constant(graph, f"{name}.scale", scales)]


def _bits(scheme: Scheme) -> int:
    return 4 if scheme == "int4-blocks" else 8


def constant(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """`array` as a new initializer of `graph`."""
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def _multiply(graph: ir.Graph, node: ir.Node, weight: list[ir.Value], scheme: Scheme, block: int) -> None:
    """Put one node that multiplies with integers, and adds the bias, in place of `node`."""
    add, bias = _bias(graph, node)
    x, (numbers, scales) = node.inputs[0], weight
    if scheme == "int8-rows":
        inputs = [x, numbers, scales, None, bias] if bias is not None else [x, numbers, scales]
        made = ir.node("DynamicQuantizeMatMul", inputs, domain=_CONTRIB, name=node.name)
    else:
        before: Any = node.inputs[1].const_value.shape  # type: ignore[union-attr]
        attributes = {
            "K": int(before[0]),
            "N": int(before[1]),
            "bits": _bits(scheme),
            "block_size": block,
            "accuracy_level": ACCURACY_LEVEL,
        }
        inputs = [x, numbers, scales, None, None, bias] if bias is not None else [x, numbers, scales]
        made = ir.node("MatMulNBits", inputs, attributes, domain=_CONTRIB, name=node.name)
    last = node if add is None else add
    replace(graph, last, made)
    if add is not None:
        graph.remove(node, safe=True)


def _bias(graph: ir.Graph, node: ir.Node) -> tuple[ir.Node | None, ir.Value | None]:
    """The Add of a constant vector that alone uses the product, and that vector."""
    product = node.outputs[0]
    uses = list(product.uses())
    if len(uses) != 1 or uses[0][0].op_type != "Add" or product.is_graph_output():
        return None, None
    add, place = uses[0]
    other = add.inputs[1 - place]
    if other is None or other.name not in graph.initializers or other.const_value is None:
        return None, None
    return (add, other) if len(other.const_value.shape) == 1 else (None, None)


def replace(graph: ir.Graph, old: ir.Node, new: ir.Node) -> None:
    """Put `new`, with one output, where `old` is; what used the output of `old` uses that of `new`."""
    before, after = old.outputs[0], new.outputs[0]
    after.name, after.shape, after.type = before.name, before.shape, before.type
    graph.insert_before(old, new)
    for place, value in enumerate(graph.outputs):
        if value is before:
            graph.outputs[place] = after
    before.replace_all_uses_with(after)
    graph.remove(old, safe=True)


def _embedding(graph: ir.Graph, node: ir.Node) -> None:
    """Rows of int8 with a scale each, in place of a table of float32."""
    table = _matrix(graph, node.inputs[0])
    if table is None:
        return
    name = str(node.inputs[0].name)  # type: ignore[union-attr]
    numbers, scale = by_rows(table.T, 127)
    rows = constant(graph, f"{name}.int8", np.ascontiguousarray(numbers.T))
    scales = constant(graph, f"{name}.rows_scale", scale[:, None])
    ids = node.inputs[1]
    row = ir.node("Gather", [rows, ids], name=f"{name}.row")
    factor = ir.node("Gather", [scales, ids], name=f"{name}.factor")
    cast = ir.node("Cast", [row.outputs[0]], {"to": int(ir.DataType.FLOAT)}, name=f"{name}.cast")
    made = ir.node("Mul", [cast.outputs[0], factor.outputs[0]], name=f"{name}.embedding")
    graph.insert_before(node, [row, factor, cast])
    replace(graph, node, made)
