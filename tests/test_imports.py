"""Imports run one way, and naming things loads nothing heavy.

Owns the table of who may import whom (docs/architecture.md draws it). Leaves
what the modules do to their own tests.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "inferplan"

# Each module and those directly upstream of it; it may import these and whatever is upstream of them.
# A package stands for its modules, except `engines`: its registry and protocol are upstream of the
# parent, the engines themselves are imported by nobody (the registry names them as text).
# `_codec` and `__version__` (the package itself) are open to all.
UPSTREAM: dict[str, frozenset[str]] = {
    name: frozenset(upstream.split())
    for name, upstream in {
        "_codec": "",
        "errors": "",
        "plan": "errors",
        "workload": "errors",
        "machine": "errors",
        "locks": "errors",
        "procmem": "errors",
        "bandwidth": "machine",
        "sla": "errors",
        "measurement": "plan workload machine errors",
        "stats": "measurement",
        "result": "stats",
        "artifacts": "errors",
        "_files": "artifacts",
        "_hub": "_files",
        "weights": "artifacts _files fits",
        "models": "measurement weights _hub",
        "tokens": "models",
        "engines.base": "models",
        "engines": "engines.base",
        "engines.*": "environments engines procmem",
        "worker": "engines procmem",
        "shapes": "errors",
        "rates": "bandwidth",
        "_effects": "errors",
        "_observed": "result",
        "_roofline": "_effects rates shapes plan",
        "predict": "_observed _roofline",
        "quality": "result",
        "cost": "result",
        "sequential": "sla result",
        "verdict": "sequential cost",
        "ranking": "verdict",
        "explain": "ranking",
        "selection": "explain predict quality",
        "foretold": "predict cost sla",
        "search": "selection foretold",
        "validity": "measurement",
        "_pip": "errors",
        "environments": "artifacts _pip",
        "_elsewhere": "",
        "measure": "validity procmem engines environments",
        "_remote_engine": "measure",
        "store": "measurement",
        "reference": "measure",
        "agreement": "reference tokens fits artifacts",
        "prepare": "measure tokens weights locks fits agreement",
        "cache_command": "agreement locks",
        "study": "search measure store prepare locks",
        "progress": "study",
        "report": "study progress",
        "compare": "report",
        "doctor": "measure store locks bandwidth artifacts",
        "engines_command": "measure",
        "testing": "study _remote_engine",
        "fits": "machine",
        "forecast": "store",
        "terms": "study locks",
        "study_file": "terms flags",
        "strategies": "study",
        "reuse": "study",
        "commands": "terms study_file strategies reuse report compare doctor bandwidth",
        "outlook": "foretold fits",
        "accuracy": "predict",
        "predict_command": "terms strategies outlook accuracy",
        "flags": "engines",
        "cli": "flags commands engines_command cache_command predict_command",
        "web": "cli forecast",
        "router": "report doctor bandwidth",
        "__main__": "cli",
        "__init__": "study",
    }.items()
}
OPEN_TO_ALL = frozenset({"_codec", "__init__"})
HEAVY = ("torch", "scipy", "pandas", "numpy", "transformers", "rich", "matplotlib", "huggingface_hub", "gguf")


def _name(path: Path) -> str:
    """Dotted name below the package: `engines.base`, `search` for its __init__, `__init__` for the package's own."""
    parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
    if parts[-1] == "__init__" and len(parts) > 1:
        parts.pop()
    return ".".join(parts)


def _layer(module: str) -> str:
    """The row of the table that `module` belongs to."""
    if module in UPSTREAM:
        return module
    first = module.split(".")[0]
    return "engines.*" if first == "engines" else first


MODULES = {_name(path): path for path in sorted(PACKAGE.rglob("*.py")) if "data" not in path.parts}


def _resolve(target: str) -> str:
    """`target` if it is a module of ours, else the module that defines it; `__init__` for the package itself."""
    while target and target not in MODULES:
        target = target.rpartition(".")[0]
    return target or "__init__"


def _imports(source: str, package: tuple[str, ...]) -> set[str]:
    """Modules of ours that `source`, living in `package`, imports anywhere, inside functions too."""
    targets: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            base = ["inferplan", *package][: 2 + len(package) - node.level] if node.level else []
            full = ".".join([*base, *([node.module] if node.module else [])])
            targets |= {f"{full}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
    inside = {target.removeprefix("inferplan").lstrip(".") for target in targets if target.split(".")[0] == "inferplan"}
    return {_resolve(target) for target in inside}


def _package_of(module: str) -> tuple[str, ...]:
    parts = () if module == "__init__" else tuple(module.split("."))
    return parts if MODULES[module].name == "__init__.py" else parts[:-1]


@cache
def _allowed(layer: str) -> frozenset[str]:
    direct = UPSTREAM[layer]
    return direct.union(OPEN_TO_ALL, {layer}, *(_allowed(one) for one in direct))


def test_the_table_has_no_circle_and_no_unknown_name() -> None:
    assert not {name for upstream in UPSTREAM.values() for name in upstream} - set(UPSTREAM)
    for layer in UPSTREAM:
        _allowed(layer)  # a circle would not end: RecursionError


def test_every_module_has_a_row() -> None:
    assert not [module for module in MODULES if _layer(module) not in UPSTREAM]


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module: str) -> None:
    imports = _imports(MODULES[module].read_text(encoding="utf-8"), _package_of(module))
    wrong = sorted(target for target in imports if _layer(target) not in _allowed(_layer(module)))
    assert not wrong, f"{module} may not import {', '.join(wrong)}: see UPSTREAM in {Path(__file__).name}"


@pytest.mark.parametrize("module", MODULES)
def test_no_module_imports_an_engine_or_the_worker(module: str) -> None:
    imports = _imports(MODULES[module].read_text(encoding="utf-8"), _package_of(module)) - {module}
    reached = {target for target in imports if _layer(target) in {"engines.*", "worker"}}
    assert _layer(module) == "engines.*" or not reached


def test_the_walk_sees_every_form_of_import() -> None:
    source = (
        "import inferplan.store\ndef f():\n from .. import worker\n from .base import X\n from inferplan import plan"
    )
    assert _imports(source, ("engines",)) == {"store", "worker", "engines.base", "plan"}
    assert _imports("from . import __version__, cli", ()) == {"__init__", "cli"}


@pytest.mark.parametrize("statement", ["import inferplan", "import inferplan.cli", "import inferplan.engines"])
def test_naming_things_loads_nothing_heavy(statement: str) -> None:
    probe = f"{statement}\nimport sys, json\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    loaded = json.loads(done.stdout)
    engines = {name for name in loaded if name.startswith("inferplan.engines.")} - {"inferplan.engines.base"}
    assert not engines | ({name.split(".")[0] for name in loaded} & set(HEAVY))


def test_the_worker_itself_needs_only_the_standard_library() -> None:
    probe = (
        "import inferplan.worker, sys, json\n"
        "ours = {name.split('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)\n"
        "print(json.dumps(sorted(ours - {'inferplan', '__main__'})))"
    )
    command = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r})\n{probe}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
