"""The command line: what a user types, what comes back, and with which exit code."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inferplan import cli
from inferplan.store import Store, default_store_path
from inferplan.study import load

FAST = ["--engines", "fake", "--models", "tiny", "--threads", "1", "--max-new-tokens", "4", "--no-lock", "--no-watch"]


def optimize(*extra: str, sla: str = "p50<=10s", strategy: str = "exhaustive") -> list[str]:
    return ["optimize", "--sla", sla, "--strategy", strategy, *FAST, *extra]


def latest(capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert cli.main(["studies", "--json"]) == 0
    return str(json.loads(capsys.readouterr().out)[0]["id"])


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_plan_is_chosen_and_the_files_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(optimize("--out", str(tmp_path))) == 0
    out = capsys.readouterr().out
    assert "tiny/fake/int8/t1/kv" in out
    assert "synthetic weights" in out
    assert "one request at a time" in out
    assert len(rows(tmp_path / "summary.csv")) == 4
    chosen = rows(tmp_path / "chosen_plan.csv")
    assert len(chosen) == 1 and chosen[0]["verdict"] == "meets"
    results = rows(tmp_path / "results.csv")
    assert {r["output_tokens"] for r in results} == {"4"}
    assert {r["num_threads"] for r in results} == {"1"}


def test_no_plan_meets_the_sla_is_said_and_nothing_is_chosen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(optimize("--out", str(tmp_path), sla="p50<=0.01ms")) == 3
    assert "no plan meets" in capsys.readouterr().out.lower()
    assert rows(tmp_path / "chosen_plan.csv") == []


def test_too_few_samples_are_undecided_not_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(optimize(sla="p95<=10s")) == 4
    assert "59" in capsys.readouterr().out


def test_a_race_confirms_its_winner_in_six_processes_and_says_what_it_ruled_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["optimize", "--sla", "p50<=10s", *FAST, "--out", str(tmp_path)]) == 0  # the usual strategy
    captured = capsys.readouterr()
    assert "racing over 4 plans; the winner will be confirmed in at least 6 processes" in captured.err
    with Store(default_store_path()) as store:
        study = load(store, "latest")
    looks = [m for m in study.measurements if m.look and m.round == 1]
    assert {m.plan for m in looks} == set(study.plans)
    assert {len(m.samples) for m in looks} == {2}
    chosen = study.select().winner
    assert chosen is not None
    assert chosen.result.processes >= 6
    assert rows(tmp_path / "chosen_plan.csv")[0]["verdict"] == "meets"


def test_a_race_converts_what_its_looks_need_and_no_more(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["optimize", "--sla", "p50<=10s", *FAST, "--max-trials", "1"]) in (0, 4)
    said = capsys.readouterr().err
    assert said.index("racing over") < said.index("converted tiny to ")
    assert said.count("converted tiny to ") == 1
    assert cli.main(optimize()) == 0
    assert capsys.readouterr().err.count("converted tiny to ") == 1  # the other precision


def test_rounds_are_refused_of_a_race_that_is_gone_on_with(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["optimize", "--sla", "p50<=10s", *FAST, "--max-trials", "1"]) in (0, 4)
    capsys.readouterr()
    assert cli.main(["optimize", "--resume", "latest", "--rounds", "3", *FAST]) == 2
    assert "--rounds 3 cannot be had with --strategy racing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--strategy", "racing"], "--strategy"),
        (["--models", "small", "--threads", "2"], "--models, --threads"),
        (["--kv-cache", "on", "--retakes", "0"], "--kv-cache, --retakes"),
        (["--option", "token_ms=2.0"], "--option"),
        (["--prompt-tokens", "3,4"], "--prompt-tokens"),
        (["--max-new-tokens", "5"], "--max-new-tokens"),
    ],
)
def test_what_would_make_another_study_is_refused_on_resuming(
    flags: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(optimize("--max-trials", "1")) == 0
    capsys.readouterr()
    assert cli.main(["optimize", "--resume", "latest", "--no-lock", *flags]) == 2
    assert f"goes on as it began, without {named}: give that to a new study" in capsys.readouterr().err
    assert cli.main([*optimize("--max-trials", "2"), "--resume", "latest"]) == 0  # said again, it is the same
    again = ["--threads", "1", "1", "--kv-cache", "off", "on", "--max-trials", "3"]
    assert cli.main(["optimize", "--resume", "latest", "--no-lock", *again]) == 0


def test_a_budget_ends_the_search_and_what_is_known_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(optimize("--max-trials", "2", strategy="random")) == 0
    out = capsys.readouterr().out
    assert out.count("waiting") == 2
    assert "not shown of processes to come" in out or "meets" in out
    with Store(default_store_path()) as store:
        study = load(store, "latest")
    assert len(study.measurements) == 2
    assert cli.main(["optimize", "--resume", study.id, "--max-trials", "3", *FAST]) == 0
    with Store(default_store_path()) as store:
        assert len(load(store, study.id).measurements) == 3


def test_json_is_json_and_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(optimize("--json")) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)
    assert captured.err == ""


def test_a_report_re_selects_under_other_terms(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(optimize())
    study = latest(capsys)
    assert cli.main(["report", study]) == 0
    assert cli.main(["report", study, "--sla", "p50<=0.01ms"]) == 3
    assert cli.main(["report", "latest", "--minimize", "memory"]) == 0
    capsys.readouterr()
    for format_, words in [("csv", "model_name"), ("json", "{"), ("md", "|"), ("html", "<html")]:
        assert cli.main(["report", study, "--format", format_]) == 0
        assert words in capsys.readouterr().out


def test_bench_measures_one_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "tiny/fake/int8/t2/nokv/token_ms=0.2", "--max-new-tokens", "4", "--no-lock"]) == 0
    assert "tiny/fake/int8/t2/nokv/token_ms=0.2" in capsys.readouterr().out


def test_plans_lists_what_can_run_and_why_the_rest_cannot(capsys: pytest.CaptureFixture[str]) -> None:
    space = ["--engines", "fake", "--models", "tiny", "--threads", "1", "--precisions", "fp32", "int4"]
    assert cli.main(["plans", *space]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert sum("cannot run here" in line and "int4" in line for line in lines) == 2


def test_plans_that_cannot_run_are_rows_of_the_study(tmp_path: Path) -> None:
    assert cli.main(optimize("--precisions", "fp32", "int4", "--out", str(tmp_path))) == 0
    summary = rows(tmp_path / "summary.csv")
    out = [r for r in summary if r["status"] == "unsupported"]
    assert len(summary) == 4 and len(out) == 2
    assert all("int4" in r["reason"] and r["p50_latency_ms"] == "" for r in out)


def test_export_import_and_delete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(optimize())
    study = latest(capsys)
    file = tmp_path / "study.json"
    assert cli.main(["export", study, "--out", str(file)]) == 0
    other = ["--store", str(tmp_path / "other.db")]
    assert cli.main(["import", str(file), *other]) == 0
    capsys.readouterr()
    assert cli.main(["report", study, *other, "--format", "json"]) == 0
    there = capsys.readouterr().out
    assert cli.main(["report", study, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(there)
    assert cli.main(["delete", study, *other]) == 2
    assert cli.main(["delete", study, *other, "--yes"]) == 0
    assert cli.main(["report", study, *other]) == 2


def test_compare_finds_a_study_no_different_from_itself(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(optimize())
    study = latest(capsys)
    assert cli.main(["compare", study, study, "--fail-if", "p50>+5%"]) == 0
    assert "tiny/fake/fp32/t1/kv" in capsys.readouterr().out


def test_a_gate_fails_when_a_plan_became_slower(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(optimize("--all-rounds"))
    study = latest(capsys)
    data = tmp_path / "study.json"
    assert cli.main(["export", study, "--out", str(data)]) == 0
    slower = json.loads(data.read_text())
    text = json.dumps(slower).replace(study, study + "b")
    slower = json.loads(text)
    _slow_down(slower)
    data.write_text(json.dumps(slower))
    assert cli.main(["import", str(data)]) == 0
    assert cli.main(["compare", study, study + "b", "--fail-if", "p50>+5%"]) == 1


def _slow_down(value: object) -> None:
    """Every latency in an exported study, half as long again."""
    if isinstance(value, dict):
        if "latency_s" in value and "token_times_s" in value:
            value["latency_s"] *= 1.5
            value["token_times_s"] = [t * 1.5 for t in value["token_times_s"]]
        for item in value.values():
            _slow_down(item)
    elif isinstance(value, list):
        for item in value:
            _slow_down(item)


def test_doctor_says_what_it_sees(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--quick"]) == 0
    text = capsys.readouterr().out
    assert "transformers" in text and "cores" in text.lower()
    assert cli.main(["doctor", "--quick", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["machine"]


def test_few_prompts_work_and_say_what_cannot_be_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "p.txt"
    prompts.write_text("one\ntwo\n")
    assert cli.main(optimize("--prompts", str(prompts), "--rounds", "1")) == 4
    assert "5" in capsys.readouterr().out


def test_prompts_come_from_standard_input_as_json_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = '{"prompt": "one"}\n{"prompt": "two", "max_new_tokens": 2}\n'
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    assert cli.main(optimize("--prompts", "-")) in (0, 4)
    with Store(default_store_path()) as store:
        workload = load(store, "latest").workload
    assert [prompt.text for prompt in workload.prompts] == ["one", "two"]
    assert workload.output_tokens(1) == 2
    monkeypatch.setattr(sys, "stdin", io.StringIO("no JSON here"))
    assert cli.main(optimize("--prompts", "-")) == 2
    assert "standard input, line 1" in capsys.readouterr().err


BAD = [
    ([*FAST[:2], "--models", "tiny"], "--sla"),
    (["--sla", "p50<=0ms"], "positive"),
    (["--sla", "p50<=-3ms"], "positive"),
    (["--sla", "p50<=3 parsecs"], "units"),
    (["--sla", "p50<=fast"], "number"),
    (["--sla", "latency<=3s"], "metric"),
    (["--sla", "p50<=1s", "--engines", "fakr"], "engine"),
    (["--sla", "p50<=1s", "--threads", "0"], "threads"),
    (["--sla", "p50<=1s", "--threads", "-2"], "threads"),
    (["--sla", "p50<=1s", "--max-new-tokens", "0"], "max_new_tokens"),
    (["--sla", "p50<=1s", "--rounds", "0"], "rounds"),
    (["--sla", "p50<=1s", "--strategy", "guessing"], "guessing"),
    (["--sla", "p50<=1s", "--budget", "soon"], "soon"),
    (["--sla", "p50<=1s", "--budget", "0s"], "budget"),
    (["--sla", "p50<=1s", "--max-trials", "0"], "trials"),
    (["--sla", "p50<=1s", "--prompts", "no-such-file.txt"], "no-such-file.txt"),
    (["--sla", "p50<=1s", "--prompt-tokens", "a,b"], "a,b"),
    (["--sla", "p50<=1s", "--prompt-tokens", "0"], "at least 1"),
    (["--sla", "p50<=1s", "--minimize", "joy"], "joy"),
    (["--sla", "p50<=1s", "--prices", "no-prices.toml"], "no-prices.toml"),
    (["--sla", "p50<=1s", "--option", "mmap"], "mmap"),
    (["--sla", "p50<=1s", "--engines", "fake", "--option", "mmap=on"], "mmap"),
    (["--sla", "p50<=1s", "--precisions", "int3"], "int3"),
    (["--sla", "p50<=1s", "--rounds", "3"], "--rounds 3"),
    (["--sla", "p50<=1s", "--all-rounds", "--strategy", "tpe"], "--strategy exhaustive"),
    (["--sla", "p50<=1s", "--strategy", "raceing"], "racing"),
    (["--sla", "p50<=1s", "--resume", "nonesuch"], "nonesuch"),
    (["--resume", ""], "unknown study ''"),
    (["--sla", "p50<=1s", "--models", "gpt3", "--engines", "transformers"], "gpt3"),
    (["--sla", "p50<=1s", "--store", "/proc/nowhere/store.db"], "store"),
    (["--sla", "p50<=1s", "--out", "/proc/nowhere"], "/proc/nowhere"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[" ".join(a)[-40:] for a, _ in BAD])
def test_bad_input_is_a_clear_message_and_exit_code_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base = [] if "--engines" in arguments else ["--engines", "fake"]
    assert cli.main(["optimize", "--no-lock", "--models", "tiny", *base, *arguments]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "arguments", [["report", "nonesuch"], ["compare", "a", "b"], ["delete", "x", "--yes"], ["bench", "x"]]
)
def test_unknown_studies_and_plans_are_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_unknown_formats_and_gates_are_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(optimize())
    assert cli.main(["report", "latest", "--format", "pdf"]) == 2
    assert "Known: csv, html, json, md, table" in capsys.readouterr().err
    assert cli.main(["compare", "latest", "latest", "--fail-if", "p50 is slow"]) == 2


def test_a_foreign_store_is_refused_and_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "notes.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE notes (text)")
    before = path.read_bytes()
    assert cli.main(["studies", "--store", str(path)]) == 2
    assert str(path) in capsys.readouterr().err
    assert path.read_bytes() == before


def test_an_argument_that_does_not_exist_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["optimize", "--nonsense"]) == 2
    said = capsys.readouterr().err
    assert "--nonsense" in said
    assert "--help" in said


def test_the_benchmark_door_takes_the_published_flags() -> None:
    parser = cli.build_benchmark_parser()
    line = "--sla_ms 1500 --models distilgpt2 gpt2 --threads 1 2 4 --max_new_tokens 64 --prompts p.txt"
    arguments = parser.parse_args(line.split())
    assert (arguments.sla_ms, arguments.models, arguments.threads) == (1500.0, ["distilgpt2", "gpt2"], [1, 2, 4])
    assert (arguments.max_new_tokens, arguments.prompts, arguments.rounds) == (64, "p.txt", None)
    assert (arguments.precisions, arguments.kv_cache, arguments.out) == (["fp32", "int8"], ["on", "off"], ".")


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf"])
def test_the_benchmark_door_refuses_an_sla_that_is_not_positive(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.benchmark_main([f"--sla_ms={value}"]) == 2
    assert "positive" in capsys.readouterr().err


def _start(tmp_path: Path, *extra: str) -> subprocess.Popen[str]:
    slow = ["--option", "token_ms=20.0", "--precisions", "fp32", "--kv-cache", "on", "--max-new-tokens", "8"]
    command = [sys.executable, "-m", "inferplan", *optimize(*slow, "--store", str(tmp_path / "s.db"), *extra)]
    pipe, env = subprocess.PIPE, dict(os.environ)
    # A test run in the background of a shell hands on that Ctrl-C is ignored; a user's terminal does not.
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=env)
    finally:
        signal.signal(signal.SIGINT, heard)


def _wait_for_samples(tmp_path: Path, count: int) -> int:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = _samples(tmp_path)
        if found >= count:
            return found
        time.sleep(0.02)
    raise AssertionError(f"no {count} samples came")


def _samples(tmp_path: Path) -> int:
    path = tmp_path / "s.db"
    if not path.exists():
        return 0
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
            return int(db.execute("SELECT count(*) FROM sample").fetchone()[0])
    except sqlite3.OperationalError:
        return 0


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_what_was_measured_and_says_how_to_go_on(tmp_path: Path, number: signal.Signals) -> None:
    process = _start(tmp_path)
    _wait_for_samples(tmp_path, 3)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in err and "Traceback" not in err
    study = err.split("--resume ")[1].split()[0]
    assert cli.main(["optimize", "--resume", study, "--no-lock", "--store", str(tmp_path / "s.db")]) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_kill_9_loses_at_most_the_sample_in_flight(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = _start(tmp_path)
    seen = _wait_for_samples(tmp_path, 3)
    process.kill()
    process.communicate()
    assert _samples(tmp_path) >= seen
    assert cli.main(["optimize", "--resume", "latest", "--no-lock", "--store", str(tmp_path / "s.db")]) == 0
    assert "tiny/fake/fp32/t1/kv" in capsys.readouterr().out


def test_help_is_instant_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from inferplan import cli; cli.build_parser().format_help(); "
        "heavy = {'torch', 'transformers', 'scipy', 'numpy', 'pandas', 'rich', 'sqlite3'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
