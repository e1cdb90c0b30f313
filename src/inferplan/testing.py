"""EngineContract: the tests that every engine must pass.

Subclass it in your own test suite, set `engine`, and give the fixtures
`checkpoint` (a directory with a tiny model) and, where there is one,
`reference` (what the reference implementation says). Needs pytest.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from . import measure
from ._codec import decode, encode
from .engines import load_engine
from .engines.base import Engine, EngineInfo
from .errors import ArtifactError
from .measurement import Measurement, Request, Trial
from .plan import Plan

Reference = Callable[[Sequence[int], int], Sequence[int]]
PROMPTS: tuple[tuple[int, ...], ...] = ((5, 17, 3, 42, 8, 99, 23), (7, 7, 1, 60, 12), (90, 31, 2))


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

    @pytest.fixture
    def info(self) -> EngineInfo:
        info = measure.describe(self.engine)
        assert "engine" not in info.lacks, info.lacks
        return info

    @pytest.fixture
    def artifact(self, checkpoint: Path, info: EngineInfo, tmp_path: Path) -> Callable[[Plan], Path]:
        """Makes what `load` needs for a plan."""
        numbers = itertools.count()

        def make(plan: Plan) -> Path:
            if info.converts is not None and plan.precision not in info.converts:
                return checkpoint
            out = tmp_path / f"artifact-{next(numbers)}"
            out.mkdir()
            assert measure.convert(plan, checkpoint, out) == ("ok", "")
            return out

        return make

    @pytest.fixture
    def loaded(self, artifact: Callable[[Plan], Path]) -> Iterator[Callable[[Plan], Engine]]:
        """Loads a plan in this process; closed at the end."""
        engines: list[Engine] = []

        def load(plan: Plan) -> Engine:
            engine = load_engine(self.engine)
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
        done = self.run(plan, artifact(plan), info, self.prompts[:1])
        times = done.samples[0].token_times_s
        assert len(set(times)) == self.max_tokens
        assert times == tuple(sorted(times))
        assert 0 < times[0] <= done.samples[0].latency_s / 2

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

    def test_kv_cache_off_gives_the_same_tokens(self, info: EngineInfo, artifact: Callable[[Plan], Path]) -> None:
        if False not in info.kv_cache:
            pytest.skip("this engine cannot run without its KV cache")
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

    def test_loads_again_after_close(self, artifact: Callable[[Plan], Path]) -> None:
        plan = self.plan()
        path = artifact(plan)
        engine = load_engine(self.engine)
        outputs = []
        for _ in range(2):
            engine.load(plan, path)
            outputs.append(list(engine.generate(self.prompts[0], 4)))
            engine.close()
        assert outputs[0] == outputs[1]

    def test_cancels_within_one_token(self, loaded: Callable[[Plan], Engine]) -> None:
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
        for file in source.iterdir():
            if file.is_file():
                data = file.read_bytes()
                small = file.suffix == ".json" and file.name != "fake.json"
                (broken / file.name).write_bytes(data if small else data[: len(data) // 2])
        with pytest.raises(ArtifactError, match=r"\S+\.\w+"):
            load_engine(self.engine).load(plan, broken)

    def test_an_unknown_option_is_a_reason(self, info: EngineInfo) -> None:
        plan = Plan("tiny", self.engine, info.precisions[0], options=(("no_such_option", 1),))
        assert "no_such_option" in (load_engine(self.engine).unsupported(plan) or "")
        assert "no_such_option" in (info.reject(plan) or "")

    def test_an_unknown_precision_is_a_reason(self) -> None:
        assert "int3" in (load_engine(self.engine).unsupported(Plan("tiny", self.engine, "int3")) or "")
