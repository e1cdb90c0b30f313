"""The plug-in door: the protocol of an engine and what it says of itself.

Owns the words between worker and engine. Imports nothing heavy, so that the
parent may read `EngineInfo` without an engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Protocol

from ..errors import InputError, UnknownNameError
from ..measurement import Actual
from ..plan import OptionValue, Plan


@dataclass(frozen=True, slots=True)
class Axis:
    """One of the engine's own options: its values on this machine, the default first."""

    name: str
    values: tuple[OptionValue, ...]
    help: str

    @property
    def default(self) -> OptionValue:
        """The value that a plan has when it says nothing."""
        return self.values[0]


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine says of itself on this machine.

    Attributes:
        precisions: those it can run here.
        axes: its own options.
        lacks: why a precision or the whole engine cannot run here, by name
            (`engine` for the whole of it).
        env: environment variables its process must start with, by plan-independent name;
            `{threads}` is replaced by the plan's thread count, and `{NAME}` by the plan's
            value of the axis NAME.
        libraries: versions of what it runs on.
        artifact_key: changes whenever its converted artifacts do.
        artifact_options: names of the axes that change a converted artifact; the others only
            change how it is run, and share it.
        needs_model: whether it loads real weights; without, prompts are sent as bytes.
        converts: precisions that need an artifact made by `convert`; the others load
            the checkpoint as it is.
        ready: types of GGUF files (`q4_1`) that it runs as they are. A plan of that precision
            hands `convert` the file itself, whatever `converts` says.
        installed: whether its library is there at all; one that is there and does not work
            lacks `engine` all the same.
        env_of: variables besides `env` of some plans alone, by their precision and threads: `bf16/t1`.
    """

    name: str
    version: str
    precisions: tuple[str, ...]
    axes: tuple[Axis, ...] = ()
    lacks: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    libraries: Mapping[str, str] = field(default_factory=dict)
    artifact_key: str = "1"
    artifact_options: tuple[str, ...] = ()
    kv_cache: tuple[bool, ...] = (True, False)
    devices: tuple[str, ...] = ("cpu",)
    needs_model: bool = True
    converts: tuple[str, ...] | None = None
    ready: tuple[str, ...] = ()
    installed: bool = True
    env_of: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def variables(self, plan: Plan) -> dict[str, str]:
        """`env` with the plan's values: what its process must start with."""
        values: dict[str, OptionValue] = {"threads": plan.threads}
        values.update({axis.name: plan.option(axis.name, axis.default) for axis in self.axes})
        filled = {**self.env, **self.env_of.get(f"{plan.precision}/t{plan.threads}", {})}
        for name, value in values.items():
            filled = {variable: text.replace(f"{{{name}}}", str(value)) for variable, text in filled.items()}
        return filled

    def reject(self, plan: Plan) -> str | None:
        """Why this engine cannot run `plan` here, as far as can be told without it; or None."""
        if "engine" in self.lacks:
            return self.lacks["engine"]
        if plan.device not in self.devices:
            return f"{self.name} runs on {', '.join(self.devices)}, not on {plan.device}"
        if plan.precision not in (*self.precisions, *self.ready):
            ready = f", and of ready GGUF files {', '.join(self.ready)}" if self.ready else ""
            return self.lacks.get(plan.precision) or (
                f"{self.name} has no precision {plan.precision!r} here; it has {', '.join(self.precisions)}{ready}"
            )
        if plan.kv_cache not in self.kv_cache:
            return f"{self.name} cannot run with the KV cache {'on' if plan.kv_cache else 'off'}"
        axes = {axis.name: axis for axis in self.axes}
        for name, value in plan.options:
            if name not in axes:
                return str(UnknownNameError(f"{self.name} option", name, axes))
            if value not in axes[name].values:
                known = ", ".join(map(str, axes[name].values))
                return f"{self.name} option {name} cannot be {value!r}; it can be {known}"
        return None


def unavailable(name: str, library: str, error: ImportError, remedy: str) -> EngineInfo:
    """What an engine says of itself when its library cannot be imported.

    Args:
        error: a `PackageNotFoundError` where the library is not installed; any other: it is, and does not load.
        remedy: the command that installs it.
    """
    absent = isinstance(error, PackageNotFoundError)
    what = "is not installed" if absent else f"cannot be imported ({error})"
    lacks = {"engine": f"{library} {what}: {remedy}"}
    return EngineInfo(name, version="", precisions=(), lacks=lacks, kv_cache=(True,), installed=not absent)


def check_request(prompt: Sequence[int], max_tokens: int, *, vocabulary: int, context: int) -> None:
    """Refuse what a model cannot be asked, in the same words for every engine.

    Args:
        vocabulary: how many ids the model has.
        context: its longest sequence in tokens; 0 where there is no limit.

    Raises:
        InputError: the prompt is empty, holds ids that the model does not have, or is too long with its output.
    """
    if not prompt:
        raise InputError("the prompt has no tokens: give at least one")
    if bad := [token for token in prompt if not 0 <= token < vocabulary]:
        raise InputError(f"token id {bad[0]} does not exist: the model has ids 0 to {vocabulary - 1}")
    if context and len(prompt) + max_tokens > context:
        raise InputError(
            f"{len(prompt)} prompt tokens and {max_tokens} new ones do not fit into the model's context "
            f"of {context}: shorten the prompt or max_new_tokens"
        )


@dataclass(frozen=True, slots=True)
class Scores:
    """Log-probabilities of given tokens, for quality: one per token after the first."""

    logprobs: tuple[float, ...]


class Engine(Protocol):
    """What every engine does. One instance runs one plan in one process.

    The worker holds the clock: an engine never times itself.
    """

    def describe(self) -> EngineInfo:
        """Version, precisions, axes, and what this machine lacks."""

    def unsupported(self, plan: Plan) -> str | None:
        """Why `plan` cannot run, or None."""

    def convert(self, checkpoint: Path, plan: Plan, out: Path) -> None:
        """Write into the empty directory `out` what `load` needs, in a process of its own.

        Called only for the precisions that `EngineInfo.converts` names (None: all);
        for the others `load` receives the checkpoint's directory.
        """

    def load(self, plan: Plan, artifact: Path) -> Actual:
        """Make ready to generate; says what really runs.

        Raises:
            ArtifactError: the artifact is corrupt, with its name.
            Unsupported: the plan turns out not to run here.
        """

    def generate(self, prompt: Sequence[int], max_tokens: int) -> Iterator[int]:
        """Exactly `max_tokens` token ids, greedily, each as it appears; end of sequence ignored."""

    def close(self) -> None:
        """Give everything back; `load` may be called again."""
