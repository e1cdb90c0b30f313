"""Runs a module of inferplan in a Python where inferplan is not installed: PYTHON _elsewhere.py MODULE [ARGUMENT ...].

Owns keeping the two environments apart: the directory that inferplan lies in is taken off the path, because, installed
by pip, it holds every other package of ours too, and they would be imported in place of that Python's own.
"""

from __future__ import annotations

import importlib.util
import os
import runpy
import sys
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def _foreign(entry: str) -> bool:
    return Path(entry).resolve() not in (_PACKAGE, _PACKAGE.parent)


def main() -> None:
    """Run the module that the first argument names, with the others as its own."""
    sys.path[:] = filter(_foreign, sys.path)
    if paths := os.environ.get("PYTHONPATH"):  # for processes that the engine starts
        os.environ["PYTHONPATH"] = os.pathsep.join(entry for entry in paths.split(os.pathsep) if _foreign(entry))
    spec = importlib.util.spec_from_file_location(
        "inferplan", _PACKAGE / "__init__.py", submodule_search_locations=[str(_PACKAGE)]
    )
    assert spec is not None and spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["inferplan"] = package
    spec.loader.exec_module(package)
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
