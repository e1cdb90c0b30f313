"""What must exist before a study can be timed: checkpoints, token ids, checked artifacts, and memory for the weights.

Owns the order of that work and its progress. Leaves resolving to `models`, token ids to `tokens`, conversion to the
engine, in processes of their own, and the check of what came out to `agreement`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from . import _files, artifacts, engines, fits, measure, models, tokens
from .agreement import Checked, Checker, minimum, read_record
from .engines.base import EngineInfo
from .errors import EngineError, InputError
from .measurement import Converted, Request, Status
from .models import Checkpoint
from .plan import Plan, Space
from .workload import Workload

Tell = Callable[[str], None]
Refused = tuple[Status, str]
_MIB = 1 << 20


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

    Artifacts are made when first asked for, while nothing is timed.
    What does not fit into the memory granted here is refused before a process of it is started.

    Attributes:
        memory_bytes: memory that plans and conversions may have.
    """

    infos: Mapping[str, EngineInfo]
    checkpoints: Mapping[str, Checkpoint]
    tokenized: Mapping[str, tokens.Tokenized]
    tell: Tell
    made: dict[str, Path | Refused] = field(default_factory=dict)
    checked: dict[str, Checked] = field(default_factory=dict)
    fresh: set[str] = field(default_factory=set)  # keys of artifacts that were not there before
    memory_bytes: int = field(default_factory=fits.granted_bytes)
    checker: Checker = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "checker", Checker(self.memory_bytes, self.tell))

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

        A converted artifact is given only when its tokens have been checked (see `agreement`),
        or could not be, which `converted` then says.
        """
        checkpoint = self.checkpoints[plan.model]
        artifacts.touch(checkpoint.path)  # where it lies in the cache itself: made-up or dequantized weights
        if not self._converts(plan):
            counted = fits.weights_bytes(checkpoint.parameters, plan.precision)
            held = _checkpoint_bytes(checkpoint.path) if counted is None else counted
            return self._refused(plan, held) or checkpoint.path
        key = self._key(plan)
        if key not in self.made:
            self.made[key] = self._convert(key, plan, checkpoint)
        found = self.made[key]
        if isinstance(found, tuple):
            return found
        return self._refused(plan, _artifact_bytes(found)) or self._wrong(key, plan, found) or found

    def converted(self, plan: Plan) -> Converted | None:
        """The plan's artifact, as made and checked; None for what is loaded as it is, or could not be made."""
        found = self.made.get(self._key(plan)) if self._converts(plan) else None
        if found is None or isinstance(found, tuple) or (made := artifacts.read_artifact(found)) is None:
            return None
        checked = self.checked.get(self._key(plan), Checked())
        return Converted(made.seconds, made.bytes, checked.check, checked.unchecked)

    def _converts(self, plan: Plan) -> bool:
        info = self.infos[plan.engine]
        return info.converts is None or plan.precision in (*info.converts, *info.ready)

    def _key(self, plan: Plan) -> str:
        """Of all that the plan's artifact is made from."""
        info, checkpoint = self.infos[plan.engine], self.checkpoints[plan.model]
        options = tuple((name, value) for name, value in plan.options if name in info.artifact_options)
        parts = [checkpoint.content_hash, plan.engine, info.artifact_key, plan.precision, repr(options)]
        if plan.precision in info.ready and checkpoint.gguf is not None:
            parts.append(_files.file_sha256(checkpoint.gguf))
        return artifacts.artifact_key(*parts)

    def _wrong(self, key: str, plan: Plan, artifact: Path) -> Refused | None:
        """Why the artifact must not be used, as its check found; checked once for all plans that share it."""
        info = self.infos[plan.engine]
        if not info.needs_model:
            return None
        if key not in self.checked:
            found = read_record(artifact, info)
            if found is None:
                refused, unchecked = self._exact(plan)
                found = Checked(refused=refused) if refused else None
            if found is None:
                found = self.checker.check(artifact, plan, info, self.checkpoints[plan.model], unchecked)
            self.checked[key] = found
        return self.checked[key].refused

    def _exact(self, plan: Plan) -> tuple[Refused | None, str]:
        """Why a quantized artifact must not be used, as its engine's conversion to FP32 shows; else what was left out.

        A share of equal tokens cannot tell a small error of the converter from quantization (see `agreement`): FP32
        can, and the same converter writes both. What is made for this alone is removed by `tidy`.
        """
        info = self.infos[plan.engine]
        options = tuple((name, value) for name, value in plan.options if name in info.artifact_options)
        exact = Plan(plan.model, plan.engine, "fp32", plan.threads, plan.kv_cache, plan.device, options)
        quantized = minimum(plan.precision) is not None and plan.precision not in info.ready
        if not quantized or not self._converts(exact) or info.reject(exact):
            return None, ""
        found = self.artifact(exact)
        checked = self.checked.get(self._key(exact), Checked())
        if checked.refused is not None and checked.check is not None:
            return ("failed", f"{plan.engine} does not convert {plan.model} rightly, at fp32: {checked.refused[1]}"), ""
        if isinstance(found, tuple):
            return None, f"{plan.engine}'s conversion to fp32, which shows what quantization hides: {found[1]}"
        return None, checked.unchecked

    def tidy(self, plans: Iterable[Plan]) -> None:
        """Remove what was converted for a check alone and is not loaded by any of `plans`."""
        asked = {self._key(plan) for plan in plans if self._converts(plan)}
        for key in self.fresh - asked:
            found = self.made.pop(key, None)
            if isinstance(found, Path) and (made := artifacts.read_artifact(found)) is not None:
                artifacts.remove(made)
        self.fresh.clear()

    def _refused(self, plan: Plan, weights_bytes: int) -> Refused | None:
        if plan.device != "cpu":
            return None
        why = fits.refusal(weights_bytes, self.memory_bytes, f"{plan.model} at {plan.precision}")
        return None if why is None else ("out_of_memory", f"not started: {why}")

    def _convert(self, key: str, plan: Plan, checkpoint: Checkpoint) -> Path | Refused:
        what = f"{plan.model} to {plan.precision} for {plan.engine}"
        started: list[str] = []

        def make(out: Path) -> None:  # only called where the artifact is not there yet
            source = self._source(plan, checkpoint)
            self.tell(f"converting {what} (once; kept in the cache)")
            started.append(key)

            def waiting(seconds: float) -> None:
                written = artifacts.size_below(out) / _MIB
                self.tell(f"converting {what}: {seconds:.0f} s so far, {written:,.0f} MiB written")

            status, reason = measure.convert(plan, source, out, waiting=waiting)
            if status != "ok":
                raise _ConversionFailed(status, artifacts.disk_remedy(reason))

        note = {"kind": "converted model", "model": plan.model, "engine": plan.engine, "precision": plan.precision}
        try:
            path = artifacts.ensure(key, make, note=note)
        except _ConversionFailed as failure:
            return failure.status, failure.reason
        if started and (made := artifacts.read_artifact(path)) is not None:
            self.fresh.add(key)
            self.tell(f"converted {what}: {made.seconds:.1f} s, {made.bytes / _MIB:,.1f} MiB")
        return path

    def _source(self, plan: Plan, checkpoint: Checkpoint) -> Path:
        """What is converted: the checkpoint, or for a precision that is the type of a ready file, that file.

        A conversion that may not fit is refused: the whole checkpoint at FP32 is counted, or the ready file. An
        engine may read tensor by tensor and need less, but `EngineInfo` does not say which do.
        """
        source, held = checkpoint.path, checkpoint.parameters * 4
        if plan.precision in self.infos[plan.engine].ready:
            if checkpoint.gguf is None or checkpoint.gguf_type != plan.precision:
                it = f"a GGUF file of {checkpoint.gguf_type}" if checkpoint.gguf else "not a GGUF file"
                raise _ConversionFailed(
                    "unsupported", f"{plan.precision} is a type of ready GGUF files, and {plan.model} is {it}"
                )
            source, held = checkpoint.gguf, _checkpoint_bytes(checkpoint.gguf)
        what = f"converting {plan.model} to {plan.precision} for {plan.engine}"
        if why := fits.refusal(held, self.memory_bytes, what):
            raise _ConversionFailed("out_of_memory", f"not started: {why}")
        return source


def _artifact_bytes(path: Path) -> int:
    """Size of the files of an artifact as they were made."""
    made = artifacts.read_artifact(path)
    return 0 if made is None else made.bytes


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
    """Token ids for each model, and the artifacts of `plans`; those of others are made when they are asked for.

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
    asked = tuple(plans)
    with ready.checker.keeping():
        for plan in asked:
            ready.artifact(plan)
    ready.tidy(asked)
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
