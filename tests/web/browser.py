"""The app as a user starts it, and the few words that a test needs to use its pages.

Owns the server's process and the selectors of Streamlit's widgets. Leaves Chromium
to `conftest`, what is asserted to `test_browser`.
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from playwright.sync_api import ConsoleMessage, Dialog, Locator, Page, expect

from inferplan.store import Store
from inferplan.study import Study, exported, load
from inferplan.web import jobs
from test_weights import write_tokenizer

ROOT = Path(__file__).resolve().parents[2]
SCREENSHOTS = ROOT / "screenshots"
START = "Start the study"
NARROW, WIDE = 390, 1440

# Console messages that are no fault of ours, each with the reason.
ALLOWED = (
    # Opened at /study, Streamlit's page looks for its server below /study first, then below /.
    re.compile(r"404 \(Not Found\) \(\S+/(study|history|compare|machine)/_stcore/(health|host-config)\)$"),
)

_CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
_STARTS_WITHIN_S = 60.0
_ENDS_WITHIN_S = 30.0
# A first look at a page asks each engine what it can do, in a process that imports it.
_DRAWN_WITHIN_MS = 60_000
# Beyond it a page is cut off in its picture: no page of ours should come near.
_TALLEST_PX = 12_000
_STILL_MS = 300  # a run of the page that was asked for has begun by then


def find_chromium() -> str | None:
    """The installed browser; None where there is none. A downloaded one is never used."""
    return next((found for name in _CHROMIUM if (found := shutil.which(name))), None)


@dataclass(frozen=True, slots=True)
class Server:
    """A running app: where it answers, its store, and what it says."""

    url: str
    store: Path
    log: Path

    def study(self, id: str) -> Study:
        """The study as the store has it now."""
        with Store(self.store) as store:
            return load(store, id)

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of all studies, newest first."""
        with Store(self.store) as store:
            return store.study_ids()


@contextmanager
def serve(
    root: Path, *, models: Path | None = None, cwd: Path | None = None, home: Path | None = None
) -> Iterator[Server]:
    """`inferplan web` with a store of its own below `root`; ended, with the studies that it started, on leaving.

    Args:
        cwd: where it is started from; `root` when None, so that no file of the repository helps it.
        home: of a user whose browser is to be opened; None: none is opened.
    """
    root.mkdir(parents=True, exist_ok=True)
    server = Server(f"http://127.0.0.1:{_free_port()}", root / "inferplan.db", root / "server.log")
    port = server.url.rpartition(":")[2]
    command = [sys.executable, "-m", "inferplan", "web", "--port", port, "--store", str(server.store)]
    command += [] if home else ["--no-browser"]
    command += ["--models-dir", str(models)] if models else []
    with server.log.open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=cwd or root,
            env={**os.environ, "HF_HUB_OFFLINE": "1", **({"HOME": str(home), "BROWSER": "true"} if home else {})},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_healthy(process, server, int(port))
        yield server
    finally:
        _end_studies(server)
        _end(process)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_healthy(process: subprocess.Popen[bytes], server: Server, port: int) -> None:
    deadline = time.monotonic() + _STARTS_WITHIN_S
    while time.monotonic() < deadline and process.poll() is None:
        if _healthy(port):
            return
        time.sleep(0.1)
    raise AssertionError(f"the app did not start (exit code {process.poll()}):\n{server.log.read_text()}")


def _healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/_stcore/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _end_studies(server: Server) -> None:
    """Their processes outlive the server by design, so a test that failed must not leave one to the next."""
    for id in server.ids if server.store.exists() else ():
        job = jobs.find(server.store, id)
        if job is None or jobs.state(job) == "ended":
            continue
        try:
            process = psutil.Process(job.pid)
            every = [process, *process.children(recursive=True)]
            jobs.cancel(job)
            _, alive = psutil.wait_procs(every, timeout=_ENDS_WITHIN_S)
        except psutil.NoSuchProcess:
            continue
        for left in alive:
            left.kill()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_ENDS_WITHIN_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def make_checkpoint(path: Path, *, layers: int, width: int) -> None:
    """A seeded GPT-2 with the real tokenizer. Many narrow layers are slow and small, few wide ones fast and large."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(7)
    config = GPT2Config(n_positions=256, n_embd=width, n_layer=layers, n_head=4, initializer_range=0.3)
    GPT2LMHeadModel(config).save_pretrained(path)
    write_tokenizer(path)


def keep(server: Server, studies: Iterable[Study]) -> None:
    """Put made-up studies into the store, as an import does."""
    with Store(server.store) as store:
        for study in studies:
            store.import_study(exported(study))


# --- pages ---


def listen(page: Page) -> list[str]:
    """What goes wrong in the page from now on: errors of scripts and of the console, dialogs that text opened."""
    heard: list[str] = []

    def console(message: ConsoleMessage) -> None:
        text = f"console: {message.text} ({message.location.get('url', '')})"
        if message.type == "error" and not any(pattern.search(text) for pattern in ALLOWED):
            heard.append(text)

    def dialog(opened: Dialog) -> None:
        heard.append(f"dialog: {opened.message}")
        opened.dismiss()

    page.on("console", console)
    page.on("pageerror", lambda error: heard.append(f"script: {error}"))
    page.on("dialog", dialog)
    return heard


def visit(page: Page, server: Server, path: str = "/") -> None:
    """Open a page and wait until it is drawn."""
    page.goto(server.url + path)
    drawn(page)


def drawn(page: Page) -> None:
    """Wait until the server has nothing more to send, and nothing on the page is a placeholder."""
    app = page.get_by_test_id("stApp")
    expect(app).to_have_attribute("data-test-script-state", "notRunning", timeout=_DRAWN_WITHIN_MS)
    expect(title(page)).to_be_visible(timeout=_DRAWN_WITHIN_MS)
    expect(page.get_by_test_id("stSkeleton")).to_have_count(0)


def title(page: Page) -> Locator:
    """The first heading of the page."""
    return page.get_by_test_id("stMain").get_by_role("heading").first


def field(page: Page, label: str) -> Locator:
    """A text, number or selection field by its label."""
    return page.locator(f'input[aria-label="{label}"], textarea[aria-label="{label}"]').or_(
        page.get_by_label(label, exact=True)
    ).locator("visible=true").first  # fmt: skip


def write(page: Page, label: str, value: str) -> None:
    """Write into a text or number field, and leave it, which is what sends it."""
    found = field(page, label)
    found.fill(value)
    found.blur()


def group(page: Page, label: str) -> Locator:
    """The buttons of a row of which one or several are chosen."""
    row = page.get_by_test_id("stButtonGroup").filter(has=page.locator(f'[aria-label="{label}"]'))
    return row.locator("button")


def pick(page: Page, label: str, *wanted: str) -> None:
    """Choose just these in a row of buttons; a name may be the beginning of what its button says."""
    for button in group(page, label).all():
        name = button.inner_text().strip()
        if _chosen(button) != any(name == one or name.startswith(f"{one} ") for one in wanted):
            button.click()


def pick_chart(page: Page, kind: str) -> str:
    """Choose a chart, wait until it has taken the place of the one before, and tell its text alternative."""
    figure = page.get_by_role("figure").first
    before = figure.get_attribute("aria-label") or ""
    chosen = page.get_by_role("radio", name=kind, exact=True)
    if chosen.get_attribute("aria-checked") != "true":
        chosen.click()
        expect(figure).not_to_have_attribute("aria-label", before)
    still(page)
    return figure.get_attribute("aria-label") or ""


def _chosen(button: Locator) -> bool:
    return "true" in (button.get_attribute("aria-pressed"), button.get_attribute("aria-checked"))


def select_many(page: Page, label: str, *wanted: str) -> None:
    """Choose just these in a field that takes several."""
    widget = page.get_by_test_id("stMultiSelect").filter(has=page.get_by_role("combobox", name=label, exact=True))
    clear = widget.get_by_role("button", name="Clear all")
    if clear.count():
        clear.click()
        expect(clear).to_have_count(0)
    for name in wanted:
        widget.get_by_role("combobox").fill(name)  # a long list holds only those in view
        page.get_by_role("option", name=re.compile(rf"^{re.escape(name)}\b")).click()
        page.keyboard.press("Escape")


def select_one(page: Page, label: str, wanted: str) -> None:
    """Choose an option of a field that takes one; `wanted` is the beginning of what it says."""
    page.get_by_role("combobox", name=label, exact=True).click()
    page.get_by_role("option", name=re.compile(rf"^{re.escape(wanted)}")).click()


def unfold(page: Page, title: str) -> None:
    """Open a part of the page that is folded."""
    summary = page.locator("summary").filter(has_text=title)
    summary.click()
    # A list that opens while the part still grows is closed again by it.
    summary.evaluate("e => Promise.allSettled(e.parentElement.getAnimations({subtree: true}).map(a => a.finished))")


def tick(page: Page, label: str) -> None:
    """Tick a box, by keyboard."""
    box = page.get_by_role("checkbox", name=label)
    box.press("Space")
    expect(box).to_be_checked()


def upload(page: Page, name: str, content: bytes) -> None:
    """Give the file to the upload field of the page."""
    kind = "application/json" if name.endswith((".json", ".jsonl")) else "text/plain"
    page.get_by_test_id("stFileUploaderDropzoneInput").set_input_files(
        {"name": name, "mimeType": kind, "buffer": content}
    )


def download(page: Page, name: str, folder: Path) -> Path:
    """Press the button of that name, and keep the file that it gives under the name that the browser would."""
    with page.expect_download() as started:
        page.get_by_role("button", name=name, exact=True).click()
    place = folder / started.value.suggested_filename
    started.value.save_as(place)
    return place


def errors(page: Page) -> Locator:
    """The messages that say what is wrong."""
    return page.get_by_test_id("stAlert")


def grid(page: Page, alt: str) -> Locator:
    """The text of a table: its canvas holds the rows in view for those who do not see it."""
    return page.locator(f'[aria-label*="{alt}"]').locator("table").first


def as_written(text: str) -> re.Pattern[str]:
    """`text` as a page shows it: word joiners keep it from becoming a link, a mark stands for a control character."""
    return re.compile("\u2060?".join(re.escape(character) for character in text.replace("\x1b", "?")))


def chosen_plan(page: Page) -> Locator:
    """The heading of the part that says what is chosen."""
    return page.locator(".st-key-choice").get_by_role("heading")


def whole(page: Page, width: int) -> None:
    """Make the window as high as the page, because the page scrolls inside it and a picture shows the window."""
    drawn(page)
    if page.get_by_test_id("stPlotlyChart").count():
        expect(page.locator(".js-plotly-plot .main-svg").first).to_be_visible()
    page.evaluate("document.fonts.ready.then(() => true)")
    height = page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
    page.set_viewport_size({"width": width, "height": min(max(int(height), 844), _TALLEST_PX)})


def picture(page: Page, name: str) -> None:
    """A picture of the window for people to look at."""
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", animations="disabled")


def pictures(page: Page, name: str, part: Locator | None = None) -> None:
    """A light and a dark picture of the window, or of a part of the page; the page is left dark."""
    SCREENSHOTS.mkdir(exist_ok=True)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        expect(page.get_by_test_id("stApp")).to_have_css("color-scheme", scheme)
        if part is not None:
            still(page)  # the page is run again for another scheme, and a part that is put anew has no picture
        (part or page).screenshot(path=SCREENSHOTS / f"{name}-{scheme}.png", animations="disabled")


def still(page: Page) -> None:
    """Wait until the page is drawn and nothing was put on it or taken away for a while."""
    drawn(page)
    page.evaluate(
        """quiet => new Promise(resolve => {
            const done = () => { observer.disconnect(); resolve(); };
            let timer = setTimeout(done, quiet);
            const observer = new MutationObserver(() => { clearTimeout(timer); timer = setTimeout(done, quiet); });
            observer.observe(document.querySelector("[data-testid=stMain]"), {childList: true, subtree: true});
        })""",
        _STILL_MS,
    )


def sideways(page: Page) -> dict[str, int]:
    """By scrolled element, the pixels by which its content is wider than it; empty: nothing scrolls sideways."""
    found: dict[str, int] = page.evaluate(
        """() => Object.fromEntries(
            [["page", document.scrollingElement], ["main", document.querySelector("[data-testid=stMain]")]]
                .map(([name, element]) => [name, element.scrollWidth - element.clientWidth])
                .filter(([_, beyond]) => beyond > 1)
        )"""
    )
    return found
