"""The header of a GGUF file: its metadata and where its tensors lie; standard library only.

Owns the check that a file is whole, and the share of integers among the weights of its linear layers. Leaves the
weights to llama.cpp. Format: version 3, github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import os
import struct
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

from ..errors import ArtifactError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_ALIGNMENT = 32
# id -> name, elements in a block, bytes of a block; the size of a tensor of any other type is not checked
TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    20: ("IQ4_NL", 32, 18),
    23: ("IQ4_XS", 256, 136),
    30: ("BF16", 1, 2),
}
_MAX_COUNT = 1 << 24  # of keys or tensors: a larger number is damage
Value = int | float | bool | str


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor: its type's name and its shape, rows first."""

    kind: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GgufFile:
    """What a GGUF file says of itself.

    Attributes:
        metadata: its keys; of an array only its length.
        tensors: by name.
    """

    path: Path
    metadata: dict[str, Value]
    tensors: dict[str, Weight]

    def number(self, key: str) -> int:
        """The whole number under `key`, where `{arch}` stands for the architecture.

        Raises:
            ArtifactError: there is none.
        """
        key = key.replace("{arch}", str(self.metadata.get("general.architecture", "?")))
        value = self.metadata.get(key)
        if not isinstance(value, int):
            raise ArtifactError(f"{self.path} has no {key}. Delete its directory to have it made again.")
        return value

    @property
    def linear(self) -> dict[str, Weight]:
        """Weights of the linear layers; a tied embedding is one, being the last of them."""
        return {
            name: weight
            for name, weight in self.tensors.items()
            if name.endswith(".weight")
            and len(weight.shape) == 2
            and not name.startswith("position_embd")
            and not (name == "token_embd.weight" and "output.weight" in self.tensors)
        }

    @property
    def integer_share(self) -> float:
        """Share of the linear layers' parameters that are kept as integers, 0 to 1."""
        sizes = self._sizes()
        total = sizes.total()
        return sum(size for kind, size in sizes.items() if kind.startswith(("Q", "IQ"))) / total if total else 0.0

    @property
    def kinds(self) -> str:
        """Types of the linear layers, the most frequent first: `Q4_0, Q8_0`."""
        return ", ".join(kind for kind, _ in self._sizes().most_common())

    def _sizes(self) -> Counter[str]:
        sizes: Counter[str] = Counter()
        for weight in self.linear.values():
            sizes[weight.kind] += prod(weight.shape)
        return sizes


def read_gguf(path: Path) -> GgufFile:
    """The header of `path`, checked against the file's size.

    Raises:
        ArtifactError: the file is missing, truncated or no GGUF, with its name.
    """
    try:
        with path.open("rb") as file:
            return GgufFile(path, *_read(file))
    except OSError as error:
        raise ArtifactError(f"cannot open {path}: {error.strerror}") from error
    except (struct.error, ValueError, KeyError, MemoryError, OverflowError) as error:
        why = f"{path} is corrupt or truncated ({error}). Delete its directory to have it made again."
        raise ArtifactError(why) from None


def _read(file: BinaryIO) -> tuple[dict[str, Value], dict[str, Weight]]:
    size = os.fstat(file.fileno()).st_size
    if file.read(4) != _MAGIC:
        raise ValueError("it does not begin with GGUF")
    if (version := _number(file, "I")) not in _VERSIONS:
        raise ValueError(f"version {version}, and this reads {_VERSIONS}")
    counts = _number(file, "Q"), _number(file, "Q")
    if max(counts) > _MAX_COUNT:
        raise ValueError(f"it says that it has {max(counts)} entries")
    metadata: dict[str, Value] = {}
    for _ in range(counts[1]):
        key = _text(file)
        metadata[key] = _value(file, _number(file, "I"))
    tensors, end = {}, 0
    for _ in range(counts[0]):
        name = _text(file)
        dims = [_number(file, "Q") for _ in range(_number(file, "I"))]
        kind, block, nbytes = TYPES.get(number := _number(file, "I"), (f"type {number}", 1, 0))
        offset = _number(file, "Q")
        tensors[name] = Weight(kind, tuple(reversed(dims)))
        end = max(end, offset + prod(dims) // block * nbytes)
    alignment = int(metadata.get("general.alignment", _ALIGNMENT))
    start = -(-file.tell() // alignment) * alignment
    if start + end > size:
        raise ValueError(f"its tensors end at byte {start + end} and the file at {size}")
    return metadata, tensors


def _value(file: BinaryIO, kind: int) -> Value:
    if kind == _STRING:
        return _text(file)
    if kind != _ARRAY:
        (value,) = struct.unpack(f"<{_SCALARS[kind]}", file.read(struct.calcsize(f"<{_SCALARS[kind]}")))
        return value  # type: ignore[no-any-return]
    inner, count = _number(file, "I"), _number(file, "Q")
    if inner in _SCALARS:
        file.seek(count * struct.calcsize(f"<{_SCALARS[inner]}"), os.SEEK_CUR)
    elif inner == _STRING:
        length = struct.Struct("<Q")
        for _ in range(count):  # a vocabulary: as little as possible for each of its words
            file.read(length.unpack(file.read(8))[0])
    else:
        for _ in range(count):
            _value(file, inner)
    return count


def _number(file: BinaryIO, kind: str) -> int:
    (value,) = struct.unpack(f"<{kind}", file.read(struct.calcsize(f"<{kind}")))
    return int(value)


def _text(file: BinaryIO) -> str:
    length = _number(file, "Q")
    if length > os.fstat(file.fileno()).st_size:
        raise ValueError(f"a text of {length} bytes")
    data = file.read(length)
    if len(data) != length:
        raise ValueError("the file ends within a text")
    return data.decode("utf-8", errors="replace")
