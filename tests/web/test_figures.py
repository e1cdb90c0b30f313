"""The charts of the web app say what the rows say, in the figure and in words, and let no markup through."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factories import MIB, measurement, plan
from fake_studies import STUDIES
from inferplan.plan import Plan
from inferplan.report import report_of
from inferplan.report.rows import Row, labels
from inferplan.result import PlanResult
from inferplan.sla import SLA, parse_sla
from inferplan.stats import Estimate, Ratio
from inferplan.web import _styles as looks
from inferplan.web import figures
from inferplan.web.figures import Chart

TINY = Plan("tiny", "fake")
SLA_1500 = parse_sla(["p50<=1500ms"])
KEYS = {"Pareto front", "chosen plan", *looks.VERDICTS}  # traces that are not a group
MARKUP = re.compile(r"</?b>|<br>|<extra></extra>")


def row(
    p50_ms: float | None = 100.0,
    peak_mib: float | None = 100.0,
    *,
    plan: Plan = TINY,
    chosen: bool = False,
    verdict: str = "meets",
    low_ms: float | None = None,
    high_ms: float | None = None,
) -> Row:
    value = None if p50_ms is None else p50_ms / 1000
    low, high = (None if ms is None else ms / 1000 for ms in (low_ms, high_ms))
    return Row(
        plan=plan, status="ok", reason="", chosen=chosen, verdict=verdict, tokens_per_s=value and 8 / value,
        p50=Estimate(value, low, high, None, None, 8, "requests"),
        peak_bytes=None if peak_mib is None else int(peak_mib * MIB),
    )  # fmt: skip


def many(count: int) -> list[Row]:
    """Plans of 15 groups, fastest first, the last one chosen."""
    engines, precisions = ("one", "two", "three"), ("fp32", "bf16", "fp16", "int8", "int4")
    return [
        row(
            10.0 + i, 1000.0 - i, verdict=("meets", "misses", "undecided")[i % 3], chosen=i == count - 1,
            plan=Plan("org/model", engines[i % 3], precisions[i // 3 % 5], 1 + i),
        )
        for i in range(count)
    ]  # fmt: skip


def everything(name: str, note: str = "") -> list[Chart | None]:
    """Every chart of a study."""
    report = report_of(STUDIES[name]())
    rows, sla, results = report.rows, report.selection.sla, report.study.results
    names = labels((r.plan for r in results), full=True)
    return [
        figures.trade_off(rows, sla, note),
        figures.latency(rows, sla, note),
        figures.throughput(rows, note),
        figures.memory(rows, note),
        figures.ecdf(results, names, 1.5, note),
        figures.time_split(results, names, note),
        figures.ratios(names, [Ratio(1.1, 1.0, 1.2, 8) for _ in names], f"p50 of {names[0]}", note),
    ]


def by_rows(rows: Sequence[Row], sla: SLA = SLA_1500) -> list[Chart]:
    made = [figures.trade_off(rows, sla), figures.latency(rows, sla), figures.throughput(rows), figures.memory(rows)]
    return [chart for chart in made if chart is not None]


def made(chart: Chart | None) -> Chart:
    assert chart is not None
    return chart


def spec(chart: Chart | None) -> dict[str, Any]:
    """The figure as the browser gets it, without the theme's template."""
    found: dict[str, Any] = json.loads(made(chart).figure.to_json())
    found["layout"].pop("template", None)
    return found


def group_traces(chart: Chart | None) -> list[dict[str, Any]]:
    return [trace for trace in spec(chart)["data"] if trace["name"] not in KEYS]


def texts(node: object) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for value in node.values():
            yield from texts(value)
    elif isinstance(node, list):
        for value in node:
            yield from texts(value)


def fonts(node: object) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key.endswith("font"):
                yield value
            yield from fonts(value)
    elif isinstance(node, list):
        for value in node:
            yield from fonts(value)


@pytest.mark.parametrize("name", ["chosen", "none_meets", "synthetic", "undecided", "hostile"])
def test_a_measured_study_has_every_chart(name: str) -> None:
    assert all(chart is not None for chart in everything(name))


@pytest.mark.parametrize("name", STUDIES)
def test_plotly_accepts_every_figure_as_it_is(name: str) -> None:
    for chart in everything(name):
        if chart is not None:
            checked = go.Figure(chart.figure.to_dict())  # raises on an unknown attribute or a wrong value
            assert json.loads(checked.to_json()) == json.loads(chart.figure.to_json())


@pytest.mark.parametrize("name", ["failed", "empty"])
def test_a_study_without_figures_has_no_chart_of_them(name: str) -> None:
    assert everything(name)[:-1] == [None] * 6


def test_nothing_at_all_makes_no_chart() -> None:
    assert by_rows([]) == []
    assert figures.ecdf([], [], None) is None
    assert figures.time_split([], []) is None
    assert figures.ratios([], [], "p50 latency") is None


@pytest.mark.parametrize("name", STUDIES)
def test_every_title_and_figure_says_the_note(name: str) -> None:
    for chart in everything(name, "synthetic weights"):
        if chart is not None:
            assert chart.title.endswith("(synthetic weights)")
            drawn = spec(chart)["layout"]["title"]["text"].replace("<br>", " ")
            assert drawn == looks.plain(chart.title)


@pytest.mark.parametrize("name", STUDIES)
def test_no_name_reaches_plotly_as_markup_or_formula(name: str) -> None:
    charts = [chart for chart in everything(name, "<i>note</i> & $x$") if chart is not None]
    for chart in charts:
        for text in texts(spec(chart)):
            assert "<" not in MARKUP.sub("", text), text
            assert "$" not in text
            assert "\x1b" not in text
            assert not re.search(r"&(?!amp;|lt;|gt;|#36;)", text), text
    if name == "hostile":
        assert len(charts) == 7
        assert all("script&gt;" in json.dumps(list(texts(spec(chart)))) for chart in charts)


def test_plain_text_is_shown_as_it_is_written() -> None:
    assert looks.plain("a<b>&amp;$x$\x1b\u202e") == "a&lt;b&gt;&amp;amp;&#36;x&#36;??"
    assert looks.wrapped("a/" * 30, 20) == "<br>".join(["a/" * 10] * 3)
    assert looks.wrapped("one two <three>", 8) == "one two<br>&lt;three&gt;"


@pytest.mark.parametrize("name", STUDIES)
def test_trade_off_holds_every_row_with_both_figures(name: str) -> None:
    report = report_of(STUDIES[name]())
    chart = figures.trade_off(report.rows, report.selection.sla)
    expected = sorted(
        (r.p50.value * 1000, r.peak_bytes / MIB)
        for r in report.rows
        if r.p50.value is not None and r.peak_bytes is not None
    )
    drawn = [] if chart is None else [p for t in group_traces(chart) for p in zip(t["x"], t["y"], strict=True)]
    assert len(drawn) == len(expected)
    for point, of_the_row in zip(sorted(drawn), expected, strict=True):
        assert point == pytest.approx(of_the_row)


@pytest.mark.parametrize("name", ["chosen", "none_meets", "synthetic", "undecided", "hostile"])
def test_charts_by_plan_hold_the_numbers_of_the_rows_at_their_places(name: str) -> None:
    report = report_of(STUDIES[name]())
    rows = [r for r in report.rows if r.p50.value is not None]
    latency, throughput, memory = by_rows(report.rows, report.selection.sla)[1:]
    for chart, numbers in (
        (latency, [(r.p50.value or 0) * 1000 for r in rows]),
        (throughput, [r.tokens_per_s for r in rows]),
        (memory, [(r.peak_bytes or 0) / MIB for r in rows]),
    ):
        drawn = {y: (x, t) for t in group_traces(chart) for x, y in zip(t["x"], t["y"], strict=True)}
        assert [drawn[place][0] for place in range(len(rows))] == pytest.approx(numbers)
        for place, r in enumerate(rows):
            assert drawn[place][1]["name"] == f"{r.plan.engine} {r.plan.precision}"
        axis = spec(chart)["layout"]["yaxis"]
        assert len(axis["ticktext"]) == len(axis["tickvals"]) == len(rows)


def test_whiskers_end_where_the_interval_does_and_a_missing_bound_has_none() -> None:
    chart = figures.latency([row(100, low_ms=90, high_ms=130), row(200, low_ms=150)], SLA_1500)
    [trace] = group_traces(chart)
    assert trace["error_x"]["array"] == pytest.approx([30, 0])
    assert trace["error_x"]["arrayminus"] == pytest.approx([10, 50])


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=25))
def test_the_front_holds_the_plans_that_no_other_beats(points: list[tuple[int, int]]) -> None:
    chart = figures.trade_off([row(float(x), float(y)) for x, y in points], SLA_1500)
    [front] = [t for t in spec(chart)["data"] if t["name"] == "Pareto front"]
    best = {
        (x, y) for x, y in points
        if not any(a <= x and b <= y and (a, b) != (x, y) for a, b in points)
    }  # fmt: skip
    assert [(round(x), round(y)) for x, y in zip(front["x"], front["y"], strict=True)] == sorted(best)
    assert front["line"]["shape"] == "hv"


@pytest.mark.parametrize("count", [15, 100])
def test_no_two_groups_look_alike_even_without_colour_for_the_first(count: int) -> None:
    found = list(looks.styles([("engine", f"p{i}") for i in range(count)]).values())
    assert len({(s.colour, s.symbol) for s in found}) == count
    assert len({(s.colour, s.pattern) for s in found}) == count
    assert len({s.symbol for s in found}) >= min(count, 14)


def test_a_filtered_chart_keeps_its_colours() -> None:
    rows = [row(plan=plan(precision=p), p50_ms=ms) for p, ms in (("fp32", 20.0), ("int8", 10.0), ("bf16", 30.0))]
    groups = figures.groups_of(rows)
    assert groups == (("fake", "fp32"), ("fake", "bf16"), ("fake", "int8"))
    whole = {t["name"]: t["marker"]["color"] for t in group_traces(figures.trade_off(rows, SLA_1500, "", groups))}
    for one in rows:
        for chart in (figures.trade_off([one], SLA_1500, "", groups), figures.memory([one], "", groups)):
            [trace] = group_traces(chart)
            assert trace["marker"]["color"] == whole[trace["name"]]


def test_a_marker_tells_the_verdict_and_the_chosen_plan_has_a_star_and_its_name() -> None:
    rows = [
        row(300, 10, verdict="misses"),
        row(100, 30, chosen=True, plan=plan(threads=2)),
        row(200, 20, verdict="undecided"),
    ]
    chart = figures.trade_off(rows, SLA_1500)
    [trace] = group_traces(chart)
    shapes = dict(zip(trace["x"], trace["marker"]["symbol"], strict=True))
    assert shapes == {100: "circle", 200: "circle-open-dot", 300: "circle-open"}
    assert {t["name"] for t in spec(chart)["data"]} >= {"meets", "misses", "undecided"}
    [star] = [t for t in spec(chart)["data"] if t["name"] == "chosen plan"]
    assert (star["x"], star["y"], star["marker"]["symbol"]) == ([100], [30], "star")
    assert "tiny fp32 t2 kv" in [a["text"] for a in spec(chart)["layout"]["annotations"]]
    for other in (figures.latency(rows, SLA_1500), figures.throughput(rows), figures.memory(rows)):
        assert [t.startswith("<b>★ tiny") for t in spec(other)["layout"]["yaxis"]["ticktext"]] == [False, True, False]


def test_bars_say_the_verdict_only_where_it_differs() -> None:
    mixed = [row(100, verdict="meets"), row(200, verdict="misses", plan=plan(precision="int8"))]
    assert [t["text"] for t in group_traces(figures.throughput(mixed))] == [["80.0"], ["40.0 ✕"]]
    assert "✕ misses the SLA" in made(figures.throughput(mixed)).alt
    alike = [replace(r, verdict="misses") for r in mixed]
    assert [t["text"] for t in group_traces(figures.throughput(alike))] == [["80.0"], ["40.0"]]


def test_the_limits_of_the_sla_are_lines_with_their_text() -> None:
    sla = parse_sla(["p50<=120ms", "peak_rss<=104857600B", "p95<=9s"])
    layout = spec(figures.trade_off([row(100, 90), row(150, 110)], sla))["layout"]
    vertical, horizontal = layout["shapes"]
    assert (vertical["xref"], vertical["x0"], vertical["x1"]) == ("x", pytest.approx(120), pytest.approx(120))
    assert (horizontal["yref"], horizontal["y0"], horizontal["y1"]) == ("y", pytest.approx(100), pytest.approx(100))
    assert {"p50&lt;=120ms", "peak_rss&lt;=104857600B"} <= {a["text"] for a in layout["annotations"]}
    assert spec(figures.latency([row()], parse_sla(["p95<=9s"])))["layout"].get("shapes") in (None, [])


@pytest.mark.parametrize(("limit", "arrow"), [("90s", "→"), ("120ms", "")])
def test_a_limit_out_of_sight_is_told_at_the_edge(limit: str, arrow: str) -> None:
    layout = spec(figures.latency([row(100), row(150)], parse_sla([f"p50<={limit}"])))["layout"]
    [label] = layout["annotations"]
    assert label["text"] == f"p50&lt;={limit}{' ' if arrow else ''}{arrow}"
    assert layout["xaxis"]["range"][1] < 1000  # plans that lie close together are not squeezed into a corner


def test_latency_is_on_a_log_axis_beyond_twentyfold() -> None:
    near, far = ([row(10), row(ms)] for ms in (200, 201))
    assert spec(figures.latency(near, SLA_1500))["layout"]["xaxis"].get("type") != "log"
    layout = spec(figures.trade_off(far, SLA_1500))["layout"]
    assert layout["xaxis"]["type"] == "log"
    low, high = layout["xaxis"]["range"]
    assert 10**low < 10 and 10**high > 1500  # with the limit, which is near
    [label] = layout["annotations"]
    assert 10 ** label["x"] == pytest.approx(1500)
    assert spec(figures.throughput(far))["layout"]["xaxis"].get("type") != "log"  # a bar needs its zero


@pytest.mark.parametrize("name", ["chosen", "none_meets", "synthetic", "undecided", "hostile"])
def test_the_alternative_names_the_chosen_plan_the_sla_and_the_count(name: str) -> None:
    report = report_of(STUDIES[name]())
    charts = by_rows(report.rows, report.selection.sla)
    assert len(charts) == 4
    for chart in charts:
        if report.chosen is not None:
            assert looks.printable(report.chosen.plan.id) in chart.alt
        else:
            assert "None of them is chosen" in chart.alt
        assert f"{sum(r.p50.value is not None for r in report.rows)} plan" in chart.alt
        assert 1 <= chart.alt.count(". ") + 1 <= 4
        assert chart.alt.endswith(".")
    for chart in charts[:2]:
        assert str(report.selection.sla) in chart.alt


def test_the_alternative_counts_the_plans_left_out() -> None:
    rows = [row(), row(None), replace(row(None, None), status="crashed")]
    assert "1 plan; 2 without both figures are left out." in made(figures.trade_off(rows, SLA_1500)).alt
    assert "1 plan; 2 without the figure are left out." in made(figures.latency(rows, SLA_1500)).alt
    assert "2 plans; 1 without the figure is left out." in made(figures.memory(rows)).alt


def test_the_alternative_stays_short_with_many_plans() -> None:
    rows = many(500)
    for chart in by_rows(rows):
        assert len(chart.alt) < 900
        assert re.search(r"and \d+ more", chart.alt)


def test_five_hundred_plans_make_few_traces_and_sixty_bars() -> None:
    rows = many(500)
    trade_off, *by_plan = by_rows(rows)
    assert len(figures.groups_of(rows)) == 15
    assert len(spec(trade_off)["data"]) <= 15 + len(KEYS)
    assert sum(len(t["x"]) for t in group_traces(trade_off)) == 500
    for chart in by_plan:
        assert len(spec(chart)["data"]) <= 15 + len(KEYS)
        assert sum(len(t["x"]) for t in group_traces(chart)) == 60
        assert "60 of 500 plans" in chart.title
        assert "first 60 of 500 plans" in chart.alt
        assert spec(chart)["layout"]["height"] < 2000
        assert spec(chart)["layout"]["yaxis"]["ticktext"][-1].startswith("<b>★")  # the chosen plan is never cut off


def test_a_chart_is_higher_with_more_plans() -> None:
    heights = [spec(figures.memory(many(n)))["layout"]["height"] for n in (1, 20, 60, 61)]
    assert heights[0] < heights[1] < heights[2] == heights[3]


def test_a_finger_on_a_high_chart_scrolls_the_page_and_on_a_low_one_zooms() -> None:
    trade_off, *by_plan = by_rows(many(60))
    for chart in by_plan:
        layout = spec(chart)["layout"]
        assert layout["dragmode"] is False
        assert layout["xaxis"]["fixedrange"] and layout["yaxis"]["fixedrange"]
    assert not spec(trade_off)["layout"]["xaxis"].get("fixedrange")


def test_long_names_are_clipped_on_the_axis_and_whole_when_pointed_at() -> None:
    long = Plan("organisation/" + "x" * 80, "fake", "int8", 4)
    found = spec(figures.latency([row(plan=long), row(plan=replace(long, threads=8))], SLA_1500))
    names = found["layout"]["yaxis"]["ticktext"]
    assert len(names) == 2 and all(len(name) <= 34 and "…" in name for name in names)
    [trace] = [t for t in found["data"] if t["name"] not in KEYS]
    assert long.id in trace["hovertext"][0].replace("<br>", "")
    assert max(map(len, trace["hovertext"][0].split("<br>"))) <= looks.HOVER_CHARS + len("<b></b>")


def test_pointing_at_a_plan_tells_its_figures_and_notes() -> None:
    report = report_of(STUDIES["synthetic"]())
    hover = {
        text for chart in by_rows(report.rows, report.selection.sla)
        for t in group_traces(chart) for text in t["hovertext"]
    }  # fmt: skip
    [chosen] = [text for text in hover if "<b>chosen</b>" in text]
    assert report.chosen is not None and report.chosen.plan.id in chosen
    for said in ("p50 ", "p95 ", "TTFT ", "tokens/s", "MiB", "USD per Mtok", "meets the SLA", "synthetic weights"):
        assert said in chosen
    assert any("oversubscribed" in text for text in hover)
    assert any("1 disturbed" in text for text in hover)


@pytest.mark.parametrize("name", ["chosen", "undecided", "hostile"])
def test_the_theme_keeps_its_colours_and_a_rerun_keeps_the_zoom(name: str) -> None:
    for chart in everything(name):
        layout = spec(chart)["layout"]
        assert layout["paper_bgcolor"] == layout["plot_bgcolor"] == "rgba(0, 0, 0, 0)"
        assert layout["uirevision"] == "inferplan"
        assert not any("color" in font for font in fonts(spec(chart)))


def test_an_ecdf_counts_the_clean_requests() -> None:
    done = measurement(plan(), [0.4, 0.1, 9.0, 0.2, 0.3], disturbed=[2])
    [curve] = spec(figures.ecdf([PlanResult(plan(), (done,))], ["a plan"], 0.25))["data"]
    assert curve["x"] == pytest.approx([100, 100, 200, 300, 400])
    assert curve["y"] == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert curve["line"]["shape"] == "hv"


def test_an_ecdf_of_requests_cut_short_stops_below_one_and_says_so() -> None:
    done = measurement(plan(), [0.1, 0.2, 0.5, 0.5], cut=[2, 3])
    chart = made(figures.ecdf([PlanResult(plan(), (done,))], ["a plan"], 0.3))
    [curve] = spec(chart)["data"]
    assert curve["y"][-1] == 0.5
    assert "a plan 50% of 4 requests" in chart.alt
    assert "a plan at 50%, 2 of 4 cut short" in chart.alt


def test_what_lies_within_the_sla_is_a_lower_bound_where_a_request_was_cut_before_it() -> None:
    done = measurement(plan(), [0.1, 0.2, 0.25], cut=[2])
    assert "at least 67% of 3" in made(figures.ecdf([PlanResult(plan(), (done,))], ["a plan"], 0.3)).alt


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 50))
def test_the_share_within_the_sla_is_that_of_the_samples(times: list[int], limit: int) -> None:
    result = PlanResult(plan(), (measurement(plan(), [t / 100 for t in times]),))
    chart = made(figures.ecdf([result], ["a plan"], limit / 100))
    share = sum(t <= limit for t in times) / len(times)
    found = re.search(r"a plan ([\d.]+)% of (\d+) requests", chart.alt)
    assert found is not None
    assert float(found[1]) == pytest.approx(100 * share, rel=0.05)
    assert int(found[2]) == len(times)


def test_ten_curves_at_most_each_told_apart_without_colour_and_the_rest_counted() -> None:
    results = [PlanResult(plan(threads=t), (measurement(plan(threads=t), [0.1 * t]),)) for t in range(1, 14)]
    chart = made(figures.ecdf(results, [f"t{r.plan.threads}" for r in results], None))
    curves = spec(chart)["data"]
    assert len({(c["line"]["color"], c["line"]["dash"]) for c in curves}) == 10
    assert "10 of 13 plans" in chart.title and "first 10 of 13 plans" in chart.alt
    assert "Slowest request: t1 100 ms" in chart.alt


def test_a_failed_plan_has_neither_curve_nor_bar() -> None:
    done, died = measurement(plan(), [0.1, 0.2]), measurement(plan(), [0.1], round=2, status="crashed", reason="gone")
    result = PlanResult(plan(), (done, died))
    assert figures.ecdf([result], ["a plan"], None) is None
    assert figures.time_split([result], ["a plan"]) is None


def test_time_parts_follow_their_formula() -> None:
    one = measurement(plan(), [1.0, 3.0], ttft_s=0.25, startup_s=0.5, load_s=1.5)
    late = replace(one, wall_s=8.0, samples=tuple(replace(s, latency_s=s.latency_s + 0.1) for s in one.samples))
    parts = figures.time_parts(PlanResult(plan(), (late,)))
    assert parts is not None
    assert parts.prefill_s == pytest.approx(0.25)
    assert parts.decode_s == pytest.approx((0.75 + 2.75) / 2)
    assert parts.after_s == pytest.approx(0.1)
    assert parts.start_and_load_s == pytest.approx(2.0 / 2)
    assert parts.between_s == pytest.approx((8.0 - 2.0 - 4.2) / 2)
    assert parts.total_s == pytest.approx(8.0 / 2)  # all of the process's time, over its two requests


def test_time_of_a_process_that_does_not_tell_is_not_known() -> None:
    for change in ({"startup_s": None}, {"load_s": None}, {"wall_s": 0.0}):
        silent = replace(measurement(plan(), [1.0]), **change)
        result = PlanResult(plan(), (silent,))
        parts = figures.time_parts(result)
        assert parts is not None and parts.start_and_load_s is None and parts.between_s is None
        chart = made(figures.time_split([result], ["a plan"]))
        assert [t["name"] for t in spec(chart)["data"]] == ["prefill", "decode"]
        assert "of 1 plan they are not known" in chart.alt


def test_time_is_split_only_where_every_request_ran_in_full() -> None:
    whole = PlanResult(plan(), (replace(measurement(plan(), [1.0, 2.0]), wall_s=9.0),))
    cut = PlanResult(plan(threads=2), (measurement(plan(threads=2), [1.0, 2.0], cut=[1]),))
    chart = made(figures.time_split([whole, cut], ["whole", "cut"]))
    assert spec(chart)["layout"]["yaxis"]["ticktext"] == ["whole"]
    assert spec(chart)["layout"]["barmode"] == "stack"
    assert sum(t["x"][0] for t in spec(chart)["data"]) == pytest.approx(9.0 / 2)
    assert "1 without requests in full is left out" in chart.alt
    assert "prefill 0.150 s" in chart.alt
    assert figures.time_split([cut], ["cut"]) is None


def test_ratios_are_drawn_with_their_interval_and_the_band_of_a_tie() -> None:
    values = [Ratio(1.2, 1.1, 1.4, 8), Ratio(0.99, 0.9, 1.1, 8), Ratio(None, None, None, 0), Ratio(0.8, None, None, 3)]
    chart = made(figures.ratios(["slower", "open", "none", "few"], values, "p50 latency"))
    [trace] = spec(chart)["data"]
    drawn = {y: (x, s) for x, y, s in zip(trace["x"], trace["y"], trace["marker"]["symbol"], strict=True)}
    assert drawn == {0: (1.2, "circle"), 1: (0.99, "circle-open"), 2: (0.8, "circle-open")}
    ends = dict(
        zip(trace["y"], zip(trace["error_x"]["arrayminus"], trace["error_x"]["array"], strict=True), strict=True)
    )
    assert ends[0] == pytest.approx((0.1, 0.2)) and ends[2] == (0, 0)
    layout = spec(chart)["layout"]
    band, line = layout["shapes"]
    assert (band["x0"], band["x1"]) == (pytest.approx(1 / 1.03), 1.03)
    assert line["x0"] == line["x1"] == 1
    assert layout["yaxis"]["ticktext"] == ["slower", "open", "few"]
    assert chart.alt.startswith("p50 latency, B over A: 3 ratios; 1 without a ratio is left out.")
    assert "excludes 1 for 1 of them" in chart.alt
