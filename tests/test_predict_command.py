"""`inferplan predict`: what is likely here, before anything runs, and how far off it was."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from factories import measurement
from inferplan import cli, locks, machine, rates
from inferplan._codec import encode
from inferplan.machine import library_versions
from inferplan.models import SHIPPED, Checkpoint
from inferplan.outlook import answer, judge
from inferplan.plan import Plan, Space
from inferplan.predict import Prediction, Range
from inferplan.rates import LIBRARIES, Rate, Rates
from inferplan.selection import SLA, Objective, parse_sla
from inferplan.shapes import shape_of
from inferplan.store import Store
from inferplan.study import Settings, Study, exported, take_in
from inferplan.workload import Prompt, Workload

RATES = Rates(
    (Rate(1, 20e9, "sum", {"fp32": 16e9}, {"fp32": 60e9}), Rate(2, 36e9, "sum", {"fp32": 30e9}, {"fp32": 110e9})),
    2.0,
    library_versions(LIBRARIES),
)
CONFIG: dict[str, Any] = json.loads((SHIPPED["gpt2"].config / "config.json").read_text(encoding="utf-8"))
SHAPE = shape_of(CONFIG)
PLAN = Plan("gpt2")
ENGINES = ["--engines", "transformers", "--threads", "1", "2", "--precisions", "fp32", "int8"]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store that has this machine's rates, so that no test waits for them."""
    with Store(tmp_path / "store.db") as kept:
        kept.keep_rates(machine.detect().fingerprint, time.time(), encode(RATES))
        return kept.path


@pytest.fixture
def busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Another study holds the machine, as far as this test sees."""
    monkeypatch.setattr(locks, "lock_path", lambda: tmp_path / "lock" / "machine.lock")
    with locks.machine_lock("another"):
        yield


def predict(store: Path, *arguments: str) -> int:
    return cli.main(["predict", *arguments, "--store", str(store)])


def expecting(latency_s: float, spread: float = 1.2, peak_bytes: float = 6e8, plan: Plan = PLAN) -> Prediction:
    def around(value: float) -> Range:
        return Range(value / spread, value, value * spread)

    return Prediction(
        plan,
        around(latency_s),
        around(latency_s / 10),
        around(latency_s / 64),
        around(peak_bytes),
        around(1.0),
        64.0,
        "reading weights, 90% of a request",
        "a test",
    )


def study(models: tuple[str, ...] = ("gpt2", "distilgpt2")) -> Study:
    """A finished study of this machine: four plans a model, in one process each."""
    space = Space(models, ("transformers",), ("fp32", "int8"), (1, 2), (True,))
    speed = {"gpt2": 1.0, "distilgpt2": 0.5}
    found = tuple(
        measurement(plan, [speed[plan.model] * (0.4 if plan.quantized else 1.0) / plan.threads * x for x in (1, 1.02)])
        for plan in space.plans
    )
    return Study(
        "20260101-000000-abcd",
        time.time(),
        space,
        Workload((Prompt(text="one"), Prompt(text="two")), max_new_tokens=8),
        SLA.from_p50_ms(1500),
        Objective(),
        machine.detect(),
        Settings(),
        tuple(Checkpoint(m, Path("nowhere"), "synthetic", "made up", content_hash=m) for m in models),
        measurements=found,
        finished=True,
    )


@pytest.mark.parametrize(
    ("latency_s", "sla", "word"),
    [
        (1.0, "p50<=2s", "likely meets"),
        (1.0, "p50<=500ms", "likely misses"),
        (1.0, "p50<=1.1s", "cannot tell"),
        (1.0, "p95<=1.5s", "cannot tell"),  # a tail is longer than the median
        (1.0, "ttft<=200ms", "likely meets"),
        (1.0, "peak_rss<=400MB", "likely misses"),
        (1.0, "tokens_per_s>=10", "likely meets"),
        (1.0, "tokens_per_s>=100", "likely misses"),
        (1.0, "cost<=1USD", "cannot tell"),  # not predicted, and not guessed
    ],
)
def test_the_outlook_is_sure_only_when_the_whole_interval_is_on_one_side(latency_s: float, sla: str, word: str) -> None:
    assert judge(expecting(latency_s), parse_sla([sla]), 10**12, SHAPE)[0] == word


def test_memory_outweighs_everything_else() -> None:
    sla = parse_sla(["p50<=2s"])
    assert judge(expecting(1.0), sla, 10**8, SHAPE)[0] == "does not fit"
    assert judge(expecting(1.0), sla, int(6.5e8), SHAPE) == ("cannot tell", "memory", "may not fit")


def test_what_is_beaten_even_at_its_optimistic_end_is_not_worth_measuring() -> None:
    plans = [replace(PLAN, threads=n) for n in (1, 2, 4)]
    predictions = [expecting(s, plan=p) for s, p in zip((2.0, 1.0, 1.3), plans, strict=True)]
    found = answer(predictions, parse_sla(["p50<=5s"]), 10**12, {"gpt2": SHAPE})
    assert [(a.prediction.plan.threads, a.worth) for a in found] == [(2, True), (4, True), (1, False)]


def test_a_model_is_predicted_before_anything_is_measured_or_downloaded(
    store: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIG), encoding="utf-8")
    assert predict(store, str(config), "--sla", "p50<=100s", *ENGINES) == 0
    out = capsys.readouterr().out
    assert "These are predictions, not measurements" in out
    assert "no measured plan" in out
    assert "124.4 million parameters" in out
    assert out.count("likely meets") == 4
    assert "worth measuring: " in out


def test_the_answer_is_json_when_asked(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(store, "gpt2", "--sla", "p50<=1ms", "--json", *ENGINES) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["plan"] for row in found["plans"]} == {
        f"gpt2/transformers/{p}/t{n}/kv" for p in ("fp32", "int8") for n in (1, 2)
    }
    assert {row["outlook"] for row in found["plans"]} == {"likely misses"}
    assert "not measurements" in found["notice"]


def test_predicted_stands_beside_measured_for_everything_in_the_store(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(store) == 0
    assert "nothing was measured on this machine" in capsys.readouterr().out
    with Store(store) as kept:
        take_in(kept, json.dumps(exported(study())).encode(), "a test")
    assert predict(store) == 0
    out = capsys.readouterr().out
    assert "8 plans of 2 models on this machine" in out
    assert "gpt2/transformers/int8/t2/kv" in out
    assert "MAPE" in out
    assert predict(store, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["measured_plans"] == 8
    assert 0 < found["mape"]["all"]["latency_without_plan"] < 0.6


def test_a_plan_that_two_studies_measured_is_counted_once_and_shown_with_each(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Store(store) as kept:
        for id in ("20260101-000000-aaaa", "20260102-000000-bbbb"):
            take_in(kept, json.dumps(exported(replace(study(), id=id))).encode(), "a test")
    assert predict(store) == 0
    out = capsys.readouterr().out
    assert "16 measurements, a study each, of 8 plans of 2 models on this machine" in out
    assert len(re.findall(r"gpt2/transformers/int8/t2/kv +2026010[12]-000000-", out)) == 4  # distilgpt2's too
    assert re.search(r"all +16 ", out)
    assert predict(store, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["measured_plans"], found["observations"]) == (8, 16)
    assert {row["measured"]["study"][-4:] for row in found["plans"]} == {"aaaa", "bbbb"}


@pytest.mark.usefixtures("busy")
def test_nothing_is_waited_for_to_say_what_is_wrong_or_that_nothing_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare.db"  # without the rates of this machine
    assert predict(bare, "gpt2", "--engines", "tranformers") == 2
    assert "transformers" in capsys.readouterr().err
    assert predict(bare, "gpt2", "--engines", "transformers", "--threads", "0") == 2
    assert "threads" in capsys.readouterr().err
    assert predict(bare) == 0
    assert "nothing was measured on this machine" in capsys.readouterr().out
    assert predict(bare, "gpt2", *ENGINES) == 2
    assert "--no-lock" in capsys.readouterr().err


@pytest.mark.usefixtures("busy")
def test_the_flag_that_a_busy_machine_names_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rates, "kept", lambda *_, **__: RATES)  # measuring them takes seconds
    assert predict(tmp_path / "bare.db", "gpt2", "--no-lock", *ENGINES) == 0
    assert "warning: another timed study runs on this machine" in capsys.readouterr().err


def test_measurements_of_another_machine_are_not_learned_from(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = replace(study(), machine=replace(machine.detect(), cpu_model="another"))
    with Store(store) as kept:
        take_in(kept, json.dumps(exported(there)).encode(), "a test")
    assert predict(store) == 0
    assert "nothing was measured on this machine" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gpt3"], "gpt2"),
        (["--sla", "p50<=1s"], "--sla needs a MODEL"),
        (["gpt2", "--sla", "p50<=soon"], "number"),
        (["gpt2", "--engines", "tranformers"], "transformers"),
        (["gpt2", "--prompt-tokens", "0"], "at least 1 token"),
        (["nobody/never-seen"], "config.json"),
    ],
)
def test_bad_input_is_a_clear_message(
    store: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(store, *arguments) == 2
    err = capsys.readouterr().err
    assert words in err
    assert "Traceback" not in err
