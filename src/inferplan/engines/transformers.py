"""The transformers engine: the library's own modelling code for any architecture, with our loop and kernels.

Owns what the engine says of itself, and the order of conversion, loading and generating.
Leaves imports, weights, kernels and the loop to the `_transformers_*` files; none of them is imported with this one.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ArtifactError, EngineError, Unsupported
from ..measurement import Actual
from ..plan import Plan
from . import _gnu_openmp
from ._cpu import no_bf16, sums_bytes_exactly
from ._transformers_recipe import script
from .base import Axis, EngineInfo, check_request

if TYPE_CHECKING:
    from ._transformers_loop import Loop

MIN_INT8_SHARE = 0.99  # below it a plan is not called INT8 or INT4 (issue 2)
_NEEDED = ("torch", "transformers")
_ATTENTION = Axis("attention", ("sdpa", "eager"), "how transformers computes attention: torch's fused kernel, or plain")
_STEP = Axis(
    "step", ("recorded", "library"), "one token: the library's operations from a recording, or its Python code"
)
_COMPILE = Axis("compile", (False, True), "the recorded step through torch.compile, once, while loading")
_QUANTIZER = Axis(
    "quantizer",
    ("auto", "own", "torchao"),
    "who quantizes: own is INT8 of weights and activations, torchao INT8 or INT4 of weights alone; auto: own for INT8",
)
_HUGE_PAGES = Axis("huge_pages", (1, 0), "ask the system for large pages for the weights (THP_MEM_ALLOC_ENABLE)")
_ENV = {
    "OMP_NUM_THREADS": "{threads}",
    "MKL_NUM_THREADS": "{threads}",
    "TOKENIZERS_PARALLELISM": "false",
}
_LINUX_ENV = {**_gnu_openmp.ENV, "THP_MEM_ALLOC_ENABLE": "{huge_pages}"}
_COMPILERS = ("g++", "clang++")
# How far logits of a compiled step may lie from those of the library's code, as a share of the largest of them: sums in
# another order, and for products in bfloat16 their rounding.
_COMPILED_TOLERANCE = {"fp32": 1e-3}
_ROUNDED_TOLERANCE = 0.1


class TransformersEngine:
    """One plan in one process; see `base.Engine`."""

    def __init__(self) -> None:
        self.model: Any = None  # transformers' own, with our layers; None where nothing is loaded
        self._loop: Loop | None = None
        self._source: Any = None
        self._vocabulary, self._context = 0, 0

    def describe(self) -> EngineInfo:
        """Read from package metadata; nothing is imported."""
        libraries, missing = {}, []
        for name in _NEEDED:
            try:
                libraries[name] = version(name)
            except PackageNotFoundError:
                missing.append(name)
        lacks = {}
        if missing:
            names = " ".join(missing)
            lacks["engine"] = f"{' and '.join(missing)} not installed: pip install {names}"
        if why := no_bf16():
            lacks["bf16"] = why
        if why := _no_torchao():
            lacks["int4"] = why
        else:
            libraries["torchao"] = version("torchao")
        linux = sys.platform == "linux"
        return EngineInfo(
            name="transformers",
            version=libraries.get("transformers", ""),
            precisions=tuple(p for p in ("fp32", "bf16", "int8", "int4") if p not in lacks),
            axes=(
                _ATTENTION,
                _STEP,
                _COMPILE,
                _QUANTIZER,
                *((_HUGE_PAGES,) if linux else ()),
                *_gnu_openmp.axes(_gnu_openmp.OWN),
            ),
            lacks=lacks,
            installed=not missing,
            env={**_ENV, **_LINUX_ENV} if linux else _ENV,
            libraries=libraries,
            artifact_key=f"int8-1-torchao-{libraries.get('torchao', 'none')}",
            artifact_options=("quantizer",),
            converts=("int8", "int4"),
        )

    def unsupported(self, plan: Plan) -> str | None:
        """Why `plan` cannot run, or None."""
        return self.describe().reject(plan) or _no_quantizer(plan) or _no_compile(plan)

    def convert(self, checkpoint: Path, plan: Plan, out: Path) -> None:
        """For INT8 and INT4: one safetensors file and config.json. FP32 and BF16 load the checkpoint itself.

        Raises:
            ArtifactError: the checkpoint is corrupt or incomplete, with the file's name.
            Unsupported: transformers has no such architecture.
        """
        if not plan.quantized:
            return
        model, _ = _empty_model(checkpoint, plan)
        if _by_torchao(plan):
            from . import _transformers_torchao as torchao

            torchao.convert(model, checkpoint, out, bits=8 if plan.precision == "int8" else 4)
            return
        from ._transformers_model import convert_int8

        convert_int8(model, checkpoint, out)

    def load(self, plan: Plan, artifact: Path) -> Actual:
        """Build the model, read each weight to its place, and count in one small pass what ran.

        Raises:
            ArtifactError: a weight file is corrupt or incomplete, with its name.
            Unsupported: the plan cannot run here, with the reason.
            EngineError: less than 99% of an INT8 plan ran in INT8.
        """
        if why := self.unsupported(plan):
            raise Unsupported(why)
        self.close()
        model, imports = _empty_model(artifact, plan)
        import torch

        from . import _transformers_linears as linears
        from ._transformers_loop import Loop

        _set_threads(plan.threads)
        dtype = torch.bfloat16 if plan.precision == "bf16" else torch.float32
        self._source = _fill(model, artifact, plan, dtype)
        self._vocabulary = model.get_input_embeddings().num_embeddings
        self._context = getattr(model.config, "max_position_embeddings", None) or 0
        self.model, self._loop = model, Loop(model, plan.kv_cache, self._context)
        with linears.ShareCounter(model) as seen:
            list(self._loop.tokens([0, 1], 2))
        if plan.quantized and seen.share < MIN_INT8_SHARE:
            raise EngineError(
                f"only {seen.share:.1%} of the linear parameters ran in {plan.precision.upper()}, those of "
                f"{sorted(seen.kernels)} did not: this {model.config.model_type} has layers that this engine cannot "
                f"quantize, so it is not {plan.precision.upper()}"
            )
        _record(self._loop, plan)
        name = str(dtype).removeprefix("torch.")
        return Actual(
            dtype=name,
            weights=plan.precision if plan.quantized else name,
            threads=torch.get_num_threads(),
            kernel=_kernel(plan, seen),
            scheme=("weight-only" if _by_torchao(plan) else "dynamic") if plan.quantized else "",
            quantized_share=seen.share if plan.quantized else None,
            attention=model.config._attn_implementation,
            kv_cache=plan.kv_cache,
            details={
                "imports": imports,
                "cache": self._loop.cache_name,
                "embedding": "rows read from the file",
                "step": self._loop.step_name,
                "joined": str(sum(map(len, model.siblings))),
                **_gnu_openmp.waiting(),
                "huge_pages": os.environ.get("THP_MEM_ALLOC_ENABLE", ""),
                **({"products": "bfloat16"} if _by_torchao(plan) else {}),
            },
        )

    def generate(self, prompt: Sequence[int], max_tokens: int) -> Iterator[int]:
        """Exactly `max_tokens` token ids, greedily; closing the iterator ends the request.

        Raises:
            EngineError: nothing is loaded.
            InputError: the prompt is empty, holds ids that the model does not have, or is too long with its output.
        """
        if self._loop is None:
            raise EngineError("generate was called before load")
        check_request(prompt, max_tokens, vocabulary=self._vocabulary, context=self._context)
        return self._loop.tokens(prompt, max_tokens)

    def native_recipe(self, plan: Plan, checkpoint: str) -> str:
        """A Python script that runs `plan` with torch and transformers alone; see the function of that name."""
        return native_recipe(plan, checkpoint)

    def close(self) -> None:
        """Give the model's memory and files back."""
        self.model = self._loop = None
        if self._source is not None:
            self._source.files.close()
            self._source = None


def native_recipe(plan: Plan, checkpoint_name: str) -> str:
    """A Python script that runs `plan` with torch and transformers alone.

    Args:
        checkpoint_name: what `from_pretrained` is to load: a directory or a hub id.
    """
    info = TransformersEngine().describe()
    values = {axis.name: plan.option(axis.name, axis.default) for axis in info.axes}
    arm = platform.machine().lower() in ("arm64", "aarch64")
    options = {**values, "backend": "qnnpack" if arm else "fbgemm", "reduce_range": not sums_bytes_exactly()}
    return script(plan, checkpoint_name, info.variables(plan), {**options, "torchao": _by_torchao(plan)})


def _by_torchao(plan: Plan) -> bool:
    """Whether torchao quantizes this plan's weights."""
    chosen = plan.option("quantizer", _QUANTIZER.default)
    return plan.quantized and (chosen == "torchao" or (chosen == "auto" and plan.precision == "int4"))


def _no_torchao() -> str | None:
    try:
        version("torchao")
    except PackageNotFoundError:
        return "torchao quantizes to INT4 here and is not installed: pip install inferplan[torchao]"
    return None


def _no_quantizer(plan: Plan) -> str | None:
    chosen = plan.option("quantizer", _QUANTIZER.default)
    if chosen != "auto" and not plan.quantized:
        return f"quantizer={chosen} chooses who quantizes, and {plan.precision} is not quantized"
    if chosen == "own" and plan.precision == "int4":
        return "transformers has no INT4 of our own; use quantizer=torchao"
    return _no_torchao() if _by_torchao(plan) else None


def _no_compile(plan: Plan) -> str | None:
    if not plan.option("compile", _COMPILE.default):
        return None
    if not plan.kv_cache:
        return "compile takes the KV cache: without it each token has another shape, and would be compiled anew"
    if plan.option("step", _STEP.default) != "recorded":
        return "compile takes the recorded step: leave step as it is"
    if plan.precision == "int8" and not _by_torchao(plan):
        return "torch.compile does not take the packed weights of fbgemm, our own INT8; use quantizer=torchao"
    asked = os.environ.get("CXX")
    if any(shutil.which(name) for name in ((asked,) if asked else _COMPILERS)):
        return None
    return f"torch.compile takes a C++ compiler, and {asked or ' or '.join(_COMPILERS)} is not on the PATH"


def _fill(model: Any, artifact: Path, plan: Plan, dtype: Any) -> Any:
    """Put the weights in place; the files they are read from."""
    if _by_torchao(plan):
        from . import _transformers_torchao as torchao

        return torchao.load(model, artifact)
    from . import _transformers_model as models

    if plan.precision == "int8":
        return models.load_int8(model, artifact)
    return models.load_float(model, artifact, dtype, compiled=bool(plan.option("compile", _COMPILE.default)))


def _record(loop: Loop, plan: Plan) -> None:
    """Let later tokens run from a recording, as the plan asks, where the model's code allows it.

    Raises:
        Unsupported: the plan asks for a compiled step and there is none, with why.
    """
    from ._transformers_step import Unrecordable

    if plan.option("compile", _COMPILE.default):
        from ._transformers_compile import CompiledStep

        try:
            loop.record(CompiledStep, _COMPILED_TOLERANCE.get(plan.precision, _ROUNDED_TOLERANCE))
        except Unrecordable as why:
            raise Unsupported(f"torch.compile cannot take this model's step: {why}") from why
    elif plan.option("step", _STEP.default) == "recorded" and plan.kv_cache:
        with suppress(Unrecordable):  # the library's code runs then; the loop's `step_name` has the reason
            loop.record()


def _kernel(plan: Plan, seen: Any) -> str:
    """The matrix kernels by name."""
    if not plan.quantized:
        return ", ".join(sorted(seen.kernels))
    if _by_torchao(plan):
        return "aten::_weight_int8pack_mm" if plan.precision == "int8" else "aten::_weight_int4pack_mm_for_cpu"
    from ._transformers_linears import int8_kernel

    return int8_kernel()


def _empty_model(directory: Path, plan: Plan) -> tuple[Any, str]:
    """The model of `directory` without its weights, and how its code was imported."""
    from ._transformers_imports import model_class

    config = _read_config(directory)
    config_class, kind, imports = model_class(config["model_type"])
    import torch

    from ._transformers_model import build

    dtype = torch.bfloat16 if plan.precision == "bf16" else torch.float32
    return build(config_class, kind, config, str(plan.option("attention", _ATTENTION.default)), dtype), imports


def _read_config(directory: Path) -> dict[str, Any]:
    """The model's config.json.

    Raises:
        ArtifactError: it is missing or not JSON.
        Unsupported: it names no model type.
    """
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ArtifactError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise Unsupported(f"{path} has no model_type, so that its architecture is not known")
    return config


def _set_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    # Raises once that pool has started; generating never uses it, the setting only keeps it from being made larger.
    with suppress(RuntimeError):
        torch.set_num_interop_threads(1)
