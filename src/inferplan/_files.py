"""Weight files as they lie on disk: cheap checks, sizes and hashes; standard library only.

Owns what can be told from a header without loading a tensor. Leaves the
tensors to `weights`, and which file to take to `models`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .artifacts import artifact_key, cache_dir
from .errors import ModelError

INDEX_FILE = "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_MAX_HEADER_BYTES = 100_000_000  # the limit that the safetensors library itself sets
_HASH_CACHE_FROM_BYTES = 1 << 20  # below this, hashing is faster than looking it up
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64", "I8": "int8", "U8": "uint8"}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor as its header tells it: its name, type (`F32`) and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Count of its elements."""
        return math.prod(self.shape)


def read_config(directory: Path) -> dict[str, Any]:
    """The config.json in `directory`.

    Raises:
        ModelError: it is missing, unreadable or no JSON object.
    """
    file = directory / "config.json"
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{directory} holds no config.json: give a directory in Hugging Face layout "
            "(config.json, *.safetensors, tokenizer files) or a .gguf file"
        ) from None
    except (OSError, ValueError) as err:
        raise ModelError(f"{file} cannot be read as JSON: {err}. Download it again.") from None
    if not isinstance(data, dict):
        raise ModelError(f"{file} must hold a JSON object, not {type(data).__name__}. Download it again.")
    return data


def weight_files(directory: Path) -> tuple[Path, ...]:
    """The safetensors files that make up the model in `directory`, sorted; empty when it has no weights.

    Raises:
        ModelError: there are only pickles, or the index names a file that is missing.
    """
    if (directory / INDEX_FILE).is_file():
        names = indexed_shards(directory / INDEX_FILE)
        if missing := [name for name in names if not (directory / name).is_file()]:
            raise ModelError(
                f"{directory / INDEX_FILE} names {missing[0]!r}, which is not there ({len(missing)} of {len(names)} "
                "files are missing). Download the model again."
            )
        return tuple(directory / name for name in names)
    if (directory / "model.safetensors").is_file():
        return (directory / "model.safetensors",)
    if others := sorted(directory.glob("*.safetensors")):
        raise ModelError(
            f"{directory} has {others[0].name}, but neither model.safetensors nor {INDEX_FILE}, which are what engines "
            "load. Save the model with save_pretrained, or merge an adapter into its model first."
        )
    if pickles := sorted(p for pattern in _PICKLES for p in directory.glob(pattern)):
        raise ModelError(
            f"{directory} has its weights only as a pickle ({pickles[0].name}), which can run code when it is loaded. "
            "Convert it to safetensors (load it with transformers where you trust it, then save_pretrained), "
            "or remove it to run with synthetic weights."
        )
    return ()


def indexed_shards(index: Path) -> tuple[str, ...]:
    """Names of the files that a safetensors index names, sorted."""
    try:
        return tuple(sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        raise ModelError(f"{index} is no safetensors index ({err}). Download it again.") from None


def read_safetensors(file: Path) -> tuple[Tensor, ...]:
    """The tensors of a safetensors file, by its header, which is checked against the file's size.

    Raises:
        ModelError: the file is corrupt or truncated; names it.
    """
    remedy = "It is corrupt or was not downloaded to its end: download it again."
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
            raise ModelError(f"{file} is not a safetensors file: its header length of {length} is impossible. {remedy}")
        raw = stream.read(length)
    try:
        header: dict[str, Any] = json.loads(raw)
        header.pop("__metadata__", None)
        tensors = tuple(Tensor(name, str(t["dtype"]), tuple(map(int, t["shape"]))) for name, t in header.items())
        end = max((int(t["data_offsets"][1]) for t in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as err:
        reason = str(err)[:80] or type(err).__name__
        raise ModelError(f"{file} has a safetensors header that cannot be read ({reason}). {remedy}") from None
    if size != 8 + length + end:
        raise ModelError(f"{file} has {size} bytes where its header promises {8 + length + end}. {remedy}")
    return tensors


def check_gguf(file: Path) -> None:
    """See that `file` begins as a GGUF file does; the rest is checked when it is converted.

    Raises:
        ModelError: it does not; names the file.
    """
    with file.open("rb") as stream:
        start = stream.read(24)
    if len(start) < 24 or start[:4] != b"GGUF":
        raise ModelError(f"{file} is not a GGUF file (it begins with {start[:4]!r}). Download it again.")
    version, tensors, keys = struct.unpack("<IQQ", start[4:])
    if version not in (2, 3):
        raise ModelError(f"{file} is GGUF version {version}; versions 2 and 3 can be read. Convert it again.")
    if not (0 < tensors < 1 << 32 and 0 < keys < 1 << 32):
        raise ModelError(f"{file} has an impossible GGUF header ({tensors} tensors, {keys} keys). Download it again.")


def count_parameters(tensors: Sequence[Tensor], config: Mapping[str, Any]) -> int:
    """Count of parameters, tied ones once, masks that old files carry left out."""
    tied = config.get("tie_word_embeddings", config.get("model_type") == "gpt2")
    skipped = [t for t in tensors if t.name.endswith((".attn.bias", ".masked_bias", ".rotary_emb.inv_freq"))]
    masks = {t.name for t in skipped if len(t.shape) != 1 or not t.name.endswith(".attn.bias")}
    return sum(t.size for t in tensors if t.name not in masks and not (tied and t.name == "lm_head.weight"))


def describe_dtype(tensors: Sequence[Tensor], config: Mapping[str, Any]) -> str:
    """What the weights are, in words: `float32`, `bfloat16`, `int8 quantized by torchao`."""
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.dtype] += tensor.size
    main = sizes.most_common(1)[0][0] if sizes else "no tensors"
    quantization = config.get("quantization_config")
    method = quantization.get("quant_method", "an unnamed method") if isinstance(quantization, dict) else ""
    return _DTYPES.get(main, main.lower()) + (f" quantized by {method}" if method else "")


def context_length(config: Mapping[str, Any]) -> int | None:
    """Longest sequence in tokens that the model takes; None where the config does not say."""
    nested = config.get("text_config")
    for source in (config, nested if isinstance(nested, dict) else {}):
        for key in ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "max_seq_len"):
            if isinstance(source.get(key), int) and source[key] > 0:
                return int(source[key])
    return None


def tokenizer_files(directory: Path) -> tuple[Path, ...]:
    """Tokenizer files in `directory`; empty unless they are enough to tokenize with."""
    found = {name: directory / name for name in TOKENIZER_FILES if (directory / name).is_file()}
    enough = "tokenizer.json" in found or "tokenizer.model" in found or {"vocab.json", "merges.txt"} <= set(found)
    return tuple(found.values()) if enough else ()


def content_hash(files: Sequence[Path]) -> str:
    """sha256 over the names and contents of `files`, in the order given."""
    whole = hashlib.sha256()
    for file in files:
        whole.update(f"{file.name}\0{file_sha256(file)}\n".encode())
    return whole.hexdigest()


def file_sha256(file: Path, cache: Path | None = None) -> str:
    """sha256 of a file's content; of a big one it is remembered by path, size and time of change."""
    state = file.stat()
    if state.st_size < _HASH_CACHE_FROM_BYTES:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    stamp = f"{state.st_size} {state.st_mtime_ns}"
    known = (cache_dir() if cache is None else cache) / "hashes" / artifact_key(str(file.resolve()))
    with contextlib.suppress(OSError, ValueError):
        old_stamp, digest = known.read_text(encoding="ascii").split("\n")
        if old_stamp == stamp and len(digest) == 64:
            return digest
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    with contextlib.suppress(OSError):  # remembering is a shortcut: a cache that cannot be written costs only time
        known.parent.mkdir(parents=True, exist_ok=True)
        draft = known.with_name(f"{known.name}.{os.getpid()}")
        draft.write_text(f"{stamp}\n{digest}", encoding="ascii")
        draft.replace(known)
    return digest
