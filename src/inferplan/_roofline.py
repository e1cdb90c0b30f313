"""The roofline of a step, of memory and of start-up: terms of each plan, and what each is believed to cost.

Owns which terms there are, which groups of plans share a coefficient, and the beliefs beforehand. Leaves
learning them to `_effects`, and what is asked of it to `predict`. Values and arithmetic only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from ._effects import Key, Model, Row
from .plan import Plan
from .rates import Rates
from .shapes import Shape

_KV_BYTES = 4.0  # of one cached element, FP32: the coefficient of its term learns what an engine really keeps
_LEVELS = ("all", "precision", "engine", "engine and precision")
_OVERSUBSCRIBED = math.log(2.0)  # for each doubling of threads beyond the cores: threads wait for one that is not run

# Medians and spreads below were set on one recorded study (114 plans, six engines, three models, two cores), so that
# engines that were never measured here get wide intervals; docs/guides/prediction.md says what each stands for.
# Since then the spreads of precisions were narrowed for all engines together and widened for each: on three recorded
# spaces that predicts as well, and a first look that disappoints sends a race less often to another precision.
_EFFECTS = {
    "model": 0.10,
    "engine and model": 0.12,
    "engine, precision and model": 0.12,
    "engine and threads": 0.08,
    "engine, precision and threads": 0.08,
    "plan": 0.05,
    "option": 0.30,
    "option and plan": 0.15,  # a kernel that helps one precision, a block that suits one shape
    # How an engine's threads wait for one that no core runs depends on how long each call takes.
    "oversubscribed": 0.60,
    "oversubscribed and model": 0.30,
    "oversubscribed and precision": 0.20,
}


def _spreads(*by_level: tuple[float, ...]) -> dict[str, tuple[float, ...]]:
    return dict(zip(_LEVELS, by_level, strict=True))


DECODE_TERMS = ("reading weights", "computing", "reading the last layer", "calls by layer", "calls by token", "waiting")
DECODE = Model(
    medians=(1.2, 1.5, 1.2, 4e-6, 3e-4, 1e-6),
    roof=2,
    spreads=_spreads(
        (0.2, 0.4, 0.3, 0.7, 0.7, 0.7),
        (0.2, 0.28, 0.28, 0.2, 0.2, 0.2),
        (0.2, 0.4, 0.3, 0.8, 0.8, 0.8),
        (0.36, 0.6, 0.6, 0.4, 0.4, 0.6),
    ),
    effects=_EFFECTS,
    noise=0.07,
)
PREFILL_TERMS = ("reading weights", "computing", "calls by layer", "calls by token", "waiting")
PREFILL = Model(
    medians=(1.2, 2.0, 6e-6, 1e-3, 1e-6),
    roof=2,
    spreads=_spreads(
        (0.2, 0.4, 0.7, 0.7, 0.7),
        (0.2, 0.28, 0.2, 0.2, 0.2),
        (0.2, 0.5, 0.8, 0.8, 0.8),
        (0.36, 0.72, 0.4, 0.4, 0.6),
    ),
    effects={**_EFFECTS, "no KV cache": 0.30, "precision and model": 0.10},
    noise=0.09,
)
# Bytes: the engine itself, weights at the plan's precision, at FP32 (an engine that loads them so first), the
# input embedding at FP32, KV cache, logits of the prompt.
MEMORY = Model(
    medians=(2e8, 1.0, 0.03, 0.05, 1.0, 0.5),
    roof=0,
    spreads={
        **_spreads(
            (0.3, 0.02, 0.5, 0.5, 0.2, 0.5),
            (0.05, 0.08, 0.3, 0.3, 0.2, 0.2),
            (0.7, 0.04, 0.7, 0.7, 0.3, 0.5),
            (0.15, 0.06, 0.5, 0.5, 0.2, 0.2),
        ),
        # How much code and how many buffers an engine needs for an architecture.
        "engine and model": (0.2, 0.0, 0.0, 0.0, 0.0, 0.0),
    },
    effects={"engine, precision and model": 0.03, "engine and threads": 0.01, "option": 0.1},
    noise=0.015,
)
# Seconds: the process and its imports, weights at the plan's precision, at FP32.
STARTUP = Model(
    medians=(0.6, 1e-9, 5e-10),
    roof=0,
    spreads=_spreads((0.5, 0.5, 0.5), (0.2, 0.3, 0.3), (1.0, 0.8, 0.8), (0.3, 0.4, 0.4)),
    effects={"engine and model": 0.10, "option": 0.2},
    noise=0.35,
)


def decode_row(plan: Plan, shape: Shape, rates: Rates, context: float) -> Row:
    """Seconds of one token that sees `context` tokens, with a KV cache."""
    bandwidth = rates.bandwidth(plan.threads)
    calls = shape.layers * shape.matrices_per_layer
    layers = _share_bytes(shape, plan.precision, shape.layers * shape.linear_per_layer)
    terms = (
        (layers + shape.kv_bytes_per_token(_KV_BYTES) * context) / bandwidth,
        shape.decode_flops(round(context)) / rates.matmul(plan.threads, "fp32"),
        _share_bytes(shape, plan.precision, shape.last_layer) / bandwidth,
        float(calls),
        1.0,
        calls * math.log2(plan.threads),
    )
    return Row(terms, _groups(plan, rates), _waiting(plan, rates))


def prefill_row(plan: Plan, shape: Shape, rates: Rates, tokens: float) -> Row:
    """Seconds of a prefill of `tokens`; also of one token at that length where there is no KV cache."""
    calls = shape.layers * shape.matrices_per_layer
    terms = (
        _share_bytes(shape, plan.precision, shape.linear) / rates.bandwidth(plan.threads),
        shape.prefill_flops(round(tokens)) / rates.matmul(plan.threads, plan.precision),
        float(calls),
        1.0,
        calls * math.log2(plan.threads),
    )
    return Row(terms, _groups(plan, rates), _waiting(plan, rates))


def memory_row(plan: Plan, shape: Shape, prompt_tokens: float, output_tokens: float) -> Row:
    """Bytes of the process at its peak."""
    terms = (
        1.0,
        float(shape.weight_bytes(plan.precision)),
        4.0 * shape.parameters,
        4.0 * shape.embedding,
        shape.kv_bytes_per_token(_KV_BYTES) * (prompt_tokens + output_tokens),
        4.0 * shape.vocabulary * prompt_tokens,
    )
    return Row(terms, _groups(plan, None))


def startup_row(plan: Plan, shape: Shape) -> Row:
    """Seconds from starting the process until the model is loaded."""
    return Row((1.0, float(shape.weight_bytes(plan.precision)), 4.0 * shape.parameters), _groups(plan, None))


def _share_bytes(shape: Shape, precision: str, elements: int) -> float:
    return shape.weight_bytes(precision) * elements / shape.parameters


def _groups(plan: Plan, rates: Rates | None) -> Mapping[str, tuple[Key, ...]]:
    """By level, what the plan shares with others; a model ignores levels that it does not have."""
    engine, precision, model, threads = plan.engine, plan.precision, plan.model, plan.threads
    crowded = rates is not None and threads > rates.cores
    return {
        "all": ("all",),
        "precision": (precision,),
        "engine": (engine,),
        "engine and precision": ((engine, precision),),
        "model": (model,),
        "engine and model": ((engine, model),),
        "precision and model": ((precision, model),),
        "engine, precision and model": ((engine, precision, model),),
        "engine and threads": ((engine, threads),),
        "engine, precision and threads": ((engine, precision, threads),),
        "plan": (plan,),
        "option": tuple((engine, name, value) for name, value in plan.options),
        "option and plan": (plan,) if plan.options else (),
        "oversubscribed": ((engine, threads),) if crowded else (),
        "oversubscribed and model": ((engine, model, threads),) if crowded else (),
        "oversubscribed and precision": ((engine, precision, threads),) if crowded else (),
        "no KV cache": () if plan.kv_cache else (engine,),
    }


def _waiting(plan: Plan, rates: Rates) -> float:
    """Logarithm of how much slower more threads than cores are believed to be."""
    return _OVERSUBSCRIBED * math.log2(max(plan.threads / rates.cores, 1.0))
