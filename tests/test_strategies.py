"""Strategies: the search that a study asks for, and what a race expects of its plans."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factories import measurement
from fake_studies import study
from inferplan._codec import encode
from inferplan.errors import InputError, UnknownNameError
from inferplan.machine import library_versions
from inferplan.measurement import Request
from inferplan.models import Checkpoint
from inferplan.plan import Plan
from inferplan.predict import observations
from inferplan.rates import LIBRARIES, Rate, Rates
from inferplan.result import results
from inferplan.search.exhaustive import Exhaustive
from inferplan.search.racing import Racing
from inferplan.selection import parse_sla
from inferplan.shapes import shape_of
from inferplan.store import Store
from inferplan.strategies import announced, expectations, expected, looked_at, search_for
from inferplan.study import STRATEGIES, Settings, Study
from inferplan.terms import seconds_of
from inferplan.workload import Prompt

RATES = Rates((Rate(1, 20e9, "a kernel", {"fp32": 15e9}, {"fp32": 50e9}),), 2.0)
GPT2 = {
    "model_type": "gpt2",
    "n_layer": 12,
    "n_embd": 768,
    "n_head": 12,
    "n_positions": 1024,
    "vocab_size": 50257,
}


class Tokens:
    """Prompts of growing lengths, for every model."""

    def requests(self, model: str) -> tuple[Request, ...]:
        return tuple(Request(i, tuple(range(4 + 10 * i)), 8) for i in range(8))

    def warmup(self, model: str) -> tuple[Request, ...]:
        return ()

    def artifact(self, plan: Plan) -> Path:
        return Path()

    def converted(self, plan: Plan) -> None:
        return None


def asking(strategy: str) -> Study:
    return replace(study(models=("tiny", "small")), settings=Settings(strategy=strategy))


def test_every_strategy_has_its_search() -> None:
    kinds = {name: type(search_for(asking(name), Tokens())) for name in STRATEGIES}
    races = {"racing": Racing, "tpe": Racing, "nsga2": Racing}
    assert kinds == {"exhaustive": Exhaustive, "random": Exhaustive, **races}


def test_random_is_another_order_of_the_same_plans_and_the_same_each_time() -> None:
    def order(asked: Study) -> list[Plan]:
        search, plans = search_for(asked, Tokens()), []
        for _ in asked.plans:
            proposal = search.ask()
            assert proposal is not None
            plans.append(proposal.plan)
            search.tell(measurement(proposal.plan, [1.0] * 8))
        return plans

    drawn = order(asking("random"))
    assert set(drawn) == set(asking("random").plans)
    assert drawn != order(asking("exhaustive"))
    assert drawn == order(asking("random"))
    assert drawn != order(replace(asking("random"), id="another"))


def test_a_strategy_that_does_not_exist_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="racing"):
        Settings(strategy="raceing")


@given(st.lists(st.integers(1, 500), min_size=1, max_size=20))
def test_a_look_sends_prompts_of_middle_length(lengths: list[int]) -> None:
    places = looked_at(lengths)
    assert len(places) == min(len(lengths), 2) == len(set(places))
    ordered = sorted(lengths)
    middle = {ordered[(len(lengths) - 1) // 2], ordered[len(lengths) // 2]}
    assert {lengths[place] for place in places} >= middle or len(lengths) % 2


def test_a_race_says_beforehand_how_many_processes_its_winner_takes() -> None:
    median = asking("racing")
    assert "at least 6 processes to show p50<=1500ms at 95%" in announced(median)
    tail = replace(median, sla=study(sla=("p50<=1500ms", "p95<=2s")).sla)
    assert "at least 70 processes to show p95<=2s at 95%" in announced(tail)
    assert announced(asking("exhaustive")) == ""


def test_that_a_limit_or_the_rounds_are_too_few_is_said_beforehand() -> None:
    few = replace(asking("racing"), settings=Settings(strategy="racing", max_trials=6))
    assert "6 in all are too few" in announced(few)
    assert "too few" not in announced(replace(few, settings=replace(few.settings, max_trials=60)))
    short = replace(few, settings=Settings(strategy="racing", budget_s=40.0))
    assert announced(short).endswith(", if 40 s are enough for that")
    tail = replace(asking("exhaustive"), sla=parse_sla(["p50<=1s", "p95<=2s"]))
    said = "2 rounds of 8 prompts cannot bound p95<=2s, which takes 59 requests a plan: --rounds 8"
    assert announced(tail) == said
    assert announced(replace(tail, settings=Settings(rounds=8))) == ""


def test_more_is_expected_of_a_larger_precision_and_what_was_measured_is_believed() -> None:
    plans = [Plan("gpt2", "llamacpp", precision, 1) for precision in ("fp32", "int8")]
    foreseen = expectations(plans, {"gpt2": shape_of(GPT2)}, RATES, {"gpt2": [10, 30]}, (0, 1), 8)
    before = foreseen([])
    assert before[plans[0]].latency_s.value > before[plans[1]].latency_s.value
    seen = measurement(plans[0], [before[plans[0]].latency_s.value * 3] * 4)
    after = foreseen([seen])
    assert after[plans[0]].latency_s.value > 1.5 * before[plans[0]].latency_s.value
    assert after[plans[1]].latency_s.value > before[plans[1]].latency_s.value  # of the same engine


def test_what_is_expected_is_of_the_requests_that_a_look_sends(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(GPT2))
    # The prompts of middle length ask for the longest answers: what a look sends must speak for the median request.
    outputs = [8, 8, 8, 512, 512, 8, 8, 8]
    looks = looked_at([len(request.prompt_ids) for request in Tokens().requests("gpt2")], outputs)
    assert {outputs[place] for place in looks} == {8}
    prompts = tuple(Prompt(text=f"{i}", max_new_tokens=tokens) for i, tokens in enumerate(outputs))
    asked = replace(study(models=("gpt2",), prompts=prompts), settings=Settings(strategy="racing"))
    asked = replace(asked, checkpoints=(Checkpoint("gpt2", tmp_path, "local", "float32", content_hash="a hash"),))
    plan = asked.plans[0]
    with Store(tmp_path / "store.db") as store:
        rates = replace(RATES, libraries=library_versions(LIBRARIES))
        store.keep_rates(asked.machine.fingerprint, 0.0, encode(rates))
        foreseen = expected(asked, Tokens(), store, lambda text: None)
    assert foreseen is not None
    lengths = {"gpt2": [4 + 10 * i for i in range(8)]}
    of_a_look = expectations([plan], {"gpt2": shape_of(GPT2)}, rates, lengths, looks, 8)
    assert foreseen([])[plan].latency_s.value == pytest.approx(of_a_look([])[plan].latency_s.value)


def test_where_everything_is_disturbed_a_race_still_learns_from_it() -> None:
    plans = [Plan("gpt2", "llamacpp", precision, 1) for precision in ("fp32", "int8")]
    foreseen = expectations(plans, {"gpt2": shape_of(GPT2)}, RATES, {"gpt2": [10, 30]}, (0, 1), 8)
    before = foreseen([])
    noisy = measurement(plans[0], [before[plans[0]].latency_s.value * 3] * 2, disturbed=[0, 1])
    after = foreseen([noisy])
    assert after[plans[0]].latency_s.value > 1.5 * before[plans[0]].latency_s.value
    assert observations(results(plans, [noisy])) == ()  # and it is no figure


def test_a_model_of_unknown_sizes_is_expected_nothing_of() -> None:
    known, unknown = Plan("gpt2", "llamacpp"), Plan("other", "llamacpp")
    shapes = {"gpt2": shape_of(GPT2)}
    foreseen = expectations([known, unknown], shapes, RATES, {"gpt2": [10], "other": [10]}, (0,), 8)
    assert set(foreseen([])) == {known}


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("5m", 300), ("1.5h", 5400), (" 2 min ", 120), ("0.5s", 0.5)]
)
def test_a_length_of_time_is_read(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "5 days", "-3s", "1e3", "5m30s"])
def test_what_is_no_length_of_time_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="length of time"):
        seconds_of(text)
