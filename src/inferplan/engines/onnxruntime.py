"""The ONNX Runtime engine: a plain session with a loop of our own, or onnxruntime-genai's.

Owns what the engine says of itself, and what an artifact must hold. Leaves conversion to `_onnxruntime_convert`,
running to `_onnxruntime_session` and `_onnxruntime_genai`, and the words of the recipe to `_onnxruntime_recipe`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..errors import EngineError, Unsupported
from ..measurement import Actual
from ..plan import Plan
from ._cpu import sums_bytes_exactly
from ._onnxruntime_file import MODEL_NAME, GraphFile, read_graph, read_notes
from ._onnxruntime_recipe import script
from .base import Axis, EngineInfo, check_request, unavailable

MIN_INTEGER_SHARE = 0.99  # as for transformers: below it a plan is not called INT8 or INT4 (issue 2)
WEIGHTS = {"fp32": "float32", "int8": "int8", "int4": "int4"}
_BLOCKS = (32, 64, 128)  # of MatMulNBits; it has 16 and 256 too
_AXES = (
    Axis("runner", ("session", "genai"), "who runs the graph: a session and our own loop, or onnxruntime-genai"),
    Axis("graph", ("auto", "builder", "export"), "who draws it: onnxruntime-genai's model builder, torch's exporter"),
    Axis("int8", ("blocks", "rows"), "what shares a scale in INT8 plans: 32 weights (MatMulNBits), or each output's"),
    Axis("head", ("int4", "int8"), "type of the last layer's weights in INT4 plans"),
    Axis("block", _BLOCKS, "weights that share a scale; more of them are smaller and faster, and less exact"),
    Axis("spin", (True, False), "a waiting thread spins a while before it sleeps"),
    Axis("arena", (True, False), "memory that is freed is kept for later tokens"),
    Axis("prepack", (True, False), "weights ordered anew for the kernels while loading; off: for FP32 plans only"),
)
_INT8, _INT7 = 127, 63
_REMEDY = "pip install inferplan[onnxruntime]"


class OnnxRuntimeEngine:
    """One plan in one process; see `base.Engine`."""

    def __init__(self) -> None:
        self._runner: Any = None
        self._vocabulary, self._context = 0, 0

    def describe(self) -> EngineInfo:
        """From the packages' metadata, and by importing onnxruntime, which takes 0.1 s and no torch."""
        try:
            installed = version("onnxruntime")
            import onnxruntime  # noqa: F401
        except ImportError as error:
            return unavailable("onnxruntime", "onnxruntime", error, _REMEDY)
        genai = _genai_version()
        return EngineInfo(
            name="onnxruntime",
            version=installed,
            precisions=tuple(WEIGHTS),
            axes=_AXES,
            lacks={
                kind: f"onnxruntime {installed} multiplies no {name} on a CPU, only float32 and integers"
                for kind, name in (("bf16", "bfloat16"), ("fp16", "float16"))
            },
            env={"OPENBLAS_NUM_THREADS": "1"},  # NumPy's pool of threads, which nothing here uses
            libraries={"onnxruntime": installed, **({"onnxruntime-genai": genai} if genai else {})},
            artifact_key=f"gqa-2-{installed}-{genai or 'none'}-{int8_levels()}",
            artifact_options=("block", "graph", "head", "int8"),
        )

    def unsupported(self, plan: Plan) -> str | None:
        """Why `plan` cannot run, or None."""
        if why := self.describe().reject(plan):
            return why
        for option, precision in (("int8", "int8"), ("head", "int4")):
            if option in dict(plan.options) and plan.precision != precision:
                return f"the option {option} is for plans of {precision}, not of {plan.precision}"
        if "block" in dict(plan.options) and (not plan.quantized or plan.option("int8", "blocks") == "rows"):
            return "the option block is for weights whose scales are by blocks: int4, and int8 with int8=blocks"
        if plan.quantized and not plan.option("prepack", True):
            return "prepack=off is for plans of fp32: integer weights would be ordered anew for every token"
        if plan.option("runner", "session") == "genai":
            if not plan.kv_cache:
                return "onnxruntime-genai always keeps keys and values: use runner=session with the KV cache off"
            if plan.option("graph", "auto") == "export":
                return "onnxruntime-genai runs what its own model builder made, not graph=export"
            if not _genai_version():
                return f"onnxruntime-genai is not installed: {_REMEDY}"
        return None

    def convert(self, checkpoint: Path, plan: Plan, out: Path) -> None:
        """`model.onnx` and its weights in the plan's type.

        Raises:
            ArtifactError: the checkpoint is corrupt or incomplete, with the file's name.
            Unsupported: nobody can draw the graph, with the reason, or a package for it is missing.
        """
        try:
            from ._onnxruntime_convert import convert
        except ImportError as error:
            raise Unsupported(f"conversion takes a package that is missing: {error}: {_REMEDY}") from error
        head: Any = "int8-blocks" if plan.precision == "int4" and plan.option("head", "int4") == "int8" else None
        block, graph = int(plan.option("block", _BLOCKS[0])), str(plan.option("graph", "auto"))
        convert(checkpoint, _scheme(plan), head, int8_levels(), block, graph, out)

    def load(self, plan: Plan, artifact: Path) -> Actual:
        """Load the converted model and say what it holds.

        Raises:
            ArtifactError: a file of the artifact is corrupt or incomplete, with its name.
            Unsupported: the plan cannot run here, with the reason.
            EngineError: the file holds something else than the plan asks for.
        """
        if why := self.unsupported(plan):
            raise Unsupported(why)
        self.close()
        notes = read_notes(artifact)
        file = read_graph(artifact / MODEL_NAME)
        _check_weights(plan, file)
        runner = str(plan.option("runner", "session"))
        if runner == "genai" and notes["graph"] != "builder":
            raise Unsupported(f"{notes['builder']}; runner=session runs it")
        self._runner = _runner(plan, artifact)
        self._vocabulary, self._context = int(notes["vocabulary"]), int(notes["context"])
        return Actual(
            dtype="float32",
            weights=WEIGHTS[plan.precision],
            threads=plan.threads,
            kernel=file.kernels,
            scheme="dynamic" if plan.quantized else "",  # activations become int8 as they are used
            quantized_share=file.integer_share if plan.quantized else None,
            attention=file.attention,
            kv_cache=plan.kv_cache,
            details={
                "runner": runner,
                "graph": str(notes["graph"]),
                **({"builder": str(notes["builder"])} if notes["builder"] else {}),
                **_scheme_details(str(notes["scheme"]), int(notes["levels"]), int(notes["block"])),
                "provider": self._runner.providers,
                **{name: "on" if plan.option(name, True) else "off" for name in ("spin", "arena", "prepack")},
            },
        )

    def generate(self, prompt: Sequence[int], max_tokens: int) -> Iterator[int]:
        """Exactly `max_tokens` token ids, greedily; closing the iterator ends the request.

        Raises:
            EngineError: nothing is loaded.
            InputError: the prompt is empty, holds ids that the model does not have, or is too long with its output.
        """
        if self._runner is None:
            raise EngineError("generate was called before load")
        check_request(prompt, max_tokens, vocabulary=self._vocabulary, context=self._context)
        tokens: Iterator[int] = self._runner.tokens(prompt, max_tokens)
        return tokens

    def native_recipe(self, plan: Plan, checkpoint: str) -> str:
        """A Python script that runs `plan` with onnxruntime, or onnxruntime-genai, alone, on a converted model."""
        return script(plan, checkpoint, str(plan.option("runner", "session")), _entries(plan))

    def close(self) -> None:
        """Give the model's memory and threads back."""
        self._runner = None


def _runner(plan: Plan, artifact: Path) -> Any:
    path, arena = artifact / MODEL_NAME, bool(plan.option("arena", True))
    if plan.option("runner", "session") == "genai":
        from ._onnxruntime_genai import GenaiRunner

        return GenaiRunner(path, plan.threads, arena=arena, entries=_entries(plan))
    from ._onnxruntime_session import SessionRunner

    return SessionRunner(path, plan.threads, arena=arena, entries=_entries(plan), kv_cache=plan.kv_cache)


def _entries(plan: Plan) -> dict[str, str]:
    """The library's settings by its own names."""
    return {
        "session.intra_op.allow_spinning": "1" if plan.option("spin", True) else "0",
        "session.disable_prepacking": "0" if plan.option("prepack", True) else "1",
    }


def _scheme(plan: Plan) -> Any:
    """How weights become integers, as `_onnxruntime_quantize` names it; None: they stay as they are."""
    return {"int8": f"int8-{plan.option('int8', 'blocks')}", "int4": "int4-blocks"}.get(plan.precision)


def _scheme_details(scheme: str, levels: int, block: int) -> dict[str, str]:
    if scheme == "int8-rows":
        return {"scales": "one for each output", "largest int8": str(levels)}
    return {"scales": f"one for {block} weights", "block_size": str(block), "accuracy_level": "4"} if scheme else {}


def _genai_version() -> str:
    """Installed version of onnxruntime-genai; empty where there is none."""
    try:
        return version("onnxruntime-genai")
    except PackageNotFoundError:
        return ""


def _check_weights(plan: Plan, file: GraphFile) -> None:
    if plan.quantized and file.integer_share < MIN_INTEGER_SHARE:
        raise EngineError(
            f"only {file.integer_share:.1%} of the linear parameters in {file.path} are integers; "
            f"the largest that is not is {file.widest_float}"
        )
    wanted = WEIGHTS[plan.precision]
    if file.kinds.split(", ")[0] != wanted:
        raise EngineError(f"{file.path} holds {file.kinds}, and a plan of {plan.precision} runs {wanted}")


def int8_levels() -> int:
    """Largest absolute value of an int8 weight that this CPU multiplies without overflow."""
    return _INT8 if sums_bytes_exactly() else _INT7
