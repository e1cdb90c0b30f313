"""The OpenVINO engine, through openvino-genai's pipelines: the stateful one, and the one with a scheduler.

Owns what the engine says of itself, loading and generating. Leaves conversion to `_openvino_convert`, the converted
file to `_openvino_file`, properties to `_openvino_properties` and the words of the recipe to `_openvino_recipe`.
"""

from __future__ import annotations

import json
import os
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..errors import ArtifactError, EngineError, Unsupported
from ..measurement import Actual
from ..plan import Plan
from ._openvino_file import DATA_NAME, MODEL_NAME, ModelFile, read_model
from ._openvino_library import WITHOUT_AMX, send_no_reports, variables_of
from ._openvino_properties import (
    AXES,
    NAMES,
    PAGED,
    check_ran,
    dynamic_group,
    paged,
    properties,
    told,
    unsupported_options,
)
from ._openvino_recipe import script
from ._openvino_weights import Weights, trim
from .base import EngineInfo, check_request, unavailable

NOTES_NAME = "inferplan-openvino.json"
MIN_INTEGER_SHARE = 0.99  # as for transformers: below it a plan is not called INT8 or INT4 (issue 2)
_PACKAGES = ("openvino", "openvino-genai")
_FORMAT = "traced-1"
_SEVERAL = 32  # rows: enough for what the device does differently with many


class OpenVinoEngine:
    """One plan in one process; see `base.Engine`."""

    def __init__(self) -> None:
        self._pipeline: Any = None
        self._weights: Weights | None = None
        self._vocabulary, self._context = 0, 0

    def describe(self) -> EngineInfo:
        """Asks the library what this CPU computes natively; importing it takes 0.3 s and no torch."""
        try:
            libraries = {name: version(name) for name in _PACKAGES}
            can = _capabilities()
        except ImportError as error:
            return unavailable("openvino", "openvino-genai", error, "pip install inferplan[openvino]")
        lacks = {}
        if "BF16" not in can:
            lacks["bf16"] = (
                "OpenVINO does not compute in bfloat16 on this CPU; "
                f"it says that it has optimized kernels for {', '.join(sorted(can))}"
            )
        return EngineInfo(
            name="openvino",
            version=libraries["openvino-genai"],
            precisions=tuple(p for p in NAMES if p not in lacks),
            axes=AXES,
            lacks=lacks,
            libraries=libraries,
            env_of=variables_of(),
            artifact_key=f"{_FORMAT}-{libraries['openvino']}-{_converter()}",
            kv_cache=(True,),
        )

    def unsupported(self, plan: Plan) -> str | None:
        """Why `plan` cannot run, or None."""
        info = self.describe()
        if not plan.kv_cache and "engine" not in info.lacks:
            return f"{info.name} always keeps keys and values: they are the state of its model"
        return info.reject(plan) or unsupported_options(plan)

    def convert(self, checkpoint: Path, plan: Plan, out: Path) -> None:
        """openvino_model.xml and .bin with the plan's weights; no tokenizer, only ids are ever exchanged.

        Raises:
            ArtifactError: the checkpoint is corrupt or incomplete, with the file's name.
            Unsupported: the architecture cannot be converted, with the reason.
        """
        send_no_reports()
        from ._openvino_convert import convert

        notes = convert(checkpoint, plan.precision, out)
        (out / NOTES_NAME).write_text(json.dumps(notes, indent=1), encoding="utf-8")

    def load(self, plan: Plan, artifact: Path) -> Actual:
        """Compile the converted model and say what the library made of it.

        Raises:
            ArtifactError: a file of the artifact is corrupt or incomplete, with its name.
            Unsupported: the plan cannot run here, with the reason.
            EngineError: the library runs something else than the plan asks for.
        """
        if why := self.unsupported(plan):
            raise Unsupported(why)
        self.close()
        notes = _read_notes(artifact)
        file = read_model(artifact)
        _check_types(plan, file)
        if paged(plan) and 0 < notes["window"] < (notes["context"] or notes["window"] + 1):
            raise Unsupported(
                f"openvino's pipeline=paged drops the sliding window of {notes['window']} tokens that this model has; "
                "pipeline=stateful keeps it"
            )
        self._vocabulary, self._context = notes["vocabulary"], notes["context"]
        self._weights = weights = Weights(artifact / DATA_NAME)
        try:
            with weights.dropping():
                self._pipeline, ran = told(lambda: _pipeline(artifact, plan, weights))
                trim()
                check_ran(plan, ran)
                self._order_weights()
        except EngineError:
            self.close()
            raise
        return _actual(plan, file, ran, notes)

    def _order_weights(self) -> None:
        """The device orders some weights when it first multiplies one row, and again when it first multiplies more."""
        for count in {1, min(_SEVERAL, self._context - 2) if self._context else _SEVERAL}:
            list(_tokens(self._pipeline, [0] * count, 2, self._vocabulary))

    def generate(self, prompt: Sequence[int], max_tokens: int) -> Iterator[int]:
        """Exactly `max_tokens` token ids, greedily; closing the iterator ends the request.

        Raises:
            EngineError: nothing is loaded.
            InputError: the prompt is empty, holds ids that the model does not have, or is too long with its output.
        """
        if self._pipeline is None:
            raise EngineError("generate was called before load")
        check_request(prompt, max_tokens, vocabulary=self._vocabulary, context=self._context)
        return _tokens(self._pipeline, prompt, max_tokens, self._vocabulary)

    def native_recipe(self, plan: Plan, checkpoint: str) -> str:
        """A Python script that runs `plan` with openvino-genai alone, on a converted model."""
        scheduler = PAGED if paged(plan) else {}
        return script(plan, checkpoint, self.describe().variables(plan), properties(plan), scheduler)

    def close(self) -> None:
        """Give the model's memory and threads back."""
        self._pipeline = None
        self._weights = None  # after the model that reads it


@cache
def _capabilities() -> frozenset[str]:
    send_no_reports()
    import openvino
    import openvino_genai  # noqa: F401  (installed is not enough: it must load here)

    return frozenset(openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def _converter() -> str:
    """The version of the modelling code that is traced: other code may give another graph."""
    try:
        return version("transformers")
    except PackageNotFoundError:
        return "none"


def _pipeline(artifact: Path, plan: Plan, weights: Weights) -> Any:
    import openvino_genai as library

    extra = {}
    if paged(plan):
        scheduler = library.SchedulerConfig()
        for name, value in PAGED.items():
            setattr(scheduler, name, value)
        extra["scheduler_config"] = scheduler
    model, tokenizer = (artifact / MODEL_NAME).read_text(encoding="utf-8"), library.Tokenizer(str(artifact))
    try:
        return library.LLMPipeline(model, weights.tensor, tokenizer, "CPU", **properties(plan), **extra)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:400]
        if paged(plan):
            raise Unsupported(f"openvino refuses this model with pipeline=paged: {reason}") from error
        raise ArtifactError(
            f"openvino cannot load {artifact / MODEL_NAME}: {reason} Delete its directory to have it made again."
        ) from error


def _read_notes(artifact: Path) -> dict[str, int]:
    path = artifact / NOTES_NAME
    try:
        notes = json.loads(path.read_text(encoding="utf-8"))
        return {name: int(notes[name] or 0) for name in ("vocabulary", "context", "window", "group_size")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}). Delete its directory to have it made again.") from error


def _check_types(plan: Plan, file: ModelFile) -> None:
    if plan.quantized and file.integer_share < MIN_INTEGER_SHARE:
        raise EngineError(f"only {file.integer_share:.1%} of the linear parameters in {file.path} are integers")
    wanted = {"fp32": "f32", "bf16": "bf16", "int8": "i8", "int4": "u4"}[plan.precision]
    if wanted not in file.kinds.split(", "):
        raise EngineError(f"{file.path} holds {file.kinds}, and a plan of {plan.precision} runs {wanted}")


def _actual(plan: Plan, file: ModelFile, ran: Mapping[str, str], notes: Mapping[str, int]) -> Actual:
    group = dynamic_group(plan)
    scheme = ("dynamic" if group else "weight-only") if plan.quantized else ""
    return Actual(
        dtype=NAMES["bf16" if ran["INFERENCE_PRECISION_HINT"] == "bf16" else "fp32"],
        weights=NAMES[plan.precision],
        threads=int(ran["INFERENCE_NUM_THREADS"]),
        kernel="oneDNN",
        scheme=scheme,
        quantized_share=file.integer_share if plan.quantized else None,
        attention="paged" if paged(plan) else "stateful",
        kv_cache=True,
        details={
            "types": file.kinds,
            "inference_precision": ran["INFERENCE_PRECISION_HINT"],
            "kv_cache_precision": ran["KV_CACHE_PRECISION"],
            "dynamic_quantization_group_size": ran["DYNAMIC_QUANTIZATION_GROUP_SIZE"],
            "streams": ran["NUM_STREAMS"],
            **({"weight_group_size": str(notes["group_size"])} if notes["group_size"] else {}),
            **{name: os.environ[name] for name in WITHOUT_AMX if name in os.environ},
        },
    )


def _tokens(pipeline: Any, prompt: Sequence[int], max_tokens: int, no_token: int) -> Iterator[int]:
    """The pipeline works in a thread of its own and hands each token over as it streams it.

    It wants to know the end of sequence even to ignore it: `no_token` is an id that the model does not have.
    """
    import numpy as np
    import openvino
    import openvino_genai as library

    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    closed = threading.Event()

    class Inbox(library.StreamerBase):  # type: ignore[misc]
        def write(self, token: int | list[int]) -> Any:
            for one in token if isinstance(token, list) else (token,):
                inbox.put(one)
            return library.StreamingStatus.CANCEL if closed.is_set() else library.StreamingStatus.RUNNING

        def end(self) -> None:
            """Nothing is held back."""

    config = library.GenerationConfig()
    # No least number of tokens: that would forbid the end of sequence where the reference chooses freely.
    config.max_new_tokens, config.ignore_eos, config.do_sample = max_tokens, True, False
    config.eos_token_id, config.apply_chat_template = no_token, False
    ids = np.array([prompt], dtype=np.int64)
    request = library.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))

    def run() -> None:
        try:
            pipeline.generate(request, config, Inbox())
        except Exception as error:  # handed on to the thread that asked
            inbox.put(error)
        inbox.put(None)

    worker = threading.Thread(target=run, daemon=True)
    worker.start()
    try:
        while (found := inbox.get()) is not None:
            if isinstance(found, Exception):
                raise EngineError(f"openvino ended the request: {' '.join(str(found).split())[:400]}") from found
            yield int(found)
    finally:
        closed.set()
        worker.join()
