"""What is shown while a study runs: between samples only, and nothing when asked for nothing."""

from __future__ import annotations

import io
import threading
from dataclasses import replace

import pytest

from factories import measurement, sample
from fake_studies import study
from inferplan.progress import Progress, Style, choose_style
from inferplan.study import Event, PlanDone, PlanStarted, SampleTaken, Study


class Terminal(io.StringIO):
    """Text that believes it is a terminal."""

    def isatty(self) -> bool:
        return True


def played(style: Style, stream: io.StringIO) -> list[int]:
    """A short study, event by event; how much had been drawn after each."""
    bare: Study = replace(study(threads=(1,)), measurements=())
    plan = bare.plans[0]
    done = measurement(plan, [0.1] * 6)
    failed = measurement(bare.plans[1], status="crashed", reason="the process died of SIGSEGV")
    first = replace(bare, measurements=(done,))
    second = replace(bare, measurements=(done, failed))
    progress = Progress(bare, style, stream)
    events: list[Event] = [
        PlanStarted(plan, 1, 3),
        *(SampleTaken(plan, 1, sample(i, 0.1)) for i in range(6)),
        PlanDone(done, first),
        PlanStarted(bare.plans[1], 1, 2),
        PlanDone(failed, second),
    ]
    lengths = []
    with progress.showing():
        threads = threading.active_count()
        for event in events:
            progress(event)
            lengths.append(len(stream.getvalue()))
        progress.tell("a note")
        assert threading.active_count() == threads
    return lengths


def test_a_pipe_gets_a_line_for_each_process() -> None:
    out = io.StringIO()
    played("plain", out)
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert "p50 100.0 ms" in lines[0] and "tokens/s" in lines[0] and "left" in lines[0]
    assert "crashed: the process died of SIGSEGV" in lines[1]
    assert lines[2] == "a note"


def test_a_terminal_gets_a_table_that_is_redrawn_between_samples() -> None:
    out = Terminal()
    lengths = played("live", out)
    text = out.getvalue()
    assert lengths == sorted(lengths) and lengths[-1] > lengths[0] > 0
    assert "waiting" in text and "measured, 1 process" in text and "100.0 ms" in text
    assert "a note" in text


def test_no_thread_draws_while_a_request_is_timed() -> None:
    before = threading.active_count()
    played("live", Terminal())
    assert threading.active_count() == before


def test_quiet_is_quiet() -> None:
    out = io.StringIO()
    played("quiet", out)
    assert out.getvalue() == ""


@pytest.mark.parametrize(
    ("quiet", "stream", "style"),
    [(True, Terminal(), "quiet"), (False, Terminal(), "live"), (False, io.StringIO(), "plain")],
)
def test_the_style_follows_the_stream(quiet: bool, stream: io.StringIO, style: Style) -> None:
    assert choose_style(quiet, stream) == style
