"""The layout of a converted OpenVINO model: which weights it holds and in which types; standard library only.

Owns the check that both files are whole, and the share of integers, counted in the files that are loaded. Leaves the
weights themselves to the library. Layout: OpenVINO's intermediate representation, version 11, openvino_model.xml.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from xml.etree import ElementTree

from ..errors import ArtifactError

MODEL_NAME = "openvino_model.xml"
DATA_NAME = "openvino_model.bin"
_REMEDY = "Delete its directory to have it made again."
# From the stored numbers to what is multiplied with: types, zero points, scales and shapes.
_ON_THE_WAY = frozenset({"Convert", "Subtract", "Multiply", "Reshape"})
_INTEGERS = frozenset({"i8", "u8", "i4", "u4"})


@dataclass(frozen=True, slots=True)
class ModelFile:
    """What a converted model holds.

    Attributes:
        weights: of each linear layer the type its weights are stored in and their count; tied ones once for each use.
    """

    path: Path
    weights: dict[str, tuple[str, int]]

    @property
    def integer_share(self) -> float:
        """Share of the linear layers' parameters that are stored as integers, 0 to 1."""
        total = sum(count for _, count in self.weights.values())
        whole = sum(count for kind, count in self.weights.values() if kind in _INTEGERS)
        return whole / total if total else 0.0

    @property
    def kinds(self) -> str:
        """Types of the linear layers' weights, the one with most parameters first: `u4, i8`."""
        found: Counter[str] = Counter()
        for kind, count in self.weights.values():
            found[kind] += count
        return ", ".join(kind for kind, _ in found.most_common())


@dataclass(slots=True)
class _Node:
    kind: str
    element: str = ""
    shape: tuple[int, ...] = ()


def read_model(directory: Path) -> ModelFile:
    """Walk through the graph in `directory` and hold it against the size of the data beside it.

    Raises:
        ArtifactError: a file is missing or truncated, with its name.
    """
    path, data = directory / MODEL_NAME, directory / DATA_NAME
    try:
        nodes, feeds, end = _read(path)
    except OSError as error:
        raise ArtifactError(f"cannot open {path}: {error.strerror}") from error
    except (ElementTree.ParseError, KeyError, ValueError) as error:
        raise ArtifactError(f"{path} is corrupt or truncated ({error}). {_REMEDY}") from None
    try:
        size = data.stat().st_size
    except OSError as error:
        raise ArtifactError(f"cannot open {data}: {error.strerror}") from error
    if size < end:
        raise ArtifactError(f"{data} is truncated: the model needs {end} bytes and it has {size}. {_REMEDY}")
    return ModelFile(path, _linear(nodes, feeds))


def _read(path: Path) -> tuple[dict[str, _Node], dict[tuple[str, int], str], int]:
    """Nodes by id, the node that feeds each port, and the end of the data; the tree is dropped as it is read."""
    nodes: dict[str, _Node] = {}
    feeds: dict[tuple[str, int], str] = {}
    first: dict[str, int] = {}
    end = 0
    for _, element in ElementTree.iterparse(path):
        if element.tag == "layer":
            node = nodes[element.attrib["id"]] = _Node(element.attrib["type"])
            first[element.attrib["id"]] = int(next((p.attrib["id"] for p in element.iterfind("input/port")), "0"))
            body = element.find("data")
            if body is not None and node.kind == "Const":
                node.element = body.attrib["element_type"]
                node.shape = tuple(int(n) for n in body.attrib["shape"].split(",") if n.strip())
                end = max(end, int(body.attrib["offset"]) + int(body.attrib["size"]))
            element.clear()
        elif element.tag == "edge":
            to = element.attrib["to-layer"]
            feeds[to, int(element.attrib["to-port"]) - first[to]] = element.attrib["from-layer"]
    if not nodes:
        raise ValueError("it holds no layers")
    return nodes, feeds, end


def _linear(nodes: dict[str, _Node], feeds: dict[tuple[str, int], str]) -> dict[str, tuple[str, int]]:
    found = {}
    for name, node in nodes.items():
        if node.kind != "MatMul":
            continue
        source = feeds[name, 1]
        while nodes[source].kind in _ON_THE_WAY:
            source = feeds[source, 0]
        if nodes[source].kind == "Const":
            found[name] = (nodes[source].element, prod(nodes[source].shape))
    return found


def mark_as_stored(path: Path) -> None:
    """Say of each conversion of stored bfloat16 that it is how weights are kept; without it, loading undoes it at once.

    The library's own Python has no word for this mark.
    """
    tree = ElementTree.parse(path)
    layers = {layer.attrib["id"]: layer for layer in tree.iterfind("layers/layer")}
    for edge in tree.iterfind("edges/edge"):
        source, target = layers[edge.attrib["from-layer"]], layers[edge.attrib["to-layer"]]
        body = source.find("data")
        if target.attrib["type"] == "Convert" and body is not None and body.get("element_type") == "bf16":
            mark = ElementTree.Element("rt_info")
            ElementTree.SubElement(mark, "attribute", name="decompression", version="0")
            target.insert(1, mark)
    tree.write(path, encoding="utf-8", xml_declaration=True)
