"""What a converted model says of itself: its notes, and which kernels hold its weights in which types.

Owns reading the few fields of an ONNX file that tell it, without the onnx package. Leaves the weights themselves, which
lie in a second file, to the library.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from ..errors import ArtifactError

MODEL_NAME, NOTES_NAME = "model.onnx", "inferplan-onnxruntime.json"
# Numbers of fields and types as onnx.proto gives them.
_GRAPH, _NODE, _INITIALIZER = 7, 1, 5
_INPUT, _OP_TYPE, _ATTRIBUTE = 1, 4, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_INT = 1, 3
_DIMS, _DATA_TYPE, _TENSOR_NAME = 1, 2, 8
_TYPES = {1: "float32", 2: "uint8", 3: "int8", 10: "float16", 16: "bfloat16", 21: "uint4", 22: "int4"}
_INTEGERS = frozenset({"uint8", "int8", "uint4", "int4"})
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# Nodes that multiply activations with a matrix of weights.
_LINEAR = frozenset(
    {"MatMul", "Gemm", "FusedMatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulNBits"}
)
_ATTENTION = ("GroupQueryAttention", "MultiHeadAttention", "Attention")

Field = tuple[int, int | memoryview]


@dataclass(frozen=True, slots=True)
class Weight:
    """The matrix of weights of one linear layer.

    Attributes:
        name: the initializer that holds it.
        kernel: type of the node that multiplies with it.
        dtype: type it is held in: `float32`, `int8`, `int4`, ...
        parameters: how many numbers it stands for.
    """

    name: str
    kernel: str
    dtype: str
    parameters: int

    @property
    def integer(self) -> bool:
        """Whether its numbers are integers."""
        return self.dtype in _INTEGERS


@dataclass(frozen=True, slots=True)
class GraphFile:
    """The linear layers of one ONNX file and its kind of attention; see `read_graph`."""

    path: Path
    weights: tuple[Weight, ...]
    attention: str

    @property
    def integer_share(self) -> float:
        """Share of the linear layers' parameters that are integers, 0 to 1."""
        return sum(w.parameters for w in self.weights if w.integer) / max(1, sum(w.parameters for w in self.weights))

    @property
    def kernels(self) -> str:
        """Types of the nodes that hold weights, the one with most parameters first: `MatMulNBits, MatMul`."""
        return ", ".join(self._by_parameters({w.name: w.kernel for w in self.weights}))

    @property
    def kinds(self) -> str:
        """Types of the weights, the commonest by parameters first: `int8`."""
        return ", ".join(self._by_parameters({w.name: w.dtype for w in self.weights}))

    @property
    def widest_float(self) -> str:
        """Name of the largest matrix that is not integers; empty where there is none."""
        floats = [w for w in self.weights if not w.integer]
        return max(floats, key=lambda w: w.parameters).name if floats else ""

    def _by_parameters(self, word: dict[str, str]) -> list[str]:
        count: Counter[str] = Counter()
        for weight in self.weights:
            count[word[weight.name]] += weight.parameters
        return [name for name, _ in count.most_common()]


@dataclass(slots=True)
class _Node:
    kind: str = ""
    inputs: list[str] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)


def read_graph(path: Path) -> GraphFile:
    """Read the nodes and the headers of the weights of the ONNX file at `path`.

    Raises:
        ArtifactError: the file is missing or no whole ONNX model, with its name.
    """
    try:
        data = memoryview(path.read_bytes())
        nodes, tensors = _graph(_only(_fields(data), _GRAPH))
    except (OSError, ValueError, IndexError) as error:
        raise ArtifactError(f"{path} is corrupt ({error}). Delete its directory to have it made again.") from error
    attention = next((kind for kind in _ATTENTION if any(node.kind == kind for node in nodes)), "MatMul")
    return GraphFile(path, tuple(w for node in nodes if (w := _weight(node, tensors)) is not None), attention)


def _weight(node: _Node, tensors: dict[str, tuple[str, tuple[int, ...]]]) -> Weight | None:
    if node.kind not in _LINEAR:
        return None
    name = next((name for name in node.inputs[:2] if len(tensors.get(name, ("", ()))[1]) > 1), None)
    if name is None:  # both sides are activations, as inside an attention
        return None
    dtype, shape = tensors[name]
    if node.kind == "MatMulNBits":  # several numbers to a byte: its attributes have the true shape
        bits = node.numbers.get("bits", 4)
        return Weight(name, node.kind, f"int{bits}", node.numbers.get("K", 0) * node.numbers.get("N", 0))
    return Weight(name, node.kind, dtype, prod(shape))


def _graph(data: memoryview) -> tuple[list[_Node], dict[str, tuple[str, tuple[int, ...]]]]:
    nodes: list[_Node] = []
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for number, value in _fields(data):
        if number == _NODE:
            nodes.append(_node(_block(value)))
        elif number == _INITIALIZER:
            name, dtype, shape = _tensor(_block(value))
            tensors[name] = (dtype, shape)
    if not nodes:
        raise ValueError("it has no graph")
    return nodes, tensors


def _node(data: memoryview) -> _Node:
    node = _Node()
    for number, value in _fields(data):
        if number == _INPUT:
            node.inputs.append(_text(value))
        elif number == _OP_TYPE:
            node.kind = _text(value)
        elif number == _ATTRIBUTE:
            name, integer = "", None
            for inner, content in _fields(_block(value)):
                if inner == _ATTRIBUTE_NAME:
                    name = _text(content)
                elif inner == _ATTRIBUTE_INT and isinstance(content, int):
                    integer = content
            if integer is not None:
                node.numbers[name] = integer
    return node


def _tensor(data: memoryview) -> tuple[str, str, tuple[int, ...]]:
    name, kind, dims = "", 0, []
    for number, value in _fields(data):
        if number == _TENSOR_NAME:
            name = _text(value)
        elif number == _DATA_TYPE and isinstance(value, int):
            kind = value
        elif number == _DIMS:
            dims += [value] if isinstance(value, int) else list(_varints(value))
    return name, _TYPES.get(kind, f"type {kind}"), tuple(dims)


def _only(fields: Iterator[Field], wanted: int) -> memoryview:
    found = [_block(value) for number, value in fields if number == wanted]
    if len(found) != 1:
        raise ValueError("it is no ONNX model")
    return found[0]


def _fields(data: memoryview) -> Iterator[Field]:
    """Field numbers and values of one protobuf message, its own submessages as bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == _BYTES:
            size, at = _varint(data, at)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"byte {at} starts no field")
        if at + size > len(data):
            raise ValueError(f"it ends at byte {len(data)}, inside a field of {size} bytes")
        yield number, data[at : at + size]
        at += size


def _varints(data: memoryview) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        yield value


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7


def _block(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number stands where a message should")
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_block(value)).decode()


def read_notes(artifact: Path) -> dict[str, Any]:
    """The artifact's notes, after its files were found as large as they say.

    Raises:
        ArtifactError: a file is missing, cut or unreadable, with its name.
    """
    path = artifact / NOTES_NAME
    again = "Delete its directory to have it made again."
    try:
        notes: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        missing = {"graph", "builder", "vocabulary", "context", "scheme", "levels"} - set(notes)
        if missing:
            raise ValueError(f"it has no {min(missing)}")
        sizes = {artifact / name: int(size) for name, size in notes["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}). {again}") from error
    for file, size in sizes.items():
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            what = "is missing" if found is None else f"has {found} bytes, not {size}: it is corrupt"
            raise ArtifactError(f"{file} {what}. {again}")
    return notes
