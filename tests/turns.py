"""Tests in several processes at once (pytest-xdist): where each runs, and those that must run alone.

Owns which tests stay together, their order, and the turns. Leaves the number of processes to the Makefile; where there
is but one, tests only come in another order.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager

import pytest
from filelock import FileLock

_FIRST = ("tests/web/", "tests/engines/")  # the longest: what is left for the end should be short
_TOGETHER = ("tests/web/",)  # their studies take the machine's lock, one at a time


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest first, each folder as it was."""

    def place(item: pytest.Item) -> int:
        return next((i for i, folder in enumerate(_FIRST) if item.nodeid.startswith(folder)), len(_FIRST))

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """The tests of one file run in one process, for they share what was made; those of some folders all in one."""
    from xdist.scheduler import LoadScopeScheduling

    def together(nodeid: str) -> str:
        return next((folder for folder in _TOGETHER if nodeid.startswith(folder)), nodeid.split("::")[0])

    scheduler = LoadScopeScheduling(config, log)
    scheduler._split_scope = together  # its documentation would have a subclass do this; it has no types to inherit
    return scheduler


@contextmanager
def turn(item: pytest.Item) -> Iterator[None]:
    """Wait until `item` may run: at any time beside others, but those marked `alone` beside none.

    Each process holds a lock of its own while one of its tests runs; who wants to be alone takes them all. At the
    door nobody passes who waits there for the others to end.
    """
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if count == 1:
        yield
        return
    assert item.config.cache is not None
    folder = item.config.cache.mkdir("turns")
    alone = item.get_closest_marker("alone") is not None
    names = [f"gw{number}" for number in range(count)] if alone else [os.environ["PYTEST_XDIST_WORKER"]]
    with ExitStack() as held:
        with FileLock(folder / "door"):
            for name in names:
                held.enter_context(FileLock(folder / name))
        yield


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A test's time limit begins with its turn."""
    with turn(item):
        return (yield)
