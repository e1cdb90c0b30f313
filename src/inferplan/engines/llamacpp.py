"""The llama.cpp engine, through the xllamacpp wheel: its server inside the worker, one request at a time.

Owns what the engine says of itself, loading and generating. Leaves conversion to `_llamacpp_convert`, the header of a
GGUF file to `_gguf_file` and the words of the recipe to `_llamacpp_recipe`.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..errors import ArtifactError, EngineError, Unsupported
from ..measurement import Actual
from ..plan import Plan
from . import _gnu_openmp
from ._gguf_file import GgufFile, read_gguf
from ._llamacpp_recipe import script
from .base import Axis, EngineInfo, check_request, unavailable

MODEL_NAME = "model.gguf"
MIN_INTEGER_SHARE = 0.99  # as for transformers: below it a plan is not called INT8 or INT4 (issue 2)
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "int8": "int8", "int4": "int4"}
READY = ("f16", "q8_0", "q6_k", "q5_k", "q5_1", "q5_0", "q4_k", "q4_1", "q4_0", "iq4_nl", "iq4_xs", "q3_k", "q2_k")
# Room for keys and values when nothing was asked yet. All of it is written at once, so that room for a model's whole
# context (8192 tokens of SmolLM2 are 190 MB) would count as memory that a short request never needs.
_FIRST_CONTEXT = 1024
_Q8_BLOCK = 32
# Architectures whose activation ggml looks up in a table of 65536 16-bit values instead of computing it, built in with
# GGML_GELU_FP16 in ggml/src/ggml-cpu/vec.h of llama.cpp.
_GELU = ("gpt2", "gptneox", "gemma")
_SPARE = 8  # positions that the server keeps free
_THREADS = os.cpu_count() or 1
_AXES = (
    Axis("prefill_threads", (0, *range(1, _THREADS + 1)), "threads while the prompt is read; 0: as many as for tokens"),
    Axis("mmap", (True, False), "weights mapped from the file, or read into memory"),
    Axis("flash", ("auto", "on", "off"), "flash attention; auto: off in FP32 plans, else where llama.cpp has it"),
    Axis("kv_type", ("auto", "f32", "f16", "q8_0"), "type of keys and values; auto: f32 in FP32 plans, else f16"),
    Axis("ubatch", (512, 64, 128, 256, 1024, 2048), "prompt tokens computed at once"),
    Axis("repack", (True, False), "quantized weights ordered anew for the kernels while loading"),
    Axis("int4", ("q4_0", "q4_k"), "INT4 in blocks of 32 with one scale, or as a K-quant, with rows a multiple of 256"),
)


class LlamaCppEngine:
    """One plan in one process; see `base.Engine`."""

    def __init__(self) -> None:
        self._server: Any = None
        self._plan: Plan | None = None
        self._file: GgufFile | None = None
        self._context = 0

    def describe(self) -> EngineInfo:
        """From the package's metadata, and by importing it, which takes 0.1 s."""
        try:
            installed = version("xllamacpp")
            import xllamacpp  # noqa: F401
        except ImportError as error:
            return unavailable("llamacpp", "xllamacpp", error, "pip install inferplan[llamacpp]")
        return EngineInfo(
            name="llamacpp",
            version=installed,
            precisions=tuple(PRECISIONS),
            axes=(*_AXES, *_gnu_openmp.axes(_gnu_openmp.FEW)),
            env=_gnu_openmp.ENV,
            libraries={"xllamacpp": installed},
            artifact_key=f"ids-1-{installed}",
            artifact_options=("int4",),
            ready=READY,
            kv_cache=(True,),
        )

    def unsupported(self, plan: Plan) -> str | None:
        """Why `plan` cannot run, or None."""
        info = self.describe()
        if not plan.kv_cache and "engine" not in info.lacks:
            return f"{info.name} always keeps keys and values: its context is that cache"
        if why := info.reject(plan):
            return why
        if plan.option("kv_type", "auto") == "q8_0" and _flash(plan) == "off":
            return "llamacpp keeps values as q8_0 only with flash attention"
        if plan.precision != "int4" and plan.option("int4", "q4_0") != "q4_0":
            return f"llamacpp option int4 changes INT4 plans only, not {plan.precision}"
        return None

    def convert(self, checkpoint: Path, plan: Plan, out: Path) -> None:
        """`model.gguf` in the plan's type; of a ready GGUF file with its weights as they are.

        Raises:
            ArtifactError: the checkpoint is corrupt or incomplete, with the file's name.
            Unsupported: llama.cpp does not run the architecture, with the reason.
        """
        if plan.precision in READY:
            from ._llamacpp_copy import copy

            copy(checkpoint, out / MODEL_NAME)
            return
        from ._llamacpp_convert import convert

        convert(checkpoint, _wanted(plan), out / MODEL_NAME)

    def load(self, plan: Plan, artifact: Path) -> Actual:
        """Start the server on the converted file and say what it holds.

        Raises:
            ArtifactError: the file is corrupt or incomplete, with its name.
            Unsupported: the plan cannot run here, with the reason.
            EngineError: the file holds something else than the plan asks for.
        """
        if why := self.unsupported(plan):
            raise Unsupported(why)
        self.close()
        file = read_gguf(artifact / MODEL_NAME)
        _check_types(plan, file)
        if _kv_type(plan) == "q8_0" and (size := _head_size(file)) % _Q8_BLOCK:
            raise Unsupported(
                f"llamacpp keeps keys and values as q8_0 in blocks of {_Q8_BLOCK}; a head here has {size}"
            )
        self._plan, self._file = plan, file
        self._start(_FIRST_CONTEXT)
        kind = PRECISIONS.get(plan.precision, plan.precision)
        return Actual(
            dtype="bfloat16" if plan.precision == "bf16" else "float32",
            weights=kind,
            threads=plan.threads,
            kernel=_kernel(),
            scheme="dynamic" if plan.quantized else "",  # activations become blocks of Q8_0 as they are used
            quantized_share=file.integer_share if plan.quantized else None,
            attention=f"flash {_flash(plan)}",
            kv_cache=True,
            details={
                "types": file.kinds,
                "kv_type": _kv_type(plan),
                "prefill_threads": str(_prefill_threads(plan)),
                "mmap": "on" if plan.option("mmap", True) else "off",
                **_gnu_openmp.waiting(),
                **({"gelu": "from a table of 16-bit values"} if _has_gelu(file) else {}),
            },
        )

    def _start(self, context: int) -> None:
        """A server with room for `context` tokens, in place of the one that is there."""
        import xllamacpp

        assert self._plan is not None
        assert self._file is not None
        self._server = None
        try:
            self._server = xllamacpp.Server(_parameters(self._plan, self._file.path, context))
        except RuntimeError as error:
            raise ArtifactError(
                f"llama.cpp cannot load {self._file.path}: {error} Delete its directory to have it made again."
            ) from error
        self._context = context
        # A server that is dropped before its loop has begun waits for that loop for ever: one token shows that it runs.
        list(self._tokens([0], 1))

    def generate(self, prompt: Sequence[int], max_tokens: int) -> Iterator[int]:
        """Exactly `max_tokens` token ids, greedily; closing the iterator ends the request.

        Raises:
            EngineError: nothing is loaded.
            InputError: the prompt is empty, holds ids that the model does not have, or is too long with its output.
        """
        if self._server is None or self._file is None:
            raise EngineError("generate was called before load")
        vocabulary, limit = self._file.number("{arch}.vocab_size"), self._file.number("{arch}.context_length")
        check_request(prompt, max_tokens, vocabulary=vocabulary, context=limit)
        needed = len(prompt) + max_tokens
        if needed + _SPARE > self._context:
            self._start(1 << (needed + _SPARE - 1).bit_length())
        return self._tokens(list(prompt), max_tokens)

    def _tokens(self, prompt: list[int], max_tokens: int) -> Iterator[int]:
        request = {
            "prompt": prompt,
            "n_predict": max_tokens,
            "stream": True,
            "cache_prompt": False,  # each prompt is read anew
            "samplers": ["top_k"],
            "top_k": 1,
            "temperature": 0.0,
        }
        inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        closed = threading.Event()

        def take(chunk: Any) -> bool:
            inbox.put(chunk)
            return closed.is_set()  # true ends the request

        def run(server: Any) -> None:
            try:
                server.handle_completions(request, take)
            except Exception as error:  # handed on to the thread that asked
                inbox.put(error)
            inbox.put(None)

        worker = threading.Thread(target=run, args=(self._server,), daemon=True)
        worker.start()
        try:
            while (chunk := inbox.get()) is not None:
                yield from _ids(chunk)
        finally:
            closed.set()
            worker.join()

    def native_recipe(self, plan: Plan, checkpoint: str) -> str:
        """A Python script that runs `plan` with xllamacpp alone, on a GGUF file."""
        options = {
            "threads": plan.threads,
            "prefill_threads": _prefill_threads(plan),
            "kv_type": _kv_type(plan),
            "flash": _flash(plan),
            "mmap": bool(plan.option("mmap", True)),
            "ubatch": plan.option("ubatch", 512),
            "repack": bool(plan.option("repack", True)),
        }
        return script(plan, checkpoint, self.describe().variables(plan), options)

    def close(self) -> None:
        """Give the model's memory and threads back."""
        self._server, self._file, self._plan = None, None, None


def _parameters(plan: Plan, path: Path, context: int) -> Any:
    import xllamacpp as library

    p = library.CommonParams()
    p.model.path = str(path)
    p.n_ctx, p.n_parallel, p.n_threads_http = context, 1, 1
    p.cpuparams.n_threads = plan.threads
    p.cpuparams_batch.n_threads = _prefill_threads(plan)
    p.n_ubatch = int(plan.option("ubatch", 512))
    p.n_batch = max(p.n_batch, p.n_ubatch)
    cache = getattr(library.ggml_type, f"GGML_TYPE_{_kv_type(plan).upper()}")
    p.cache_type_k = p.cache_type_v = cache
    flash = {"auto": "AUTO", "on": "ENABLED", "off": "DISABLED"}[_flash(plan)]
    p.flash_attn_type = getattr(library.llama_flash_attn_type, f"LLAMA_FLASH_ATTN_TYPE_{flash}")
    mapped = "MMAP" if plan.option("mmap", True) else "NONE"
    p.load_mode = getattr(library.llama_load_mode, f"LLAMA_LOAD_MODE_{mapped}")
    p.no_extra_bufts = not plan.option("repack", True)
    # No request is helped by an earlier one, and nothing is guessed from the memory that happens to be free.
    p.cache_prompt, p.cache_ram_mib, p.cache_idle_slots, p.n_ctx_checkpoints = False, 0, False, 0
    p.fit_params = p.ctx_shift = p.enable_chat_template = False
    p.verbosity = 0
    return p


def _prefill_threads(plan: Plan) -> int:
    return int(plan.option("prefill_threads", 0)) or plan.threads


def _flash(plan: Plan) -> str:
    """On a CPU it rounds more than float32 does, even with float32 keys and values: over 1024 steps of a tiny Llama the
    chosen token was 5 times not the reference's best, by up to 0.003 of a logit, and without it never."""
    chosen = str(plan.option("flash", "auto"))
    return "off" if chosen == "auto" and plan.precision == "fp32" else chosen


def _kv_type(plan: Plan) -> str:
    chosen = str(plan.option("kv_type", "auto"))
    if chosen != "auto":
        return chosen
    return "f32" if plan.precision == "fp32" else "f16"


def _wanted(plan: Plan) -> str:
    """The type of the linear layers by its name in GGUF."""
    if plan.precision == "int4":
        return str(plan.option("int4", "q4_0")).upper()
    return {"fp32": "F32", "bf16": "BF16", "int8": "Q8_0"}.get(plan.precision, plan.precision.upper())


def _check_types(plan: Plan, file: GgufFile) -> None:
    if plan.quantized and file.integer_share < MIN_INTEGER_SHARE:
        raise EngineError(f"only {file.integer_share:.1%} of the linear parameters in {file.path} are integers")
    wanted = _wanted(plan)
    if file.kinds.split(", ")[0] != wanted:
        raise EngineError(f"{file.path} holds {file.kinds}, and a plan of {plan.precision} runs {wanted}")


def _has_gelu(file: GgufFile) -> bool:
    return file.metadata["general.architecture"] in _GELU


def _head_size(file: GgufFile) -> int:
    if f"{file.metadata['general.architecture']}.attention.key_length" in file.metadata:
        return file.number("{arch}.attention.key_length")
    return file.number("{arch}.embedding_length") // file.number("{arch}.attention.head_count")


def _kernel() -> str:
    """Instruction sets that the library was built with, as it tells them: `ggml AVX AVX2 FMA ...`."""
    import xllamacpp

    told = xllamacpp.get_system_info().partition(":")[2].split("|")
    return " ".join(["ggml", *(item.partition("=")[0].strip() for item in told if item.strip().endswith("= 1"))])


def _ids(chunk: Any) -> Iterator[int]:
    """Token ids in one piece of the stream; the text of a token is its id and a comma.

    Raises:
        EngineError: the server refused the request, in its words.
    """
    if isinstance(chunk, Exception):
        raise EngineError(f"llama.cpp ended the request: {chunk}") from chunk
    if "choices" not in chunk:
        error = chunk.get("error", chunk)
        raise EngineError(f"llama.cpp refused the request: {error.get('message', error)}")
    for choice in chunk["choices"]:
        for text in choice.get("text", "").split(","):
            if text:
                yield int(text)
