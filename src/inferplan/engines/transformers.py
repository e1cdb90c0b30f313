"""The transformers engine: the library's own modelling code for any architecture, with our loop and kernels.

Owns what the engine says of itself, and the order of conversion, loading and generating.
Leaves imports, weights, kernels and the loop to the `_transformers_*` files; none of them is imported with this one.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ArtifactError, EngineError, InputError, Unsupported
from ..measurement import Actual
from ..plan import Plan
from ._transformers_recipe import script
from .base import Axis, EngineInfo

if TYPE_CHECKING:
    from ._transformers_loop import Loop

MIN_INT8_SHARE = 0.99  # below it a plan is not called INT8 (issue 2)
_NEEDED = ("torch", "transformers")
_ATTENTION = Axis("attention", ("sdpa", "eager"), "how transformers computes attention: torch's fused kernel, or plain")
_ENV = {
    "OMP_NUM_THREADS": "{threads}",
    "MKL_NUM_THREADS": "{threads}",
    "TOKENIZERS_PARALLELISM": "false",
}
_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # the last is ARM's


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
        if why := _no_bf16():
            lacks["bf16"] = why
        return EngineInfo(
            name="transformers",
            version=libraries.get("transformers", ""),
            precisions=tuple(p for p in ("fp32", "bf16", "int8") if p not in lacks),
            axes=(_ATTENTION,),
            lacks=lacks,
            env=_ENV,
            libraries=libraries,
            artifact_key="int8-1",
            converts=("int8",),
        )

    def unsupported(self, plan: Plan) -> str | None:
        """Why `plan` cannot run, or None."""
        return self.describe().reject(plan)

    def convert(self, checkpoint: Path, plan: Plan, out: Path) -> None:
        """For INT8: one safetensors file and config.json. FP32 and BF16 load the checkpoint itself.

        Raises:
            ArtifactError: the checkpoint is corrupt or incomplete, with the file's name.
            Unsupported: transformers has no such architecture.
        """
        if plan.precision != "int8":
            return
        model, _ = _empty_model(checkpoint, plan)
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
        from . import _transformers_model as models
        from ._transformers_loop import Loop

        _set_threads(plan.threads)
        int8 = plan.precision == "int8"
        dtype = torch.bfloat16 if plan.precision == "bf16" else torch.float32
        if int8:
            self._source = models.load_int8(model, artifact)
        else:
            self._source = models.load_float(model, artifact, dtype)
        self._vocabulary = model.get_input_embeddings().num_embeddings
        self._context = getattr(model.config, "max_position_embeddings", None) or 0
        self.model, self._loop = model, Loop(model, plan.kv_cache)
        with linears.ShareCounter(model) as seen:
            list(self._loop.tokens([0, 1], 2))
        if int8 and seen.share < MIN_INT8_SHARE:
            raise EngineError(
                f"only {seen.share:.1%} of the linear parameters ran in INT8, those of {sorted(seen.kernels)} did not: "
                f"this {model.config.model_type} has layers that this engine cannot quantize, so it is not INT8"
            )
        return Actual(
            dtype=str(dtype).removeprefix("torch."),
            weights="int8" if int8 else str(dtype).removeprefix("torch."),
            threads=torch.get_num_threads(),
            kernel=linears.int8_kernel() if int8 else ", ".join(sorted(seen.kernels)),
            scheme=linears.Int8Linear.scheme if int8 else "",
            quantized_share=seen.share if int8 else None,
            attention=model.config._attn_implementation,
            kv_cache=plan.kv_cache,
            details={"imports": imports, "cache": self._loop.cache_name, "embedding": "rows read from the file"},
        )

    def generate(self, prompt: Sequence[int], max_tokens: int) -> Iterator[int]:
        """Exactly `max_tokens` token ids, greedily; closing the iterator ends the request.

        Raises:
            EngineError: nothing is loaded.
            InputError: the prompt is empty, holds ids that the model does not have, or is too long with its output.
        """
        if self._loop is None:
            raise EngineError("generate was called before load")
        if not prompt:
            raise InputError("the prompt has no tokens: give at least one")
        if bad := [token for token in prompt if not 0 <= token < self._vocabulary]:
            raise InputError(f"token id {bad[0]} does not exist: the model has ids 0 to {self._vocabulary - 1}")
        if self._context and len(prompt) + max_tokens > self._context:
            raise InputError(
                f"{len(prompt)} prompt tokens and {max_tokens} new ones do not fit into the model's context "
                f"of {self._context}: shorten the prompt or max_new_tokens"
            )
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
    env = {name: value.replace("{threads}", str(plan.threads)) for name, value in _ENV.items()}
    arm = platform.machine().lower() in ("arm64", "aarch64")
    attention = str(plan.option("attention", _ATTENTION.default))
    reduce_range = not arm and not _cpu_flags() & {"avx512_vnni", "avx_vnni"}
    return script(plan, checkpoint_name, env, attention, "qnnpack" if arm else "fbgemm", reduce_range)


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


def _no_bf16() -> str | None:
    """Why BF16 would be emulated on this CPU; None where it is native, or where the system does not tell."""
    flags = _cpu_flags()
    if not flags or flags & _BF16_FLAGS:
        return None
    return (
        f"this {platform.machine()} CPU has no BF16 instructions (avx512_bf16 or amx_bf16): it would only emulate them"
    )


@cache
def _cpu_flags() -> frozenset[str]:
    """Instruction sets as Linux names them; empty where there is no /proc/cpuinfo."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return frozenset()
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    found = next((line.partition(":")[2] for line in lines if line.lower().startswith(("flags", "features"))), "")
    return frozenset(found.split())
