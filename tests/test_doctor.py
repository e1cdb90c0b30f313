"""Doctor: what it sees, and a remedy for each warning."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from inferplan import doctor
from inferplan._codec import decode, encode
from inferplan.bandwidth import Bandwidth, read_bandwidth
from inferplan.doctor import Diagnosis, diagnose, lines
from inferplan.engines.base import EngineInfo
from inferplan.errors import EngineError, InputError

ENGINES: dict[str, EngineInfo | str] = {
    "good": EngineInfo("good", "1.2", ("fp32", "int8"), lacks={"bf16": "this CPU has no AVX512-BF16"}),
    "half": EngineInfo("half", "3.4", ("fp32",), lacks={"engine": "its library is not installed"}),
    "away": EngineInfo("away", "", (), lacks={"engine": "away is not installed: pip install away"}, installed=False),
    "gone": "ImportError: no module named gone",
}


@pytest.fixture(autouse=True)
def _places_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_LOOK_S", 0.01)
    for name in ("INFERPLAN_CACHE", "INFERPLAN_STORE", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)


def host(root: Path, **texts: str) -> Path:
    """A quiet machine of two CPUs; `__` in a name is a slash."""
    base = {
        "proc__stat": "cpu  1 0 0 0 0 0 0 0\n",
        "proc__cpuinfo": "processor : 0\nmodel name : Test CPU\nflags : avx2\n",
        "proc__meminfo": "MemTotal: 1048576 kB\nSwapTotal: 4096 kB\nSwapFree: 4096 kB\n",
        "proc__self__status": "Cpus_allowed_list: 0-1\n",
        "proc__pressure__cpu": "some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n",
        "proc__pressure__memory": "some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n",
        "proc__vmstat": "pswpin 0\npswpout 0\n",
        "sys__devices__system__cpu__online": "0-1\n",
        "sys__devices__system__cpu__cpu0__cpufreq__scaling_cur_freq": "1\n",
        "sys__devices__system__cpu__cpu0__cpufreq__scaling_governor": "performance\n",
        "sys__class__thermal__thermal_zone0__temp": "1\n",
        "sys__kernel__mm__transparent_hugepage__enabled": "always [madvise] never\n",
    }
    for name, text in {**base, **texts}.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def warned(diagnosis: Diagnosis) -> str:
    return "\n".join(caution.what for caution in diagnosis.warnings)


MACHINE_WORDS = ("granted", "seen", "governor", "huge", "other processes", "hypervisor", "swap")


def test_quiet_machine_has_no_warning_about_itself(tmp_path: Path) -> None:
    diagnosis = diagnose(tmp_path, {}, quick=True, root=host(tmp_path / "host"))
    assert not any(word in warned(diagnosis) for word in MACHINE_WORDS)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("proc__self__status", "Cpus_allowed_list: 1\n", "1 of 2 cores are granted"),
        ("proc__pressure__cpu", "", "PSI cpu cannot be seen: PSI is switched off"),
        ("sys__devices__system__cpu__cpu0__cpufreq__scaling_governor", "powersave\n", "governor is powersave"),
        ("sys__kernel__mm__transparent_hugepage__enabled", "always madvise [never]\n", "huge pages are off"),
        ("proc__meminfo", "MemTotal: 9 kB\nSwapTotal: 4096 kB\nSwapFree: 2048 kB\n", "2 MiB of swap are in use"),
    ],
)
def test_each_trouble_of_the_machine_is_named(tmp_path: Path, name: str, text: str, words: str) -> None:
    diagnosis = diagnose(tmp_path, {}, quick=True, root=host(tmp_path / "host", **{name: text}))
    assert words in warned(diagnosis)
    assert all(caution.remedy for caution in diagnosis.warnings)


def test_missing_sensors_and_counters_are_named(tmp_path: Path) -> None:
    diagnosis = diagnose(tmp_path, {}, quick=True, root=tmp_path / "nothing")
    for name in ("CPU time of others", "steal", "PSI memory", "swap", "CPU frequency", "temperature"):
        assert f"{name} cannot be seen" in warned(diagnosis)


def test_engines_say_what_they_lack(tmp_path: Path) -> None:
    diagnosis = diagnose(tmp_path, ENGINES, quick=True)
    text = "\n".join(lines(diagnosis))
    assert "good  1.2, fp32 int8; lacks bf16: this CPU has no AVX512-BF16" in text
    assert "half  does not work here: its library is not installed" in text
    assert "engine gone does not work here: ImportError" in warned(diagnosis)
    assert "away  away is not installed: pip install away" in text
    assert "engine good" not in warned(diagnosis)
    assert "engine away" not in warned(diagnosis)


def test_other_torch_than_the_pinned_one_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "library_versions", lambda names: {"torch": "2.0.1+cpu"})
    assert "torch is 2.0.1+cpu, tested is 2.13.0" in warned(diagnose(tmp_path, {}, quick=True))
    monkeypatch.setattr(doctor, "library_versions", lambda names: {"torch": "2.13.0+cpu"})
    assert "torch" not in warned(diagnose(tmp_path, {}, quick=True))


def test_disk_used_is_counted(tmp_path: Path) -> None:
    (tmp_path / "inferplan.db").write_bytes(b"x" * 100)
    (tmp_path / "inferplan.db-wal").write_bytes(b"x" * 20)
    blob = tmp_path / "HF_HOME" / "hub" / "models--a" / "blobs" / "1"
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"x" * 7)
    sizes = {cache.what: cache.bytes for cache in diagnose(tmp_path, {}, quick=True).caches}
    assert sizes == {"0 converted models": 0, "store": 120, "hub cache": 7}


def test_diagnosis_survives_json(tmp_path: Path) -> None:
    diagnosis = diagnose(None, ENGINES, quick=True)
    assert decode(Diagnosis, json.loads(json.dumps(encode(diagnosis)))) == diagnosis
    assert diagnosis.fingerprint == diagnosis.machine.fingerprint


def test_text_shows_rates_with_their_kernel(tmp_path: Path) -> None:
    diagnosis = diagnose(None, {}, quick=True)
    assert "read bandwidth" not in lines(diagnosis)
    rate = Bandwidth(12.3e9, "torch 1 sum", 2, 512 << 20)
    assert any(
        "2 threads" in line and "12.3 GB/s (torch 1 sum, 512 MiB)" in line
        for line in lines(replace(diagnosis, rates=(rate,)))
    )


def test_failed_bandwidth_is_a_warning_and_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(threads: int) -> Bandwidth:
        raise EngineError("measuring the read bandwidth failed")

    monkeypatch.setattr(doctor, "read_bandwidth", fail)
    diagnosis = diagnose(None, {})
    assert diagnosis.rates == ()
    assert "measuring the read bandwidth failed" in warned(diagnosis)


def test_bandwidth_is_measured_with_a_named_kernel() -> None:
    rate = read_bandwidth(1, seconds=0.0, buffer_bytes=8 << 20)
    assert rate.bytes_per_s > 0
    assert rate.kernel.startswith(("torch ", "numpy "))
    assert (rate.threads, rate.buffer_bytes) == (1, 8 << 20)


def test_bandwidth_of_no_threads_is_refused() -> None:
    with pytest.raises(InputError, match="not 0"):
        read_bandwidth(0)


def test_bandwidth_that_cannot_be_measured_says_why() -> None:
    with pytest.raises(EngineError, match="failed"):
        read_bandwidth(1, buffer_bytes=1 << 60)
