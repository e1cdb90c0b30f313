"""Several plans loaded at once, one process each, that get the same requests in turn.

Owns loading them and whose turn it is. Leaves what is compared to the scripts.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from _common import Bench

from inferplan import measure
from inferplan.measurement import Request, Sample
from inferplan.plan import Plan


class SideBySide:
    """The loaded processes of some plans.

    Only the one whose turn it is runs; the others are suspended (SIGSTOP), so that a pool of threads that spins while
    it waits for work takes no core from it.
    """

    def __init__(self, children: Mapping[str, measure._Child], watch: measure.Watch) -> None:
        self._children = children
        self._watch = watch

    def ask(self, name: str, request: Request) -> Sample:
        """One request of one side, with what was seen of the outside meanwhile."""
        child = self._children[name]
        _signal(child, signal.SIGCONT)
        try:
            return measure._observed(child, request, child._trial, self._watch)
        finally:
            _signal(child, signal.SIGSTOP)

    def peak_bytes(self, name: str) -> int:
        """The most memory that one side has held, loading included."""
        return self._children[name].memory.peak_bytes or 0

    def rotate(self, turn: int, request: Request) -> Iterator[tuple[str, Sample]]:
        """The same request to all sides; `turn` says which of them is first."""
        names = list(self._children)
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            yield name, self.ask(name, request)


@contextmanager
def loaded(bench: Bench, plans: Mapping[str, Plan], round_: int, watch: measure.Watch) -> Iterator[SideBySide]:
    """The plans, each loaded and warmed up in a fresh process; all are ended on leaving."""
    children: dict[str, measure._Child] = {}
    try:
        for name, plan in plans.items():
            trial = bench.trial(plan, round_)
            child = children[name] = measure._Child(trial, bench.infos[plan.engine], watch)
            child.load(measure._Record())
            for request in trial.warmup:
                child.generate(request)
            _signal(child, signal.SIGSTOP)
        yield SideBySide(children, watch)
        for child in children.values():
            _signal(child, signal.SIGCONT)
            child.close()
    finally:
        for child in children.values():
            child.kill()


def _signal(child: measure._Child, what: signal.Signals) -> None:
    os.killpg(child._process.pid, what)
