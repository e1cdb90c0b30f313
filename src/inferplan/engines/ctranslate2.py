"""The CTranslate2 engine: a C++ runtime for transformer models, with one conversion for each precision.

Owns what the engine says of itself, loading and generating. Leaves conversion to `_ctranslate2_convert`, reading the
converted file to `_ctranslate2_file` and the words of the recipe to `_ctranslate2_recipe`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..errors import ArtifactError, EngineError, Unsupported
from ..measurement import Actual
from ..plan import Plan
from . import _gnu_openmp
from ._ctranslate2_file import MODEL_NAME, ModelFile, read_model
from ._ctranslate2_recipe import script
from .base import EngineInfo, check_request, unavailable

NOTES_NAME = "inferplan-ctranslate2.json"
MIN_INT8_SHARE = 0.99  # as for transformers: below it a plan is not called INT8 (issue 2)
# Weights and arithmetic as the library names them. INT8 weights come with float32 activations: each row of them is
# quantized as it is used. On a CPU the library's `int8` means the same and is reported as `int8_float32`.
COMPUTE_TYPES = {"fp32": "float32", "bf16": "bfloat16", "int8": "int8_float32"}
_ENV = {"OMP_NUM_THREADS": "{threads}"}
_LOG_MARK = "] [info] "
_KERNEL_LINES = {"SGEMM backend": "sgemm", "GEMM_S8 backend": "gemm_s8", "Selected ISA": "isa"}


class CTranslate2Engine:
    """One plan in one process; see `base.Engine`."""

    def __init__(self) -> None:
        self._generator: Any = None
        self._vocabulary, self._context = 0, 0

    def describe(self) -> EngineInfo:
        """Asks the library which types it computes in on this CPU; importing it takes 0.1 s and no torch."""
        try:
            installed = version("ctranslate2")
            computes = _compute_types()
        except ImportError as error:
            return unavailable("ctranslate2", "ctranslate2", error, "pip install inferplan[ctranslate2]")
        lacks = {
            precision: f"ctranslate2 {installed} does not compute in {kind} on this CPU; "
            f"it says that it can in {', '.join(sorted(computes))}"
            for precision, kind in COMPUTE_TYPES.items()
            if kind not in computes
        }
        return EngineInfo(
            name="ctranslate2",
            version=installed,
            precisions=tuple(p for p in COMPUTE_TYPES if p not in lacks),
            axes=_gnu_openmp.axes(_gnu_openmp.FEW),
            lacks=lacks,
            env={**_ENV, **_gnu_openmp.ENV},
            libraries={"ctranslate2": installed},
            artifact_key=f"ids-1-{installed}",
            kv_cache=(True,),
        )

    def unsupported(self, plan: Plan) -> str | None:
        """Why `plan` cannot run, or None."""
        if not plan.kv_cache and "engine" not in (info := self.describe()).lacks:
            return f"{info.name} always keeps keys and values: its decoder has no mode that computes them anew"
        return self.describe().reject(plan)

    def convert(self, checkpoint: Path, plan: Plan, out: Path) -> None:
        """model.bin in the plan's type, with a vocabulary that names each token by its id.

        Raises:
            ArtifactError: the checkpoint is corrupt or incomplete, with the file's name.
            Unsupported: the library's converter does not know the architecture, with its reason.
        """
        from ._ctranslate2_convert import convert

        notes = convert(checkpoint, COMPUTE_TYPES[plan.precision], out)
        (out / NOTES_NAME).write_text(json.dumps(notes, indent=1), encoding="utf-8")

    def load(self, plan: Plan, artifact: Path) -> Actual:
        """Load the converted model and say what the library chose.

        Raises:
            ArtifactError: a file of the artifact is corrupt or incomplete, with its name.
            Unsupported: the plan cannot run here, with the reason.
            EngineError: the library runs something else than the plan asks for.
        """
        if why := self.unsupported(plan):
            raise Unsupported(why)
        self.close()
        notes = _read_notes(artifact)
        file = read_model(artifact / MODEL_NAME)
        asked = COMPUTE_TYPES[plan.precision]
        generator, said = _told(lambda: _generator(artifact, asked, plan.threads))
        _check_ran(plan, asked, str(generator.compute_type), file)
        self._generator, self._vocabulary, self._context = generator, notes["vocabulary"], notes["context"]
        kernels = _kernels(said)
        int8 = plan.precision == "int8"
        return Actual(
            dtype="float32" if int8 else asked,
            weights="int8" if int8 else asked,
            threads=plan.threads,
            kernel=kernels.get("gemm_s8" if int8 else "sgemm", "not told by ctranslate2"),
            scheme="dynamic" if int8 else "",
            quantized_share=file.int8_share if int8 else None,
            attention="ctranslate2",
            kv_cache=True,
            details={
                "compute_type": str(generator.compute_type),
                "inter_threads": str(generator.num_generators),
                "isa": kernels.get("isa", ""),
                **_gnu_openmp.waiting(),
                "embedding": "int8" if int8 else asked,
            },
        )

    def generate(self, prompt: Sequence[int], max_tokens: int) -> Iterator[int]:
        """Exactly `max_tokens` token ids, greedily; closing the iterator ends the request.

        Raises:
            EngineError: nothing is loaded.
            InputError: the prompt is empty, holds ids that the model does not have, or is too long with its output.
        """
        if self._generator is None:
            raise EngineError("generate was called before load")
        check_request(prompt, max_tokens, vocabulary=self._vocabulary, context=self._context)
        return self._tokens([str(token) for token in prompt], max_tokens)

    def _tokens(self, prompt: list[str], max_tokens: int) -> Iterator[int]:
        # No token ends the output: an empty list, where None would mean the model's own end of sequence. The library
        # decodes in a thread of its own; closing its iterator makes that thread stop after the token it is at.
        steps = self._generator.generate_tokens(
            prompt, max_length=max_tokens, end_token=[], sampling_topk=1, cache_static_prompt=False
        )
        with closing(steps):
            for step in steps:
                yield int(step.token_id)

    def native_recipe(self, plan: Plan, checkpoint: str) -> str:
        """A Python script that runs `plan` with ctranslate2 alone; conversion, once, takes transformers too."""
        return script(plan, checkpoint, self.describe().variables(plan), COMPUTE_TYPES[plan.precision])

    def close(self) -> None:
        """Give the model's memory and threads back."""
        if self._generator is not None:
            self._generator.unload_model()
            self._generator = None


@cache
def _compute_types() -> frozenset[str]:
    import ctranslate2

    return frozenset(ctranslate2.get_supported_compute_types("cpu"))


def _generator(artifact: Path, compute_type: str, threads: int) -> Any:
    import ctranslate2

    try:
        return ctranslate2.Generator(
            str(artifact), device="cpu", compute_type=compute_type, inter_threads=1, intra_threads=threads
        )
    except (RuntimeError, ValueError) as error:
        raise ArtifactError(
            f"ctranslate2 cannot load {artifact / MODEL_NAME}: {error}. Delete its directory to have it made again."
        ) from error


def _check_ran(plan: Plan, asked: str, ran: str, file: ModelFile) -> None:
    if ran != asked:
        raise EngineError(
            f"{plan.precision} was asked for and ctranslate2 computes in {ran} on this CPU, not in {asked}"
        )
    if plan.precision == "int8" and file.int8_share < MIN_INT8_SHARE:
        raise EngineError(
            f"only {file.int8_share:.1%} of the linear parameters in {file.path} are INT8; "
            f"the largest that is not is {file.widest}: this architecture is not INT8 in ctranslate2"
        )


def _read_notes(artifact: Path) -> dict[str, int]:
    path = artifact / NOTES_NAME
    try:
        notes = json.loads(path.read_text(encoding="utf-8"))
        return {"vocabulary": int(notes["vocabulary"]), "context": int(notes["context"] or 0)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}). Delete its directory to have it made again.") from error


def _told(make: Callable[[], Any]) -> tuple[Any, str]:
    """What `make` returns, and what the library wrote meanwhile about its kernels.

    It tells them only to standard error, from C++, once in a process: so the descriptor itself is turned to a file.
    """
    import ctranslate2

    level = ctranslate2.get_log_level()
    with tempfile.TemporaryFile() as log:
        sys.stderr.flush()
        kept = os.dup(2)
        os.dup2(log.fileno(), 2)
        ctranslate2.set_log_level(logging.INFO)
        try:
            made = make()
        finally:
            ctranslate2.set_log_level(level)
            os.dup2(kept, 2)
            os.close(kept)
        log.seek(0)
        return made, log.read().decode(errors="replace")


_SEEN: dict[str, str] = {}  # told at the first load of a process only


def _kernels(said: str) -> dict[str, str]:
    for line in said.splitlines():
        name, _, value = line.partition(_LOG_MARK)[2].strip().removeprefix("- ").partition(": ")
        if name in _KERNEL_LINES:
            _SEEN[_KERNEL_LINES[name]] = value
    return _SEEN
