"""The artifact cache: made once, whole or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from inferplan.artifacts import artifact_key, artifacts, cache_dir, disk_remedy, ensure, held, read_note, remove, touch
from inferplan.errors import ModelError

KEY = artifact_key("test")


def _write(out: Path) -> None:
    (out / "data").write_text("12345")


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERPLAN_CACHE", str(tmp_path / "here"))
    assert cache_dir() == tmp_path / "here"
    monkeypatch.delenv("INFERPLAN_CACHE")
    assert "inferplan" in str(cache_dir())


def test_keys_tell_parts_apart() -> None:
    assert artifact_key("a", "b") == artifact_key("a", "b")
    assert len({artifact_key("a", "b"), artifact_key("ab"), artifact_key("b", "a"), artifact_key("a,b")}) == 4


def test_an_artifact_is_made_once(tmp_path: Path) -> None:
    first = ensure(KEY, _write, note={"what": "x"}, root=tmp_path)
    second = ensure(KEY, lambda _: pytest.fail("made twice"), note={}, root=tmp_path)
    assert first == second
    assert (first / "data").read_text() == "12345"
    assert read_note(first) == {"what": "x"}
    (artifact,) = artifacts(tmp_path)
    assert (artifact.key, artifact.path, artifact.bytes, dict(artifact.note)) == (KEY, first, 5, {"what": "x"})


def test_a_failed_making_leaves_nothing_and_can_be_repeated(tmp_path: Path) -> None:
    def fail(out: Path) -> None:
        _write(out)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        ensure(KEY, fail, note={}, root=tmp_path)
    assert artifacts(tmp_path) == ()
    assert [p.name for p in tmp_path.iterdir()] == [".locks"]
    assert (ensure(KEY, _write, note={}, root=tmp_path) / "data").is_file()


@pytest.mark.parametrize("key", [KEY, artifact_key("another")])
def test_what_a_killed_maker_left_is_removed(tmp_path: Path, key: str) -> None:
    code = (
        "import os, pathlib, signal, sys\nfrom inferplan.artifacts import ensure\n"
        "def make(out):\n    (out / 'half').write_text('x')\n    os._exit(9)\n"
        f"ensure(sys.argv[1], make, note={{}}, root=pathlib.Path({str(tmp_path)!r}))"
    )
    assert subprocess.run([sys.executable, "-c", code, key], check=False).returncode == 9
    assert len(list(tmp_path.glob(".making-*"))) == 1
    made = ensure(KEY, _write, note={}, root=tmp_path)
    assert not list(tmp_path.glob(".making-*"))
    assert not (made / "half").exists()


def test_a_second_maker_waits_and_finds_the_work_done(tmp_path: Path) -> None:
    calls: list[int] = []

    def slow(out: Path) -> None:
        calls.append(1)
        time.sleep(0.2)
        _write(out)

    threads = [threading.Thread(target=lambda: ensure(KEY, slow, note={}, root=tmp_path)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [1]
    assert len(artifacts(tmp_path)) == 1


def test_a_full_disk_names_the_path_and_the_way_out(tmp_path: Path) -> None:
    def full(out: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(ModelError, match=r"No space left.*INFERPLAN_CACHE") as caught:
        ensure(KEY, full, note={}, root=tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_cache_that_is_no_directory_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="INFERPLAN_CACHE"):
        ensure(KEY, _write, note={}, root=tmp_path / "file")


def test_an_error_of_the_maker_is_not_blamed_on_the_cache(tmp_path: Path) -> None:
    def absent(out: Path) -> None:
        (tmp_path / "no such file").read_text()

    with pytest.raises(FileNotFoundError):
        ensure(KEY, absent, note={}, root=tmp_path)


def test_damaged_notes_are_no_artifacts(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "inferplan.json").write_text("[]")
    assert artifacts(tmp_path) == ()
    assert artifacts(tmp_path / "absent") == ()


def test_other_directories_of_the_cache_are_no_artifacts(tmp_path: Path) -> None:
    made = ensure(KEY, _write, note={}, root=tmp_path)
    other = tmp_path / "environments"
    other.mkdir()
    (other / "inferplan.json").write_text((made / "inferplan.json").read_text())
    assert [a.path for a in artifacts(tmp_path)] == [made]


def test_the_last_use_is_when_it_was_last_asked_for(tmp_path: Path) -> None:
    made = ensure(KEY, _write, note={}, root=tmp_path)
    for use in (lambda: ensure(KEY, _write, note={}, root=tmp_path), lambda: touch(made)):
        os.utime(made / "inferplan.json", (1000, 1000))
        assert artifacts(tmp_path)[0].used == 1000
        use()
        assert artifacts(tmp_path)[0].used > artifacts(tmp_path)[0].created - 60
    touch(tmp_path / "no artifact")  # a checkpoint elsewhere: nothing to note


def test_an_artifact_is_removed_unless_it_is_held(tmp_path: Path) -> None:
    made = ensure(KEY, _write, note={}, root=tmp_path)
    (artifact,) = artifacts(tmp_path)
    with held(made):
        assert not remove(artifact)
    assert made.is_dir()
    assert remove(artifact)
    assert remove(artifact), "gone already"
    assert [p.name for p in tmp_path.iterdir()] == [".locks"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EFBIG])
def test_a_reason_that_tells_of_the_disk_gets_the_remedy(number: int, tmp_path: Path) -> None:
    told = disk_remedy(f"OSError: [Errno {number}] {os.strerror(number)}", tmp_path)
    assert str(tmp_path) in told
    assert os.strerror(number) in told
    assert "INFERPLAN_CACHE" in told
    assert disk_remedy("ValueError: no such weight", tmp_path) == "ValueError: no such weight"
