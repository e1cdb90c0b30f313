"""The artifact cache: directories made once, named by what they were made from, removed when asked.

Owns their keys, the lock against a second process, the temporary directory and
the rename. Leaves what is inside to those who make it (`models`, the engines).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import ModelError

NOTE_FILE = "inferplan.json"
_KEY = re.compile(r"[0-9a-f]{32}")  # other directories in the cache are not artifacts: hashes, engines' environments
_TEMPORARY = ".making-"  # prefix of a directory that is being made or removed
_LOCKS = ".locks"
# EFBIG: a limit on the size of files, the user's (ulimit -f) or the file system's.
_DISK_ERRORS = tuple(getattr(errno, name) for name in ("ENOSPC", "EROFS", "EDQUOT", "EFBIG") if hasattr(errno, name))
_REMEDY = "Free some space there, or set INFERPLAN_CACHE to a directory that can be written."


@dataclass(frozen=True, slots=True)
class Artifact:
    """One finished artifact, as `inferplan cache list` shows it.

    Attributes:
        key: its name in the cache.
        path: its directory.
        bytes: size of its files when it was made.
        note: what it is, in words given by its maker.
        created: seconds since the epoch.
        seconds: how long making it took.
        used: when it was last asked for, in seconds since the epoch: the time of change of its
            note on disk, which `ensure` and `touch` set.
    """

    key: str
    path: Path
    bytes: int
    note: Mapping[str, str]
    created: float
    seconds: float = 0.0
    used: float = 0.0


@dataclass(frozen=True, slots=True)
class Unfinished:
    """What lies in the cache and is no artifact: `held` while a process makes it, else left by one that was killed."""

    path: Path
    bytes: int
    held: bool


def cache_dir() -> Path:
    """Where artifacts are kept: INFERPLAN_CACHE, or the user's cache directory. It need not exist yet."""
    if chosen := os.environ.get("INFERPLAN_CACHE"):
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("inferplan", appauthor=False))


def artifact_key(*parts: str) -> str:
    """Thirty-two hex digits that name what an artifact was made from: any other part, another key."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def ensure(key: str, make: Callable[[Path], None], *, note: Mapping[str, str], root: Path | None = None) -> Path:
    """The directory of artifact `key`, made by `make` when it is not there yet.

    `make` is handed an empty directory and fills it. It runs in one process at
    a time: a second one waits and then finds the work done. What `make` leaves
    behind when it raises is removed, and so is what a killed process left.

    Args:
        key: see `artifact_key`.
        make: fills the directory; what it raises passes through, but for a full or read-only disk.
        note: what the artifact is, kept beside it.
        root: the cache; `cache_dir()` when None.

    Raises:
        ModelError: the cache cannot be written (full, read-only, no directory); names the path.
    """
    root = cache_dir() if root is None else root
    final = root / key
    if (final / NOTE_FILE).is_file():
        touch(final)
        return final
    with _lock(root, key):
        if (final / NOTE_FILE).is_file():  # another process made it while we waited
            return final
        _sweep(root, holding=key)
        temporary = root / f"{_TEMPORARY}{key}"
        try:
            _fill(temporary, make, note, root)
            with _explained(root):
                shutil.rmtree(final, ignore_errors=True)  # a directory without its note was never finished
                temporary.rename(final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return final


def artifacts(root: Path | None = None) -> tuple[Artifact, ...]:
    """Every finished artifact in the cache, newest first; empty where there is no cache."""
    root = cache_dir() if root is None else root
    found = (read_artifact(note.parent) for note in root.glob(f"*/{NOTE_FILE}") if _KEY.fullmatch(note.parent.name))
    return tuple(sorted((a for a in found if a is not None), key=lambda a: a.created, reverse=True))


def unfinished(root: Path | None = None) -> tuple[Unfinished, ...]:
    """What is being made, and what killed processes left; the latter goes when anything is made or removed."""
    root = cache_dir() if root is None else root
    return tuple(Unfinished(path, size_below(path), _held(root, path)) for path in sorted(root.glob(f"{_TEMPORARY}*")))


def read_note(path: Path) -> Mapping[str, str]:
    """The note of the artifact in directory `path`; empty when it has none."""
    artifact = read_artifact(path)
    return {} if artifact is None else artifact.note


def read_artifact(path: Path) -> Artifact | None:
    """The artifact in directory `path`; None where there is none of ours."""
    file = path / NOTE_FILE
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        note = {str(k): str(v) for k, v in data["note"].items()}
        size, seconds = int(data["size_bytes"]), float(data.get("seconds", 0.0))
        return Artifact(path.name, path, size, note, float(data["created"]), seconds, file.stat().st_mtime)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # foreign or damaged: not an artifact of ours


def touch(path: Path) -> None:
    """Note that the artifact in directory `path` is used now; where it cannot be noted, the use goes on."""
    with contextlib.suppress(OSError):  # another user's cache, or a read-only one
        os.utime(path / NOTE_FILE)


def held(path: Path) -> contextlib.AbstractContextManager[None]:
    """Hold the lock of the artifact in directory `path`, once no other process does; it is not removed meanwhile."""
    return _lock(path.parent, path.name)


def remove(artifact: Artifact) -> bool:
    """Delete an artifact. False when another process holds it, which is then left alone.

    It stops being an artifact before its first file goes: one that is interrupted leaves nothing that counts.

    Raises:
        ModelError: the cache cannot be written; names the path.
    """
    import filelock

    root = artifact.path.parent
    try:
        with _lock(root, artifact.key, timeout_s=0), _explained(root):
            grave = root / f"{_TEMPORARY}{artifact.key}"
            shutil.rmtree(grave, ignore_errors=True)
            with contextlib.suppress(FileNotFoundError):  # somebody else removed it
                artifact.path.rename(grave)
                shutil.rmtree(grave)
    except filelock.Timeout:
        return False
    return True


def sweep(root: Path | None = None) -> None:
    """Remove what killed processes left."""
    _sweep(cache_dir() if root is None else root)


def disk_remedy(reason: str, root: Path | None = None) -> str:
    """`reason`, with the cache's place and the way out where it tells of a full or read-only disk."""
    if not any(os.strerror(number) in reason for number in _DISK_ERRORS):
        return reason
    return f"the artifact cache {cache_dir() if root is None else root} cannot be written: {reason}. {_REMEDY}"


def size_below(path: Path) -> int:
    """Bytes of the files in a directory, also of one that is being filled."""
    total = 0
    for file in path.rglob("*"):
        with contextlib.suppress(OSError):  # it went while we looked: its maker is at work
            total += file.stat().st_size if file.is_file() else 0
    return total


def _fill(temporary: Path, make: Callable[[Path], None], note: Mapping[str, str], root: Path) -> None:
    started = time.perf_counter()
    with _explained(root):
        temporary.mkdir()
    try:
        make(temporary)
    except OSError as err:
        if err.errno not in _DISK_ERRORS:
            raise
        with _explained(root):
            raise
    with _explained(root):
        body = {
            "note": dict(note),
            "created": time.time(),
            "size_bytes": size_below(temporary),
            "seconds": round(time.perf_counter() - started, 3),
        }
        (temporary / NOTE_FILE).write_text(json.dumps(body, indent=1), encoding="utf-8")


@contextlib.contextmanager
def _lock(root: Path, key: str, timeout_s: float = -1) -> Iterator[None]:
    import filelock

    lock = filelock.FileLock(root / _LOCKS / f"{key}.lock", timeout=timeout_s)
    with _explained(root):
        (root / _LOCKS).mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except NotImplementedError:  # a file system that has no locks
            raise ModelError(f"the artifact cache {root} is on a file system without locks. {_REMEDY}") from None
    try:
        yield
    finally:
        lock.release()


def _held(root: Path, path: Path) -> bool:
    import filelock

    try:
        with _lock(root, path.name.removeprefix(_TEMPORARY), timeout_s=0):
            return False
    except filelock.Timeout:
        return True


def _sweep(root: Path, holding: str = "") -> None:
    """Remove directories whose maker died: their lock is free, or it is the one we hold."""
    import filelock

    for stale in root.glob(f"{_TEMPORARY}*"):
        key = stale.name.removeprefix(_TEMPORARY)
        if key == holding:
            shutil.rmtree(stale, ignore_errors=True)
            continue
        with contextlib.suppress(filelock.Timeout), _lock(root, key, timeout_s=0):
            shutil.rmtree(stale, ignore_errors=True)


@contextlib.contextmanager
def _explained(root: Path) -> Iterator[None]:
    """An OSError about the cache becomes a ModelError that names the path and the way out."""
    try:
        yield
    except TimeoutError:  # a free lock was asked for and is not free: an OSError only by inheritance
        raise
    except OSError as err:
        where = f" ({err.filename})" if err.filename and str(err.filename) != str(root) else ""
        why = err.strerror or str(err) or type(err).__name__
        raise ModelError(f"the artifact cache {root} cannot be written: {why}{where}. {_REMEDY}") from err
