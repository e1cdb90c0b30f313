"""The layout of a converted CTranslate2 model: which weights it holds and in which types; standard library only.

Owns the check that the file is whole, and the share of INT8, counted in the file that is loaded. Leaves the weights
themselves to the library. Layout: binary version 6, as the library's own `specs/model_spec.py` writes it.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

from ..errors import ArtifactError

MODEL_NAME = "model.bin"
BINARY_VERSION = 6
_TYPES = ("float32", "int8", "int16", "int32", "float16", "bfloat16")
_NOT_LINEAR = ("embeddings", "encodings")


@dataclass(frozen=True, slots=True)
class ModelFile:
    """What a converted model holds.

    Attributes:
        weights: of each linear layer its weight's type and count of parameters; tied ones by each of their names.
    """

    path: Path
    weights: dict[str, tuple[str, int]]

    @property
    def int8_share(self) -> float:
        """Share of the linear layers' parameters that are INT8, 0 to 1."""
        total = sum(count for _, count in self.weights.values())
        return sum(count for kind, count in self.weights.values() if kind == "int8") / total if total else 0.0

    @property
    def widest(self) -> str:
        """The largest linear layer that is not INT8; empty where all are."""
        others = {name: count for name, (kind, count) in self.weights.items() if kind != "int8"}
        return max(others, key=others.__getitem__, default="")


def read_model(path: Path) -> ModelFile:
    """Walk through the headers of all variables; their data is skipped.

    Raises:
        ArtifactError: the file is missing, truncated or of another version, with its name.
    """
    try:
        with path.open("rb") as file:
            variables, aliases = _walk(file)
    except OSError as error:
        raise ArtifactError(f"cannot open {path}: {error.strerror}") from error
    except (struct.error, ValueError, IndexError) as error:
        raise ArtifactError(
            f"{path} is corrupt or truncated ({error}). Delete its directory to have it made again."
        ) from None
    named = {**variables, **{alias: variables[name] for alias, name in aliases.items() if name in variables}}
    linear = {
        name: (kind, prod(shape))
        for name, (kind, shape) in named.items()
        if name.endswith("/weight") and len(shape) == 2 and not any(word in name for word in _NOT_LINEAR)
    }
    return ModelFile(path, linear)


def _walk(file: BinaryIO) -> tuple[dict[str, tuple[str, tuple[int, ...]]], dict[str, str]]:
    size = os.fstat(file.fileno()).st_size
    found = _number(file, "I")
    if found != BINARY_VERSION:
        raise ValueError(f"binary version {found}, not {BINARY_VERSION}")
    _text(file)  # the specification's name and revision
    _number(file, "I")
    variables = {}
    for _ in range(_number(file, "I")):
        name = _text(file)
        shape = tuple(_number(file, "I") for _ in range(_number(file, "B")))
        kind = _TYPES[_number(file, "B")]
        nbytes = _number(file, "I")
        if file.tell() + nbytes > size:
            raise ValueError(f"{name} needs {nbytes} bytes and {size - file.tell()} are left")
        file.seek(nbytes, os.SEEK_CUR)
        variables[name] = (kind, shape)
    aliases = {}
    for _ in range(_number(file, "I")):
        alias = _text(file)
        aliases[alias] = _text(file)
    return variables, aliases


def _number(file: BinaryIO, kind: str) -> int:
    (value,) = struct.unpack(f"<{kind}", file.read(struct.calcsize(f"<{kind}")))
    return int(value)


def _text(file: BinaryIO) -> str:
    length = _number(file, "H")
    data = file.read(length)
    if len(data) != length:
        raise ValueError("the file ends within a name")
    return data[:-1].decode("utf-8")
