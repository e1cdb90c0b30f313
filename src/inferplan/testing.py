"""EngineContract: the tests that every engine must pass.

Subclass it in your own test suite, set `engine`, and give the fixtures
`checkpoint` (a directory with a tiny model) and, where there is one,
`reference` (what the reference implementation says). Needs pytest.

The second half runs SmolLM2-135M-Instruct, where its package is installed: a
tiny model is too fast to count threads by, and says little about equal tokens.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from . import environments, measure, models
from ._codec import decode, encode
from ._remote_engine import open_engine
from .engines.base import Engine, EngineInfo
from .errors import ArtifactError
from .measurement import Measurement, Request, Trial
from .plan import Plan
from .reference import load as load_reference
from .reference import score

Reference = Callable[[Sequence[int], int], Sequence[int]]
PROMPTS: tuple[tuple[int, ...], ...] = ((5, 17, 3, 42, 8, 99, 23), (7, 7, 1, 60, 12), (90, 31, 2))
REAL_MODEL = "smollm2-135m-instruct"
REAL_PROMPTS = ("The capital of France is", "Once upon a time, in a small village by the sea, there lived")
# Logits that lie closer than this are a tie: float32 sums in another order differ by some 1e-4 of this model's logits,
# which reach 30 (seen between transformers' own two attention kernels).
TIE = 1e-3
_LONG_PROMPT = 384  # tokens: prefill then takes much longer than anything that a cache would leave to do
_CLOSING_CPU_S = 0.1  # threads that spin for a while before they sleep, and the clock's ticks
_TRIES = 10  # what is watched takes some tenths of a second, and each try is a process of its own
_BUSY = 0.15  # a task is busy when it used this share of the busiest one's CPU time


class EngineContract:
    """What every engine promises. Tests run the engine through a real worker where they can."""

    engine: str
    max_tokens = 64
    prompts: tuple[tuple[int, ...], ...] = PROMPTS

    @pytest.fixture
    def checkpoint(self, tmp_path: Path) -> Path:
        """A directory with a tiny model of an architecture that the engine knows."""
        raise NotImplementedError("give a fixture `checkpoint`")

    @pytest.fixture
    def reference(self) -> Reference | None:
        """Greedy tokens of the reference implementation at FP32, or None where there is none."""
        return None

    @pytest.fixture(scope="class")
    @classmethod
    def info(cls) -> EngineInfo:
        """What the engine says of itself, asked once."""
        info = measure.describe(cls.engine)
        assert "engine" not in info.lacks, info.lacks
        return info

    @pytest.fixture(scope="class")
    @classmethod
    def converted(cls) -> dict[tuple[object, ...], Path]:
        """What was converted so far: a test that needs the same again gets the same."""
        return {}

    @pytest.fixture
    def artifact(
        self,
        checkpoint: Path,
        info: EngineInfo,
        converted: dict[tuple[object, ...], Path],
        tmp_path_factory: pytest.TempPathFactory,
    ) -> Callable[[Plan], Path]:
        """Makes what `load` needs for a plan. Not to be written to: other tests load it too."""

        def make(plan: Plan) -> Path:
            if info.converts is not None and plan.precision not in info.converts:
                return checkpoint
            key = (checkpoint, plan.precision, plan.kv_cache, plan.options)
            if key not in converted:
                out = tmp_path_factory.mktemp("artifact")
                assert measure.convert(plan, checkpoint, out) == ("ok", "")
                converted[key] = out
            return converted[key]

        return make

    @pytest.fixture
    def loaded(self, artifact: Callable[[Plan], Path], info: EngineInfo) -> Iterator[Callable[[Plan], Engine]]:
        """Loads a plan in this process, or in one of the engine's own Python; closed at the end."""
        engines: list[Engine] = []

        def load(plan: Plan) -> Engine:
            engine = open_engine(self.engine, measure.worker_environment(plan, info))
            engine.load(plan, artifact(plan))
            engines.append(engine)
            return engine

        yield load
        for engine in engines:
            engine.close()

    def plan(self, precision: str = "fp32", threads: int = 1, kv_cache: bool = True) -> Plan:
        """A plan of this engine; override for an engine that needs options."""
        return Plan("tiny", self.engine, precision, threads, kv_cache)

    def run(self, plan: Plan, artifact: Path, info: EngineInfo, prompts: Sequence[Sequence[int]]) -> Measurement:
        """Measure `prompts` in a process of their own."""
        requests = tuple(Request(i, tuple(ids), self.max_tokens) for i, ids in enumerate(prompts))
        trial = Trial(plan, artifact, 1, requests, request_timeout_s=120, load_timeout_s=120)
        return measure.measure(trial, info, measure.Watch(cores=2, judge=False))

    def test_describe_survives_json(self, info: EngineInfo) -> None:
        assert decode(EngineInfo, json.loads(json.dumps(encode(info)))) == info
        assert info.name == self.engine
        assert info.precisions

    def test_every_precision_gives_exactly_the_tokens_asked_for(
        self, info: EngineInfo, artifact: Callable[[Plan], Path]
    ) -> None:
        for precision in info.precisions:
            plan = self.plan(precision)
            done = self.run(plan, artifact(plan), info, self.prompts)
            assert (done.status, done.reason) == ("ok", "")
            assert [s.output_tokens for s in done.samples] == [self.max_tokens] * len(self.prompts)
            assert done.actual is not None
            assert done.actual.threads == 1
            if plan.quantized:
                assert done.actual.scheme in ("dynamic", "weight-only", "static")
                assert (done.actual.quantized_share or 0) >= 0.99

    def test_tokens_come_one_by_one(self, info: EngineInfo, artifact: Callable[[Plan], Path]) -> None:
        plan = self.plan()
        times = self.run(plan, artifact(plan), info, self.prompts[:1]).samples[0].token_times_s
        assert len(set(times)) == self.max_tokens
        assert times == tuple(sorted(times))
        assert times[0] > 0

    def test_fp32_tokens_equal_the_reference(
        self, info: EngineInfo, artifact: Callable[[Plan], Path], reference: Reference | None
    ) -> None:
        if reference is None:
            pytest.skip("this engine has no reference")
        plan = self.plan()
        done = self.run(plan, artifact(plan), info, self.prompts)
        assert [list(s.output_ids) for s in done.samples] == [
            list(reference(ids, self.max_tokens)) for ids in self.prompts
        ]

    def test_a_checkpoints_end_of_sequence_and_sampling_change_nothing(
        self, info: EngineInfo, artifact: Callable[[Plan], Path], checkpoint: Path, tmp_path: Path
    ) -> None:
        if not info.needs_model:
            pytest.skip("this engine loads no weights")
        plan = self.plan()
        (free,) = self.run(plan, artifact(plan), info, self.prompts[:1]).samples
        ending = shutil.copytree(checkpoint, tmp_path / "ending")
        asked: dict[str, dict[str, object]] = {
            "config.json": {},
            "generation_config.json": {"do_sample": True, "temperature": 0.5},
        }
        for name, more in asked.items():
            kept = json.loads((ending / name).read_text()) if (ending / name).is_file() else {}
            (ending / name).write_text(json.dumps({**kept, **more, "eos_token_id": free.output_ids[3]}))
        if info.converts is None or plan.precision in info.converts:
            source, ending = ending, tmp_path / "out"
            ending.mkdir()
            assert measure.convert(plan, source, ending) == ("ok", "")
        (told,) = self.run(plan, ending, info, self.prompts[:1]).samples
        assert told.output_ids == free.output_ids

    def skip_where_unsupported(self, plan: Plan) -> None:
        """Skip the test with the engine's own reason, where it cannot run this plan."""
        why = open_engine(self.engine, measure.worker_environment()).unsupported(plan)
        if why is not None:
            pytest.skip(why)

    def test_kv_cache_off_gives_the_same_tokens(self, info: EngineInfo, artifact: Callable[[Plan], Path]) -> None:
        self.skip_where_unsupported(self.plan(kv_cache=False))
        on, off = (
            self.run(plan, artifact(plan), info, self.prompts[:1])
            for plan in (self.plan(kv_cache=True), self.plan(kv_cache=False))
        )
        assert on.samples[0].output_ids == off.samples[0].output_ids
        assert off.actual is not None
        assert off.actual.kv_cache is False

    def test_a_request_does_not_change_the_next(self, loaded: Callable[[Plan], Engine]) -> None:
        engine = loaded(self.plan())
        first = list(engine.generate(self.prompts[0], 8))
        list(engine.generate(self.prompts[1], 8))
        assert list(engine.generate(self.prompts[0], 8)) == first

    def test_loads_again_after_close(self, artifact: Callable[[Plan], Path], info: EngineInfo) -> None:
        plan = self.plan()
        path = artifact(plan)
        engine = open_engine(self.engine, measure.worker_environment(plan, info))
        outputs = []
        for _ in range(2):
            engine.load(plan, path)
            outputs.append(list(engine.generate(self.prompts[0], 4)))
            engine.close()
        assert outputs[0] == outputs[1]

    def test_a_request_that_was_closed_does_not_change_the_next(self, loaded: Callable[[Plan], Engine]) -> None:
        engine = loaded(self.plan())
        tokens = engine.generate(self.prompts[0], self.max_tokens)
        first = next(iter(tokens))
        close = getattr(tokens, "close", None)
        if close is not None:
            close()
        again = engine.generate(self.prompts[0], 2)
        assert next(iter(again)) == first

    def test_a_corrupt_artifact_is_an_error_with_a_name(self, artifact: Callable[[Plan], Path], tmp_path: Path) -> None:
        plan = self.plan()
        source = artifact(plan)
        broken = tmp_path / "broken"
        broken.mkdir()
        cut = []
        for file in source.iterdir():
            if file.is_file():
                data = file.read_bytes()
                small = file.suffix == ".json" and file.name != "fake.json"
                (broken / file.name).write_bytes(data if small else data[: len(data) // 2])
                cut += [] if small else [re.escape(file.name)]
        with pytest.raises(ArtifactError, match="|".join(cut)):
            open_engine(self.engine, measure.worker_environment()).load(plan, broken)

    def test_an_unknown_option_is_a_reason(self, info: EngineInfo) -> None:
        plan = Plan("tiny", self.engine, info.precisions[0], options=(("no_such_option", 1),))
        assert "no_such_option" in (open_engine(self.engine, measure.worker_environment()).unsupported(plan) or "")
        assert "no_such_option" in (info.reject(plan) or "")

    def test_an_unknown_precision_is_a_reason(self) -> None:
        plan = Plan("tiny", self.engine, "int3")
        assert "int3" in (open_engine(self.engine, measure.worker_environment()).unsupported(plan) or "")

    @pytest.fixture(scope="class")
    @classmethod
    def real(cls, tmp_path_factory: pytest.TempPathFactory) -> RealModel:
        """The real model, converted at FP32 for this engine, once for all tests of the class."""
        info = measure.describe(cls.engine)
        if not info.needs_model:
            pytest.skip("this engine loads no weights")
        shipped = models.SHIPPED[REAL_MODEL].packaged or ""
        if "engine" in info.lacks or not importlib.util.find_spec(shipped.replace("-", "_")):
            pytest.skip(info.lacks.get("engine") or f"{shipped} is not installed, which ships {REAL_MODEL}")
        checkpoint = models.resolve(REAL_MODEL, notify=lambda _: None)
        plan, artifact = cls().plan(), checkpoint.path
        if info.converts is None or plan.precision in info.converts:
            artifact = tmp_path_factory.mktemp("real")
            assert measure.convert(plan, checkpoint.path, artifact) == ("ok", "")
        return RealModel(cls.engine, info, checkpoint.path, artifact, 4 * checkpoint.parameters)

    @pytest.fixture(scope="class")
    @classmethod
    def answered(cls, real: RealModel) -> Measurement:
        """What a process of the real model at FP32 with 2 threads answered to `REAL_PROMPTS`."""
        done = cls().run(cls().plan(threads=2), real.artifact, real.info, real.prompts())
        assert (done.status, done.reason) == ("ok", "")
        return done

    @pytest.fixture(scope="class")
    @classmethod
    def seen(cls, real: RealModel) -> Callable[[int], Seen]:
        """What a process was seen to do with this many threads; asked once for each count."""
        found: dict[int, Seen] = {}

        def look(threads: int) -> Seen:
            if threads not in found:
                found[threads] = real.watch(cls().plan(threads=threads))
            return found[threads]

        return look

    def test_fp32_tokens_equal_the_reference_on_a_real_model(self, real: RealModel, answered: Measurement) -> None:
        for prompt, sample in zip(real.prompts(), answered.samples, strict=True):
            assert len(sample.output_ids) == self.max_tokens >= 64
            assert len(set(sample.output_ids)) > 8, "equal tokens would prove little"
            assert sample.ttft_s <= sample.latency_s / 2, "the first token came with the last ones"
            assert first_difference(real.checkpoint, prompt, sample.output_ids) is None

    def test_peak_memory_is_no_less_than_the_weights(self, real: RealModel, answered: Measurement) -> None:
        """Wherever they lie: in a file that is mapped, or in a process that the engine started."""
        assert answered.memory is not None
        assert answered.memory.peak_bytes is not None
        assert answered.memory.peak_bytes >= real.weight_bytes

    @pytest.mark.parametrize("threads", [1, 2])
    def test_as_many_threads_work_as_were_asked_for(
        self, threads: int, seen: Callable[[int], Seen], real: RealModel
    ) -> None:
        told = seen(threads)
        for _ in range(_TRIES - 1):  # beside a busy program a thread may come too late to find work
            if busy_tasks(told["task_cpu_s"]) >= threads:
                break
            told = real.watch(self.plan(threads=threads))
        assert busy_tasks(told["task_cpu_s"]) == threads, told["task_cpu_s"]
        assert told["cpu_s"] <= threads * 1.1 * told["wall_s"]

    def test_a_second_request_is_not_answered_from_a_cache_of_the_first(self, seen: Callable[[int], Seen]) -> None:
        first, *again = seen(1)["prefill_cpu_s"]
        assert min(again) > first / 2

    def test_a_closed_request_ends_within_a_token(self, seen: Callable[[int], Seen]) -> None:
        """One may be under way, and one is room for what closing and waiting take; 510 tokens were left."""
        assert seen(1)["closing_cpu_s"] < 2 * seen(1)["cpu_s"] / seen(1)["tokens"] + _CLOSING_CPU_S

    def test_without_a_kv_cache_every_token_reads_the_whole_request_again(self, real: RealModel) -> None:
        self.skip_where_unsupported(self.plan(kv_cache=False))
        spent = real.watch(self.plan(kv_cache=False), _RECOMPUTING)["cpu_s"]
        assert spent[1] > 2 * spent[0], "three tokens of a long request took hardly more than its first"


Seen = dict[str, Any]
"""JSON of `_WATCHING`: CPU seconds by task and in all, of equal prefills, and from closing a request on; or of
`_RECOMPUTING`: those of one token of a long request and of three."""


def busy_tasks(cpu_s: Sequence[float]) -> int:
    """How many of the tasks that took so much CPU time did the work."""
    return sum(one > _BUSY * max(cpu_s) for one in cpu_s)


class RealModel:
    """The real model as one engine loads it; `weight_bytes` is what its weights take at FP32."""

    def __init__(self, engine: str, info: EngineInfo, checkpoint: Path, artifact: Path, weight_bytes: int) -> None:
        self.engine, self.info, self.checkpoint, self.artifact = engine, info, checkpoint, artifact
        self.weight_bytes = weight_bytes

    def prompts(self) -> tuple[tuple[int, ...], ...]:
        """`REAL_PROMPTS` as token ids."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self.checkpoint / "tokenizer.json"))
        return tuple(tuple(tokenizer.encode(text, add_special_tokens=False).ids) for text in REAL_PROMPTS)

    def watch(self, plan: Plan, program: str = "") -> Seen:
        """Run `plan` in a process of its own, not pinned, and read the CPU time of each of its tasks.

        Args:
            program: what it does once the plan is loaded; `_WATCHING` unless given.
        """
        if not Path("/proc/self/task").is_dir():
            pytest.skip("this system does not tell the CPU time of single threads")
        long = [(i * 7919 + 13) % 20_000 + 1000 for i in range(_LONG_PROMPT)]
        task = {"plan": encode(plan), "artifact": str(self.artifact), "prompt": self.prompts()[1], "long": long}
        command = [*environments.interpreter(self.engine), "-c", _LOADED + (program or _WATCHING) + _TOLD]
        done = subprocess.run(
            command,
            input=json.dumps(task),
            env=measure.worker_environment(plan, self.info),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        seen: Seen = json.loads(done.stdout.splitlines()[-1])
        return seen


def first_difference(checkpoint: Path, prompt: Sequence[int], output: Sequence[int], tie: float = TIE) -> str | None:
    """Where `output` leaves the greedy path of transformers at float32, in words; None where it never does.

    One pass over prompt and output gives the reference's choice after each of the engine's own
    prefixes. A step whose two best logits lie closer than `tie` may go either way.
    """
    scored = score(load_reference(checkpoint), prompt, output)
    for step, gap in enumerate(scored.gaps):
        if gap > tie:
            own, best = f"{scored.logits[step]:.4f}", f"{scored.best_logits[step]:.4f}"
            return f"step {step}: {output[step]} with {own}, and {scored.best[step]} has {best}"
    return None


_LOADED = """
import json, os, sys, time
from pathlib import Path
from inferplan._codec import decode
from inferplan.engines import load_engine
from inferplan.plan import Plan

task = json.loads(sys.stdin.readline())
plan = decode(Plan, task["plan"])
engine = load_engine(plan.engine)
engine.load(plan, Path(task["artifact"]))
tick = os.sysconf("SC_CLK_TCK")

def tasks():
    found = {}
    for stat in Path("/proc/self/task").glob("*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # a thread that ended meanwhile, as those that loaded the model do
        found[stat.parent.name] = (int(fields[11]) + int(fields[12])) / tick
    return found

list(engine.generate(task["prompt"], 8))
"""
_WATCHING = """
before, cpu, wall = tasks(), time.process_time(), time.perf_counter()
tokens = engine.generate(task["prompt"], 64)
for _ in range(63):
    next(tokens)
after = tasks()  # before the last token: some engines compute in a thread that ends with the request
cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
list(tokens)
seen = {"task_cpu_s": [after[t] - before.get(t, 0) for t in after], "cpu_s": cpu, "wall_s": wall, "tokens": 63}

seen["prefill_cpu_s"] = []
for _ in range(3):
    before, cpu = tasks(), time.process_time()
    tokens = engine.generate(task["long"], 2)
    next(tokens)
    after = tasks()
    list(tokens)
    seen["prefill_cpu_s"].append(time.process_time() - cpu)
seen["prefill_task_cpu_s"] = [after[t] - before.get(t, 0) for t in after]

tokens = engine.generate(task["prompt"], 512)
next(tokens)
next(tokens)
cpu = time.process_time()
tokens.close()
time.sleep(0.5)
seen["closing_cpu_s"] = time.process_time() - cpu
"""
_RECOMPUTING = """
seen = {"cpu_s": []}
list(engine.generate(task["long"], 1))  # the first of its length pays for memory and for kernels that are chosen once
for count in (1, 3):
    cpu = time.process_time()
    list(engine.generate(task["long"], count))
    seen["cpu_s"].append(time.process_time() - cpu)
"""
_TOLD = """
engine.close()
print()
print(json.dumps(seen))
"""
