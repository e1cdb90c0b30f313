"""How long a study may take is told from the past alone, and says so."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

import factories
from inferplan.forecast import forecast
from inferplan.store import Cost
from inferplan.workload import Prompt, Workload

A, B, OTHER = factories.plan("a"), factories.plan("a", threads=2), factories.plan("b")
WORK = Workload((Prompt(text="one"), Prompt(text="two")), max_new_tokens=10)


def test_without_a_past_nothing_is_known() -> None:
    told = forecast([A, B], WORK, [], rounds=2)
    assert (told.once_s, told.at_most_s, told.known, told.plans) == (None, None, 0, 2)


def test_a_process_costs_its_overhead_and_its_tokens() -> None:
    # 5 s beyond the requests, 0.1 s a token; this workload gives 20 tokens
    told = forecast([A], WORK, [Cost(A.id, 15.0, 10.0, 100)], rounds=3)
    assert told.once_s == pytest.approx(5.0 + 2.0)
    assert told.at_most_s == pytest.approx(3 * 7.0)


def test_a_plan_without_a_past_costs_what_its_model_does_else_what_all_do() -> None:
    past = [Cost(A.id, 15.0, 10.0, 100), Cost(OTHER.id, 3.0, 1.0, 100)]
    told = forecast([A, B], WORK, past, rounds=1)
    assert told.once_s == pytest.approx(14.0)
    assert (told.known, told.plans) == (1, 2)
    stranger = factories.plan("c")
    known = forecast([A, OTHER], WORK, past, rounds=1).once_s
    assert known is not None
    assert forecast([A, OTHER, stranger], WORK, past, rounds=1).once_s == pytest.approx(1.5 * known)


@given(some.lists(some.tuples(some.floats(0.1, 100), some.floats(0.01, 100), some.integers(1, 500)), min_size=1))
def test_a_forecast_lies_between_the_cheapest_and_the_dearest_past(past: list[tuple[float, float, int]]) -> None:
    costs = [Cost(A.id, beyond + requests, requests, tokens) for beyond, requests, tokens in past]
    each = [beyond + requests / tokens * 20 for beyond, requests, tokens in past]
    told = forecast([A], WORK, costs, rounds=2)
    assert told.once_s is not None
    assert min(each) * 0.999999 <= told.once_s <= max(each) * 1.000001


def test_a_process_without_a_token_tells_nothing() -> None:
    assert forecast([A], WORK, [Cost(A.id, 5.0, 4.0, 0)], rounds=1).once_s is None
