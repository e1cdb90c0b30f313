"""What is deployed but cannot be run here: the Dockerfile, what it sends, Streamlit's settings, the page about them.

Owns a lint of these files. No Docker engine runs here, so the image is read, not built.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.request import urlopen

import pytest

from inferplan import artifacts, store
from inferplan.cli import build_parser
from inferplan.report.page import PAGE

ROOT = Path(__file__).resolve().parent.parent
KNOWN = {
    "ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "ONBUILD", "RUN",
    "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
}  # fmt: skip
Instruction = tuple[str, str]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@functools.cache
def dockerfile() -> tuple[Instruction, ...]:
    """Name and arguments of each instruction, continued lines joined, comments left out."""
    lines = [line for line in read("Dockerfile").splitlines() if line.strip() and not line.lstrip().startswith("#")]
    whole = re.sub(r"\\\n\s*", "", "\n".join(lines))
    pairs = (line.partition(" ") for line in whole.splitlines())
    return tuple((name, arguments.strip()) for name, _, arguments in pairs)


def arguments(name: str) -> list[str]:
    """The arguments of every instruction `name`, in order."""
    return [given for found, given in dockerfile() if found == name]


def the_only(name: str) -> str:
    (given,) = arguments(name)
    return given


def command() -> list[str]:
    """CMD in its exec form: a shell in between would not pass signals on."""
    words: list[str] = json.loads(the_only("CMD"))
    return words


def environment() -> dict[str, str]:
    return dict(word.split("=", 1) for word in the_only("ENV").split())


def after(flag: str) -> str:
    words = command()
    return words[words.index(flag) + 1]


# --- Dockerfile ------------------------------------------------------------


def test_every_instruction_is_one_that_docker_knows() -> None:
    assert {name for name, _ in dockerfile()} <= KNOWN
    assert dockerfile()[0][0] == "FROM"
    assert [name for name, given in dockerfile() if not given] == []


def test_the_base_is_pinned_to_the_python_of_the_constraints() -> None:
    image, _, tag = the_only("FROM").partition(":")
    tested = re.search(r"Linux with Python (\d+\.\d+)", read("constraints.txt"))
    assert tested is not None
    assert image == "python"
    assert re.fullmatch(rf"{re.escape(tested[1])}(\.\d+)?-slim-[a-z]+", tag), f"{tag}: not latest, and that Python"


def test_it_runs_as_a_user_with_a_number_that_is_not_root() -> None:
    uid, _, gid = the_only("USER").partition(":")
    assert int(uid) > 0 and int(gid) > 0
    names = [name for name, _ in dockerfile()]
    assert names.index("USER") < names.index("CMD")
    assert "RUN" not in names[names.index("USER") :], "what is installed belongs to root"


def test_nothing_is_fetched_but_by_pip_at_pinned_versions() -> None:
    assert arguments("ADD") == []
    assert "://" not in "".join(arguments("RUN"))
    installs = [line for line in arguments("RUN") if "pip install" in line]
    assert len(installs) == 2
    assert all("-c constraints.txt" in line for line in installs)
    assert not [line for line in arguments("RUN") if re.search(r"\b(curl|wget|sudo)\b", line)]


def test_the_torch_arguments_reach_the_torch_install_alone() -> None:
    assert the_only("ARG") == 'TORCH_ARGS=""'
    (line,) = [line for line in arguments("RUN") if "TORCH_ARGS" in line]
    assert line.endswith("torch")


def copied() -> list[str]:
    return [source for line in arguments("COPY") for source in line.split()[:-1]]


@pytest.mark.parametrize("source", copied())
def test_what_is_copied_exists_and_is_sent(source: str) -> None:
    assert (ROOT / source).exists()
    assert not ignored(source)


def test_what_the_package_is_built_from_is_copied_before_it_is_installed() -> None:
    project = tomllib.loads(read("pyproject.toml"))["project"]
    needed = {"pyproject.toml", "src", "constraints.txt", project["readme"], *project["license-files"]}
    steps = [given for name, given in dockerfile() if name in ("COPY", "RUN")]
    until = next(place for place, given in enumerate(steps) if given.endswith("constraints.txt ."))
    assert needed <= {source for given in steps[:until] for source in given.split()[:-1]}


def test_the_port_is_one_and_the_same() -> None:
    port = the_only("EXPOSE")
    assert after("--server.port") == port
    assert f":{port}/_stcore/health" in the_only("HEALTHCHECK")
    assert f":{port}:{port} " in read("docs/guides/deploy.md")


def test_the_address_that_is_open_is_written_out() -> None:
    assert command()[:3] == ["streamlit", "run", "app.py"]
    assert after("--server.address") == "0.0.0.0"


def test_all_that_is_kept_lies_in_the_volume(monkeypatch: pytest.MonkeyPatch) -> None:
    (volume,) = json.loads(the_only("VOLUME"))
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    kept = [store.default_store_path(), artifacts.cache_dir(), Path(environment()["HF_HOME"]), Path.home()]
    assert [path for path in kept if not path.is_relative_to(volume)] == []
    assert any(line.endswith(f"--owner=10001 --group=10001 {volume}") for line in arguments("RUN"))
    assert the_only("USER") == "10001:10001"


class Health(BaseHTTPRequestHandler):
    """Answers as Streamlit does when it is well, and 404 elsewhere."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/_stcore/health" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Health)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def look(port: int, path: str = "/_stcore/health") -> int:
    """The exit code of the health check, sent to `port`, with a proxy set that leads nowhere."""
    words = json.loads(the_only("HEALTHCHECK").partition(" CMD ")[2])
    code = words[-1].replace(f":{the_only('EXPOSE')}/_stcore/health", f":{port}{path}")
    assert str(port) in code
    env = {**os.environ, "http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    return subprocess.run([sys.executable, "-I", *words[1:-1], code], env=env, capture_output=True).returncode


def test_the_health_check_tells_well_from_ill(port: int) -> None:
    assert look(port) == 0
    assert look(port, "/nothing") != 0
    assert look(9) != 0, "nobody listens there"


@pytest.mark.slow
def test_the_command_of_the_image_serves_what_the_health_check_asks_for(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = str(probe.getsockname()[1])
    swapped = {after("--server.address"): "127.0.0.1", after("--server.port"): number}
    words = [swapped.get(word, word) for word in command()]
    env = {**os.environ, "HOME": str(tmp_path), "INFERPLAN_STORE": str(tmp_path / "inferplan.db")}
    with subprocess.Popen([sys.executable, "-m", *words], cwd=ROOT, env=env, stdout=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + 60
            while look(int(number)) != 0:
                assert server.poll() is None and time.monotonic() < deadline
                time.sleep(0.2)
            with urlopen(f"http://127.0.0.1:{number}/_stcore/health", timeout=5) as answer:
                assert answer.read() == b"ok"  # at an address that it does not know, Streamlit serves the page itself
        finally:
            server.kill()


# --- .dockerignore ---------------------------------------------------------


def rules() -> list[tuple[bool, re.Pattern[str]]]:
    """Whether a rule leaves out, and what it matches, as in Docker's description of the file."""
    found = []
    for line in filter(None, (line.strip() for line in read(".dockerignore").splitlines())):
        if line.startswith("#"):
            continue
        pattern = re.escape(line.removeprefix("!")).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
        pattern = pattern.replace(r"\[", "[").replace(r"\]", "]")
        found.append((not line.startswith("!"), re.compile(pattern)))
    return found


def ignored(path: str) -> bool:
    """Whether `path` stays behind: the last rule that matches it or a directory above it decides."""
    whole = PurePosixPath(path)
    names = [str(whole), *(str(parent) for parent in whole.parents if str(parent) != ".")]
    verdict = False
    for leaves_out, pattern in rules():
        if any(pattern.fullmatch(name) for name in names):
            verdict = leaves_out
    return verdict


@pytest.mark.parametrize(
    "path",
    [
        ".git/config",
        ".venv/bin/python",
        ".mypy_cache/x.json",
        ".streamlit/secrets.toml",
        ".env",
        "studies.db",
        "models/model.safetensors",
        "tests/test_deploy.py",
        "src/inferplan/__pycache__/cli.cpython-311.pyc",
        "src/inferplan/stale.pyc",
    ],
)
def test_what_does_not_belong_into_the_image_is_not_sent(path: str) -> None:
    assert ignored(path)


def test_every_file_of_the_package_is_sent() -> None:
    ours = [p.relative_to(ROOT).as_posix() for p in (ROOT / "src").rglob("*") if p.is_file()]
    left = [path for path in ours if ignored(path) and "__pycache__" not in path]
    assert ours and left == []


# --- .streamlit/config.toml ------------------------------------------------

OPTIONS = """
import json
from streamlit import config
found = config.get_config_options(force_reparse=True)
print(json.dumps({
    "known": {key: option.deprecated for key, option in found.items()},
    "value": {key: config.get_option(key) for key in found if key.startswith(("server.", "browser.", "client."))},
}, default=str))
"""


def settings() -> dict[str, Any]:
    """The settings by their whole names, `theme.dark.textColor`."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, table: dict[str, Any]) -> None:
        for name, value in table.items():
            if isinstance(value, dict):
                walk(f"{prefix}{name}.", value)
            else:
                flat[prefix + name] = value

    walk("", tomllib.loads(read(".streamlit/config.toml")))
    return flat


def child(*words: str, **variables: str) -> str:
    """What a Python process that starts in the repository prints, with none of our own STREAMLIT_* variables."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("STREAMLIT_")}
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env={**env, **variables}, capture_output=True, text=True, check=True
    )
    return done.stdout


@functools.cache
def streamlit() -> dict[str, Any]:
    """What Streamlit itself makes of the file."""
    answer: dict[str, Any] = json.loads(child("-c", OPTIONS).splitlines()[-1])
    return answer


def test_every_setting_is_one_that_this_streamlit_knows() -> None:
    known = streamlit()["known"]
    assert [key for key in settings() if key not in known] == []
    assert [key for key in settings() if known[key]] == [], "deprecated"
    assert {word.removeprefix("--") for word in command() if word.startswith("--")} <= set(known)


def test_streamlit_takes_the_settings_that_keep_the_page_private() -> None:
    value = streamlit()["value"]
    assert value["server.address"] == "127.0.0.1"
    assert value["server.enableXsrfProtection"] is True
    assert value["server.enableCORS"] is True
    assert value["server.maxUploadSize"] <= 2
    assert value["client.showErrorDetails"] == "none"
    assert value["browser.gatherUsageStats"] is False


def test_nothing_runs_beside_a_study_that_need_not() -> None:
    value = streamlit()["value"]
    assert value["server.fileWatcherType"] == "none"
    assert value["server.runOnSave"] is False
    assert value["server.headless"] is True


@pytest.mark.parametrize(
    ("flags", "address"), [((), "0.0.0.0"), (("--server.address", "192.0.2.1"), "192.0.2.1")], ids=["variable", "flag"]
)
def test_a_flag_comes_before_the_environment_and_that_before_the_file(flags: tuple[str, ...], address: str) -> None:
    shown = child("-m", "streamlit", "config", "show", *flags, STREAMLIT_SERVER_ADDRESS="0.0.0.0")
    assert re.findall(r'^address = "(.*)"$', re.sub(r"\x1b\[[\d;]*m", "", shown), re.MULTILINE) == [address]
    assert "STREAMLIT_SERVER_ADDRESS" in read("docs/guides/deploy.md")


def test_the_settings_that_are_installed_are_those_of_the_repository() -> None:
    assert read("src/inferplan/web/.streamlit/config.toml") == read(".streamlit/config.toml")


THEMES = {"light": PAGE.split("@media (prefers-color-scheme: dark)")[0], "dark": PAGE.split("color-scheme: dark)")[1]}


@pytest.mark.parametrize("theme", THEMES)
def test_the_themes_are_the_colours_of_the_report(theme: str) -> None:
    report = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", THEMES[theme].split("* {")[0]))
    given = {key.rpartition(".")[2]: value for key, value in settings().items() if key.startswith(f"theme.{theme}.")}
    assert given["backgroundColor"] == report["page"]
    assert given["secondaryBackgroundColor"] == report["panel"]
    assert given["textColor"] == report["text"]
    assert given["borderColor"] == given["dataframeBorderColor"] == report["line"]


def luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb`, 0 to 1, by WCAG 2.2."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("ground", ["backgroundColor", "secondaryBackgroundColor", "codeBackgroundColor"])
@pytest.mark.parametrize(("ink", "ratio"), [("textColor", 7.0), ("linkColor", 4.5), ("primaryColor", 3.0)])
def test_text_stands_out_from_its_ground(theme: str, ground: str, ink: str, ratio: float) -> None:
    given = settings()
    light, dark = sorted((luminance(given[f"theme.{theme}.{name}"]) for name in (ink, ground)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= ratio


@pytest.mark.parametrize("theme", THEMES)
def test_white_text_stands_out_from_a_primary_button(theme: str) -> None:
    assert 1.05 / (luminance(settings()[f"theme.{theme}.primaryColor"]) + 0.05) >= 4.5


# --- the page --------------------------------------------------------------


def test_the_commands_of_the_page_are_those_that_the_parser_takes() -> None:
    lines = re.findall(r"^    inferplan (web .+)$", read("docs/guides/deploy.md"), re.MULTILINE)
    assert lines
    for line in lines:
        assert build_parser().parse_args(shlex.split(line, comments=True)).port == int(the_only("EXPOSE"))


def test_the_page_says_that_the_image_was_not_built_and_that_there_is_no_login() -> None:
    words = " ".join(read("docs/guides/deploy.md").split())
    assert "was not built" in words
    assert "There is no login" in words
