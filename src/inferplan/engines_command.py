"""`inferplan engines`: which engines there are, what each can do here, and how to install or remove one.

Owns the rows of the list, and which packages of our own environment belong to an engine. Leaves environments of their
own to `environments`, and what an engine can do to the engine.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from . import _pip, environments, measure
from ._codec import encode
from .engines import GROUP, HIDDEN, engine_names
from .engines.base import Axis, EngineInfo
from .errors import InputError, UnknownNameError
from .plan import option_text

_OURS = "inferplan"
_NATIVE = "-native"  # at the end of the name of an engine that is built for this CPU
_PIP_TELLS = ("Downloading ", "Building wheel", "Installing collected", "Successfully ")  # of its lines, those to show
_LINE = 120  # characters of a line of pip's that are shown
State = Literal["installed", "not installed", "does not work"]


@dataclass(frozen=True, slots=True)
class EngineRow:
    """One engine of the list.

    Attributes:
        version: of the library that does the work; empty where it is not there.
        precisions: those that it can run on this machine.
        axes: its own options, with their values on this machine, the default first.
        lacks: why a precision cannot run here, by name.
        reason: why the whole engine cannot; empty where it can.
        bytes: size of its environment, or of the files of its packages; None where there are none.
        place: where it is installed.
        install: the command that installs it; empty where it comes with inferplan.
        note: what else there is to know.
        ready: types of GGUF files that it runs with their own weights.
    """

    name: str
    state: State
    version: str
    precisions: tuple[str, ...]
    axes: tuple[Axis, ...]
    lacks: Mapping[str, str]
    reason: str
    bytes: int | None
    place: str
    install: str
    note: str = ""
    ready: tuple[str, ...] = ()


def engines(arguments: argparse.Namespace) -> int:
    """`inferplan engines [list | install NAME | remove NAME]`."""
    action, name = arguments.action, arguments.name
    if action == "list":
        if name is not None:
            raise InputError(f"`inferplan engines list` takes no name, and {name!r} was given")
        found = rows()
        print(json.dumps(encode(found), indent=2) if arguments.json else "\n".join(lines(found)))
        return 0
    if name is None:
        raise InputError(f"`inferplan engines {action}` needs the name of an engine: {', '.join(_names())}")
    if name not in _names():
        raise UnknownNameError("engine", name, _names())
    if arguments.native:
        name = name.removesuffix(_NATIVE) + _NATIVE
        if name not in _names():
            raise InputError(f"{name.removesuffix(_NATIVE)} has no build of its own for this CPU; llamacpp has")
    return _install(name, arguments) if action == "install" else _remove(name, arguments)


def rows() -> tuple[EngineRow, ...]:
    """Every engine that is known here, each asked in a process of its own."""
    return tuple(_row(name, measure.describe(name)) for name in _names())


def lines(found: Sequence[EngineRow]) -> Iterator[str]:
    """The list as plain text, a line each."""
    width = max((len(row.name) for row in found), default=0)
    for row in found:
        if row.state == "installed":
            what = "  ".join([row.version, " ".join(row.precisions), _size(row.bytes)])
        else:
            what = row.state if row.bytes is None else f"{row.state}  {_size(row.bytes)}"
        yield f"{row.name.ljust(width)}  {what}"
        if row.reason:
            yield f"    {row.reason}"
        for precision, why in row.lacks.items():
            yield f"    lacks {precision}: {why}"
        if row.ready:
            yield f"    ready GGUF files of {' '.join(row.ready)}"
        for axis in row.axes:
            yield f"    --option {axis.name}={','.join(map(option_text, axis.values))}  {axis.help}"
        if row.place:
            yield f"    in {row.place}"
        if row.state != "installed" and row.install:
            yield f"    to install: {row.install}"
        if row.note:
            yield f"    {row.note}"


def _row(name: str, info: EngineInfo) -> EngineRow:
    reason = info.lacks.get("engine", "")
    environment = _environment(name)
    own = None if environment is None else environments.installed(environment)
    size = own.bytes if own is not None else _packages_bytes(_packages(name, info))
    if environment is not None and own is None and reason:
        size = None  # what it shares with others here is not its own
    place = str(own.path) if own is not None else "" if size is None else "this environment"
    state: State = "installed" if not reason else "does not work" if info.installed else "not installed"
    return EngineRow(
        name=name,
        state=state,
        version=info.version,
        precisions=() if reason else info.precisions,
        axes=() if reason else info.axes,
        ready=() if reason else info.ready,
        lacks={key: why for key, why in info.lacks.items() if key != "engine"},
        reason=reason,
        bytes=size,
        place=place,
        install=_how(name),
        note=""
        if own is None or own.current
        else f"made from other packages than are asked for now: remove {name}, then install it again",
    )


def _names() -> tuple[str, ...]:
    return tuple(name for name in engine_names() if name not in HIDDEN)


def _environment(engine: str) -> str | None:
    """The environment that is made for this engine, if there is one."""
    return next((name for name, recipe in environments.RECIPES.items() if recipe.engine == engine), None)


def _how(name: str) -> str:
    if _environment(name) is not None:
        native = " --native" if name.endswith(_NATIVE) else ""
        return f"inferplan engines install {name.removesuffix(_NATIVE)}{native}"
    return f'pip install "{_OURS}[{name}]"' if requirements(name) else ""


# --- packages of our own environment ----------------------------------------


def requirements(extra: str | None) -> tuple[str, ...]:
    """What inferplan's own metadata asks for: of one extra, or without any (None)."""
    found = []
    for line in metadata.requires(_OURS) or ():
        wanted, _, marker = line.partition(";")
        named = re.search(r"""(?:\s*\band\s+)?extra\s*==\s*['"]([^'"]+)['"]""", marker)
        if (named.group(1) if named else None) == extra:
            rest = marker.replace(named.group(0), "").strip() if named else marker.strip()
            found.append(f"{wanted.strip()}; {rest}" if rest else wanted.strip())
    return tuple(found)


def _project(requirement: str) -> str:
    """The name in a requirement, as indexes write it."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    return re.sub(r"[-_.]+", "-", name.group(0)).lower() if name else requirement


def _packages(name: str, info: EngineInfo) -> tuple[str, ...]:
    """Distributions that an engine of our own environment consists of."""
    if wanted := requirements(name):
        return tuple(_project(line) for line in wanted)
    provider = _provider(name)
    return tuple(dict.fromkeys([*([provider] if provider else []), *info.libraries]))


def _provider(name: str) -> str | None:
    """The distribution whose entry point the engine is; None for ours."""
    for point in metadata.entry_points(group=GROUP):
        if point.name == name and point.dist is not None:
            return point.dist.name
    return None


def _packages_bytes(names: Sequence[str]) -> int | None:
    """Size of the files that pip recorded for these distributions; None where none of them is installed."""
    total, seen = 0, False
    for name in names:
        try:
            files = metadata.distribution(name).files or ()
        except metadata.PackageNotFoundError:
            continue
        seen = True
        for file in files:
            path = Path(str(file.locate()))
            total += path.stat().st_size if path.is_file() else 0
    return total if seen else None


# --- installing and removing -------------------------------------------------


def _install(name: str, arguments: argparse.Namespace) -> int:
    tell = _teller(arguments.verbose)
    environment = _environment(name)
    if environment is not None:
        made = environments.install(environment, tell, pip_args=arguments.pip_arg)
        print(f"{name}: {_size(made.bytes)} in {made.path}", file=sys.stderr)
    elif wanted := requirements(name):
        with tempfile.TemporaryDirectory() as directory:
            constraints = Path(directory) / "constraints.txt"
            constraints.write_text("\n".join(_kept()), encoding="utf-8")
            call = ["install", "--constraint", str(constraints), *arguments.pip_arg, *wanted]
            _pip.run_pip(call, tell, f"{name} cannot be installed")
    elif provider := _provider(name):
        raise InputError(f"engine {name} comes with the package {provider}: install and remove that with pip")
    row = _row(name, measure.describe(name))
    if row.reason:
        raise InputError(f"{name} was installed and does not work: {row.reason}")
    print(f"{name} {row.version}: {' '.join(row.precisions)}")
    return 0


def _kept() -> Iterator[str]:
    """Versions of what inferplan itself needs: an engine that wants others does not belong in this environment."""
    for line in requirements(None):
        try:
            yield f"{_project(line)}=={metadata.version(_project(line))}"
        except metadata.PackageNotFoundError:
            continue


def _remove(name: str, arguments: argparse.Namespace) -> int:
    environment = _environment(name)
    if environment is not None:
        path = environments.directory() / environment
        if not path.is_dir():
            print(f"{name} is not installed")
            return 0
        if not _confirmed(f"Delete {path}?", arguments.yes):
            return 0
        freed = environments.remove(environment)
        print(f"removed {name}: {_size(freed)} freed")
        return 0
    names = _removable(name)
    if not names:
        print(f"{name} is not installed")
        return 0
    if not _confirmed(f"Uninstall {' '.join(names)} from {sys.prefix}?", arguments.yes):
        return 0
    call = ["uninstall", "--yes", *names]
    _pip.run_pip(call, _teller(arguments.verbose), f"{name} cannot be removed")
    print(f"removed {name}: {' '.join(names)}")
    return 0


def _removable(name: str) -> tuple[str, ...]:
    """Installed packages that only this engine's extra asks for."""
    wanted = requirements(name)
    if not wanted:
        provider = _provider(name)
        remedy = f"it is the package {provider}: pip uninstall {provider}" if provider else f"it comes with {_OURS}"
        raise InputError(f"engine {name} cannot be removed here: {remedy}")
    others = {_project(line) for line in metadata.requires(_OURS) or () if f"'{name}'" not in line.replace('"', "'")}
    return tuple(
        project for project in map(_project, wanted) if project not in others and _packages_bytes([project]) is not None
    )


def _confirmed(question: str, yes: bool) -> bool:
    """Whether to go on.

    Raises:
        InputError: nobody can be asked, and `--yes` was not given.
    """
    if yes:
        return True
    if not sys.stdin.isatty():
        raise InputError(f"{question} Nobody can be asked here: give --yes")
    if input(f"{question} [y/N] ").strip().lower() in ("y", "yes"):
        return True
    print("kept")
    return False


def _teller(verbose: bool) -> _pip.Tell:
    """Shows our own lines, and pip's: those about downloads, or all."""

    def tell(line: str) -> None:
        if verbose:
            print(line, file=sys.stderr, flush=True)
        elif line[:1].islower() or line.lstrip().startswith(_PIP_TELLS):
            print(line[:_LINE], file=sys.stderr, flush=True)

    return tell


def _size(size: int | None) -> str:
    if size is None:
        return "size not known"
    return f"{size / (1 << 30):.2f} GiB" if size >= 1 << 30 else f"{size / (1 << 20):.0f} MiB"
