"""The fake engine: keeps every promise of the protocol, with sleeps for arithmetic.

For tests and dry runs. Its tokens are a hash of what it was given, its times
are what its options say, and `behaviour` makes it fail in each way a real one can.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import ArtifactError, EngineError
from ..measurement import Actual
from ..plan import Plan
from .base import Axis, EngineInfo

VOCABULARY = 256
_MEGABYTES = {"fp32": 32, "bf16": 16, "int8": 8}
_FACTOR = {"fp32": 1.0, "bf16": 0.7, "int8": 0.5}
_ARTIFACT = "fake.json"


class FakeEngine:
    """Generates `token_ms` apart, scaled by precision; without KV cache each step costs more."""

    def __init__(self) -> None:
        self._token_s = 0.0
        self._plan: Plan | None = None
        self._weights = b""
        self._helper: subprocess.Popen[bytes] | None = None

    def describe(self) -> EngineInfo:
        return EngineInfo(
            name="fake",
            version="1",
            precisions=("fp32", "bf16", "int8"),
            axes=(
                Axis("token_ms", (1.0, 0.0, 0.2, 0.5, 2.0, 4.0, 8.0, 20.0), "milliseconds a token, at FP32"),
                Axis(
                    "behaviour",
                    (
                        "ok",
                        "error",
                        "error_load",
                        "crash",
                        "hang",
                        "hang_load",
                        "oom",
                        "killed",
                        "short",
                        "noisy",
                        "helper",
                        "stray",
                    ),
                    "how it fails, if at all; helper: a process of its own holds the weights; "
                    "stray: a process that it forked outlives it, with its pipes",
                ),
            ),
            env={"OMP_NUM_THREADS": "{threads}"},
            libraries={"fake": "1"},
            needs_model=False,
        )

    def unsupported(self, plan: Plan) -> str | None:
        return self.describe().reject(plan)

    def convert(self, checkpoint: Path, plan: Plan, out: Path) -> None:
        (out / _ARTIFACT).write_text(json.dumps({"precision": plan.precision}), encoding="utf-8")

    def load(self, plan: Plan, artifact: Path) -> Actual:
        behaviour = plan.option("behaviour", "ok")
        path = artifact / _ARTIFACT
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as err:
            raise ArtifactError(f"{path} is not a fake artifact ({err}); delete it to have it made again") from None
        if behaviour == "error_load":
            raise EngineError("the fake engine was told to fail while loading")
        if behaviour == "hang_load":
            time.sleep(3600)
        size = _MEGABYTES[plan.precision] << 20
        if behaviour == "helper":
            self._helper = _hold(size)
        else:
            self._weights = os.urandom(size)
        self._token_s = float(plan.option("token_ms", 1.0)) / 1000 * _FACTOR[plan.precision] / plan.threads
        self._plan = plan
        scheme = "dynamic" if plan.quantized else ""
        return Actual(
            dtype="float32",
            weights="int8" if plan.quantized else plan.precision,
            threads=plan.threads,
            kernel="sleep",
            scheme=scheme,
            quantized_share=1.0 if plan.quantized else None,
            kv_cache=plan.kv_cache,
        )

    def generate(self, prompt: Sequence[int], max_tokens: int) -> Iterator[int]:
        assert self._plan is not None, "generate before load"
        behaviour = self._plan.option("behaviour", "ok")
        state = hashlib.sha256(bytes(token % VOCABULARY for token in prompt)).digest()
        for step in range(max_tokens):
            if step == 2:
                _misbehave(str(behaviour))
            if behaviour == "short" and step == max_tokens - 1:
                return
            cost = self._token_s if self._plan.kv_cache else self._token_s * (1 + step / 8)
            if cost > 0:
                time.sleep(cost)
            state = hashlib.sha256(state).digest()
            yield state[0]

    def close(self) -> None:
        self._plan, self._weights = None, b""
        if self._helper is not None:
            self._helper.kill()
            self._helper.communicate()
            self._helper = None


def _hold(size: int) -> subprocess.Popen[bytes]:
    """A process that holds so many bytes, and has them when this returns, until its standard input ends."""
    program = f"import os, sys; kept = os.urandom({size}); print(flush=True); sys.stdin.read()"
    helper = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert helper.stdout is not None
    helper.stdout.readline()
    return helper


def _misbehave(behaviour: str) -> None:
    if behaviour == "error":
        raise EngineError("the fake engine was told to fail while generating")
    if behaviour == "crash":
        os.abort()
    if behaviour == "stray":
        if hasattr(os, "fork") and os.fork() == 0:
            time.sleep(3600)
        os.abort()
    if behaviour == "killed":
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
    if behaviour == "hang":
        time.sleep(3600)
    if behaviour == "oom":
        raise MemoryError
    if behaviour == "noisy":
        print("engines print to standard output when they please")
