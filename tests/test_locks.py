"""The machine-wide lock: held by one process, told by name, gone with its holder."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from inferplan.errors import BusyError
from inferplan.locks import holder, lock_path, machine_lock

HOLD = """
import sys
from pathlib import Path
from inferplan.locks import machine_lock
with machine_lock("study-7", path=Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def other_process(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until it is killed or told to end."""
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_free_lock_is_held_and_given_back(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "machine.lock"
    for _ in range(2):
        with machine_lock("mine", path=path) as held:
            assert held
            who = holder(path)
            assert who is not None
            assert who.study == "mine"
        assert holder(path) is None


def test_busy_machine_names_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "machine.lock"
    with other_process(path) as process:
        with pytest.raises(BusyError, match=f"study study-7, process {process.pid}"), machine_lock(path=path):
            pass
        who = holder(path)
        assert who is not None
        assert who.pid == process.pid


def test_override_goes_on_and_warns_and_leaves_the_lock_to_its_holder(tmp_path: Path) -> None:
    path, told = tmp_path / "machine.lock", list[str]()
    with other_process(path):
        with machine_lock(path=path, override=True, on_override=told.append) as held:
            assert not held
        assert len(told) == 1
        assert "study-7" in told[0]
        assert holder(path) is not None
        with pytest.raises(BusyError), machine_lock(path=path):
            pass


def test_override_of_a_free_machine_just_takes_it(tmp_path: Path) -> None:
    told = list[str]()
    with machine_lock(path=tmp_path / "lock", override=True, on_override=told.append) as held:
        assert held
    assert told == []


def test_lock_goes_with_a_killed_holder(tmp_path: Path) -> None:
    path = tmp_path / "machine.lock"
    with other_process(path) as process:
        process.kill()
        process.wait()
        with machine_lock(path=path) as held:
            assert held


def test_waiting_ends_when_the_holder_does(tmp_path: Path) -> None:
    path, waiting = tmp_path / "machine.lock", threading.Event()
    with other_process(path) as process:

        def end() -> None:
            waiting.wait(10)
            process.kill()

        thread = threading.Thread(target=end)
        thread.start()
        with machine_lock(path=path, wait=True, on_wait=lambda message: waiting.set()) as held:
            assert held
            assert waiting.is_set()
        thread.join()


def test_error_inside_gives_the_lock_back(tmp_path: Path) -> None:
    path = tmp_path / "machine.lock"
    with pytest.raises(KeyError), machine_lock(path=path):
        raise KeyError("ours")
    with machine_lock(path=path) as held:
        assert held


def test_lock_that_cannot_be_opened_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BusyError, match="cannot be used"), machine_lock(path=tmp_path / "file" / "lock"):
        pass


def test_every_user_and_job_looks_at_the_same_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = lock_path()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    if sys.platform != "win32":
        assert lock_path() == before


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
def test_other_users_may_open_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "machine.lock"
    with machine_lock(path=path):
        assert path.stat().st_mode & 0o777 == 0o666
        assert path.parent.stat().st_mode & 0o777 == 0o777


@pytest.mark.skipif(not hasattr(os, "symlink") or not hasattr(os, "O_NOFOLLOW"), reason="no symbolic links here")
def test_a_link_planted_beside_the_lock_is_not_written_through(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "machine.lock"
    victim.write_text("precious")
    path.with_suffix(".holder.json").symlink_to(victim)
    with machine_lock("study", path=path):
        assert victim.read_text() == "precious"


def test_no_lock_goes_on_where_the_lock_file_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said: list[str] = []
    with machine_lock("study", path=tmp_path / "file" / "machine.lock", override=True, on_override=said.append) as held:
        assert not held
    assert len(said) == 1
