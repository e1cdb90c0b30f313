"""The safetensors format, tensor by tensor: headers, positioned reads, a streaming writer; standard library only.

Owns the bytes of weight files, so that no process holds more of a model than the tensor it is reading.
Leaves types and arithmetic to the callers, who hand in buffers. Format: huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from ..errors import ArtifactError

ITEM_BYTES: Mapping[str, int] = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64"), 8),
}
_MAX_HEADER_BYTES = 100_000_000  # the limit that the format's own reader sets
INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one tensor lies: `offset` counts from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class TensorFile:
    """One safetensors file, open for positioned reads.

    Reads go to the caller's buffer and never through a mapping: a mapping would count its
    pages in the process's resident memory a second time, next to the copy made of them.

    Raises:
        ArtifactError: the file is missing, truncated or not safetensors, with its name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise ArtifactError(f"cannot open {path}: {error.strerror}") from error
        try:
            self.entries, self.metadata = _read_header(self._file, path)
        except BaseException:
            self._file.close()
            raise

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` (bytes) from `offset`.

        Raises:
            ArtifactError: the file ends early, or cannot be read.
        """
        done = 0
        try:
            while done < len(buffer):
                got = self._read_some(buffer[done:], offset + done)
                if got == 0:
                    raise ArtifactError(f"{self.path} ends at byte {offset + done}: it is truncated; convert it again")
                done += got
        except OSError as error:
            raise ArtifactError(f"cannot read {self.path}: {error.strerror}") from error

    def _read_some(self, buffer: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):  # one call instead of two; Windows has neither pread nor preadv
            return os.preadv(self._file.fileno(), [buffer], offset)
        self._file.seek(offset)
        return self._file.readinto(buffer) or 0

    def close(self) -> None:
        """Close the file; further reads fail."""
        self._file.close()


def _read_header(file: BinaryIO | Any, path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
    if not 0 < length <= min(_MAX_HEADER_BYTES, size - 8):
        raise ArtifactError(
            f"{path} is not a safetensors file, or is truncated: it says that its header has {length} bytes "
            f"and the file has {size}. Fetch or convert it again."
        )
    try:
        header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", {})
        entries = {name: _entry(item, 8 + length) for name, item in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path} has a header that cannot be read ({error}). Fetch or convert it again.") from error
    end = max((e.offset + e.nbytes for e in entries.values()), default=0)
    if end > size:
        raise ArtifactError(f"{path} is truncated: its header needs {end} bytes and it has {size}. Fetch it again.")
    return entries, metadata


def _entry(item: Any, base: int) -> Entry:
    begin, end = item["data_offsets"]
    shape = tuple(int(n) for n in item["shape"])
    entry = Entry(item["dtype"], shape, base + begin, end - begin)
    if entry.nbytes != prod(shape) * ITEM_BYTES[entry.dtype] or begin < 0:
        raise ValueError(f"{entry.dtype} of shape {list(shape)} cannot have {entry.nbytes} bytes")
    return entry


class TensorFiles:
    """All tensors of a checkpoint directory, whether one file or shards with an index."""

    def __init__(self, directory: Path) -> None:
        self._files = [TensorFile(path) for path in checkpoint_files(directory)]
        self.where = {name: (file, file.entries[name]) for file in self._files for name in file.entries}

    @property
    def metadata(self) -> Mapping[str, str]:
        """Free text kept in the first file's header."""
        return self._files[0].metadata

    @property
    def first_path(self) -> Path:
        """The file to name when something is wrong with the whole."""
        return self._files[0].path

    def close(self) -> None:
        """Close every file."""
        for file in self._files:
            file.close()


def checkpoint_files(directory: Path) -> tuple[Path, ...]:
    """The safetensors files of `directory`.

    Raises:
        ArtifactError: there are none, or the index names one that is missing.
    """
    index, single = directory / INDEX_NAME, directory / SINGLE_NAME
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ArtifactError(f"{index} cannot be read ({error}). Fetch the model again.") from error
        if missing := [name for name in names if not (directory / name).is_file()]:
            raise ArtifactError(f"{directory / missing[0]} is missing: {INDEX_NAME} names it. Fetch the model again.")
        return tuple(directory / name for name in names)
    if single.is_file():
        return (single,)
    raise ArtifactError(f"{directory} has neither {SINGLE_NAME} nor {INDEX_NAME}: there are no weights to load")


class TensorWriter:
    """Writes one safetensors file whose layout is known before its contents; use as a context manager.

    Args:
        path: the file to make.
        layout: name, type and shape of each tensor, in the order in which `write` will be called.
        metadata: free text for the header.
    """

    def __init__(self, path: Path, layout: Iterable[tuple[str, str, Sequence[int]]], metadata: Mapping[str, str]):
        header: dict[str, Any] = {"__metadata__": dict(metadata)}
        offset = 0
        self._expected: list[tuple[str, int]] = []
        for name, dtype, shape in layout:
            nbytes = prod(shape) * ITEM_BYTES[dtype]
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + nbytes]}
            self._expected.append((name, nbytes))
            offset += nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the format aligns the data to 8 bytes
        self._file = path.open("wb")
        self._file.write(struct.pack("<Q", len(text)) + text)

    def write(self, name: str, data: memoryview) -> None:
        """Append the tensor `name`, whose turn it is."""
        expected, nbytes = self._expected.pop(0)
        if (name, data.nbytes) != (expected, nbytes):
            raise ValueError(f"expected {expected} with {nbytes} bytes, not {name} with {data.nbytes}")
        self._file.write(data)

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
        if kind is None and self._expected:
            raise ValueError(f"{self._expected[0][0]} was never written")
