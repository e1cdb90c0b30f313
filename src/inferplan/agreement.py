"""Is a converted artifact the model that it was made from? Its tokens against transformers at float32, once.

Owns the check's prompts, how far an output may lie from the reference, and the record of a passed check beside the
artifact. Leaves the reference to `reference`, running the engine to `measure`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import _files, artifacts, fits, measure, tokens
from ._codec import decode, encode
from .engines.base import EngineInfo
from .errors import EngineError, ModelError
from .measurement import Actual, Measurement, Request, Status, TokenCheck, Trial
from .models import Checkpoint
from .plan import Plan
from .reference import Reference, Scored
from .workload import Prompt, Workload

CHECK_VERSION = "1"  # part of a record's key: raise it when a prompt or a limit below changes
RECORD_FILE = "inferplan-check.json"
STEPS = 64
"""Greedy tokens asked for after each of the long prompts of an FP32 check."""

_SEED = "inferplan token check 1"
# A short prompt, and one long enough that a wrong position or rotary base is felt in every step after it.
_LENGTHS = (16, 96)
# What is quantized is judged by the first tokens after many prompts alone. A wrong model soon repeats itself, and the
# reference, which reads what it said, agrees: over 3 x 64 steps of SmolLM2-135M-Instruct 91% of the tokens were the
# reference's best with a wrong rotary base, 87% with the rotated halves in the wrong order, 67% with two layers
# exchanged, and 83 to 99% of right INT8 and INT4 artifacts. Over these first tokens: 58%, 44%, 13%, and 56 to 89%.
PROBES, PROBE_LENGTH, PROBE_STEPS = 24, 32, 4
_TEXT = (
    "The ferry left the harbour at seven, as it did every morning, with eleven passengers and a crate of lemons. "
    "Halfway across, the captain"
)
_TEXT_CONTEXT = 256  # the text takes some 30 tokens with a vocabulary of 50,000, more with a smaller one

# All limits are in standard deviations of the step's logits, which makes them hold for real weights, whose logits
# spread by 2 to 5, and for synthetic ones, whose logits may spread by any amount.
TIE = 1e-3
# llama.cpp looks GELU up in a table of 16-bit values. It says so in what actually ran.
GELU_TIE = 1e-2
# Seen, as the share over the probes: BF16 97% (llamacpp); INT8 65% (transformers, whose activations are quantized as
# one block), 74% (ctranslate2), 89% (llamacpp); INT4 56% (llamacpp); all of SmolLM2-135M-Instruct. Random weights are
# hit harder: of distilgpt2's, over 3 x 64 steps, BF16 94%, INT8 76 to 84%, INT4 18%. A subtle error agrees in as many
# as a right conversion does (above): it is found at FP32, where the same converter is checked first (see `prepare`).
MINIMUM = {16: 0.80, 8: 0.40, 4: 0.10, 2: 0.05}
"""Share of tokens that must be the reference's best, by bits of a weight."""

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Checked:
    """What became of a check.

    Attributes:
        check: its figures; None where it could not be made.
        unchecked: what could not be checked and why, though the artifact may be used.
        refused: status and reason of the plans that must not use the artifact.
    """

    check: TokenCheck | None = None
    unchecked: str = ""
    refused: tuple[Status, str] | None = None


class Checker:
    """Checks artifacts; one child with the reference serves all artifacts of one checkpoint while `keeping` lasts.

    Args:
        memory_bytes: memory that the reference may have; kept between checks only where a conversion fits beside it.
        tell: is told a line before a check and one after it.
    """

    def __init__(self, memory_bytes: int, tell: Tell) -> None:
        self._memory_bytes, self._tell = memory_bytes, tell
        self._reference: tuple[str, Reference] | None = None
        self._cannot: dict[str, str] = {}
        self._texts: dict[str, tuple[int, ...]] = {}
        self._keeping = False

    @contextlib.contextmanager
    def keeping(self) -> Iterator[Checker]:
        """Keep the reference from one check to the next; it is gone when this ends, before anything is timed."""
        self._keeping = True
        try:
            yield self
        finally:
            self._keeping = False
            self._close()

    def check(
        self, artifact: Path, plan: Plan, info: EngineInfo, checkpoint: Checkpoint, unchecked: str = ""
    ) -> Checked:
        """The check of `artifact`, which was converted for `plan`: as recorded, or made now and recorded if passed.

        Args:
            unchecked: what could not be checked before this, recorded with it.
        """
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(ModelError):  # a cache that cannot be written: then it cannot be recorded either
                stack.enter_context(artifacts.held(artifact))
            if (known := read_record(artifact, info)) is not None:
                return known
            found = self._checked(artifact, plan, info, checkpoint)
            if found.check is not None and found.refused is None:
                found = replace(found, unchecked=unchecked)
                _write_record(artifact, info, found)
        self._tell(_said(plan, found))
        return found

    def _checked(self, artifact: Path, plan: Plan, info: EngineInfo, checkpoint: Checkpoint) -> Checked:
        start = time.perf_counter()
        asked, why = self._requests(plan.precision, checkpoint)
        if why := why or self._cannot.get(checkpoint.content_hash) or self._unfit(checkpoint):
            return Checked(unchecked=why)
        self._tell(f"checking the tokens of {_artifact(plan)} against transformers at float32 (once)")
        done = _generate(artifact, plan, info, asked)
        if done.status != "ok":
            return Checked(refused=(done.status, f"its tokens could not be checked: {done.reason}"))
        try:
            reference = self._reference_of(checkpoint)
            scored = [
                reference.score(one.prompt_ids, sample.output_ids)
                for one, sample in zip(asked, done.samples, strict=True)
            ]
        except EngineError as err:
            self._close()
            self._cannot[checkpoint.content_hash] = str(err)
            return Checked(unchecked=f"transformers cannot be asked at float32: {err}")
        finally:
            self._release(checkpoint)
        check, why = judge(plan.precision, scored, tie(done.actual), reference.versions, time.perf_counter() - start)
        return Checked(check, refused=("failed", f"{why}. {_remedy(plan)}") if why else None)

    def _requests(self, precision: str, checkpoint: Checkpoint) -> tuple[tuple[Request, ...], str]:
        """What is asked of this model; or nothing, and why."""
        config = _files.read_config(checkpoint.path)
        vocabulary = vocabulary_size(config)
        if vocabulary is None:
            return (), f"{checkpoint.path / 'config.json'} does not say how many tokens its vocabulary has"
        if checkpoint.context is not None and checkpoint.context < 2 * STEPS:
            return (), f"its context of {checkpoint.context} tokens has no room for the check"
        drawn = id_requests(precision, vocabulary, checkpoint.context)
        roomy = checkpoint.context is None or checkpoint.context >= _TEXT_CONTEXT
        if minimum(precision) is not None or not roomy or not _files.tokenizer_files(checkpoint.path):
            return drawn, ""
        if checkpoint.content_hash not in self._texts:
            asked = Workload((Prompt(text=_TEXT),), max_new_tokens=STEPS)
            self._texts[checkpoint.content_hash] = tokens.tokenize(checkpoint, asked).requests[0].prompt_ids
        return (*drawn, Request(len(drawn), self._texts[checkpoint.content_hash], STEPS)), ""

    def _unfit(self, checkpoint: Checkpoint) -> str:
        what = f"the reference of {checkpoint.name} (transformers at float32)"
        return fits.refusal(checkpoint.parameters * 4, self._memory_bytes, what) or ""

    def _reference_of(self, checkpoint: Checkpoint) -> Reference:
        if self._reference is None or self._reference[0] != checkpoint.content_hash:
            self._close()
            self._reference = checkpoint.content_hash, Reference(checkpoint.path)
        return self._reference[1]

    def _release(self, checkpoint: Checkpoint) -> None:
        """Let the reference go, unless more artifacts are coming and two copies of the model fit beside it."""
        if not self._keeping or 3 * checkpoint.parameters * 4 > self._memory_bytes:
            self._close()

    def _close(self) -> None:
        if self._reference is not None:
            self._reference[1].close()
            self._reference = None


def id_requests(precision: str, vocabulary: int, context: int | None) -> tuple[Request, ...]:
    """Prompts of token ids drawn by a fixed seed: the same for every engine, on every day.

    `PROBES` short ones with a few tokens each; at FP32 two more with `STEPS` tokens each. Not from the
    last tenth of the vocabulary, where a padded one has rows that mean nothing.

    Args:
        context: longest sequence that the model takes, at least 2 x `STEPS`; None where unknown.
    """
    room = max(_LENGTHS) if context is None else context - STEPS
    known = max(vocabulary - vocabulary // 10, 1)
    long = [(min(length, room), STEPS) for length in _LENGTHS] if minimum(precision) is None else []
    shapes = [(PROBE_LENGTH, PROBE_STEPS)] * PROBES + long
    return tuple(
        Request(number, tuple(_draw(number, place) % known for place in range(length)), steps)
        for number, (length, steps) in enumerate(shapes)
    )


def _draw(*parts: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{_SEED} {parts}".encode()).digest()[:8], "big")


def vocabulary_size(config: dict[str, Any]) -> int | None:
    """How many tokens the model of `config` knows; None where it does not say."""
    for source in (config, config.get("text_config")):
        if isinstance(source, dict) and isinstance(source.get("vocab_size"), int):
            return int(source["vocab_size"])
    return None


def tie(actual: Actual | None) -> float:
    """How far below the best logit an FP32 token may lie, in standard deviations of the step's logits."""
    return GELU_TIE if actual is not None and "gelu" in actual.details else TIE


def minimum(precision: str) -> float | None:
    """The share of tokens that must be the reference's best at `precision` (`int8`, `q4_1`); None: all but ties."""
    found = re.search(r"\d+", precision)
    bits = int(found.group()) if found else 16
    if bits >= 32:
        return None
    return next((share for known, share in MINIMUM.items() if bits >= known), MINIMUM[min(MINIMUM)])


def judge(
    precision: str, scored: Sequence[Scored], tie: float, reference: str, seconds: float
) -> tuple[TokenCheck, str]:
    """The figures of a check, and why it did not pass; empty when it did.

    Args:
        scored: what the reference says of the output to each prompt.
        tie: see `tie`; used where `minimum(precision)` is None.
    """
    needed = minimum(precision)
    steps = [
        (number, step, gap / spread if spread else 0.0, token == best)
        for number, one in enumerate(scored, 1)
        for step, (gap, spread, token, best) in enumerate(
            zip(one.gaps, one.spreads, one.output, one.best, strict=True), 1
        )
    ]
    agreement = sum(same for *_, same in steps) / len(steps)
    check = TokenCheck(
        steps=len(steps),
        agreement=agreement,
        minimum=needed,
        largest_gap=max(gap for _, _, gap, _ in steps),
        distinct=len({token for one in scored for token in one.output}),
        reference=reference,
        seconds=round(seconds, 3),
    )
    wrong = [(n, s) for n, s, gap, same in steps if not same and (needed is not None or gap > tie)]
    if not wrong or (needed is not None and agreement >= needed):
        return check, ""
    limit = f"it takes {needed:.0%}" if needed is not None else f"each must be, but for ties within {tie:g}"
    return check, (
        f"its tokens are not the model's: {agreement:.1%} of {len(steps)} are the best of transformers at float32, and "
        f"at {precision} {limit}; first at {_place(scored, *wrong[0])}"
    )


def _place(scored: Sequence[Scored], number: int, step: int) -> str:
    one = scored[number - 1]
    token, best = one.output[step - 1], one.best[step - 1]
    own, high, spread = one.logits[step - 1], one.best_logits[step - 1], one.spreads[step - 1]
    return (
        f"token {step} after check prompt {number}: it gave {token}, with a logit of {own:.4f}, and {best} has "
        f"{high:.4f} (the step's logits spread by {spread:.3f})"
    )


def _generate(artifact: Path, plan: Plan, info: EngineInfo, asked: tuple[Request, ...]) -> Measurement:
    """The engine's own greedy tokens, in a worker like any other, by the plan that the artifact was made for."""
    bare = Plan(
        plan.model,
        plan.engine,
        plan.precision,
        plan.threads,
        plan.kv_cache or True in info.kv_cache,
        plan.device,
        tuple((name, value) for name, value in plan.options if name in info.artifact_options),
    )
    return measure.measure(Trial(bare, artifact, 1, asked), info, measure.Watch(cores=plan.threads, judge=False))


def read_record(artifact: Path, info: EngineInfo | None = None) -> Checked | None:
    """The check that `artifact` has passed, with the versions in `info` or with any; None where there is no record."""
    try:
        data = json.loads((artifact / RECORD_FILE).read_text(encoding="utf-8"))
        if info is not None and data["key"] != _key(info):
            return None
        return Checked(decode(TokenCheck, data["check"]), str(data["unchecked"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # never checked, or a record that is damaged: then it is checked again


def _write_record(artifact: Path, info: EngineInfo, found: Checked) -> None:
    body = {"key": _key(info), "check": encode(found.check), "unchecked": found.unchecked}
    draft = artifact / f"{RECORD_FILE}.{os.getpid()}"
    with contextlib.suppress(OSError):  # a cache that cannot be written: it is checked again the next time
        draft.write_text(json.dumps(body, indent=1), encoding="utf-8")
        draft.replace(artifact / RECORD_FILE)


def _key(info: EngineInfo) -> str:
    """What a record holds for: this check, and the versions of what ran."""
    return artifacts.artifact_key(CHECK_VERSION, info.version, json.dumps(sorted(info.libraries.items())))


def _artifact(plan: Plan) -> str:
    return f"{plan.model} at {plan.precision} for {plan.engine}"


def _remedy(plan: Plan) -> str:
    return (
        f"It is not used. Remove it with `inferplan cache prune --engine {plan.engine} --model {plan.model}`, so that "
        "it is converted again; if it comes out the same, this engine does not run the model rightly"
    )


def _said(plan: Plan, found: Checked) -> str:
    if found.refused is not None:
        return f"{_artifact(plan)}: {found.refused[1]}"
    if found.check is None:
        return f"{_artifact(plan)} is used without a check of its tokens: {found.unchecked}"
    check = found.check
    few = f"; only {check.distinct} different ones, which proves little" if check.weak else ""
    rest = f"; not checked: {found.unchecked}" if found.unchecked else ""
    return (
        f"{_artifact(plan)}: {check.agreement:.1%} of {check.steps} tokens are the best of {check.reference} at "
        f"float32{few}; checked in {check.seconds:.1f} s{rest}"
    )
