"""A websocket client in a browser's place, and the server of the app that it talks to.

Owns the conversation: it opens a page, moves a widget, and refreshes what the page asks to have refreshed, with the
messages that Streamlit's own frontend sends. What comes back is read and counted, never drawn. Run as a script it
watches pages as lines of JSON tell it to, so that its work is done outside of the process that times requests.
"""

from __future__ import annotations

import http.client
import json
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from streamlit.proto.Alert_pb2 import Alert
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ClientState_pb2 import ClientState
from streamlit.proto.Delta_pb2 import Delta
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from streamlit.proto.WidgetStates_pb2 import WidgetState
from websockets.sync.client import connect
from websockets.typing import Subprotocol

HOST = "127.0.0.1"
_ANSWER_S = 120.0
_START_S = 60.0
_STOP_S = 10.0


@dataclass(frozen=True, slots=True)
class Drawn:
    """What one run of a page's script sent.

    Attributes:
        seconds: from sending the request until the last message was read.
        bytes: of all messages.
        texts: kind and text of each heading, paragraph and notice, in the order of the page.
    """

    seconds: float
    messages: int
    bytes: int
    texts: tuple[tuple[str, str], ...]

    def first(self, kind: str) -> str:
        """The first text of that kind; empty without one."""
        return next((text for found, text in self.texts if found == kind), "")


class Client:
    """One open tab. Widgets that were never moved are left out of what it sends: the server knows their values."""

    def __init__(self, port: int) -> None:
        address = f"ws://{HOST}:{port}/_stcore/stream"
        self._opened = ExitStack()
        self._socket = self._opened.enter_context(
            connect(address, subprotocols=[Subprotocol("streamlit")], proxy=None, max_size=None)
        )
        self._page, self._query = "", ""
        self._moved: dict[str, WidgetState] = {}
        self._widgets: dict[str, tuple[str, str]] = {}  # id and fragment by label, as last drawn
        self._cached: set[str] = set()
        self.timers: dict[str, float] = {}
        """Seconds between two refreshes, by fragment: the page asks for them, a browser's timer sends them."""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def open(self, page: str, query: str = "") -> Drawn:
        """Go to the page with that path (empty: the first one), as by its address."""
        self._page, self._query = "", query
        return self._ask(page=page)

    def rerun(self) -> Drawn:
        """Run the whole page again."""
        return self._ask()

    def refresh(self, fragment: str) -> Drawn:
        """What a timer of the page asks for."""
        return self._ask(fragment=fragment, auto=True)

    def slide(self, label: str, value: float) -> Drawn:
        """Move the slider with that label; only its fragment runs again."""
        if label not in self._widgets:
            raise SystemExit(f"the page has no widget {label!r}")
        id, fragment = self._widgets[label]
        moved = WidgetState(id=id)
        moved.double_array_value.data.append(value)
        self._moved[id] = moved
        return self._ask(fragment=fragment)

    def _ask(self, page: str = "", fragment: str = "", auto: bool = False) -> Drawn:
        state = ClientState(
            query_string=self._query,
            page_script_hash=self._page,
            page_name=page,
            fragment_id=fragment,
            is_auto_rerun=auto,
            cached_message_hashes=sorted(self._cached),
        )
        state.widget_states.widgets.extend(self._moved.values())
        texts: list[tuple[str, str]] = []
        messages = size = 0
        began = time.perf_counter()
        self._socket.send(BackMsg(rerun_script=state).SerializeToString())
        done = False
        while not done:
            try:
                data = self._socket.recv(timeout=_ANSWER_S)
            except TimeoutError:
                raise SystemExit(f"the page did not end within {_ANSWER_S:g} s") from None
            assert isinstance(data, bytes)
            messages, size = messages + 1, size + len(data)
            done = self._read(ForwardMsg.FromString(data), texts)
        return Drawn(time.perf_counter() - began, messages, size, tuple(texts))

    def _read(self, message: ForwardMsg, texts: list[tuple[str, str]]) -> bool:
        """Take in one message; whether it was the last of the run."""
        kind = message.WhichOneof("type")
        if message.metadata.cacheable:
            self._cached.add(message.hash)  # told to the server, which then sends a reference instead
        if kind == "new_session" and not message.metadata.run.fragment_ids:
            self.timers.clear()
        elif kind == "navigation":
            self._page = message.navigation.page_script_hash
        elif kind == "auto_rerun":
            self.timers[message.auto_rerun.fragment_id] = message.auto_rerun.interval
        elif kind == "delta":
            self._element(message.delta, texts)
        elif kind in ("page_not_found", "session_event"):
            raise SystemExit(f"the page failed: {message}")
        elif kind == "script_finished":
            if message.script_finished == ForwardMsg.FINISHED_WITH_COMPILE_ERROR:
                raise SystemExit("the page's script does not compile")
            return message.script_finished != ForwardMsg.FINISHED_EARLY_FOR_RERUN
        return False

    def _element(self, delta: Delta, texts: list[tuple[str, str]]) -> None:
        if delta.WhichOneof("type") != "new_element":
            return
        kind = delta.new_element.WhichOneof("type")
        if kind is None:
            return
        part = getattr(delta.new_element, kind)
        if kind == "exception" or (kind == "alert" and part.format == Alert.ERROR):
            raise SystemExit(f"the page shows an error: {part}")
        if kind in ("alert", "heading", "markdown"):
            texts.append((kind, part.body))
        if getattr(part, "id", "") and hasattr(part, "label"):
            self._widgets[part.label] = part.id, delta.fragment_id


@dataclass(frozen=True, slots=True)
class Server:
    """`inferplan web`, running; `process` is the command, Streamlit's server its child."""

    port: int
    process: psutil.Process

    @property
    def tree(self) -> list[psutil.Process]:
        """The command and everything it started."""
        return [*self.process.children(recursive=True), self.process]

    @property
    def cpu_s(self) -> float:
        """CPU time that it has used so far."""
        return sum(sum(process.cpu_times()[:2]) for process in self.tree)

    @property
    def rss_bytes(self) -> int:
        """Resident memory now."""
        return sum(process.memory_info().rss for process in self.tree)

    def suspend(self) -> None:
        """Stop it where it is (SIGSTOP): it uses nothing but its memory until `resume`."""
        for process in self.tree:
            process.suspend()

    def resume(self) -> None:
        """Let it go on."""
        for process in self.tree:
            process.resume()

    def wait(self) -> None:
        """Wait until it answers."""
        end = time.monotonic() + _START_S
        while not self._answers():
            if not self.process.is_running() or time.monotonic() > end:
                raise SystemExit("the app's server does not answer")
            time.sleep(0.1)

    def stop(self) -> None:
        """End it, and wait until it has ended."""
        with suppress(psutil.NoSuchProcess):  # it ended by itself
            tree = self.tree
            for process in tree:
                with suppress(psutil.NoSuchProcess):
                    process.resume()
                    process.terminate()
            for process in psutil.wait_procs(tree, timeout=_STOP_S)[1]:
                process.kill()

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=5)
        try:
            connection.request("GET", "/_stcore/health")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()


@contextmanager
def serving(store: Path) -> Iterator[Server]:
    """The real server, as `inferplan web --no-browser` starts it, for one store; ended on leaving."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = int(probe.getsockname()[1])
    log = store.with_suffix(".web.log")
    command = [sys.executable, "-m", "inferplan", "web", "--no-browser", "--port", str(port), "--store", str(store)]
    with log.open("wb") as said:
        started = subprocess.Popen(command, cwd=store.parent, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
    server = Server(port, psutil.Process(started.pid))
    try:
        server.wait()
        yield server
    except BaseException:
        print(log.read_text(encoding="utf-8", errors="replace")[-3000:], file=sys.stderr)
        raise
    finally:
        server.stop()
        started.wait()


@dataclass(frozen=True, slots=True)
class Opened:
    """What opening a live page took, and the seconds from one refresh to the next that it asks for."""

    seconds: float
    interval_s: float


@dataclass(frozen=True, slots=True)
class Watched:
    """What watching a page took.

    Attributes:
        looks: start and end of each refresh, in seconds since the epoch, as the client saw them.
        client_cpu_s: CPU time of the client, the page's opening left out.
    """

    looks: tuple[tuple[float, float], ...] = ()
    client_cpu_s: float = 0.0


class Watcher:
    """A client in a process of its own, which keeps a page open while this one does something else."""

    def __init__(self) -> None:
        command = [sys.executable, str(Path(__file__).resolve())]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._receive()

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def watch(self, port: int, study: str) -> Opened:
        """Open the live page of `study`, and from then on refresh it as it asks."""
        self._send({"do": "watch", "port": port, "study": study})
        answer = self._receive()
        return Opened(float(answer["opened_s"]), float(answer["interval_s"]))

    def suspend(self) -> None:
        """Stop it where it is (SIGSTOP); until `resume` no time passes for the page."""
        self._send({"do": "suspend"})
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._send({"do": "resume"})
        self._process.send_signal(signal.SIGCONT)

    def leave(self) -> Watched:
        """Close the page."""
        self._send({"do": "leave"})
        answer = self._receive()
        looks = tuple((float(began), float(ended)) for began, ended in answer["looks"])
        return Watched(looks, float(answer["cpu_s"]))

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        # One clock for all processes of a machine: when it was said, however late it is read.
        self._process.stdin.write(json.dumps({**message, "at": time.monotonic()}) + "\n")
        self._process.stdin.flush()

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the client that watches the page died")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _watch(told: queue.SimpleQueue[dict[str, Any]], task: Mapping[str, Any]) -> None:
    """Keep one page open until told to leave."""
    with Client(task["port"]) as page:
        opened = page.open("study", f"study={task['study']}")
        if len(page.timers) != 1:
            raise SystemExit(f"the page of study {task['study']} is not a live one: it asks for {page.timers}")
        ((fragment, interval),) = page.timers.items()
        _say({"opened_s": opened.seconds, "interval_s": interval})
        looks: list[tuple[float, float]] = []
        cpu_s, due = time.process_time(), time.monotonic()
        # As a browser's timer: at a fixed rate, however long the last look took.
        while (next_due := _due(told, due + interval)) is not None:
            due, began = next_due, time.time()
            page.refresh(fragment)
            looks.append((began, time.time()))
            if fragment not in page.timers:
                raise SystemExit(f"the page of study {task['study']} is no longer live")
        _say({"looks": looks, "cpu_s": time.process_time() - cpu_s})


def _due(told: queue.SimpleQueue[dict[str, Any]], due: float) -> float | None:
    """Wait for the next refresh, put off by the time suspended; when it was due, or None when told to leave."""
    suspended: float | None = None
    while True:
        left = None if suspended is not None else max(due - time.monotonic(), 0.0)
        try:
            message = told.get(timeout=left)
        except queue.Empty:
            return due
        match message["do"]:
            case "suspend":
                suspended = message["at"]
            case "resume" if suspended is not None:
                due, suspended = due + message["at"] - suspended, None
            case "leave":
                return None


def _say(message: Mapping[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def _main() -> None:
    told: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    ended = threading.Event()

    def read() -> None:
        for line in sys.stdin:
            told.put(json.loads(line))
        ended.set()
        told.put({"do": "leave"})

    threading.Thread(target=read, daemon=True).start()
    _say({"ready": True})
    while True:
        message = told.get()
        if message["do"] == "watch":
            _watch(told, message)
        elif ended.is_set():
            return


if __name__ == "__main__":
    _main()
