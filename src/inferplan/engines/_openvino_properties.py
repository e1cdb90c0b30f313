"""What a plan asks of OpenVINO's CPU device, and what the device says that it does.

Owns the axes, the properties, which are all set because the defaults are chosen by the CPU, and their reading back.
Leaves the model to the engine. Standard library only.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import EngineError
from ..plan import Plan
from .base import Axis

NAMES = {"fp32": "float32", "bf16": "bfloat16", "int8": "int8", "int4": "int4"}
_DYNAMIC_GROUP = 32  # the device's own choice
AXES = (
    Axis(
        "pipeline", ("stateful", "paged"), "keys and values as the model's state, or in pages given out by a scheduler"
    ),
    Axis(
        "kv_type",
        ("auto", "f32", "bf16", "f16", "u8"),
        "type of keys and values; auto: f32 in FP32 plans, bf16 in BF16 plans, else u8",
    ),
    Axis(
        "dynamic_quantization",
        ("auto", 0, 32, 64, 128),
        "activations become integers in groups of so many for INT8 and INT4 weights; 0: never; auto: 32 in those plans",
    ),
)
# The scheduler answers a repeated prompt from its prefix cache unless told not to (issue 4); a whole prompt is read in
# one step, and pages are added as they are needed, because a pool is written at once and would count as memory.
PAGED: Mapping[str, int | bool] = {
    "enable_prefix_caching": False,
    "max_num_batched_tokens": 2**31 - 1,
    "max_num_seqs": 1,
    "cache_size": 0,
    "num_kv_blocks": 0,
}
_LOG = ("OPENVINO_LOG_LEVEL", "2")  # at which openvino-genai prints the properties of what it compiled


def paged(plan: Plan) -> bool:
    """Whether the plan takes the pipeline with a scheduler."""
    return plan.option("pipeline", "stateful") == "paged"


def kv_type(plan: Plan) -> str:
    """The type of keys and values that the plan asks for."""
    chosen = str(plan.option("kv_type", "auto"))
    return {"fp32": "f32", "bf16": "bf16"}.get(plan.precision, "u8") if chosen == "auto" else chosen


def dynamic_group(plan: Plan) -> int:
    """How many activations share a scale when they become integers; 0: they stay as they are."""
    chosen = plan.option("dynamic_quantization", "auto")
    if chosen == "auto":
        return _DYNAMIC_GROUP if plan.quantized else 0
    return int(chosen)


def unsupported_options(plan: Plan) -> str | None:
    """Why options of `plan` do not go together, or None."""
    if dynamic_group(plan) and not plan.quantized:
        return f"openvino option dynamic_quantization changes INT8 and INT4 plans only, not {plan.precision}"
    # Its kernel takes keys and values in the type that is computed in, or narrower ones that it knows how to widen.
    if paged(plan) and kv_type(plan) == ("f32" if plan.precision == "bf16" else "bf16"):
        return f"openvino with pipeline=paged cannot keep keys and values as {kv_type(plan)} in {plan.precision} plans"
    return None


def properties(plan: Plan) -> dict[str, Any]:
    """All properties that `plan` compiles its model with."""
    return {
        "ATTENTION_BACKEND": "PA" if paged(plan) else "SDPA",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": plan.threads,
        "ENABLE_HYPER_THREADING": True,  # as many threads as asked for, whatever cores they are on
        "ENABLE_CPU_PINNING": False,  # the parent pins the whole process
        "INFERENCE_PRECISION_HINT": "bf16" if plan.precision == "bf16" else "f32",
        "KV_CACHE_PRECISION": kv_type(plan),
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": dynamic_group(plan),
    }


def told(make: Callable[[], Any]) -> tuple[Any, dict[str, str]]:
    """What `make` returns, and the properties of the model that was compiled meanwhile.

    A pipeline hides its model, and tells its properties only by printing them, from C++: so standard output itself is
    turned to a file.
    """
    before = os.environ.get(_LOG[0])
    with tempfile.TemporaryFile() as log:
        sys.stdout.flush()
        kept = os.dup(1)
        os.dup2(log.fileno(), 1)
        os.environ[_LOG[0]] = _LOG[1]
        try:
            made = make()
        finally:
            if before is None:
                del os.environ[_LOG[0]]
            else:
                os.environ[_LOG[0]] = before
            os.dup2(kept, 1)
            os.close(kept)
        log.seek(0)
        said = log.read().decode(errors="replace")
    lines = (line.strip().partition(": ") for line in said.splitlines())
    return made, {name: value.strip() for name, mark, value in lines if mark}


def check_ran(plan: Plan, ran: Mapping[str, str]) -> None:
    """Hold what the device says against what was asked.

    Raises:
        EngineError: it runs something else, or does not say.
    """
    asked = properties(plan)
    for name in (
        "INFERENCE_PRECISION_HINT",
        "KV_CACHE_PRECISION",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE",
        "INFERENCE_NUM_THREADS",
        "NUM_STREAMS",
    ):
        if ran.get(name) != str(asked[name]):
            raise EngineError(f"openvino was asked for {name}={asked[name]} and runs {ran.get(name, 'what it hides')}")
