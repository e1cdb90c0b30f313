"""What must exist before a study can be timed: checkpoints, token ids, artifacts, and memory for the weights.

Owns the order of that work and its progress. Leaves resolving to `models`,
token ids to `tokens`, conversion to the engine, in processes of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from . import _files, artifacts, engines, fits, measure, models, tokens
from .engines.base import EngineInfo
from .errors import EngineError, InputError
from .measurement import Request, Status
from .models import Checkpoint
from .plan import Plan, Space
from .workload import Workload

Tell = Callable[[str], None]
Refused = tuple[Status, str]


class _ConversionFailed(EngineError):
    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


def describe_engines(names: Iterable[str]) -> dict[str, EngineInfo]:
    """What each engine says of itself here.

    Raises:
        UnknownNameError: there is no such engine.
    """
    return {name: measure.describe(engines.check_engine(name)) for name in dict.fromkeys(names)}


def rejected(space: Space, infos: Mapping[str, EngineInfo]) -> tuple[tuple[Plan, str], ...]:
    """The plans of `space` that no engine can run here, with the reason.

    Raises:
        InputError: nothing is left to measure; says why.
    """
    out = space.rejected(lambda plan: infos[plan.engine].reject(plan))
    if len(out) == len(space.plans):
        reasons = "; ".join(dict.fromkeys(reason for _, reason in out))
        raise InputError(f"no plan of this space can run here: {reasons}")
    return out


def resolve_models(
    space: Space, infos: Mapping[str, EngineInfo], *, weights: str, trust_remote_code: bool, tell: Tell
) -> tuple[Checkpoint, ...]:
    """A checkpoint for each model; a placeholder where no engine of the space loads weights."""
    if not any(infos[name].needs_model for name in space.engines):
        return tuple(_placeholder(model) for model in space.models)
    return tuple(
        models.resolve(
            model, weights=cast(models.WeightsChoice, weights), trust_remote_code=trust_remote_code, notify=tell
        )
        for model in space.models
    )


def _placeholder(model: str) -> Checkpoint:
    return Checkpoint(model, Path(), "synthetic", "no weights: the fake engine", artifacts.artifact_key("fake", model))


@dataclass(frozen=True, slots=True)
class Preparation:
    """Token ids and artifacts of a study; see `study.Ready`.

    Artifacts are made when first asked for, before anything of the plan is timed.
    What does not fit into the memory granted here is refused before a process of it is started.

    Attributes:
        memory_bytes: memory that plans and conversions may have.
    """

    infos: Mapping[str, EngineInfo]
    checkpoints: Mapping[str, Checkpoint]
    tokenized: Mapping[str, tokens.Tokenized]
    tell: Tell
    made: dict[str, Path | Refused] = field(default_factory=dict)
    memory_bytes: int = field(default_factory=fits.granted_bytes)

    def requests(self, model: str) -> tuple[Request, ...]:
        return self.tokenized[model].requests

    def warmup(self, model: str) -> tuple[Request, ...]:
        return self.tokenized[model].warmup

    def artifact(self, plan: Plan) -> Path | Refused:
        """What the plan's engine loads; or a status and its reason, `out_of_memory` where the weights do not fit.

        What is counted, and where it comes from: of a converted artifact the bytes of its
        files on disk; of a checkpoint that is loaded as it is, its parameters (from the
        headers of its files) times the bytes of the plan's precision (`fits.BITS`), or its
        weight files where the precision is an engine's own type. A plan on another device
        than the CPU is not refused: its weights lie in that device's memory.
        """
        info, checkpoint = self.infos[plan.engine], self.checkpoints[plan.model]
        if info.converts is not None and plan.precision not in info.converts:
            counted = fits.weights_bytes(checkpoint.parameters, plan.precision)
            held = _checkpoint_bytes(checkpoint.path) if counted is None else counted
            return self._refused(plan, held) or checkpoint.path
        options = tuple((name, value) for name, value in plan.options if name in info.artifact_options)
        key = artifacts.artifact_key(
            checkpoint.content_hash, plan.engine, info.artifact_key, plan.precision, repr(options)
        )
        if key not in self.made:
            self.made[key] = self._convert(key, plan, checkpoint)
        found = self.made[key]
        return found if isinstance(found, tuple) else self._refused(plan, _artifact_bytes(found)) or found

    def _refused(self, plan: Plan, weights_bytes: int) -> Refused | None:
        if plan.device != "cpu":
            return None
        why = fits.refusal(weights_bytes, self.memory_bytes, f"{plan.model} at {plan.precision}")
        return None if why is None else ("out_of_memory", f"not started: {why}")

    def _convert(self, key: str, plan: Plan, checkpoint: Checkpoint) -> Path | Refused:
        def make(out: Path) -> None:  # only called where the artifact is not there yet
            self._check_conversion(plan, checkpoint)
            self.tell(f"converting {plan.model} to {plan.precision} for {plan.engine} (once; kept in the cache)")
            status, reason = measure.convert(plan, checkpoint.path, out)
            if status != "ok":
                raise _ConversionFailed(status, reason)

        note = {"kind": "converted model", "model": plan.model, "engine": plan.engine, "precision": plan.precision}
        try:
            return artifacts.ensure(key, make, note=note)
        except _ConversionFailed as failure:
            return failure.status, failure.reason

    def _check_conversion(self, plan: Plan, checkpoint: Checkpoint) -> None:
        """Refuse a conversion that may not fit: counted as the whole checkpoint at FP32.

        An engine may read tensor by tensor and need less, but `EngineInfo` does not say which do.
        """
        what = f"converting {plan.model} to {plan.precision} for {plan.engine}"
        if why := fits.refusal(checkpoint.parameters * 4, self.memory_bytes, what):
            raise _ConversionFailed("out_of_memory", f"not started: {why}")


def _artifact_bytes(path: Path) -> int:
    """Size of all files of an artifact but the cache's own note."""
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file() and p.name != artifacts.NOTE_FILE)


def _checkpoint_bytes(path: Path) -> int:
    """Size of the weights of a checkpoint as they lie on disk: a ready file, or a directory's safetensors."""
    return sum(p.stat().st_size for p in ((path,) if path.is_file() else _files.weight_files(path)))


def prepare(
    checkpoints: tuple[Checkpoint, ...],
    workload: Workload,
    plans: Iterable[Plan],
    infos: Mapping[str, EngineInfo],
    tell: Tell,
    *,
    memory_bytes: int | None = None,
) -> Preparation:
    """Token ids for each model, and every artifact that a plan will load.

    Args:
        memory_bytes: memory that plans and conversions may have; what is granted here when None.

    Raises:
        WorkloadError: a prompt does not fit a model's context.
    """
    by_name = {checkpoint.name: checkpoint for checkpoint in checkpoints}
    real = any(info.needs_model for info in infos.values())
    tokenized = {
        name: tokens.tokenize(checkpoint, workload) if real else _bytes(workload)
        for name, checkpoint in by_name.items()
    }
    memory = fits.granted_bytes() if memory_bytes is None else memory_bytes
    ready = Preparation(infos, by_name, tokenized, tell, memory_bytes=memory)
    for plan in plans:
        ready.artifact(plan)
    return ready


def _bytes(workload: Workload) -> tokens.Tokenized:
    """Prompts as the bytes of their text, for engines without a model."""

    def ids(index: int) -> tuple[int, ...]:
        prompt = workload.prompts[index]
        text = prompt.text or " ".join(content for _, content in prompt.messages or ()) or prompt.sha256
        return tuple(text.encode()[: prompt.prompt_tokens])

    count = range(len(workload.prompts))
    return tokens.Tokenized(
        requests=tuple(Request(i, ids(i), workload.output_tokens(i)) for i in count),
        warmup=(Request(-1, tuple(b"warm-up"), min(workload.max_new_tokens, 4)),),
    )


def libraries(infos: Mapping[str, EngineInfo]) -> dict[str, str]:
    """Versions of everything the engines run on, by name."""
    found: dict[str, str] = {}
    for info in infos.values():
        found.update(info.libraries)
    return dict(sorted(found.items()))
