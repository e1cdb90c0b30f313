"""Every exception that inferplan raises on purpose.

    InferplanError
    ├── InputError            what the user gave cannot be used (exit code 2)
    │   ├── UnknownNameError      no such model, engine, metric, plan or study
    │   ├── ModelError            a model that cannot be resolved, read or converted
    │   ├── WorkloadError         prompts that are missing, empty or too long
    │   ├── SLAError              a constraint that cannot be parsed
    │   └── StoreError            a store that is locked, foreign, read-only or full
    ├── EngineError           an engine could not do what the plan asks; becomes a failed row
    │   ├── Unsupported           the engine cannot run this plan, with its reason
    │   └── ArtifactError         a converted artifact is missing, corrupt or incomplete
    └── BusyError             another timed study holds this machine

A plan that fails is a row with its reason, never an exception of the parent:
`EngineError` is raised inside the worker and arrives as a failed Measurement.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InferplanError(Exception):
    """Base of every error that inferplan raises on purpose."""


class InputError(InferplanError):
    """What the user gave cannot be used. The message says what, and what to do."""


class UnknownNameError(InputError):
    """A name that does not exist; the message lists those that do.

    Args:
        kind: what was looked up, as a word for the message ("model", "metric").
        name: the name as it was given.
        known: the names that exist.
        hint: a sentence added to the end, when there is more to say.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        self.kind, self.name, self.known = kind, name, tuple(sorted(known))
        near = difflib.get_close_matches(name, self.known, n=3, cutoff=0.5)
        message = f"unknown {kind} {name!r}."
        if near:
            message += f" Did you mean {' or '.join(near)}?"
        if self.known:
            message += f" Known: {', '.join(self.known)}."
        if hint:
            message += f" {hint}"
        super().__init__(message)


class ModelError(InputError):
    """A model that cannot be resolved, downloaded, read or converted."""


class WorkloadError(InputError):
    """Prompts that are missing, empty, malformed or longer than the model's context."""


class SLAError(InputError):
    """A constraint or objective that cannot be parsed."""


class StoreError(InputError):
    """A store file that is locked, foreign, newer than us, read-only or full."""


class EngineError(InferplanError):
    """An engine could not do what the plan asks."""


class Unsupported(EngineError):
    """The engine cannot run this plan here; the message is the reason shown in its row."""


class ArtifactError(EngineError):
    """An artifact on disk is missing, corrupt or incomplete."""


class BusyError(InferplanError):
    """Another timed study is running on this machine."""
