"""What the page of a study of 500 plans costs the server: the first look, a full rerun, a what-if; and the start page.

The study is made up (figures of a likely size, nothing measured) and kept in a store of its own; the server is the
real one, in a process of its own; a websocket client asks as a browser would. Timed is what the client sees, from
sending its request until the page's last message is there. A browser then still has to draw it, on its own machine.
Servers are started anew a few times, because only a new one has a first look to give; within each, what is compared
takes turns.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from _common import MIB, header, say
from _web_client import Client, Drawn, Server, serving
from _web_study import SPACE_500, keep, made_up

from inferplan.store import Store

NAMES = (
    FIRST := "first page of a new server (history)",
    LOOK := "first look at the study",
    RERUN := "full rerun",
    WHAT_IF := "what-if",
    KNOWN := "what-if, plan chosen before",
    NEW := "what-if, plan chosen for the first time",
    ASKED := "start page, engines asked",
    START := "start page, full rerun",
    EMPTY := "a page of one sentence",
)
AIMS_MS = {RERUN: 1000.0, WHAT_IF: 200.0}
SLAS_MS = [limit for limit in range(400, 5000, 10) if limit != 1500]  # 1500 ms is what the study itself asks for

Times = dict[str, list[float]]


def one_server(server: Server, study: str, repeats: int, source: random.Random, times: Times) -> set[str]:
    """Everything once on a new server, then what can be repeated, in turn; the plans that were chosen."""
    with Client(server.port) as page:
        times[FIRST].append(page.open("history").seconds)
    with Client(server.port) as page, Client(server.port) as empty, Client(server.port) as start:
        first = page.open("study", f"study={study}")
        times[LOOK].append(first.seconds)
        say(f"  the study's page: {first.messages} messages, {first.bytes / 1024:.0f} KiB")
        times[ASKED].append(start.open("").seconds)
        empty.open("compare")
        seen = {chosen(first)}
        for limit in source.sample(SLAS_MS, repeats):
            times[RERUN].append(page.rerun().seconds)
            moved = what_if(page, limit)
            times[WHAT_IF].append(moved.seconds)
            times[KNOWN if chosen(moved) in seen else NEW].append(moved.seconds)
            seen.add(chosen(moved))
            times[START].append(start.rerun().seconds)
            times[EMPTY].append(empty.rerun().seconds)
    return seen


def what_if(page: Client, limit_ms: float) -> Drawn:
    """Move the SLA, and make sure that the page judged anew."""
    moved = page.slide("limit, ms", limit_ms)
    if f"{limit_ms:g}ms" not in moved.first("alert"):
        raise SystemExit(f"the page did not take {limit_ms:g} ms as the SLA: {moved.first('alert')!r}")
    return moved


def chosen(drawn: Drawn) -> str:
    """The plan that the page says is chosen, or that there is none: the first heading of what can be re-judged."""
    headings = [text for kind, text in drawn.texts if kind == "heading"]
    return headings[headings.index("Trade-offs") - 1]


def show(times: Times) -> None:
    """A line each: median and range, in milliseconds."""
    width = max(len(name) for name in times)
    for name, seconds in times.items():
        if not seconds:
            continue
        figures = [1000 * s for s in seconds]
        span = f"[{min(figures):.0f}, {max(figures):.0f}]"
        print(f"{name:<{width}}  {statistics.median(figures):6.0f} ms  {span:<14} ({len(figures)} times)")


def judge(name: str, seconds: Sequence[float]) -> str:
    """Whether the median is below the aim."""
    found = 1000 * statistics.median(seconds)
    return f"{name}: median {found:.0f} ms, aim {AIMS_MS[name]:.0f} ms: {'met' if found < AIMS_MS[name] else 'missed'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=12, help="of each, on each server")
    parser.add_argument("--servers", type=int, default=4, help="started one after another")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    times: Times = {name: [] for name in NAMES}
    plans: set[str] = set()
    source = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.db"
        study = made_up("20260101-000000-web0", SPACE_500, seed=arguments.seed)
        with Store(path) as store:
            keep(store, study)
        samples = sum(len(m.samples) for m in study.measurements)
        print(header({}, study.workload.max_new_tokens).splitlines()[0])
        print(
            f"a made-up study: {len(study.plans)} plans, {len(study.measurements)} processes, {samples} samples; "
            f"the store takes {path.stat().st_size / MIB:.0f} MiB"
        )
        for number in range(arguments.servers):
            say(f"server {number + 1} of {arguments.servers}")
            with serving(path) as server:
                plans |= one_server(server, study.id, arguments.repeats, source, times)
                memory = server.rss_bytes
    show(times)
    print(f"the SLAs of the what-ifs chose {len(plans)} different plans")
    print(f"the last server holds {memory / MIB:.0f} MiB of memory")
    for name in AIMS_MS:
        print(judge(name, times[name]))


if __name__ == "__main__":
    main()
