"""An engine in a Python of its own, as if it were here: for the tests of engines that cannot be imported here.

Owns a conversation by lines of JSON, one answer a call, a token at a time. Leaves what is timed to the worker.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import environments, errors
from ._codec import decode, encode
from .engines import load_engine
from .engines.base import Engine, EngineInfo
from .measurement import Actual
from .plan import Plan


def open_engine(name: str, env: Mapping[str, str]) -> Engine:
    """An engine of that name: imported here, or, where it has an environment of its own, in a process there.

    Args:
        env: environment variables of that process; `measure.worker_environment`.
    """
    if environments.interpreter(name) == (sys.executable,):
        return load_engine(name)
    return _RemoteEngine(name, env)


class _RemoteEngine:
    """See `engines.base.Engine`; every call is answered by the process of `main`."""

    def __init__(self, name: str, env: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            environments.command(name, "inferplan._remote_engine", name),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=dict(env),
        )

    def describe(self) -> EngineInfo:
        return decode(EngineInfo, self._ask("describe"))

    def unsupported(self, plan: Plan) -> str | None:
        reason: str | None = self._ask("unsupported", encode(plan))
        return reason

    def convert(self, checkpoint: Path, plan: Plan, out: Path) -> None:
        self._ask("convert", str(checkpoint), encode(plan), str(out))

    def load(self, plan: Plan, artifact: Path) -> Actual:
        return decode(Actual, self._ask("load", encode(plan), str(artifact)))

    def generate(self, prompt: Sequence[int], max_tokens: int) -> Iterator[int]:
        self._ask("generate", list(prompt), max_tokens)
        return self._tokens()

    def _tokens(self) -> Iterator[int]:
        try:
            while (token := self._ask("next")) is not None:
                yield token
        finally:
            self._ask("stop")

    def close(self) -> None:
        self._ask("close")

    def __del__(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def _ask(self, call: str, *arguments: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([call, *arguments]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise errors.EngineError(f"the engine's process ended with exit code {self._process.wait()}")
        told = json.loads(answer)
        if "error" in told:
            kind, text = told["error"]
            raise getattr(errors, kind, RuntimeError)(text)
        return told["value"]


class _Answers:
    """What `main` does for each call."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._tokens: Iterator[int] = iter(())
        self.calls: dict[str, Callable[..., Any]] = {
            "describe": lambda: encode(engine.describe()),
            "unsupported": lambda plan: engine.unsupported(decode(Plan, plan)),
            "convert": lambda source, plan, out: engine.convert(Path(source), decode(Plan, plan), Path(out)),
            "load": lambda plan, artifact: encode(engine.load(decode(Plan, plan), Path(artifact))),
            "generate": self._generate,
            "next": lambda: next(self._tokens, None),
            "stop": self._stop,
            "close": engine.close,
        }

    def _generate(self, prompt: list[int], max_tokens: int) -> None:
        self._tokens = self._engine.generate(prompt, max_tokens)

    def _stop(self) -> None:
        if (close := getattr(self._tokens, "close", None)) is not None:
            close()


def main(name: str) -> None:
    """Answer calls on standard input until it ends."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # engines print
    calls = _Answers(load_engine(name)).calls
    for line in sys.stdin:
        call, *arguments = json.loads(line)
        try:
            answer = {"value": calls[call](*arguments)}
        except Exception as error:  # handed on to the process that asked
            answer = {"error": [type(error).__name__, str(error)]}
        out.write(json.dumps(answer) + "\n")
        out.flush()


if __name__ == "__main__":
    main(sys.argv[1])
