"""Plans have readable, stable ids; spaces expand to every combination."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferplan.errors import InputError
from inferplan.plan import OptionValue, Plan, Space

_names = st.text(st.characters(categories=["Ll", "Lu", "Nd"], include_characters="-._"), min_size=1)
_models = st.lists(_names, min_size=1, max_size=3).map("/".join)
_values: st.SearchStrategy[OptionValue] = (
    st.booleans() | st.integers(-99, 99) | st.sampled_from(["sdpa", "q8_0", "f16"])
)
_options = st.dictionaries(st.sampled_from(["mmap", "attention", "ubatch"]), _values).map(lambda d: tuple(d.items()))


@given(
    st.builds(
        Plan,
        model=_models,
        engine=st.sampled_from(["transformers", "llamacpp"]),
        precision=st.sampled_from(["fp32", "int8", "Q4_K_M"]),
        threads=st.integers(1, 64),
        kv_cache=st.booleans(),
        device=st.sampled_from(["cpu", "cuda"]),
        options=_options,
    )
)
def test_a_plan_is_read_back_from_its_id(plan: Plan) -> None:
    assert Plan.parse(plan.id) == plan


def test_the_id_is_the_one_in_the_design() -> None:
    assert Plan("distilgpt2", "llamacpp", "int8", 2).id == "distilgpt2/llamacpp/int8/t2/kv"


def test_options_are_in_the_id_whatever_their_order() -> None:
    one = Plan("m", options=(("mmap", False), ("attention", "eager")))
    two = Plan("m", options=(("attention", "eager"), ("mmap", False)))
    assert one == two and hash(one) == hash(two)
    assert one.id.endswith("/kv/attention=eager/mmap=off")


@pytest.mark.parametrize(
    "text", ["", "gpt2", "gpt2/transformers/int8/2/kv", "gpt2/transformers/int8/t2/maybe", "a/b/c"]
)
def test_what_is_not_a_plan_id_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InputError, match="not a plan id"):
        Plan.parse(text)


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_below_one_are_refused(threads: int) -> None:
    with pytest.raises(InputError, match=f"not {threads}"):
        Plan("m", threads=threads)
    with pytest.raises(InputError, match=f"not {threads}"):
        Space(("m",), threads=(threads,))


def test_the_published_command_has_24_plans() -> None:
    space = Space(("distilgpt2", "gpt2"), precisions=("fp32", "int8"), threads=(1, 2, 4), kv_cache=(True, False))
    assert len(space.plans) == len(set(space.plans)) == 24


def test_axes_multiply_and_repeated_values_do_not() -> None:
    space = Space(("a", "a", "b"), threads=(1, 1), options=(("mmap", (True, False)),))
    assert len(space.plans) == 2 * 2 * 1 * 2 * 2


def test_an_option_of_one_engine_leaves_the_others_alone() -> None:
    space = Space(
        ("m",), ("fake", "llamacpp"), ("fp32",), kv_cache=(True,), options=(("llamacpp.mmap", (True, False)),)
    )
    assert [plan.id for plan in space.plans] == [
        "m/fake/fp32/t1/kv",
        "m/llamacpp/fp32/t1/kv/mmap=on",
        "m/llamacpp/fp32/t1/kv/mmap=off",
    ]


@pytest.mark.parametrize(
    ("name", "why"), [("fake.mmap", "mmap is given twice for fake"), ("vllm.mmap", "engine that is not asked for")]
)
def test_an_option_of_one_engine_is_refused_where_it_cannot_hold(name: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        Space(("m",), ("fake",), options=(("mmap", (True,)), (name, (False,))))


def test_an_option_given_twice_is_refused() -> None:
    with pytest.raises(InputError, match="mmap is given twice"):
        Space(("m",), options=(("mmap", (True,)), ("mmap", (False,))))


def test_an_empty_axis_is_refused() -> None:
    with pytest.raises(InputError, match="models"):
        Space(())


def test_rejected_plans_come_with_their_reason() -> None:
    space = Space(("m",), precisions=("fp32", "int4"))
    out = space.rejected(lambda plan: "no int4 here" if plan.precision == "int4" else None)
    assert {plan.precision for plan, _ in out} == {"int4"}
    assert {reason for _, reason in out} == {"no int4 here"}
