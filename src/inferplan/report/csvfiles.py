"""results.csv, summary.csv and chosen_plan.csv.

Owns the columns, which others read by name: the first ones were published and
never change. In these files alone MB are MiB. Leaves figures to `rows`.
"""

from __future__ import annotations

import csv
import io
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from ..errors import InputError
from ..measurement import Measurement, Sample
from ..models import Checkpoint
from ..stats import Estimate
from .numbers import MIB, finite
from .rows import Report, Row
from .words import concurrency, output_lengths, prompt_lengths, study_sla, weights

Cell = str | int | float | bool | None

RESULTS_LEADING = (
    "model_name",
    "quantize_int8",
    "num_threads",
    "use_cache",
    "prompt_chars",
    "input_tokens",
    "output_tokens",
    "latency_ms",
    "tokens_per_sec",
    "rss_mb",
)
SUMMARY_LEADING = (
    "model_name",
    "quantize_int8",
    "num_threads",
    "use_cache",
    "p50_latency_ms",
    "p95_latency_ms",
    "avg_tokens_per_sec",
    "peak_rss_mb",
    "avg_output_tokens",
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def results_csv(report: Report) -> str:
    """A row a measured request, disturbed and cut ones included and marked."""
    study = report.study
    rows = [
        _result_row(report, measurement, sample, study.checkpoint(ranked.plan.model))
        for ranked in report.selection.ranked
        for measurement in ranked.result.measurements
        for sample in measurement.samples
    ]
    return _text(RESULT_COLUMNS, rows)


def summary_csv(report: Report) -> str:
    """A row a plan, the failed and the rejected included; a failed plan's figures are empty."""
    return _text(SUMMARY_COLUMNS, [_summary_row(report, row) for row in report.rows])


def chosen_plan_csv(report: Report) -> str:
    """The chosen plan's row of the summary; only the header when no plan is chosen."""
    chosen = report.chosen
    return _text(SUMMARY_COLUMNS, [] if chosen is None else [_summary_row(report, chosen)])


def write_csvs(report: Report, directory: Path) -> tuple[Path, ...]:
    """Write the three files into `directory`, each whole or not at all; earlier ones are replaced.

    Raises:
        InputError: the directory cannot be written to, or the disk is full.
    """
    made = []
    for name, make in FILES.items():
        path = directory / name
        try:
            directory.mkdir(parents=True, exist_ok=True)
            _replace(path, make(report))
        except OSError as err:
            raise InputError(
                f"{str(path)!r} cannot be written: {err.strerror or err}. Give another directory, or make room there."
            ) from None
        made.append(path)
    return tuple(made)


FILES: Mapping[str, Callable[[Report], str]] = {
    "results.csv": results_csv,
    "summary.csv": summary_csv,
    "chosen_plan.csv": chosen_plan_csv,
}


def _replace(path: Path, text: str) -> None:
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        if os.name == "posix":  # mkstemp makes it for the owner alone; a file opened plainly follows the umask
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _text(columns: Sequence[str], rows: Iterable[Mapping[str, Cell]]) -> str:
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(row[name]) for name in columns])
    return out.getvalue()


def _cell(value: Cell) -> str:
    """Numbers in full, missing ones empty; an apostrophe before text that a spreadsheet would take for a formula."""
    if value is None:
        return ""
    if isinstance(value, bool | int):
        return str(value)
    if isinstance(value, float):
        return "" if finite(value) is None else f"{value:.10g}"
    text = value.replace("\0", "")
    return f"'{text}" if text.startswith(_FORMULA) else text


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _ms(seconds: float | None) -> float | None:
    return _times(seconds, 1e3)


def _mib(count: int | None) -> float | None:
    return _times(count, 1 / MIB)


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _result_row(report: Report, done: Measurement, sample: Sample, checkpoint: Checkpoint | None) -> dict[str, Cell]:
    plan, workload = done.plan, report.study.workload
    known = 0 <= sample.index < len(workload.prompts)
    return {
        "model_name": plan.model,
        "quantize_int8": plan.quantized,
        "num_threads": plan.threads,
        "use_cache": plan.kv_cache,
        "prompt_chars": workload.prompts[sample.index].chars if known else None,
        "input_tokens": sample.prompt_tokens,
        "output_tokens": sample.output_tokens,
        "latency_ms": _ms(sample.latency_s),
        "tokens_per_sec": sample.tokens_per_s,
        "rss_mb": _mib(sample.rss_bytes),
        "engine": plan.engine,
        "precision": plan.precision,
        "device": plan.device,
        "plan_id": plan.id,
        "round": done.round,
        "prompt_index": sample.index,
        "ttft_ms": _ms(sample.ttft_s),
        "tpot_ms": _ms(sample.tpot_s),
        "cpu_s": sample.cpu_s,
        "disturbed": "; ".join(sample.disturbed),
        "cut": sample.cut,
        "started_at": _iso(sample.started_at),
        "output_sha256": sample.output_sha256,
        "process_status": done.status,
        "weights": _weights(checkpoint),
        "synthetic_weights": checkpoint is not None and checkpoint.synthetic,
        "concurrency": workload.concurrency,
        "study_id": report.study.id,
        "reused_from": done.reused_from,
    }


def _summary_row(report: Report, row: Row) -> dict[str, Cell]:
    plan = row.plan
    return {
        "model_name": plan.model,
        "quantize_int8": plan.quantized,
        "num_threads": plan.threads,
        "use_cache": plan.kv_cache,
        "p50_latency_ms": _ms(row.p50.value),
        "p95_latency_ms": _ms(row.p95.value),
        "avg_tokens_per_sec": row.tokens_per_s,
        "peak_rss_mb": _mib(row.peak_bytes),
        "avg_output_tokens": row.output_tokens,
        "status": row.status,
        "reason": row.reason,
        "verdict": row.verdict,
        "chosen": row.chosen,
        "why": row.why,
        "engine": plan.engine,
        "precision": plan.precision,
        "device": plan.device,
        "plan_id": plan.id,
        **_bounds("p50_latency", row.p50),
        **_bounds("p95_latency", row.p95),
        "p95_samples_needed": row.p95.needed if row.p95.n else None,
        "p50_ttft_ms": _ms(row.ttft.value),
        **_bounds("p50_ttft", row.ttft),
        "p50_tpot_ms": _ms(row.tpot.value),
        **_bounds("p50_tpot", row.tpot),
        "load_s": row.load_s.value,
        "startup_s": row.startup_s.value,
        "samples": row.samples,
        "processes": row.processes,
        "process_spread": row.process_spread,
        "disturbed_samples": row.disturbed,
        "cut_samples": row.cut,
        "p50_latency_ms_with_disturbed": _ms(row.p50_all.value),
        "p95_latency_ms_with_disturbed": _ms(row.p95_all.value),
        "oversubscribed": row.oversubscribed,
        "on_pareto_front": row.on_pareto,
        "usd_per_mtok": row.usd_per_mtok,
        **_ran(row),
        **_converted(row),
        **_terms(report, row.checkpoint),
        "reused_processes": len(row.reused),
        "reused_from": "; ".join(dict.fromkeys(row.reused)),
    }


def _bounds(name: str, estimate: Estimate) -> dict[str, Cell]:
    return {f"{name}_ms_low": _ms(estimate.low), f"{name}_ms_high": _ms(estimate.high)}


def _ran(row: Row) -> dict[str, Cell]:
    """What actually ran, as opposed to what was asked."""
    actual = row.actual
    if actual is None:
        return dict.fromkeys(RAN_COLUMNS)
    return {
        "actual_dtype": actual.dtype,
        "actual_weights": actual.weights,
        "actual_kernel": actual.kernel,
        "actual_scheme": actual.scheme,
        "actual_quantized_share": actual.quantized_share,
        "actual_attention": actual.attention,
        "actual_threads": actual.threads,
        "actual_use_cache": actual.kv_cache,
    }


def _converted(row: Row) -> dict[str, Cell]:
    """The artifact that was made for the plan, and the check of its tokens."""
    made = row.converted
    if made is None:
        return dict.fromkeys(CONVERTED_COLUMNS)
    check = made.check
    return {
        "conversion_s": made.seconds,
        "artifact_mb": _mib(made.bytes),
        "checked_tokens": None if check is None else check.steps,
        "checked_agreement": None if check is None else check.agreement,
        "not_checked": made.unchecked,
    }


def _terms(report: Report, checkpoint: Checkpoint | None) -> dict[str, Cell]:
    """What holds for the whole study; in each row, because a row is often all that is passed on."""
    return {
        "weights_provenance": None if checkpoint is None else checkpoint.provenance,
        "weights": _weights(checkpoint),
        "synthetic_weights": checkpoint is not None and checkpoint.synthetic,
        "prompt_length": prompt_lengths(report),
        "output_tokens_asked": output_lengths(report),
        "concurrency": report.study.workload.concurrency,
        "concurrency_text": concurrency(report),
        "sla": study_sla(report),
        "objective": report.selection.objective.metric,
        "study_id": report.study.id,
    }


def _weights(checkpoint: Checkpoint | None) -> str:
    return "" if checkpoint is None else weights(checkpoint.weights, checkpoint.synthetic)


RESULT_COLUMNS = (
    *RESULTS_LEADING,
    *("engine", "precision", "device", "plan_id", "round", "prompt_index", "ttft_ms", "tpot_ms", "cpu_s"),
    *("disturbed", "cut", "started_at", "output_sha256", "process_status", "weights", "synthetic_weights"),
    *("concurrency", "study_id", "reused_from"),
)
RAN_COLUMNS = (
    *("actual_dtype", "actual_weights", "actual_kernel", "actual_scheme", "actual_quantized_share"),
    *("actual_attention", "actual_threads", "actual_use_cache"),
)
CONVERTED_COLUMNS = ("conversion_s", "artifact_mb", "checked_tokens", "checked_agreement", "not_checked")
SUMMARY_COLUMNS = (
    *SUMMARY_LEADING,
    *("status", "reason", "verdict", "chosen", "why", "engine", "precision", "device", "plan_id"),
    *("p50_latency_ms_low", "p50_latency_ms_high", "p95_latency_ms_low", "p95_latency_ms_high", "p95_samples_needed"),
    *("p50_ttft_ms", "p50_ttft_ms_low", "p50_ttft_ms_high", "p50_tpot_ms", "p50_tpot_ms_low", "p50_tpot_ms_high"),
    *("load_s", "startup_s", "samples", "processes", "process_spread", "disturbed_samples", "cut_samples"),
    *("p50_latency_ms_with_disturbed", "p95_latency_ms_with_disturbed", "oversubscribed", "on_pareto_front"),
    *("usd_per_mtok",),
    *RAN_COLUMNS,
    *CONVERTED_COLUMNS,
    *("weights_provenance", "weights", "synthetic_weights"),
    *("prompt_length", "output_tokens_asked", "concurrency", "concurrency_text", "sla", "objective", "study_id"),
    *("reused_processes", "reused_from"),
)
