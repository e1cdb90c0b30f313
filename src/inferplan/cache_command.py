"""`inferplan cache`: what lies in the artifact cache, and removing what is no longer wanted.

Owns which artifacts are meant, and what is printed. Leaves deleting, with its locks, to `artifacts`, and the
environments of engines, which lie beside the artifacts, to `inferplan engines`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from . import artifacts, locks
from ._codec import encode
from .agreement import read_record
from .artifacts import Artifact, Unfinished
from .engines import HIDDEN, engine_names
from .errors import BusyError, InputError, UnknownNameError
from .measurement import TokenCheck

_UNITS_S = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_MIB = 1 << 20
_COLUMNS = ("kind", "model", "engine", "precision", "MiB", "made", "last use", "conversion", "token check", "key")
_NUMERIC = ("MiB", "conversion")
_PRUNE_ONLY = {"all": "--all", "dry_run": "--dry-run", "yes": "--yes"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One artifact of the list.

    Attributes:
        kind: `converted model`, `synthetic weights`, `dequantized GGUF`.
        created, used: seconds since the epoch.
        seconds: how long making it took.
        check: its token check; None where it has passed none.
    """

    key: str
    kind: str
    model: str
    engine: str
    precision: str
    what: str
    path: str
    bytes: int
    created: float
    used: float
    seconds: float
    check: TokenCheck | None


def cache(arguments: argparse.Namespace) -> int:
    """`inferplan cache [list | prune]`.

    Raises:
        InputError: an argument cannot be used, or what is to be deleted was not confirmed.
        BusyError: a timed study runs here, which may load what would be deleted.
    """
    older_s = None if arguments.older_than is None else _seconds(arguments.older_than)
    if arguments.action == "list":
        if given := [flag for name, flag in _PRUNE_ONLY.items() if getattr(arguments, name)]:
            raise InputError(f"{given[0]} is of `inferplan cache prune`")
        return _list(arguments, older_s)
    if arguments.json:
        raise InputError("--json is of `inferplan cache list`")
    chosen = [arguments.engine, arguments.model, older_s]
    if arguments.all == any(value is not None for value in chosen):
        raise InputError(
            "say what to prune: --older-than 30d, --engine NAME, --model NAME (an artifact must fit all that are "
            "given), or --all alone"
        )
    return _prune(arguments, older_s)


def _list(arguments: argparse.Namespace, older_s: float | None) -> int:
    everything, left = artifacts.artifacts(), artifacts.unfinished()
    found = _fitting(everything, arguments, older_s)
    if arguments.json:
        print(json.dumps(_as_json(found, left), indent=2))
        return 0
    place = artifacts.cache_dir()
    print(f"artifact cache: {place}")
    if not everything and not left:
        print("it is empty: models that are converted, dequantized or made up will be kept there")
    elif found:
        print("\n".join(_table([_cells(entry) for entry in map(_entry, found)])))
    for one in left:
        state = (
            "being made now" if one.held else "left by a process that was killed; `inferplan cache prune` removes it"
        )
        print(f"{one.path.name}: {_mib(one.bytes)} MiB, {state}")
    total = sum(a.bytes for a in found) + sum(one.bytes for one in left)
    print(f"total: {_count(found)}{_among(found, everything)}, {_mib(total)} MiB")
    if (place / "environments").is_dir():
        print("environments of engines lie there too and are not counted: see `inferplan engines`")
    return 0


def _prune(arguments: argparse.Namespace, older_s: float | None) -> int:
    everything = artifacts.artifacts()
    found = _fitting(everything, arguments, older_s)
    left = [one for one in artifacts.unfinished() if not one.held]
    size = sum(a.bytes for a in found) + sum(one.bytes for one in left)
    if not found and not left:
        print(f"nothing to prune in {artifacts.cache_dir()}" if everything else "the artifact cache is empty")
        return 0
    what = f"{_count(found)}{' and what killed processes left' if left else ''}, {_mib(size)} MiB"
    if arguments.dry_run:
        print(
            "\n".join(_table([_cells(entry) for entry in map(_entry, found)])) if found else "", end="\n" * bool(found)
        )
        print(f"would remove {what}")
        return 0
    if not arguments.yes:
        if not sys.stdin.isatty():
            raise InputError(f"not removing {what} without being asked: give --yes")
        if input(f"Remove {what}? [y/N] ").strip().lower() not in ("y", "yes"):
            print("kept")
            return 0
    _remove(found, left)
    return 0


def _remove(found: Sequence[Artifact], left: Sequence[Unfinished]) -> None:
    """Delete under the machine's lock: a timed study, which holds it, may load any of them at any time."""
    try:
        with locks.machine_lock("(none: inferplan cache prune)"):
            removed = [artifact for artifact in found if artifacts.remove(artifact)]
            artifacts.sweep()
    except BusyError:
        who = locks.holder() or "it does not say which"
        raise BusyError(
            f"a timed study runs on this machine ({who}) and may load what would be removed: prune when it has ended"
        ) from None
    size = sum(a.bytes for a in removed) + sum(one.bytes for one in left)
    print(f"freed {_mib(size)} MiB: {_count(removed)} removed{', and what killed processes left' if left else ''}")
    for artifact in found:
        if artifact not in removed:
            entry = _entry(artifact)
            print(f"left alone, another process is at work on it: {entry.kind} {entry.what or entry.model}")


def _fitting(
    everything: Sequence[Artifact], arguments: argparse.Namespace, older_s: float | None
) -> tuple[Artifact, ...]:
    """The artifacts that fit every filter.

    Raises:
        UnknownNameError: there is no such engine, or no artifact of such a model.
    """
    engines = {a.note["engine"] for a in everything if "engine" in a.note}
    models = {a.note["model"] for a in everything if "model" in a.note}
    if arguments.engine is not None and arguments.engine not in (known := engines | (set(engine_names()) - HIDDEN)):
        raise UnknownNameError("engine", arguments.engine, known)
    if arguments.model is not None and everything and arguments.model not in models:
        raise UnknownNameError("model in the cache", arguments.model, models)
    return tuple(
        a
        for a in everything
        if (arguments.engine is None or a.note.get("engine") == arguments.engine)
        and (arguments.model is None or a.note.get("model") == arguments.model)
        and (older_s is None or a.used < time.time() - older_s)
    )


def _seconds(text: str) -> float:
    """The duration `30d`, `12h`, `2w` or `90m` in seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", text)
    if found is None:
        raise InputError(f"--older-than {text!r} is not a duration such as 30d, 12h, 2w or 90m")
    return float(found.group(1)) * _UNITS_S[found.group(2)]


def _entry(artifact: Artifact) -> Entry:
    note, record = artifact.note, read_record(artifact.path)
    return Entry(
        key=artifact.key,
        kind=note.get("kind") or _older_kind(note.get("what", "")),
        model=note.get("model", ""),
        engine=note.get("engine", ""),
        precision=note.get("precision", ""),
        what=note.get("what", ""),
        path=str(artifact.path),
        bytes=artifact.bytes,
        created=artifact.created,
        used=artifact.used,
        seconds=artifact.seconds,
        check=None if record is None else record.check,
    )


def _older_kind(what: str) -> str:
    """Notes did not always name a kind; these two sorts did not."""
    return "dequantized GGUF" if what.endswith("as safetensors") else "synthetic weights"


def _as_json(found: Sequence[Artifact], left: Sequence[Unfinished]) -> dict[str, Any]:
    """Times are seconds, sizes bytes."""
    return {
        "path": str(artifacts.cache_dir()),
        "bytes": sum(a.bytes for a in found) + sum(one.bytes for one in left),
        "artifacts": [encode(_entry(artifact)) for artifact in found],
        "unfinished": [encode(one) for one in left],
    }


def _cells(entry: Entry) -> tuple[str, ...]:
    now = time.time()
    return (
        entry.kind,
        entry.model,
        entry.engine,
        entry.precision,
        _mib(entry.bytes),
        f"{_age(now - entry.created)} ago",
        f"{_age(now - entry.used)} ago",
        f"{entry.seconds:.1f} s",
        "" if entry.check is None else f"{entry.check.agreement:.1%} of {entry.check.steps}",
        entry.key[:8],
    )


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    grid = [_COLUMNS, *rows]
    widths = [max(len(row[i]) for row in grid) for i in range(len(_COLUMNS))]

    def padded(row: tuple[str, ...]) -> str:
        cells = zip(row, widths, _COLUMNS, strict=True)
        return "  ".join(c.rjust(w) if name in _NUMERIC else c.ljust(w) for c, w, name in cells).rstrip()

    return [padded(row) for row in grid]


def _age(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _mib(size: int) -> str:
    return f"{size / _MIB:,.1f}"


def _count(found: Sequence[Artifact]) -> str:
    return f"{len(found)} artifact{'s' * (len(found) != 1)}"


def _among(found: Sequence[Artifact], everything: Sequence[Artifact]) -> str:
    return "" if len(found) == len(everything) else f" of {len(everything)}"
