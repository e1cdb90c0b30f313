"""Jobs: studies that run in processes of their own, begun by a page and found again by any page.

Owns the process: its start, its state, its log, its end. Leaves what it measures
to the store; a page that is closed takes no job with it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from .. import locks, measure
from .._codec import decode, encode
from ..errors import InputError

State = Literal["starting", "waiting", "running", "ended"]
"""`starting`: it has not asked for the machine yet. `waiting`: another study holds the machine."""

_LOG, _RECORD = "log.txt", "job.json"
_SAME_PROCESS_S = 1.0  # a process number is used again; its start time tells the two apart, to this precision
_TAIL_BYTES = 8192
_PLAIN_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,63}")

# A child has the priority of the thread that starts it, and a page's thread gives way while a study is timed
# (parts.give_way). This one does not: it is made before any page is drawn, and what is measured starts from it.
_STARTER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="inferplan-starter")
_STARTER.submit(int).result()

# Children of this server, kept so that they are waited for when they end and leave no zombie.
_CHILDREN: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True, slots=True)
class Job:
    """One process that runs a study.

    Attributes:
        started: its start in seconds since the epoch, as the system tells it.
        flags: those it was given beyond the study's own, to be given again on resuming.
        given: whether it was given prompts that are kept nowhere: a page cannot resume it then.
    """

    study: str
    pid: int
    started: float
    flags: tuple[str, ...] = ()
    given: bool = False


def directory(store: Path, study: str) -> Path:
    """Where the job of `study` keeps its log: beside the store, whatever the study's id holds."""
    name = study if _PLAIN_NAME.fullmatch(study) else hashlib.sha256(study.encode()).hexdigest()[:32]
    return store.with_name(store.name + ".jobs") / name


def start(store: Path, study: str, flags: Sequence[str] = (), *, prompts: str = "") -> Job:
    """Run `study`, which the store holds, in a process that outlives the page and the server.

    Args:
        flags: further flags of `inferplan optimize --resume`.
        prompts: JSON lines for a study whose prompts are kept nowhere; the process reads them from a file
            that has no name, and they are gone when it ends.

    Raises:
        InputError: it runs already, or the process or its log cannot be made.
    """
    if (job := find(store, study)) is not None and state(job) != "ended":
        raise InputError(f"study {study} runs already, as process {job.pid}")
    place = directory(store, study)
    command = [sys.executable, "-m", "inferplan", "optimize", "--resume", study]
    command += ["--store", str(store.absolute()), "--wait", *flags, *(("--prompts", "-") if prompts else ())]
    try:
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (place / _LOG).open("wb") as log, tempfile.TemporaryFile() as given:
            given.write(prompts.encode())
            given.seek(0)
            # A directory without models: a hub id that was typed can then never mean a directory here.
            child = _STARTER.submit(
                subprocess.Popen,
                command,
                cwd=place,
                env=measure.package_environment(),
                stdin=given,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=os.name == "posix",
            ).result()
        _CHILDREN[child.pid] = child
        job = Job(study, child.pid, _start_time(child.pid) or time.time(), tuple(flags), bool(prompts))
        _write(place / _RECORD, json.dumps(encode(job)))
    except OSError as error:
        raise InputError(f"study {study} cannot be started: {error.strerror or error} ({place})") from error
    return job


def find(store: Path, study: str) -> Job | None:
    """The job that last ran `study`, or the command line that runs it now; None when neither is known."""
    try:
        job = decode(Job, json.loads((directory(store, study) / _RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        job = None
    if job is None or not _alive(job):
        who = locks.holder()
        started = _start_time(who.pid) if who is not None and who.study == study else None
        if who is not None and started is not None and started <= who.since + _SAME_PROCESS_S:
            return Job(study, who.pid, started)
    return job


def state(job: Job) -> State:
    """What its process does now."""
    if not _alive(job):
        return "ended"
    who = locks.holder()
    if who is not None and who.pid == job.pid:
        return "running"
    return "starting" if who is None else "waiting"


def cancel(job: Job) -> None:
    """Ask its process to end as Ctrl-C does: what was measured is kept, and it can be resumed. Returns at once."""
    if not _alive(job):
        return
    try:
        process = psutil.Process(job.pid)
        # SIGTERM, which ends a study as Ctrl-C does; SIGINT is ignored in what a shell put into the background.
        # Windows has no such signal: there the process is ended at once, and the sample in flight is lost.
        process.terminate()
    except psutil.Error:
        return


def log(store: Path, study: str, lines: int = 12) -> tuple[str, ...]:
    """The last lines of what the job's process said."""
    try:
        with (directory(store, study) / _LOG).open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ()
    return tuple(text.splitlines()[-lines:])


def forget(store: Path, study: str) -> None:
    """Remove what the job of a deleted study left."""
    place = directory(store, study)
    for name in (_LOG, _RECORD):
        (place / name).unlink(missing_ok=True)
    if place.is_dir() and not any(place.iterdir()):
        place.rmdir()


def _write(path: Path, text: str) -> None:
    """Whole or not at all: another page may read it at any moment."""
    new = path.with_name(path.name + ".new")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    new.replace(path)


def _start_time(pid: int) -> float | None:
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def _alive(job: Job) -> bool:
    child = _CHILDREN.get(job.pid)
    if child is not None and child.poll() is not None:
        del _CHILDREN[job.pid]
    try:
        process = psutil.Process(job.pid)
        same = abs(process.create_time() - job.started) < _SAME_PROCESS_S
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
