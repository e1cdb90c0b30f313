"""Runs pip, each line told as it comes, and says in plain words why it failed.

Owns the process and the reading of its output. Leaves what is installed where to `environments` and `engines_command`.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

from .errors import InputError

_TAIL_LINES = 60  # of the output, kept to find the reason of a failure in

Tell = Callable[[str], None]


def run_pip(arguments: Sequence[str], tell: Tell, failed: str) -> None:
    """Run pip in the environment that inferplan itself runs from.

    Raises:
        InputError: pip is missing or failed; begins with `failed` and gives the reason.
    """
    run([sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments], tell, failed)


def run(command: Sequence[str], tell: Tell, failed: str, variables: Mapping[str, str] | None = None) -> str:
    """Standard output and error of `command`, each line told as it comes; the end of them when there is much."""
    kept: collections.deque[str] = collections.deque(maxlen=_TAIL_LINES)
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # Ctrl-C is ours to handle; what it builds ends with its group
            env={
                **os.environ,
                "PYTHONUNBUFFERED": "1",
                "PIP_PROGRESS_BAR": "off",
                "PIP_NO_INPUT": "1",
                **(variables or {}),
            },
        )
    except OSError as error:
        raise InputError(f"{failed}: {command[0]} cannot be started ({error.strerror or error})") from error
    assert process.stdout is not None
    try:
        with process.stdout as lines:
            for line in lines:
                kept.append(line.rstrip())
                tell(line.rstrip())
        code = process.wait()
    finally:
        if process.poll() is None:  # interrupted: what we started ends with us
            _kill(process)
    if code != 0:
        raise InputError(f"{failed}: {_reason(kept, code)}")
    return "\n".join(kept)


def _kill(process: subprocess.Popen[str]) -> None:
    """End it and the compilers that it started: they would write into what is deleted next."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


# Words in the output of pip, venv and Python, and what they come to. The first that is found is told.
_REASONS = (
    (("no space left on device", "errno 28"), "the disk is full: free some space, or set INFERPLAN_ENVIRONMENTS"),
    (("no module named pip",), "this Python has no pip: run `python -m ensurepip`, or install pip with the system"),
    (("ensurepip is not available", "no module named venv", "no module named ensurepip"), "this Python has no venv or "
     "ensurepip: install the system's package for it (python3-venv on Debian)"),
    (("temporary failure in name resolution", "name or service not known", "newconnectionerror",
      "network is unreachable", "connection refused", "connectiontimeout", "nodename nor servname"),
     "the package index cannot be reached: check the network, or pip's own settings"),
    (("require a different python version", "requires a different python"), "it has no build for this Python"),
    (("failed building wheel", "failed-wheel-build", "failed to build"), "its source does not build here: `inferplan "
     "engines install -v` shows the compiler's words"),
    (("no matching distribution found", "is not a supported wheel"), "there is no build for this system and Python"),
)  # fmt: skip


def _reason(lines: Sequence[str], code: int) -> str:
    said = "\n".join(lines).lower()
    last = " | ".join([line.strip() for line in lines if line.strip()][-3:])
    for words, reason in _REASONS:
        if any(word in said for word in words):
            here = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
            return f"{reason} ({here}). The last words were: {last}"
    end = f"it was ended from outside by signal {-code}" if code < 0 else f"it ended with exit code {code}"
    return f"{end}. The last words were: {last or 'none'}"


def versions(listed: str) -> dict[str, str]:
    """What `pip list --format json` says; it is one line, and warnings may stand around it."""
    for line in listed.splitlines():
        if line.startswith("["):
            return {str(item["name"]): str(item["version"]) for item in json.loads(line)}
    return {}
