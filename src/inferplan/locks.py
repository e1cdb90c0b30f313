"""The machine-wide lock: one timed study at a time, whoever starts it.

Owns the lock file and what it says of its holder. Leaves the warning about an
override to whoever prints.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ._codec import decode, encode
from .errors import BusyError

if TYPE_CHECKING:
    from filelock import BaseFileLock

_RETRY_S = 0.2  # waiting must cost the study that runs nothing: five looks a second are free
_WORLD = 0o666  # users of one machine share its cores, so they share the lock
_WORLD_DIRECTORY = 0o777


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has the lock: process, study (empty: none named), and since when (seconds since the epoch)."""

    pid: int
    study: str
    since: float

    def __str__(self) -> str:
        study = f"study {self.study}, " if self.study else ""
        return f"{study}process {self.pid}, since {time.strftime('%H:%M:%S', time.localtime(self.since))}"


def lock_path() -> Path:
    """The lock file: one per machine, in its directory for temporary files, which every user can write to."""
    # Not tempfile.gettempdir() on POSIX: TMPDIR differs between users and jobs, and the lock must not.
    base = Path("/tmp") if os.name == "posix" else Path(tempfile.gettempdir())
    # A directory of our own: in a sticky one, fs.protected_regular denies opening another user's file.
    return base / "inferplan-lock" / "machine.lock"


def holder(path: Path | None = None) -> Holder | None:
    """Who holds the lock, as far as it can be named: a process that was killed leaves its name, but not the lock."""
    import psutil

    try:
        who = decode(Holder, json.loads(_side(path or lock_path()).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None  # not there, or half written: then nobody can be named
    return who if psutil.pid_exists(who.pid) else None


@contextlib.contextmanager
def machine_lock(
    study: str = "",
    *,
    wait: bool = False,
    override: bool = False,
    on_wait: Callable[[str], None] | None = None,
    on_override: Callable[[str], None] | None = None,
    path: Path | None = None,
) -> Iterator[bool]:
    """Hold the machine for one timed study; gives True, or False when the lock was overridden.

    The lock goes with its process: a study that is killed leaves nothing to clean up.

    Args:
        study: shown to those who find the machine busy.
        wait: wait until it is free; `on_wait` is told once who holds it.
        override: go on although it is held; `on_override` is told who is disturbed.
        path: another lock file, for tests.

    Raises:
        BusyError: held by another, and neither `wait` nor `override` was given; or the
            lock file cannot be opened.
    """
    import filelock

    path = path or lock_path()
    lock = filelock.FileLock(str(path), timeout=0, mode=_WORLD, thread_local=False)
    try:
        _make_directory(path.parent)
        held = _acquire(lock, path, wait, override, on_wait, on_override)
    except OSError as error:
        if not override:
            raise BusyError(
                f"the lock file {path} cannot be used ({error}). Make it writable, "
                "or measure without the lock with --no-lock when nothing else runs here."
            ) from error
        held = False
        if on_override:
            on_override(f"the lock file {path} cannot be used ({error}): another study may run beside this one")
    try:
        if held:
            _write_side(path, Holder(os.getpid(), study, time.time()))
        yield held
    finally:
        if held:
            _side(path).unlink(missing_ok=True)
            lock.release()


def _acquire(
    lock: BaseFileLock,
    path: Path,
    wait: bool,
    override: bool,
    on_wait: Callable[[str], None] | None,
    on_override: Callable[[str], None] | None,
) -> bool:
    import filelock

    with contextlib.suppress(filelock.Timeout):
        lock.acquire(timeout=0)
        return True
    who = _whom(path)
    if override:
        if on_override:
            on_override(f"another timed study runs on this machine ({who}); both will be disturbed")
        return False
    if not wait:
        raise BusyError(
            f"another timed study holds this machine ({who}). Wait for it to end, or go on in spite of it "
            "with --no-lock: then the figures of both are disturbed."
        )
    if on_wait:
        on_wait(f"waiting for another timed study ({who})")
    lock.acquire(timeout=-1, poll_interval=_RETRY_S)
    return True


def _make_directory(directory: Path) -> None:
    with contextlib.suppress(FileExistsError):
        directory.mkdir()
        directory.chmod(_WORLD_DIRECTORY)  # mkdir's own mode is cut by the umask


def _whom(path: Path) -> str:
    who = holder(path)
    return str(who) if who else "it does not say which"


def _side(path: Path) -> Path:
    return path.with_suffix(".holder.json")


def _write_side(path: Path, who: Holder) -> None:
    # A courtesy to others: the lock holds without it, so a side file that cannot be written is no failure.
    with contextlib.suppress(OSError):
        # O_NOFOLLOW: the directory is everybody's, and a link planted there must not be written through.
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0)
        with os.fdopen(os.open(_side(path), flags, _WORLD), "w", encoding="utf-8") as side:
            side.write(json.dumps(encode(who)))
            if hasattr(os, "fchmod"):
                os.fchmod(side.fileno(), _WORLD)  # open's own mode is cut by the umask
