"""The reference: transformers at float32, in a child that scores what another engine has put out.

Owns the command `python -m inferplan.reference`, JSON lines on standard input and output, and its parent's side.
Leaves how far an output may be from the reference to `agreement`. Only the child imports torch.

    parent  {"do": "load", "checkpoint": "..."}                 child  {"event": "loaded", "versions": "..."}
    parent  {"do": "score", "prompt": [...], "output": [...]}   child  {"event": "scored", "scored": ...}

Anything that goes wrong is {"event": "failed", "reason"}. The end of its input ends it, whatever it does.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ._codec import decode, encode
from .errors import EngineError
from .measure import worker_environment

_TIMEOUT_S = 900.0  # for one answer: loading 3 GB from a cold disk, or reading 200 tokens with a large model
_QUIET = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
_PATIENT = {"OMP_WAIT_POLICY": "PASSIVE"}  # nobody times it, and a busy neighbour then costs it less


@dataclass(frozen=True, slots=True)
class Scored:
    """What the reference says of one output: a number a step, each after the output's own tokens before it.

    Attributes:
        output: token ids of the output.
        logits: logits of those tokens; of an id that the reference does not have, its lowest.
        best: the reference's best token ids.
        best_logits: logits of those.
        spreads: standard deviations of all logits.
    """

    output: tuple[int, ...]
    logits: tuple[float, ...]
    best: tuple[int, ...]
    best_logits: tuple[float, ...]
    spreads: tuple[float, ...]

    @property
    def gaps(self) -> tuple[float, ...]:
        """By how much each token's logit lies below the best one."""
        return tuple(best - own for best, own in zip(self.best_logits, self.logits, strict=True))


class Reference:
    """A child that holds one checkpoint at float32; a context manager that ends it.

    Raises:
        EngineError: the child cannot load the checkpoint, died or hangs, with its words; so does `score`.
    """

    def __init__(self, checkpoint: Path) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-m", "inferplan.reference"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env={**worker_environment(), **_QUIET, **_PATIENT},
        )
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()
        try:
            self.versions = str(self._ask({"do": "load", "checkpoint": str(checkpoint)})["versions"])
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Reference:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def score(self, prompt: Sequence[int], output: Sequence[int]) -> Scored:
        """What the reference says of `output` after `prompt`; one pass over both."""
        return decode(Scored, self._ask({"do": "score", "prompt": prompt, "output": output})["scored"])

    def close(self) -> None:
        """End the child and give its memory back."""
        self._child.kill()
        self._child.wait()
        if self._child.stdin is not None:
            with contextlib.suppress(OSError):
                self._child.stdin.close()

    def _read(self) -> None:
        assert self._child.stdout is not None
        with self._child.stdout as lines:
            for line in lines:
                self._answers.put(line)
        self._answers.put(None)

    def _ask(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self._child.stdin is not None
        with contextlib.suppress(OSError):  # it died: that it gives no answer is told below
            self._child.stdin.write(json.dumps(command) + "\n")
            self._child.stdin.flush()
        try:
            answer: dict[str, Any] = json.loads(self._answers.get(timeout=_TIMEOUT_S) or "")
        except queue.Empty:
            raise EngineError(f"the reference gave no answer within {_TIMEOUT_S:g} s") from None
        except ValueError:
            code = self._child.wait()
            why = "was killed, most likely for memory" if code == -9 else f"ended with exit code {code}"
            raise EngineError(f"the reference's process {why}") from None
        if answer["event"] == "failed":
            raise EngineError(answer["reason"])
        return answer


def load(checkpoint: Path) -> Any:
    """transformers' own model of `checkpoint` at float32, with every one of its weights.

    Raises:
        EngineError: weights of the model are missing in the checkpoint.
    """
    import torch
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        checkpoint,
        dtype=torch.float32,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,  # not left open: it would ask on standard input, where commands come from
        output_loading_info=True,
    )
    model, told = loaded
    if missing := sorted(told["missing_keys"]):  # transformers makes them up, and says so in a warning only
        raise EngineError(f"the checkpoint lacks {missing[0]} ({len(missing)} tensors in all)")
    return model.eval()


def score(model: Any, prompt: Sequence[int], output: Sequence[int]) -> Scored:
    """One pass of `model` over prompt and output: its choice after each of the output's own prefixes.

    Raises:
        EngineError: the model's logits are not finite.
    """
    import torch

    with torch.inference_mode():
        ids = torch.tensor([[*prompt, *output[:-1]]])
        logits = model(ids, use_cache=False).logits[0, len(prompt) - 1 :].float()
        if not bool(torch.isfinite(logits).all()):
            raise EngineError("the logits of transformers at float32 are not finite")
        best_logits, best = logits.max(dim=1)
        lowest = logits.min(dim=1).values
        known = [token if 0 <= token < logits.shape[1] else -1 for token in output]
        own = logits.gather(1, torch.tensor(known).clamp(min=0)[:, None])[:, 0]
        own = torch.where(torch.tensor(known) < 0, lowest, own)
        spreads = logits.std(dim=1)
    return Scored(
        output=tuple(output),
        logits=tuple(own.tolist()),
        best=tuple(best.tolist()),
        best_logits=tuple(best_logits.tolist()),
        spreads=tuple(spreads.tolist()),
    )


def main() -> int:
    """Answer one command a line until there are no more."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    inbox: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            inbox.put(line)
        os._exit(0)  # the parent is gone: nobody waits for an answer

    threading.Thread(target=read, daemon=True).start()
    model: Any = None
    while True:
        command = json.loads(inbox.get())
        try:
            if command["do"] == "load":
                model = load(Path(command["checkpoint"]))
                answer: dict[str, Any] = {"event": "loaded", "versions": _versions()}
            else:
                scored = score(model, command["prompt"], command["output"])
                answer = {"event": "scored", "scored": encode(scored)}
        except Exception as err:  # whatever a checkpoint can hold: transformers raises many kinds
            answer = {"event": "failed", "reason": _line(err)}
        out.write(json.dumps(answer) + "\n")
        out.flush()


def _versions() -> str:
    import torch
    import transformers

    return f"transformers {transformers.__version__}, torch {torch.__version__}"


def _line(err: BaseException) -> str:
    text = " ".join(str(err).split())[:300]
    return text if isinstance(err, EngineError) else f"{type(err).__name__}: {text}"


if __name__ == "__main__":
    sys.exit(main())
