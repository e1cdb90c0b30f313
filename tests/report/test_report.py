"""Every format tells every outcome, hides nothing, and lets nothing through as markup."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

import fake_studies
from factories import measurement
from fake_studies import STUDIES
from inferplan.errors import UnknownNameError
from inferplan.report import (
    FORMATS,
    chosen_plan_csv,
    render,
    report_of,
    results_csv,
    rich_report,
    summary_csv,
    write_csvs,
)


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize("format", FORMATS)
def test_every_study_has_every_format(name: str, format: str) -> None:
    assert STUDIES[name]().workload.concurrency == 1
    text = render(report_of(STUDIES[name]()), format)
    assert "one request at a time" in text or '"concurrency": 1' in text


@pytest.mark.parametrize("format", FORMATS)
def test_synthetic_weights_are_said_in_every_format(format: str) -> None:
    assert "synthetic weights" in render(report_of(STUDIES["synthetic"]()), format)


def test_an_unknown_format_names_those_that_exist() -> None:
    with pytest.raises(UnknownNameError, match="table"):
        render(report_of(STUDIES["empty"]()), "pdf")


def test_csv_files_begin_with_the_published_columns(tmp_path: Path) -> None:
    report = report_of(STUDIES["chosen"]())
    paths = write_csvs(report, tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    heads = {path.name: path.read_text(encoding="utf-8").split("\n")[0] for path in paths}
    assert heads["results.csv"].startswith(
        "model_name,quantize_int8,num_threads,use_cache,prompt_chars,input_tokens,output_tokens,latency_ms,"
        "tokens_per_sec,rss_mb,"
    )
    published = (
        "model_name,quantize_int8,num_threads,use_cache,p50_latency_ms,p95_latency_ms,avg_tokens_per_sec,"
        "peak_rss_mb,avg_output_tokens,"
    )
    assert heads["summary.csv"].startswith(published)
    assert heads["chosen_plan.csv"] == heads["summary.csv"]


def test_chosen_plan_is_one_row_or_only_the_header() -> None:
    [row] = rows(chosen_plan_csv(report_of(STUDIES["chosen"]())))
    assert (row["plan_id"], row["quantize_int8"], row["use_cache"]) == ("distilgpt2/fake/int8/t4/kv", "True", "True")
    for name in ("none_meets", "undecided", "failed", "empty"):
        assert rows(chosen_plan_csv(report_of(STUDIES[name]()))) == []


def test_a_failed_plan_is_a_row_without_figures_and_with_its_reason() -> None:
    by_status = {row["status"]: row for row in rows(summary_csv(report_of(STUDIES["failed"]())))}
    assert set(by_status) == {"failed", "out_of_memory", "timeout", "unsupported"}
    for row in by_status.values():
        assert row["reason"]
        assert not row["p50_latency_ms"] + row["avg_tokens_per_sec"] + row["peak_rss_mb"] + row["usd_per_mtok"]


def test_every_sample_is_in_results_csv_with_disturbed_ones_marked() -> None:
    study = STUDIES["chosen"]()
    found = rows(results_csv(report_of(study)))
    assert len(found) == sum(len(m.samples) for m in study.measurements)
    assert [row["disturbed"] for row in found if row["disturbed"]] == ["steal 12%"]


def test_text_that_would_be_a_formula_is_guarded_and_numbers_are_not_harmed() -> None:
    [row, *_] = rows(summary_csv(report_of(STUDIES["hostile"]())))
    assert row["model_name"].startswith("'=")
    assert row["actual_kernel"] == "'=cmd()"
    assert float(row["p50_latency_ms"]) > 0


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    page = render(report_of(STUDIES["hostile"](), recipe="<script>x</script>"), "html")
    assert "default-src 'none'" in page
    assert "&lt;script&gt;" in page
    assert page.count("<svg") == 4
    assert not re.search(r"<script|<link|<iframe|@import|url\((?!#)|(?:src|href)=[\"'](?!#)", page, re.IGNORECASE)
    assert "\x1b" not in render(report_of(STUDIES["hostile"]()), "table")


def test_markdown_escapes_pipes_and_tags() -> None:
    text = render(report_of(STUDIES["hostile"]()), "md")
    assert "<script" not in text
    table = [re.sub(r"\\.", "", line) for line in text.split("\n") if line.startswith("|")]
    assert {line.count("|") for line in table} == {15, 3}


def test_no_plan_is_said_plainly_with_the_nearest() -> None:
    text = render(report_of(STUDIES["none_meets"]()), "table")
    assert "no plan meets p50<=10ms" in text
    assert re.search(r"smallest SLA it could meet +p50<=", text)
    assert "chosen plan " not in text


def test_a_race_is_told_by_what_was_started_with_the_rest_counted_and_explained_elsewhere() -> None:
    report = report_of(STUDIES["raced"]())
    text = render(report, "table")
    assert text.count("ruled out  ") == 1
    assert f"Not listed: 6 plans ruled out by prediction, never started; `inferplan report {report.study.id}" in text
    assert re.search(r"runner-up +none was confirmed; the nearest that was looked at is \S+: ruled out by a look", text)
    assert "no other plan meets" not in text
    for format in ("md", "html", "csv"):
        assert render(report, format).count("not started: predicted") >= 6


def test_a_plan_that_only_a_limit_kept_from_the_final_is_shown_as_looked_at() -> None:
    study = STUDIES["raced"]()
    seen = next(plan for plan, why in study.left_out if why.startswith("ruled out by a look"))
    left_out = tuple((plan, why) for plan, why in study.left_out if plan != seen)
    said = "the budget of 25 s ended the search: there was more to measure."
    study = replace(study, left_out=left_out, ended=said, finished=True)
    report = report_of(study)
    (row,) = [row for row in report.rows if row.plan == seen]
    assert (row.status, row.verdict) == ("looked at", "")
    text = render(report, "table")
    assert re.search(r"runner-up +none was confirmed; the nearest that was looked at is \S+: only looked at", text)
    assert re.search(r"limit +the budget of 25 s ended the search", text)
    assert "ended by its limits" in text
    assert json.loads(render(report, "json"))["ended"] == said


def test_of_what_was_disturbed_throughout_no_figure_is_said() -> None:
    plain = fake_studies.study(threads=(1,))
    plan = plain.plans[0]
    cut = measurement(plan, [1.0, 1.0], cut=[0, 1], disturbed=[0, 1])
    text = render(report_of(replace(plain, measurements=(cut,))), "table")
    assert "Disturbed: something else took CPU time or memory." in text
    assert "— ms" not in text


@pytest.mark.parametrize(
    ("measured", "said"),
    [
        (1, "no other plan that was measured meets the SLA; 3 plans were not started"),
        (3, "no other plan that was measured meets the SLA; 1 plan was not started"),
        (4, "no other plan meets the SLA"),
    ],
)
def test_that_no_other_plan_meets_the_sla_is_said_of_those_that_were_measured(measured: int, said: str) -> None:
    empty = fake_studies.study(threads=(1,))
    first = empty.plans[0]
    runs = [m for plan in empty.plans[:measured] for m in fake_studies.runs(plan, 1.0 if plan == first else 9.0)]
    text = render(report_of(replace(empty, measurements=tuple(runs))), "table")
    assert re.search(rf"runner-up +{said}\n", text)


def test_where_every_plan_was_ruled_out_unstarted_it_says_so_and_how_to_measure_them() -> None:
    study = STUDIES["raced"]()
    study = replace(study, measurements=(), left_out=tuple((plan, "not started: predicted") for plan in study.plans))
    report = report_of(study)
    assert report.selection.exit_code == 4
    assert re.search(
        r"no plan chosen +prediction rules every plan out \(--strategy exhaustive", render(report, "table")
    )


def test_undecided_says_what_would_settle_it_and_why_there_is_no_p95() -> None:
    text = render(report_of(STUDIES["undecided"]()), "table")
    assert re.search(r"to settle it +\S.*more", text)
    assert re.search(r"p95 —: 3 requests .* takes 10, and 59", text)


@pytest.mark.parametrize(("name", "code"), [("chosen", 0), ("none_meets", 3), ("undecided", 4), ("failed", 3)])
def test_json_carries_the_exit_code_and_every_plan(name: str, code: int) -> None:
    study = STUDIES[name]()
    data = json.loads(render(report_of(study), "json"))
    assert data["exit_code"] == code
    assert {plan["plan_id"] for plan in data["plans"]} == {plan.id for plan in study.space.plans}


@pytest.mark.parametrize("width", [80, 120, 240])
def test_a_terminal_sees_what_a_pipe_sees(width: int) -> None:
    from rich.console import Console

    console = Console(record=True, width=width, file=io.StringIO())
    report = report_of(STUDIES["chosen"]())
    console.print(rich_report(report, width))
    seen = " ".join(console.export_text().split())
    assert "one request at a time" in seen and "chosen plan" in seen
    assert all(len(line) <= width for line in console.export_text(clear=False).splitlines())
    chosen = report.chosen
    assert chosen is not None and chosen.plan.id in seen
