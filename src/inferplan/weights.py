"""The command that makes weights: `python -m inferplan.weights`, a JSON task in, a JSON result out.

Owns synthetic weights and the way from GGUF to safetensors, in a process of its
own because both need torch. Leaves when and where to `models`.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import fits
from ._files import TOKENIZER_FILES
from .errors import ModelError

if TYPE_CHECKING:
    import torch

PROGRESS = "progress: "  # what a line on stderr starts with when it is meant for the user
SYNTHESIS_VERSION = "1"  # part of the artifact key: raise it when the weights below change
DEQUANTIZE_VERSION = "1"
# Standard deviations relative to 1/sqrt(inputs), at which a layer keeps the size of what goes through it. With
# the library's own (0.02) the residual stays close to the token's embedding, and with tied embeddings a greedy
# GPT-2 then repeats one token for ever. An attention that averages evenly and speaks loudly ends the same way, so
# its scores are spread and its output is damped: measured on distilgpt2, distinct tokens of 64 greedy ones over
# five prompts are 3 to 17 with every gain 1, 33 to 56 with the output damped, 56 to 58 with the scores spread too.
_EMBEDDING_STD = 0.05
_LINEAR_GAIN = 1.0
_ATTENTION_IN_GAIN = 2.0
_ATTENTION_OUT_GAIN = 0.3
_OUTPUT_LAYERS = ("c_proj", "o_proj", "out_proj", "dense", "wo")


def main() -> int:
    """Read a task from stdin, do it, write `{"result": ...}` or `{"error": ...}` to stdout."""
    task = json.loads(sys.stdin.read())
    kinds: dict[str, Callable[..., dict[str, str]]] = {"synthesize": synthesize, "dequantize": dequantize}
    try:
        answer: dict[str, Any] = {"result": kinds[task.pop("task")](**task)}
    except ModelError as err:
        answer = {"error": str(err)}
    except OSError as err:
        answer = {"error": err.strerror or str(err), "errno": err.errno, "filename": str(err.filename or "")}
    print(json.dumps(answer))
    return 1 if "error" in answer else 0


def _say(text: str) -> None:
    print(PROGRESS + text, file=sys.stderr, flush=True)


def _check_memory(parameters: int, memory_bytes: int | None, what: str) -> None:
    """Refuse to make weights that could not be loaded at float32 here afterwards. None: what is granted here.

    Raises:
        ModelError: they are more than the memory; says by how much and what to do.
    """
    available = fits.granted_bytes() if memory_bytes is None else memory_bytes
    if why := fits.refusal(parameters * 4, available, what):
        raise ModelError(f"not started: {why}")


def synthesize(
    config: str,
    out: str,
    seed: int,
    tokenizer: str,
    tokenizer_kind: str,
    trust_remote_code: bool = False,
    memory_bytes: int | None = None,
) -> dict[str, str]:
    """Made-up float32 weights of the exact architecture in `config`, saved to `out` as one safetensors file.

    The weights of a tensor depend on `seed` and its name only. One tensor is in
    memory at a time.

    Args:
        config: directory with the config.json.
        out: directory to fill: config.json, model.safetensors, tokenizer files.
        tokenizer: where the tokenizer comes from: a directory or a GGUF file.
        tokenizer_kind: `files` (copied), `gpt2` (encoder.json and vocab.bpe) or `gguf`.
        memory_bytes: see `_check_memory`.

    Raises:
        ModelError: transformers does not know the architecture, the tokenizer cannot be
            read, or the weights are more than the memory.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    target = Path(out)
    try:
        parsed = AutoConfig.from_pretrained(config, trust_remote_code=trust_remote_code)
        build: Any = AutoModelForCausalLM.from_config
        with torch.device("meta"):
            model = build(parsed, dtype=torch.float32, trust_remote_code=trust_remote_code)
        model.tie_weights()
    except Exception as err:  # whatever a config can hold: transformers raises many kinds
        raise ModelError(f"{config}/config.json describes no model that transformers can build: {_line(err)}") from err
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}  # tied parameters come once
    parameters = sum(map(math.prod, shapes.values()))
    _check_memory(parameters, memory_bytes, f"the model of {config}, at float32,")
    spreads = _spreads(model)
    _say(f"making synthetic weights ({parameters / 1e6:.0f} million parameters)")
    save_stream(target / "model.safetensors", shapes, _draw(shapes, spreads, seed))
    raw = json.loads((Path(config) / "config.json").read_text(encoding="utf-8"))
    raw.pop("quantization_config", None)
    raw["dtype" if "dtype" in raw else "torch_dtype"] = "float32"
    (target / "config.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
    _save_tokenizer(tokenizer_kind, Path(tokenizer), target)
    return {"weights": f"synthetic weights, seed {seed}"}


def _spreads(model: torch.nn.Module) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation for each parameter, by what kind of layer it belongs to."""
    import torch
    from transformers.pytorch_utils import Conv1D

    spreads: dict[str, tuple[float, float]] = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            full = f"{path}.{name}" if path else name
            if isinstance(module, torch.nn.Embedding):
                spreads.setdefault(full, (0.0, _EMBEDDING_STD))
            elif parameter.ndim >= 2:
                inputs = parameter.shape[0] if isinstance(module, Conv1D) else parameter.shape[-1]
                spreads.setdefault(full, (0.0, _gain(path) / math.sqrt(inputs)))
            else:  # biases 0; the scales of norms, and whatever else is one-dimensional, 1
                spreads.setdefault(full, (0.0 if name.endswith("bias") else 1.0, 0.0))
    return spreads


def _gain(path: str) -> float:
    *parents, last = path.split(".")
    if not any("att" in parent for parent in parents):
        return _LINEAR_GAIN
    return _ATTENTION_OUT_GAIN if last in _OUTPUT_LAYERS else _ATTENTION_IN_GAIN


def _draw(
    shapes: Mapping[str, tuple[int, ...]], spreads: Mapping[str, tuple[float, float]], seed: int
) -> Iterator[bytes]:
    import torch

    for name, shape in shapes.items():
        mean, std = spreads[name]
        generator = torch.Generator().manual_seed(
            int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:7], "big")
        )
        tensor = torch.randn(shape, generator=generator) * std + mean if std else torch.full(shape, mean)
        yield tensor.numpy().astype("<f4", copy=False).tobytes()


def save_stream(file: Path, shapes: Mapping[str, tuple[int, ...]], tensors: Iterator[bytes]) -> None:
    """Write float32 `tensors`, in the order of `shapes`, as a safetensors file, one at a time."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts at a multiple of 8 bytes
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for data in tensors:
            stream.write(data)


def dequantize(gguf: str, out: str, memory_bytes: int | None = None) -> dict[str, str]:
    """The model of a GGUF file, dequantized to float32 safetensors in `out`, with its tokenizer.

    Args:
        memory_bytes: see `_check_memory`; transformers holds the whole model at float32 here.

    Raises:
        ModelError: the file is corrupt, of an architecture that transformers cannot read,
            or more than the memory at float32.
    """
    source, target = Path(gguf), Path(out)
    kind, parameters = _gguf_type_and_size(source)
    _check_memory(parameters, memory_bytes, f"{source}, dequantized to float32,")
    _say(f"reading {source.name} ({kind}) and saving it as float32 safetensors")
    import torch
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    except Exception as err:  # ValueError, KeyError, RuntimeError, ...: by architecture and kind of damage
        raise ModelError(f"{source} cannot be read by transformers: {_line(err)}") from err
    # save_pretrained refuses what it takes for quantized; these weights no longer are.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    vars(model).update(hf_quantizer=None, is_quantized=False)
    model.save_pretrained(target)
    _save_tokenizer("gguf", source, target)
    plain = {"F32": "float32 (GGUF)", "F16": "float16 (GGUF)", "BF16": "bfloat16 (GGUF)"}
    return {"weights": plain.get(kind, f"dequantized from {kind} (GGUF)")}


def _gguf_type_and_size(file: Path) -> tuple[str, int]:
    """The type that most weights in the file have, `Q4_1`, and how many there are. Reads every header for damage."""
    from collections import Counter

    from gguf import GGUFReader

    sizes: Counter[str] = Counter()
    try:
        for tensor in GGUFReader(file).tensors:
            sizes[tensor.tensor_type.name] += int(tensor.n_elements)
    except Exception as err:  # gguf checks little: damage shows as any error of struct, NumPy or an enum
        raise ModelError(f"{file} is a corrupt or truncated GGUF file ({_line(err)}). Download it again.") from err
    if not sizes:
        raise ModelError(f"{file} holds no tensors. Download it again.")
    return sizes.most_common(1)[0][0], sizes.total()


def _save_tokenizer(kind: str, source: Path, out: Path) -> None:
    if kind == "files":
        for name in TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, out / name)
        return
    try:
        if kind == "gpt2":
            _save_gpt2_tokenizer(source, out)
        else:
            from transformers import AutoTokenizer

            AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(out)
    except Exception as err:  # damage to a tokenizer shows as any error
        raise ModelError(f"the tokenizer in {source} cannot be read: {_line(err)}") from err


def _save_gpt2_tokenizer(source: Path, out: Path) -> None:
    # From file names a fast GPT-2 tokenizer of transformers 5 silently has one token: pass what the files hold.
    from transformers import GPT2Tokenizer

    vocabulary = json.loads((source / "encoder.json").read_text(encoding="utf-8"))
    lines = (source / "vocab.bpe").read_text(encoding="utf-8").split("\n")
    merges = [tuple(line.split(" ")) for line in lines[1:] if line]
    build: Any = GPT2Tokenizer  # its annotations say less than it takes: merges are pairs
    tokenizer = build(vocab=vocabulary, merges=merges, model_max_length=1024)
    if len(tokenizer) != len(vocabulary):
        raise ValueError(f"the tokenizer came out with {len(tokenizer)} tokens, not {len(vocabulary)}")
    tokenizer.save_pretrained(out)
    shutil.copyfile(source / "encoder.json", out / "vocab.json")  # for engines that read the older layout
    shutil.copyfile(source / "vocab.bpe", out / "merges.txt")


def _line(err: BaseException) -> str:
    text = str(err).strip().split("\n")[0]
    return text[:300] or type(err).__name__


if __name__ == "__main__":
    sys.exit(main())
