"""One plan of the transformers engine: how long a decode step takes, and what it is made of.

Reads a task from standard input: {"plan", "artifact", "prompt": [ids], "tokens", "cpus"}; prints as JSON the seconds a
token of the recorded step, of the library's code, and of the recorded step with products and attention put out, and
for each kind of operation the seconds and the number a token. The step is timed without the profiler.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from inferplan._codec import decode
from inferplan.engines.transformers import TransformersEngine
from inferplan.plan import Plan

KINDS = {
    "products": ("mm", "addmm", "bmm", "mv", "linear", "_linear_pointwise", "linear_dynamic"),
    "attention": ("scaled_dot_product_attention", "softmax", "_softmax", "_scaled_dot_product_flash_attention_for_cpu"),
    "norms": ("layer_norm", "native_layer_norm", "rms_norm", "pow", "mean", "rsqrt"),
    "activation": ("silu", "gelu", "relu", "tanh"),
    "keys and values kept": ("copy_",),
    "rotary embedding": ("cat", "neg", "cos", "sin"),
    "views": (
        *("view", "transpose", "narrow", "reshape", "slice", "select", "unsqueeze", "squeeze", "split", "expand"),
        *("as_strided", "_unsafe_view", "permute", "t", "alias", "contiguous", "_reshape_alias"),
    ),
    "additions and multiplications": ("add", "add_", "mul", "sum", "div", "sub"),
}
REPEATS = 4


def step_s(engine: TransformersEngine, task: dict[str, Any]) -> float:
    """Seconds a token after the first, the median of several requests."""
    found = []
    for _ in range(REPEATS):
        times = [time.perf_counter() for _ in engine.generate(task["prompt"], task["tokens"])]
        found.append((times[-1] - times[0]) / (len(times) - 1))
    return statistics.median(found)


def operations(engine: TransformersEngine, task: dict[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds and number a token, by kind. The prefill is measured too and taken off as a request of one token."""
    from torch.profiler import ProfilerActivity, profile

    def seen(tokens: int) -> dict[str, tuple[float, float]]:
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
            list(engine.generate(task["prompt"], tokens))
        totals: dict[str, tuple[float, float]] = {}
        for event in profiler.key_averages(group_by_input_shape=True):
            kind = kind_of(event.key, event.input_shapes, engine._vocabulary)
            seconds, count = totals.get(kind, (0.0, 0.0))
            totals[kind] = (seconds + event.self_cpu_time_total / 1e6, count + event.count)
        return totals

    seen(2)
    first, whole = seen(1), seen(task["tokens"])
    steps = task["tokens"] - 1
    none = (0.0, 0.0)
    seconds = {kind: max(0.0, total - first.get(kind, none)[0]) / steps for kind, (total, _) in whole.items()}
    counts = {kind: max(0.0, count - first.get(kind, none)[1]) / steps for kind, (_, count) in whole.items()}
    return seconds, counts


def kind_of(name: str, shapes: Any, vocabulary: int) -> str:
    """The kind of an operation; the last layer is told by its width."""
    short = name.rpartition("::")[2]
    kind = next((kind for kind, names in KINDS.items() if short in names), "other")
    wide = any(vocabulary in shape for shape in shapes or () if isinstance(shape, list | tuple))
    return "last layer" if kind == "products" and wide else kind


def put_out(engine: TransformersEngine, int8: bool) -> None:
    """Zeros in place of products and attention, in a new recording."""
    import torch

    from inferplan.engines import _transformers_linears as linears

    def zeros(self: Any, x: Any) -> Any:
        return x.new_zeros(*x.shape[:-1], self.out_features)

    def no_attention(query: Any, *_: Any, **__: Any) -> Any:
        return torch.zeros_like(query)

    for kind in (linears.Int8Linear,) if int8 else (linears.FloatLinear, linears.RowMajorLinear, linears.NarrowLinear):
        kind.forward = zeros  # type: ignore[method-assign]
    torch.nn.functional.scaled_dot_product_attention = no_attention
    assert engine._loop is not None
    engine._loop.record()


def main() -> None:
    task = json.loads(sys.stdin.read())
    if task["cpus"] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, task["cpus"])
    plan = decode(Plan, task["plan"])
    engine = TransformersEngine()
    engine.load(plan, Path(task["artifact"]))
    loop = engine._loop
    assert loop is not None
    list(engine.generate(task["prompt"], 8))
    answer: dict[str, Any] = {"step": loop.step_name, "step_s": step_s(engine, task)}
    answer["kinds"], answer["counts"] = operations(engine, task)
    recorded, loop._recorded = loop._recorded, None
    answer["library_s"] = step_s(engine, task)
    loop._recorded = recorded
    put_out(engine, plan.precision == "int8")
    answer["rest_s"] = step_s(engine, task)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
