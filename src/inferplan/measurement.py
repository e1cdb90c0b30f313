"""Trial, Sample, Measurement: what to run and what came of it. Values only.

Owns the raw record that everything else is derived from. Leaves quantiles to
`stats`, the view of one plan over all its processes to `result`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .plan import Plan

_FEW_TOKENS = 8  # of some 190: models of random weights are known to repeat one token for ever

Status = Literal["ok", "failed", "unsupported", "timeout", "out_of_memory", "crashed", "interrupted"]
"""`failed`: the engine said why. `crashed`: the process died. `interrupted`: we were, not the plan."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request, ready to send.

    Attributes:
        index: the prompt's place in the workload; -1 for a warm-up.
        prompt_ids: token ids, the same for every engine.
        max_tokens: tokens to produce, exactly.
    """

    index: int
    prompt_ids: tuple[int, ...]
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Trial:
    """What to do next: one plan, one fresh process, the requests to send it.

    Attributes:
        artifact: directory or file that the engine loads.
        round: 1 for the first process of the plan, 2 for the second, ...
        warmup: requests sent first and not measured, with other prompts.
        cut_after_s: end a request that is still running after so many seconds,
            because its plan has then already been shown to miss; None: never.
        cut_first_after_s: end a request whose first token came later; None: never.
        request_timeout_s: a request longer than this is a hang.
        load_timeout_s: a load longer than this is a hang.
        cpus: CPU numbers to pin the process to; empty: no pinning.
        retakes: how many disturbed samples may be taken again, in all.
    """

    plan: Plan
    artifact: Path
    round: int
    requests: tuple[Request, ...]
    warmup: tuple[Request, ...] = ()
    cut_after_s: float | None = None
    cut_first_after_s: float | None = None
    request_timeout_s: float = 600.0
    load_timeout_s: float = 600.0
    cpus: tuple[int, ...] = ()
    retakes: int = 0


@dataclass(frozen=True, slots=True)
class Actual:
    """What really ran, as told by the engine after it loaded and ran.

    Attributes:
        dtype: type that activations are computed in, `float32`.
        weights: type that the linear weights are held in, `int8`.
        threads: threads of the compute pool.
        kernel: the matrix kernel, named, `fbgemm linear_dynamic`.
        scheme: `dynamic`, `weight-only`, or empty where nothing is quantized.
        quantized_share: share of the linear layers' parameters whose kernels ran
            in integers, 0 to 1, counted in a profiled pass; None where not asked for.
        attention: implementation of the attention, `sdpa`.
        kv_cache: whether keys and values were kept between tokens.
        details: anything else worth keeping, as text.
    """

    dtype: str
    weights: str
    threads: int
    kernel: str
    scheme: str = ""
    quantized_share: float | None = None
    attention: str = ""
    kv_cache: bool = True
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Signals:
    """The outside world during one sample: differences between two readings.

    None where this system does not tell. CPU seconds are summed over all cores.

    Attributes:
        wall_s: time between the two readings.
        other_cpu_s: CPU time that went to processes other than ours.
        steal_s: CPU time that the hypervisor gave to somebody else.
        cpu_stall_s: PSI `some`: time in which something waited for a CPU.
        memory_stall_s: PSI `some`: time in which something waited for memory.
        swapped_pages: pages swapped in or out.
        canary_s: time of one fixed read of memory just before the sample.
    """

    wall_s: float
    other_cpu_s: float | None = None
    steal_s: float | None = None
    cpu_stall_s: float | None = None
    memory_stall_s: float | None = None
    swapped_pages: int | None = None
    canary_s: float | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One timed request, raw.

    Attributes:
        index: the prompt's place in the workload.
        started_at: seconds since the epoch, at the start of the request.
        latency_s: from handing over the token ids to the last token.
        token_times_s: seconds from the start to each output token, ascending.
        prompt_tokens: tokens that went in.
        output_ids: token ids that came out; empty when kept private.
        output_sha256: hash of the ids, kept always.
        cpu_s: CPU time of the process tree during the request.
        rss_bytes: resident memory of the process tree at its end.
        cut: the request was ended early by the trial's rule; `latency_s` is then a lower bound.
        disturbed: reasons why this sample was disturbed from outside; empty: it was not.
        signals: what those reasons were read from.
    """

    index: int
    started_at: float
    latency_s: float
    token_times_s: tuple[float, ...]
    prompt_tokens: int
    output_ids: tuple[int, ...] = ()
    output_sha256: str = ""
    cpu_s: float = 0.0
    rss_bytes: int = 0
    cut: bool = False
    disturbed: tuple[str, ...] = ()
    signals: Signals | None = None

    @property
    def output_tokens(self) -> int:
        """Tokens that came out."""
        return len(self.token_times_s)

    @property
    def ttft_s(self) -> float:
        """Time to first token; infinite when none came."""
        return self.token_times_s[0] if self.token_times_s else float("inf")

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first; None with fewer than two tokens."""
        times = self.token_times_s
        return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else None

    @property
    def tokens_per_s(self) -> float:
        """Output tokens over the whole latency, prefill included."""
        return self.output_tokens / self.latency_s if self.latency_s > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Memory:
    """Peak resident memory of the process tree by phase, in bytes.

    Attributes:
        load_peak_bytes: high-water mark from start to loaded; None where not known.
        generate_peak_bytes: high-water mark after the mark was reset, over warm-up and requests.
        anonymous_bytes: largest anonymous part seen by sampling.
        file_bytes: largest file-backed part seen by sampling.
        sampled_hz: the rate of that sampling.
        method: how the mark was read: `VmHWM`, or the platform's own counter.
    """

    load_peak_bytes: int | None
    generate_peak_bytes: int | None
    anonymous_bytes: int | None = None
    file_bytes: int | None = None
    sampled_hz: float = 0.0
    method: str = "VmHWM"

    @property
    def peak_bytes(self) -> int | None:
        """The larger of the two phases; None when neither is known."""
        known = [b for b in (self.load_peak_bytes, self.generate_peak_bytes) if b is not None]
        return max(known) if known else None


@dataclass(frozen=True, slots=True)
class TokenCheck:
    """How the greedy tokens of a converted artifact compare with transformers at float32, on the artifact's own path.

    Attributes:
        steps: tokens compared.
        agreement: share of them that are the reference's best token, 0 to 1.
        minimum: the share that its precision needs; None at FP32, where each token must be the best one or tie with it.
        largest_gap: the most by which a token's logit lay below the best one, in standard
            deviations of that step's logits.
        distinct: different tokens among them; with few, the check proves little.
        reference: versions of what it was compared with.
        seconds: time that the check took.
    """

    steps: int
    agreement: float
    minimum: float | None
    largest_gap: float
    distinct: int
    reference: str
    seconds: float

    @property
    def weak(self) -> bool:
        """Whether so few different tokens came out that their agreement proves little."""
        return self.distinct < _FEW_TOKENS


@dataclass(frozen=True, slots=True)
class Converted:
    """The artifact that a plan loads, where its engine converts: made and checked once, before anything is timed.

    Attributes:
        seconds: how long making it took.
        bytes: size of its files.
        check: its token check; None where there is none.
        unchecked: what could not be checked and why; empty where all was.
    """

    seconds: float
    bytes: int
    check: TokenCheck | None = None
    unchecked: str = ""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What came of one Trial: raw samples of one process, and how it ended.

    Attributes:
        startup_s: from starting the process until it was ready to load (imports included).
        load_s: loading the artifact, as the engine's `load` took.
        oversubscribed: more threads than cores granted; measured as asked.
        libraries: versions of what ran, by name.
        converted: the artifact that was loaded; None for a checkpoint that is loaded as it is.
        look: whether it was a look, by which a search rules plans out: few requests perhaps, cut short
            perhaps. No figure of a plan that was measured for its own sake rests on its looks.
        reused_from: id of the earlier study that measured it, where it was taken over; else empty.
    """

    plan: Plan
    round: int
    status: Status
    reason: str = ""
    samples: tuple[Sample, ...] = ()
    actual: Actual | None = None
    memory: Memory | None = None
    startup_s: float | None = None
    load_s: float | None = None
    started_at: float = 0.0
    wall_s: float = 0.0
    oversubscribed: bool = False
    libraries: Mapping[str, str] = field(default_factory=dict)
    converted: Converted | None = None
    look: bool = False
    reused_from: str = ""

    @property
    def clean(self) -> tuple[Sample, ...]:
        """Samples that count: not disturbed from outside and not cut short."""
        return tuple(s for s in self.samples if not s.disturbed and not s.cut)
