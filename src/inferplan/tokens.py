"""Workload -> requests: the same token ids for every engine. Also the command that runs a model's tokenizer.

Owns chat templates, prompts cut to a length and warm-up prompts. Leaves reading
prompts to `workload`; the tokenizer runs in a process of its own (`python -m inferplan.tokens`).
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ModelError, WorkloadError
from .measurement import Request
from .models import Checkpoint, run_command
from .workload import Workload

_TEXT = Path(__file__).parent / "data" / "text.txt"
_WARMUP_TOKENS = 16  # enough for caches, thread pools and allocators to settle; a full answer would only cost time
_GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples spread evenly over the text, however many there are


@dataclass(frozen=True, slots=True)
class Tokenized:
    """A workload in one model's token ids: what is measured, and what warms up first, with other prompts."""

    requests: tuple[Request, ...]
    warmup: tuple[Request, ...]


def tokenize(checkpoint: Checkpoint, workload: Workload, *, warmup: int = 1) -> Tokenized:
    """The requests of `workload` for this model, and `warmup` further ones with index -1.

    Plain text gets no special tokens. Messages go through the model's chat
    template, with the opening of the answer added.

    Raises:
        WorkloadError: a prompt is private, empty, longer than the context, or the
            model has no chat template; the message names the prompt.
        ModelError: the tokenizer cannot be read.
    """
    for number, prompt in enumerate(workload.prompts, 1):
        if prompt.text is None and prompt.messages is None and prompt.prompt_tokens is None:
            raise WorkloadError(f"prompt {number} was kept private, so its text is gone: give the prompts file again")
    task = {
        "tokenizer": str(checkpoint.path),
        "prompts": [[p.text, p.messages] if p.prompt_tokens is None else None for p in workload.prompts],
        "text": _TEXT.read_text(encoding="utf-8"),
    }
    answer = run_command("inferplan.tokens", task, lambda _: None)
    text: list[int] = answer["text"]
    requests = []
    for index, (prompt, ids) in enumerate(zip(workload.prompts, answer["prompts"], strict=True)):
        if prompt.prompt_tokens is not None:
            ids = cut(text, int(len(text) * ((index + 1) * _GOLDEN % 1)), prompt.prompt_tokens)
        requests.append(Request(index, tuple(ids), workload.output_tokens(index)))
    _check_lengths(checkpoint, requests)
    return Tokenized(tuple(requests), tuple(_warmups(text, requests, warmup)))


def cut(text: Sequence[int], start: int, length: int) -> tuple[int, ...]:
    """`length` ids of `text` from `start` on, beginning anew at its end as often as it takes."""
    return tuple(text[(start + i) % len(text)] for i in range(length))


def _check_lengths(checkpoint: Checkpoint, requests: Sequence[Request]) -> None:
    for request in requests:
        prompt, number = len(request.prompt_ids), request.index + 1
        if not prompt:
            raise WorkloadError(f"prompt {number} comes to no tokens for {checkpoint.name}: write something in it")
        if checkpoint.context is not None and prompt + request.max_tokens > checkpoint.context:
            room = checkpoint.context - prompt
            remedy = f"max_new_tokens of at most {room}" if room > 0 else "a shorter prompt"
            raise WorkloadError(
                f"prompt {number} has {prompt} tokens and asks for {request.max_tokens} more, beyond the context of "
                f"{checkpoint.context} tokens of {checkpoint.name}: take {remedy}, or a model with a longer context"
            )


def _warmups(text: Sequence[int], requests: Sequence[Request], count: int) -> Iterator[Request]:
    """Prompts as long as the median one that begin otherwise than every other, so that no prefix cache serves them."""
    length = statistics.median_low(len(r.prompt_ids) for r in requests)
    output = min(_WARMUP_TOKENS, statistics.median_low(r.max_tokens for r in requests))
    taken = {r.prompt_ids[0] for r in requests}
    prefixes = {r.prompt_ids for r in requests}
    for _ in range(count):
        fresh = next((i for i, first in enumerate(text) if first not in taken), None)
        if fresh is None:  # more prompts than the text has first tokens: begin with a run that none of them has
            fresh = next((i for i in range(len(text)) if cut(text, i, length) not in prefixes), 0)
        ids = cut(text, fresh, length)
        taken.add(ids[0])
        prefixes.add(ids)
        yield Request(-1, ids, output)


def main() -> int:
    """Read `{"tokenizer", "prompts", "text"}` from stdin, write the ids to stdout."""
    task = json.loads(sys.stdin.read())
    try:
        answer: dict[str, Any] = {"result": _tokenize(task)}
    except WorkloadError as err:
        answer = {"error": str(err), "kind": "workload"}
    except ModelError as err:
        answer = {"error": str(err)}
    print(json.dumps(answer))
    return 1 if "error" in answer else 0


def _tokenize(task: dict[str, Any]) -> dict[str, Any]:
    # A tokenizer needs no torch, and transformers does without it where it is not found: 2 s and 200 MB less.
    sys.modules["torch"] = None  # type: ignore[assignment]
    from transformers import AutoTokenizer

    place = task["tokenizer"]
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True)
        text = tokenizer.encode(task["text"], add_special_tokens=False, verbose=False)
    except Exception as err:  # a damaged tokenizer shows as any error, some of them of Rust
        raise ModelError(f"the tokenizer in {place} cannot be read ({_line(err)}). Download its files again.") from err
    if len(text) < 2 or len(set(text)) < 50:  # transformers builds a tokenizer of one token without a word
        raise ModelError(
            f"the tokenizer in {place} is damaged: it makes {len(set(text))} different tokens of a long text"
        )
    ids = [_encode(tokenizer, i, prompt) for i, prompt in enumerate(task["prompts"], 1)]
    return {"text": text, "prompts": ids}


def _encode(tokenizer: Any, number: int, prompt: Any) -> list[int]:
    if prompt is None:
        return []
    text, messages = prompt
    if messages is None:
        return list(tokenizer.encode(text, add_special_tokens=False, verbose=False))
    if not tokenizer.chat_template:
        raise WorkloadError(
            f"prompt {number} has `messages`, but the model has no chat template: write it as plain `prompt` text, "
            "or take an instruct model"
        )
    chat = [{"role": role, "content": content} for role, content in messages]
    try:
        rendered = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    except Exception as err:  # templates raise errors of their own: a role that they do not know, an order of turns
        raise WorkloadError(f"prompt {number}: the chat template refuses these messages ({_line(err)})") from err
    return list(tokenizer.encode(rendered, add_special_tokens=False, verbose=False))


def _line(err: BaseException) -> str:
    return (str(err).strip().split("\n")[0] or type(err).__name__)[:200]


if __name__ == "__main__":
    sys.exit(main())
