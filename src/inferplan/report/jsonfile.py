"""The report as JSON for machines: stable keys, base units, a schema version.

Owns the keys. Leaves the raw study's shape to `_codec`, so that it can be
imported again.
"""

from __future__ import annotations

import json
import math
from typing import Any

from .. import __version__
from .._codec import encode
from ..selection import Judgement, Ranked, Selection
from .rows import Report, Row
from .words import concurrency, study_sla

SCHEMA = 1
"""Raised whenever a key is renamed, removed or changes its meaning; a key that is added leaves it alone."""


def render_json(report: Report) -> str:
    """One JSON object. Times are seconds, memory bytes; what is not known is null."""
    return json.dumps(_finite(as_object(report)), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def as_object(report: Report) -> dict[str, Any]:
    """The same, before it is text. Every key is always there."""
    return {
        "schema": SCHEMA,
        "inferplan": __version__,
        "synthetic_weights": report.study.synthetic,
        "concurrency": report.study.workload.concurrency,
        "concurrency_text": concurrency(report),
        "sla": study_sla(report),
        "exit_code": report.selection.exit_code,
        "selection": _selection(report.selection),
        "plans": [_plan(row) for row in report.rows],
        "recipe": report.recipe,
        "reuse": report.study.reuse or None,
        "ended": report.study.ended or None,
        "study": encode(report.study),
    }


def _selection(selection: Selection) -> dict[str, Any]:
    nearest = selection.nearest
    return {
        "outcome": selection.outcome,
        "objective": selection.objective.metric,
        "winner": _ranked(selection.winner),
        "runner_up": _ranked(selection.runner_up),
        "tie": selection.tie,
        "notes": list(selection.notes),
        "settle": selection.settle,
        "nearest": None
        if nearest is None
        else {
            "plan_id": nearest.ranked.plan.id,
            "excess": nearest.excess,
            "text": nearest.text,
            "feasible": list(nearest.feasible),
        },
        "pareto": [ranked.plan.id for ranked in selection.pareto],
        "ranked": [_ranked(ranked) for ranked in selection.ranked],
        "prices": encode(selection.prices),
        "cores": selection.cores,
    }


def _ranked(ranked: Ranked | None) -> dict[str, Any] | None:
    if ranked is None:
        return None
    return {
        "plan_id": ranked.plan.id,
        "verdict": ranked.verdict,
        "eligible": ranked.eligible,
        "reason": ranked.reason,
        "on_pareto": ranked.on_pareto,
        "p50_s": ranked.p50_s,
        "peak_bytes": ranked.peak_bytes,
        "usd_per_mtok": ranked.usd_per_mtok,
        "latency_ratio_to_winner": encode(ranked.ratio),
        "judgements": [_judgement(judgement) for judgement in ranked.judgements],
    }


def _judgement(judgement: Judgement) -> dict[str, Any]:
    return {
        "constraint": str(judgement.constraint),
        "metric": judgement.constraint.metric.name,
        "limit": judgement.constraint.limit,
        "verdict": judgement.verdict,
        "estimate": encode(judgement.estimate),
        "margin": judgement.margin,
        "confidence": judgement.confidence,
        "why": judgement.why,
        "needed": judgement.needed,
        "reachable": judgement.reachable,
    }


def _plan(row: Row) -> dict[str, Any]:
    checkpoint = row.checkpoint
    return {
        "plan_id": row.plan.id,
        "plan": encode(row.plan),
        "status": row.status,
        "reason": row.reason,
        "chosen": row.chosen,
        "verdict": row.verdict or None,
        "why": row.why,
        "on_pareto": row.on_pareto,
        "processes": row.processes,
        "samples": row.samples,
        "disturbed_samples": row.disturbed,
        "cut_samples": row.cut,
        "p50_latency_s": encode(row.p50),
        "p95_latency_s": encode(row.p95),
        "p50_latency_with_disturbed_s": encode(row.p50_all),
        "p95_latency_with_disturbed_s": encode(row.p95_all),
        "p50_ttft_s": encode(row.ttft),
        "p50_tpot_s": encode(row.tpot),
        "tokens_per_s": row.tokens_per_s,
        "output_tokens": row.output_tokens,
        "peak_bytes": row.peak_bytes,
        "load_s": encode(row.load_s),
        "startup_s": encode(row.startup_s),
        "usd_per_mtok": row.usd_per_mtok,
        "process_spread": row.process_spread,
        "oversubscribed": row.oversubscribed,
        "actual": encode(row.actual),
        "converted": encode(row.converted),
        "reused_processes": len(row.reused),
        "reused_from": list(dict.fromkeys(row.reused)),
        "synthetic_weights": row.synthetic,
        "weights": None if checkpoint is None else checkpoint.weights,
        "provenance": None if checkpoint is None else checkpoint.provenance,
    }


def _finite(value: Any) -> Any:
    """JSON has no infinity: what is not finite is not known."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value
