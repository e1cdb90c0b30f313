"""Terms: an option that only some engines have is theirs alone."""

from __future__ import annotations

from inferplan import terms
from inferplan.engines.base import Axis, EngineInfo
from inferplan.plan import Space

_BOTH = (True, False)
_AXES = {"one": ("mmap", "spin"), "two": ("spin",), "three": ()}
INFOS = {
    name: EngineInfo(name, "1", ("fp32",), axes=tuple(Axis(axis, _BOTH, "") for axis in axes))
    for name, axes in _AXES.items()
}


def _fitted(engines: tuple[str, ...], option: str) -> list[str]:
    space = Space(("m",), engines, ("fp32",), kv_cache=(True,), options=((option, (True, False)),))
    return [plan.id.removeprefix("m/").replace("/fp32/t1/kv", "") for plan in terms.fitted(space, INFOS).plans]


def test_an_option_of_some_engines_is_tried_with_those_and_leaves_the_others_as_they_are() -> None:
    assert _fitted(("one", "two"), "mmap") == ["one/mmap=on", "one/mmap=off", "two"]


def test_an_option_that_several_engines_have_is_tried_with_each_of_them() -> None:
    plans = ["one/spin=on", "one/spin=off", "two/spin=on", "two/spin=off", "three"]
    assert _fitted(("one", "two", "three"), "spin") == plans


def test_an_option_that_no_engine_has_stays_and_is_rejected_by_each() -> None:
    space = Space(("m",), ("one", "two"), ("fp32",), kv_cache=(True,), options=(("nmap", (True,)),))
    plans = terms.fitted(space, INFOS).plans
    assert len(plans) == 2
    assert all("nmap" in (INFOS[plan.engine].reject(plan) or "") for plan in plans)
