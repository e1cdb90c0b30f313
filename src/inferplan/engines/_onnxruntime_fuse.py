"""Fewer nodes for the same numbers, in graphs that torch's exporter made: each costs some microseconds a token.

Owns what onnxruntime's own optimizer leaves as it is. Leaves all else to that optimizer. Imports onnx_ir.
"""

from __future__ import annotations

import onnx_ir as ir

_CONTRIB = "com.microsoft"


def fuse(graph: ir.Graph) -> None:
    """Change `graph` in place; its inputs and outputs stay."""
    for node in list(graph):
        if node.op_type == "Reshape":
            _reshape(node)
    for node in list(graph):
        if node.op_type == "GroupQueryAttention":
            _packed(node)
        elif node.op_type == "LayerNormalization":
            _residual(graph, node)
    remove_unused(graph)
    graph.sort()


def remove_unused(graph: ir.Graph) -> None:
    """Drop nodes and constants that nothing uses any more."""
    for node in reversed(list(graph)):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
    used = {value.name for node in graph for value in node.inputs if value is not None}
    for name in [name for name in graph.initializers if name not in used]:
        del graph.initializers[name]


def _reshape(node: ir.Node) -> None:
    """Of several in a row, and of those that give back what they got, nothing is left but the last that counts."""
    root = node.inputs[0]
    while root is not None and (before := root.producer()) is not None and before.op_type == "Reshape":
        root = before.inputs[0]
    output, shape = node.outputs[0], node.inputs[1]
    if root is None or output.is_graph_output():
        return
    if root.shape is not None and output.shape is not None and list(root.shape) == list(output.shape):
        output.replace_all_uses_with(root)
    elif shape is not None and shape.const_value is not None and 0 not in shape.const_value.numpy():
        node.replace_input_with(0, root)  # a 0 would stand for a size of the input that is passed over


def _packed(node: ir.Node) -> None:
    """Queries, keys and values that come from one product go into attention as they are."""
    parts = [value.producer() if value is not None else None for value in node.inputs[:3]]
    split = parts[0]
    if split is None or split.op_type != "Split" or parts != [split] * 3:
        return
    if [value.index() for value in node.inputs[:3] if value is not None] == [0, 1, 2] and len(split.outputs) == 3:
        node.replace_input_with(0, split.inputs[0])
        node.replace_input_with(1, None)
        node.replace_input_with(2, None)


def _residual(graph: ir.Graph, norm: ir.Node) -> None:
    """The sum before a LayerNormalization becomes part of it, and stays an output for those who need it too."""
    total = norm.inputs[0]
    add = total.producer() if total is not None else None
    if total is None or add is None or add.op_type != "Add" or len(norm.inputs) != 3 or len(norm.outputs) != 1:
        return
    shapes = [None if value is None or value.shape is None else list(value.shape) for value in add.inputs]
    axis = norm.attributes.get("axis")
    if shapes[0] is None or shapes[0] != shapes[1] or (axis is not None and axis.as_int() not in (-1, 2)):
        return
    epsilon = norm.attributes.get("epsilon")
    made = ir.node(
        "SkipLayerNormalization",
        [*add.inputs, *norm.inputs[1:]],
        {"epsilon": 1e-5 if epsilon is None else epsilon.as_float()},
        domain=_CONTRIB,
        num_outputs=4,
        name=norm.name,
    )
    for old, new in ((norm.outputs[0], made.outputs[0]), (total, made.outputs[3])):
        new.name, new.shape, new.type = f"{old.name}.fused", old.shape, old.type
    graph.insert_before(norm, made)
    norm.outputs[0].replace_all_uses_with(made.outputs[0])
    total.replace_all_uses_with(made.outputs[3])
    graph.remove([norm, add], safe=True)
