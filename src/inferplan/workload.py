"""Workload: what is asked of a plan, and nothing about how it is answered.

Owns prompts and how they are read from files. Leaves token ids to `tokens`
(each model has its own) and timing to `worker`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .errors import WorkloadError


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt: plain text, chat messages, or a number of tokens cut from the shipped text.

    Attributes:
        text: the text, when it is plain text; None when kept private.
        messages: chat messages (`role`, `content`), when the model's chat template applies.
        prompt_tokens: exact length in tokens to cut from the shipped text.
        max_new_tokens: overrides the workload's, when given.
        sha256: hash of what was sent; stays when the text is not kept.
        chars: its length in characters; 0 for a prompt given by its number of tokens.
    """

    text: str | None = None
    messages: tuple[tuple[str, str], ...] | None = None
    prompt_tokens: int | None = None
    max_new_tokens: int | None = None
    sha256: str = ""
    chars: int = 0

    def __post_init__(self) -> None:
        if not self.sha256:
            body = json.dumps([self.text, self.messages, self.prompt_tokens], ensure_ascii=False)
            object.__setattr__(self, "sha256", hashlib.sha256(body.encode()).hexdigest())
            object.__setattr__(self, "chars", len(self.text or "") + sum(len(c) for _, c in self.messages or ()))

    @property
    def body(self) -> dict[str, Any]:
        """What `parse_prompt` makes it of, for a prompt that is text or messages."""
        if self.messages is None:
            found: dict[str, Any] = {"prompt": self.text}
        else:
            found = {"messages": [{"role": role, "content": content} for role, content in self.messages]}
        return found if self.max_new_tokens is None else {**found, "max_new_tokens": self.max_new_tokens}

    @property
    def private(self) -> Prompt:
        """The same prompt with only its hash and lengths left."""
        return replace(self, text=None, messages=None)


@dataclass(frozen=True, slots=True)
class Workload:
    """Prompts, output length, seed, concurrency and arrival pattern.

    The output length is fixed: every engine gives exactly `max_new_tokens`
    tokens, end-of-sequence ignored, decoded greedily.
    """

    prompts: tuple[Prompt, ...]
    max_new_tokens: int = 64
    seed: int = 0
    concurrency: int = 1
    arrival: str = "closed"  # the next request is sent when the last one ended

    def __post_init__(self) -> None:
        if not self.prompts:
            raise WorkloadError("there are no prompts: give at least one, in a .txt (a line each) or .jsonl file")
        lengths = [self.max_new_tokens, *(p.max_new_tokens for p in self.prompts if p.max_new_tokens is not None)]
        if bad := [n for n in lengths if n < 1]:
            raise WorkloadError(f"max_new_tokens must be at least 1, not {bad[0]}")
        if bad := [p.prompt_tokens for p in self.prompts if p.prompt_tokens is not None and p.prompt_tokens < 1]:
            raise WorkloadError(f"a prompt needs at least 1 token, not {bad[0]}")

    @property
    def key(self) -> str:
        """Twelve hex digits that name this workload: equal keys, equal requests."""
        body = [[p.sha256, self.output_tokens(i)] for i, p in enumerate(self.prompts)]
        text = json.dumps([body, self.seed, self.concurrency, self.arrival])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def output_tokens(self, index: int) -> int:
        """Tokens that prompt `index` must produce."""
        return self.prompts[index].max_new_tokens or self.max_new_tokens

    @property
    def private(self) -> Workload:
        """The same workload with prompts kept only as hashes and lengths."""
        return replace(self, prompts=tuple(p.private for p in self.prompts))


def read_prompts(path: Path) -> tuple[Prompt, ...]:
    """Prompts from a .txt file (a line each) or a .jsonl file (`prompt` or `messages` a line).

    Raises:
        WorkloadError: the file is missing, unreadable, empty or malformed; the
            message names the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise WorkloadError(f"the prompts file {str(path)!r} does not exist") from None
    except UnicodeDecodeError as err:
        raise WorkloadError(
            f"the prompts file {str(path)!r} is not UTF-8 text ({err.reason} at byte {err.start})"
        ) from None
    except OSError as err:
        raise WorkloadError(f"the prompts file {str(path)!r} cannot be read: {err.strerror}") from None
    return parse_prompts(text, jsonl=path.suffix.lower() in (".jsonl", ".ndjson"), source=str(path))


def to_jsonl(prompts: Iterable[Prompt]) -> str:
    """The prompts as JSON lines that `parse_prompts` reads back."""
    return "".join(json.dumps(prompt.body, ensure_ascii=False) + "\n" for prompt in prompts)


def parse_prompts(text: str, *, jsonl: bool, source: str = "the prompts") -> tuple[Prompt, ...]:
    """Prompts from text already read; see `read_prompts` for the two forms and the errors."""
    # Not splitlines(): a form feed or U+2028 inside a prompt does not end it.
    rows = [(i, row.rstrip("\r")) for i, row in enumerate(text.split("\n"), 1) if row.strip()]
    prompts = tuple(_from_json(row, f"{source}, line {i}") if jsonl else Prompt(text=row) for i, row in rows)
    if not prompts:
        raise WorkloadError(f"{source} holds no prompts: write at least one line")
    return prompts


def _from_json(row: str, where: str) -> Prompt:
    try:
        data: Any = json.loads(row)
    except ValueError as err:
        raise WorkloadError(f"{where}: not JSON ({err})") from None
    return parse_prompt(data, where)


def parse_prompt(data: object, where: str) -> Prompt:
    """One prompt from a mapping with `prompt` (text) or `messages`, and `max_new_tokens` where it has its own.

    Raises:
        WorkloadError: it is none; says why, after `where`.
    """
    if not isinstance(data, dict):
        raise WorkloadError(f"{where}: needs an object with `prompt` or `messages`, not {str(data)[:60]!r}")
    if unknown := sorted(set(data) - {"prompt", "messages", "max_new_tokens"}):
        raise WorkloadError(f"{where}: unknown key {unknown[0]!r}; known: max_new_tokens, messages, prompt")
    limit = data.get("max_new_tokens")
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise WorkloadError(f"{where}: max_new_tokens must be a whole number of at least 1, not {limit!r}")
    if ("prompt" in data) == ("messages" in data):
        raise WorkloadError(f"{where}: needs either `prompt` or `messages`")
    if "prompt" in data:
        if not isinstance(data["prompt"], str) or not data["prompt"].strip():
            raise WorkloadError(f"{where}: `prompt` must be text that is not empty, not {data['prompt']!r}")
        return Prompt(text=data["prompt"], max_new_tokens=limit)
    messages = data["messages"]
    well_formed = (
        isinstance(messages, list)
        and messages
        and all(
            isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
            for m in messages
        )
    )
    if not well_formed:
        raise WorkloadError(f"{where}: `messages` must be a list of objects with `role` and `content` as text")
    return Prompt(messages=tuple((m["role"], m["content"]) for m in messages), max_new_tokens=limit)
