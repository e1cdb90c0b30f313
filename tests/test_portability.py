"""Windows and macOS, as far as Linux can stand in for them: what they lack is hidden, and everything still imports."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

# Run in a process of its own, because what is hidden stays hidden. psutil alone may still look into /proc: here it
# stands in for the psutil of those systems, which asks their own interfaces.
HIDE = """
import builtins, io, os, sys
import psutil

for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in ("sched_getaffinity", "sched_setaffinity", "killpg", "getpgid", "setsid", "fork", "geteuid", "sysconf"):
    if hasattr(os, name):
        delattr(os, name)

def hidden(path):
    return isinstance(path, (str, bytes, os.PathLike)) and os.fsdecode(path).lstrip("/").startswith(("proc/", "sys/"))

def asked_by_psutil():
    frame = sys._getframe(2)
    return frame.f_globals.get("__name__", "").startswith("psutil")

def without_proc(function):
    def guarded(path, *args, **options):
        if hidden(path) and not asked_by_psutil():
            raise FileNotFoundError(2, "hidden by the test", path)
        return function(path, *args, **options)
    return guarded

builtins.open = io.open = without_proc(open)
for name in ("stat", "lstat", "scandir", "listdir", "open"):
    setattr(os, name, without_proc(getattr(os, name)))
"""

IMPORT_ALL = """
import importlib, json, pkgutil
import inferplan

done, failed = [], {}
for found in pkgutil.walk_packages(inferplan.__path__, "inferplan."):
    name = found.name
    if name.endswith("__main__") or (name.startswith("inferplan.engines.") and name != "inferplan.engines.base"):
        continue
    try:
        importlib.import_module(name)
        done.append(name)
    except ModuleNotFoundError as error:
        # An optional library that is not installed is no question of the platform; a module that was hidden is.
        if error.name in (None, "fcntl", "resource", "pwd", "grp", "termios") or error.name.startswith("inferplan"):
            failed[name] = repr(error)
    except Exception as error:
        failed[name] = repr(error)
print(json.dumps([done, failed]))
"""

USE = """
import json, tempfile, time
from pathlib import Path
from inferplan import locks, machine, validity
from inferplan.measurement import Measurement, Sample
from inferplan.plan import Plan
from inferplan.store import Store

here = machine.detect()
before = validity.read_counters()
end = time.process_time() + 0.1
while time.process_time() < end:
    pass
after = validity.read_counters()
seen = validity.signals(before, after, 0.0, 0.0, validity.Canary(1 << 16).read())
with tempfile.TemporaryDirectory() as place:
    with Store(place) as store:
        store.create_study("aaa", {})
        trial = store.begin_trial("aaa", Plan("m"), 1, 0.0)
        store.add_sample(trial, Sample(0, 0.0, 1.0, (1.0,), 3))
        store.finish_trial(trial, Measurement(Plan("m"), 1, "ok"))
        samples = len(store.measurements("aaa")[0].samples)
print(json.dumps({
    "cores": here.cores_logical, "granted": here.cores_granted, "memory": here.memory_bytes, "isa": here.isa,
    "cpus": machine.usable_cpus(), "fingerprint": here.fingerprint, "samples": samples,
    "others": seen.other_cpu_s, "swapped": seen.swapped_pages, "steal": seen.steal_s,
    "psi": seen.cpu_stall_s, "told": dict(validity.available_signals()),
}))
"""


def run_hidden(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", HIDE + script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_every_module_imports_without_what_other_systems_lack() -> None:
    done, failed = json.loads(run_hidden(IMPORT_ALL))
    assert failed == {}
    assert {"inferplan.machine", "inferplan.store", "inferplan.locks", "inferplan.engines.base"} <= set(done)


def test_machine_signals_and_store_work_without_proc() -> None:
    seen = json.loads(run_hidden(USE))
    assert seen["cores"] >= 1
    assert seen["cpus"] == list(range(len(seen["cpus"])))
    assert seen["granted"] == len(seen["cpus"])
    assert seen["memory"] > 2**20
    assert len(seen["fingerprint"]) == 12
    assert seen["samples"] == 1
    assert seen["isa"] == []  # the CPU's flags are told by /proc alone
    assert seen["steal"] is None
    assert seen["psi"] is None


def test_signals_that_other_systems_lack_are_named_and_the_rest_comes_from_psutil() -> None:
    seen = json.loads(run_hidden(USE))
    assert seen["told"]["CPU time of others"] == "yes, from psutil"
    assert seen["others"] > 0.05  # 0.1 s were used
    assert seen["swapped"] is not None
    for name in ("steal", "PSI cpu", "PSI memory", "CPU frequency", "temperature"):
        assert seen["told"][name].startswith("no: ")


@pytest.mark.parametrize("module", ["fcntl", "resource", "pwd"])
def test_the_test_itself_hides(module: str) -> None:
    script = f"try:\n    import {module}\nexcept ImportError:\n    print('hidden')\n"
    assert run_hidden(script) == "hidden"


def test_the_test_itself_hides_proc() -> None:
    script = "try:\n    open('/proc/stat')\nexcept OSError:\n    print('hidden')\n"
    assert run_hidden(script) == "hidden"
