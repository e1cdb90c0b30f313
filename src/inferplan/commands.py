"""What each command does, from parsed arguments to an exit code.

Owns the order of calls and what is printed. Leaves arguments to `cli`, the
loop to `study`, figures and pages to `report`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from . import compare as comparing
from . import doctor as doctors
from . import locks, measure, prepare, report, reuse, strategies, terms, validity
from ._codec import encode
from .engines import HIDDEN, engine_names
from .errors import InputError, StoreError
from .plan import Plan, Space
from .progress import Progress, choose_style
from .search import Search
from .selection import SLA, parse_sla
from .store import Store, store_path
from .study import RACES, Ready, Study, load, run, save_header, take_in
from .study_file import study_text

Arguments = argparse.Namespace
Tell = Callable[[str], None]

_SLA_MS = 1500.0  # of benchmark.py, when it is not given one
_PROMPTS_HERE = "prompts.txt"  # what benchmark.py reads from where it is run, when it is there


def benchmark(arguments: Arguments) -> int:
    """`benchmark.py`: the full space under one limit on the median latency."""
    if arguments.prompts is None and arguments.prompt_tokens is None and Path(_PROMPTS_HERE).is_file():
        arguments.prompts = _PROMPTS_HERE
    return _search(arguments, SLA.from_p50_ms(_SLA_MS if arguments.sla_ms is None else arguments.sla_ms))


def optimize(arguments: Arguments) -> int:
    """`inferplan optimize`."""
    if arguments.resume is not None and arguments.study_file is not None:
        raise InputError("give either --study, which begins a study, or --resume, which goes on with one")
    if arguments.resume is not None and arguments.reuse:
        raise InputError("give --reuse when a study begins: one that is resumed goes on with what it took over then")
    if arguments.sla is None and arguments.resume is None:
        raise InputError('give at least one --sla, such as --sla "p50<=1500ms"')
    return _search(arguments, terms.new_sla(arguments))


def bench(arguments: Arguments) -> int:
    """`inferplan bench PLAN_ID`: one plan; without an SLA, any request that ends in time counts."""
    plan = Plan.parse(arguments.plan)
    limit = [f"p50<={arguments.request_timeout:.15g}s"]
    options = tuple((name, (value,)) for name, value in plan.options)
    space = Space(
        (plan.model,), (plan.engine,), (plan.precision,), (plan.threads,), (plan.kv_cache,), plan.device, options
    )
    arguments.resume = arguments.minimize = arguments.prices = arguments.given_prices = None
    return _search(arguments, parse_sla(arguments.sla or limit), space)


def plans(arguments: Arguments) -> int:
    """`inferplan plans`."""
    asked = terms.space_of(arguments)
    infos = prepare.describe_engines(asked.engines)
    space = terms.fitted(asked, infos)
    out = dict(space.rejected(lambda plan: infos[plan.engine].reject(plan)))
    if arguments.json:
        rows = [{"plan": plan.id, "unsupported": out.get(plan)} for plan in space.plans]
        print(json.dumps(rows, indent=2))
        return 0
    for plan in space.plans:
        print(plan.id + (f"  (cannot run here: {out[plan]})" if plan in out else ""))
    return 0


def studies(arguments: Arguments) -> int:
    """`inferplan studies`."""
    with Store(store_path(arguments.store)) as store:
        rows = store.list_studies()
    if arguments.json:
        keys = ("id", "created_at", "trials", "samples", "finished")
        print(json.dumps([{key: getattr(row, key) for key in keys} for row in rows], indent=2))
        return 0
    if not rows:
        print(f"no studies in {store_path(arguments.store)} yet: `inferplan optimize` makes one", file=sys.stderr)
    for row in rows:
        models = " ".join(row.header["space"]["models"])
        sla = ", ".join(constraint["text"] for constraint in row.header["sla"]["constraints"])
        state = "finished" if row.finished else "unfinished"
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(row.created_at))
        print(f"{row.id}  {when}  {state:10}  {row.trials:4} processes  {row.samples:5} samples  {models}  {sla}")
    return 0


def show(arguments: Arguments) -> int:
    """`inferplan report STUDY`."""
    with Store(store_path(arguments.store)) as store:
        study = load(store, arguments.study)
    study = study.under(
        parse_sla(arguments.sla) if arguments.sla else None,
        terms.objective_of(arguments, study.objective),
        terms.prices_of(arguments, study.prices),
    )
    made = _report(study)
    text = report.render(made, arguments.format)
    _put(text, arguments.out)
    return made.selection.exit_code


def compare(arguments: Arguments) -> int:
    """`inferplan compare A B`."""
    gates = [comparing.parse_gate(text) for text in arguments.fail_if]
    with Store(store_path(arguments.store)) as store:
        a, b = load(store, arguments.a), load(store, arguments.b)
    comparison = comparing.compare(a, b)
    checks = comparing.check_gates(comparison, gates)
    print(comparing.render_comparison(comparison, checks, arguments.format))
    return comparing.gate_exit_code(checks)


def delete(arguments: Arguments) -> int:
    """`inferplan delete STUDY`."""
    with Store(store_path(arguments.store)) as store:
        found = store.find_study(arguments.study)
        if not arguments.yes:
            if not sys.stdin.isatty():
                raise InputError(f"not deleting study {found} without being asked: give --yes")
            if input(f"Delete study {found} and all its measurements? [y/N] ").strip().lower() not in ("y", "yes"):
                print("kept")
                return 0
        store.delete_study(found)
    print(f"deleted {found}")
    return 0


def export(arguments: Arguments) -> int:
    """`inferplan export STUDY`."""
    with Store(store_path(arguments.store)) as store:
        data = store.export_study(store.find_study(arguments.study))
    _put(json.dumps(data, indent=1), arguments.out)
    return 0


def import_(arguments: Arguments) -> int:
    """`inferplan import FILE`."""
    try:
        content = arguments.file.read_bytes()
    except OSError as err:
        raise InputError(f"{str(arguments.file)!r} cannot be read: {err.strerror}") from None
    with Store(store_path(arguments.store)) as store:
        print(take_in(store, content, str(arguments.file)))
    return 0


def doctor(arguments: Arguments) -> int:
    """`inferplan doctor`."""
    infos = prepare.describe_engines(name for name in engine_names() if name not in HIDDEN)
    diagnosis = doctors.diagnose(store_path(arguments.store), engines=infos, quick=arguments.quick)
    if arguments.json:
        print(json.dumps(encode(diagnosis), indent=2))
    else:
        print("\n".join(doctors.lines(diagnosis)))
    return 0


def web(arguments: Arguments) -> int:
    """`inferplan web`: Streamlit serves the app until it is interrupted."""
    if not 1 <= arguments.port <= 65535:
        raise InputError(f"--port must be between 1 and 65535, not {arguments.port}")
    if arguments.models_dir is not None and not arguments.models_dir.is_dir():
        raise InputError(f"--models-dir {str(arguments.models_dir)!r} is not a directory")
    if not _free(arguments.host, arguments.port):
        raise InputError(f"{arguments.host}:{arguments.port} cannot be listened on: give another --port, or --host")
    with Store(store_path(arguments.store)) as store:  # what is wrong with it is said here, not on the page
        path = store.path
    script = Path(__file__).with_name("web") / "script.py"
    options = {
        "server.address": arguments.host,
        "server.port": arguments.port,
        "server.headless": str(arguments.no_browser).lower(),
        "server.showEmailPrompt": "false",  # it would wait for an answer before the first page is served
    }
    command = [sys.executable, "-m", "streamlit", "run", str(script)]
    command += [f"--{name}={value}" for name, value in options.items()] + ["--", "--store", str(path)]
    command += ["--models-dir", str(arguments.models_dir)] if arguments.models_dir else []
    print(f"inferplan web: http://{arguments.host}:{arguments.port}, store {path}", file=sys.stderr, flush=True)
    return subprocess.call(command, env=measure.package_environment())


def _free(host: str, port: int) -> bool:
    """Whether a server could listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _search(arguments: Arguments, sla: SLA | None, space: Space | None = None) -> int:
    """Make or resume a study, run it, print and write what came of it."""
    path = store_path(arguments.store)
    style = choose_style(arguments.quiet or arguments.json, sys.stderr)
    progress: Progress | None = None

    def tell(text: str) -> None:
        if progress is not None:
            progress.tell(text)
        elif style != "quiet":
            print(text, file=sys.stderr, flush=True)

    with Store(path) as store:
        if arguments.resume is not None:
            study, infos = terms.resumed(store, arguments)
        else:
            assert sla is not None, "a new study needs an SLA"
            space = space or terms.space_of(arguments)
            infos = prepare.describe_engines(space.engines)
            study = terms.begun(arguments, sla, space, infos)
        if arguments.save_study is not None:
            _put(study_text(study), arguments.save_study)
        if arguments.out is not None:
            _check_writable(Path(arguments.out))
        # From here on there is work for all cores, and another study's timings must not pay for it.
        with locks.machine_lock(
            study.id, wait=arguments.wait, override=arguments.no_lock, on_wait=tell, on_override=_warn
        ):
            study = replace(study, checkpoints=terms.checkpoints(study, infos, tell, _warn), finished=False)
            # A race starts few of its plans: their artifacts are made when a look first needs them.
            ahead = () if study.settings.strategy in RACES else study.plans
            ready = prepare.prepare(study.checkpoints, study.workload, ahead, infos, tell)
            save_header(store, study)
            watch = _watch(study)
            try:
                study = reuse.taken_over(study, store, ready, infos, watch=watch, tell=tell)
                search = _search_of(study, ready, store, tell)
                progress = Progress(study, style)
                with progress.showing():
                    study = run(study, store, ready, infos, watch=watch, search=search, notify=progress)
            except KeyboardInterrupt:
                return _interrupted(store, study.id, arguments)
            except StoreError:
                print(_how_to_resume(study.id, arguments), file=sys.stderr)
                raise
            finally:
                ready.tidy(study.plans)
    return _answer(study, arguments)


def _search_of(study: Study, ready: Ready, store: Store, tell: Tell) -> Search:
    """The search that the study asks for; a race first learns the rates of this machine."""
    if said := strategies.announced(study):
        tell(said)
    return strategies.search_for(study, ready, strategies.expected(study, ready, store, tell))


def _warn(text: str) -> None:
    """A warning is said whatever was asked to be quiet."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def _watch(study: Study) -> measure.Watch:
    outside = study.settings.watch_outside
    return measure.Watch(
        cores=study.machine.cores_granted,
        machine_cores=study.machine.cores_logical,
        canary=validity.Canary() if outside else None,
        private=study.settings.private,
        judge=outside,
    )


def _answer(study: Study, arguments: Arguments) -> int:
    """Print the report, write the files, and return the exit code of the selection."""
    made = _report(study)
    if arguments.json:
        print(report.render(made, "json"))
    else:
        _print(made)
    if arguments.out is not None:
        written = report.write_csvs(made, Path(arguments.out))
        if not arguments.quiet and not arguments.json:
            print("wrote " + ", ".join(str(path) for path in written), file=sys.stderr)
    return made.selection.exit_code


def _print(made: report.Report) -> None:
    """The report as text; on a terminal with its colours, as wide as the terminal."""
    if not sys.stdout.isatty():
        print(report.render(made, "table"))
        return
    from rich.console import Console

    console = Console()
    console.print(report.rich_report(made, console.width))


def _check_writable(directory: Path) -> None:
    """Find out before anything is measured whether the files can be written at the end."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return
    except OSError as err:
        raise InputError(f"--out {str(directory)!r} cannot be written: {err.strerror}") from None


def _interrupted(store: Store, id: str, arguments: Arguments) -> int:
    """Say what is known so far and how to go on."""
    study = load(store, id)
    if any(m.samples for m in study.measurements):
        made = _report(study)
        print(report.render(made, "json" if arguments.json else "table"))
    print(_how_to_resume(id, arguments), file=sys.stderr)
    return 130


def _how_to_resume(id: str, arguments: Arguments) -> str:
    names = ["store", "out"]
    if arguments.private:
        names += ["prompts", "prompt_tokens", "max_new_tokens"]  # kept as hashes only, so they must be given again
    given = [(name.replace("_", "-"), getattr(arguments, name)) for name in names]
    flags = [f"--{name} {shlex.quote(str(value))}" for name, value in given if value]
    command = " ".join([shlex.quote(sys.executable), "-m inferplan optimize --resume", id, *flags])
    return f"interrupted; what was measured is kept. Go on with: {command}"


def _report(study: Study) -> report.Report:
    selection = study.select()
    recipe = None
    if selection.winner is not None:
        plan = selection.winner.plan
        checkpoint = study.checkpoint(plan.model)
        recipe = measure.recipe(plan, str(checkpoint.path) if checkpoint else plan.model)
    return report.report_of(study, recipe=recipe)


def _put(text: str, out: str | Path | None) -> None:
    if out is None:
        print(text)
        return
    try:
        Path(out).write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8")
    except OSError as err:
        raise InputError(f"{str(out)!r} cannot be written: {err.strerror}") from None
