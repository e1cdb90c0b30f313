"""What each command does, from parsed arguments to an exit code.

Owns the order of calls and what is printed. Leaves arguments to `cli`, the
loop to `study`, figures and pages to `report`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, cast

from . import compare as comparing
from . import doctor as doctors
from . import locks, machine, measure, prepare, report, validity
from ._codec import encode
from .cost import Prices, read_prices
from .engines import HIDDEN, engine_names
from .engines.base import EngineInfo
from .errors import InputError, StoreError
from .models import Checkpoint
from .plan import OptionValue, Plan, Space, option_value
from .progress import Progress, choose_style
from .selection import SLA, Objective, parse_sla
from .store import Store, store_path
from .study import Settings, Study, check_resumable, load, new_id, run, save_header, study_of
from .workload import Prompt, Workload, parse_prompts, read_prompts

Arguments = argparse.Namespace
Tell = Callable[[str], None]

_SLA_MS = 1500.0  # of benchmark.py, when it is not given one
_PROMPTS_HERE = "prompts.txt"  # what benchmark.py reads from where it is run, when it is there
_ROUNDS = 2


def benchmark(arguments: Arguments) -> int:
    """`benchmark.py`: the full space under one limit on the median latency."""
    if arguments.prompts is None and arguments.prompt_tokens is None and Path(_PROMPTS_HERE).is_file():
        arguments.prompts = _PROMPTS_HERE
    return _search(arguments, SLA.from_p50_ms(_SLA_MS if arguments.sla_ms is None else arguments.sla_ms))


def optimize(arguments: Arguments) -> int:
    """`inferplan optimize`."""
    if arguments.sla is None and arguments.resume is None:
        raise InputError('give at least one --sla, such as --sla "p50<=1500ms"')
    return _search(arguments, _new_sla(arguments))


def bench(arguments: Arguments) -> int:
    """`inferplan bench PLAN_ID`: one plan; without an SLA, any request that ends in time counts."""
    plan = Plan.parse(arguments.plan)
    limit = [f"p50<={arguments.request_timeout:.15g}s"]
    options = tuple((name, (value,)) for name, value in plan.options)
    space = Space(
        (plan.model,), (plan.engine,), (plan.precision,), (plan.threads,), (plan.kv_cache,), plan.device, options
    )
    arguments.resume = arguments.minimize = arguments.prices = None
    return _search(arguments, parse_sla(arguments.sla or limit), space)


def plans(arguments: Arguments) -> int:
    """`inferplan plans`."""
    space = _space(arguments)
    infos = prepare.describe_engines(space.engines)
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
    sla = parse_sla(arguments.sla) if arguments.sla else study.sla
    study = replace(
        study, sla=sla, objective=_objective(arguments, study.objective), prices=_prices(arguments, study.prices)
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
        data: Any = json.loads(arguments.file.read_text(encoding="utf-8"))
    except OSError as err:
        raise InputError(f"{str(arguments.file)!r} cannot be read: {err.strerror}") from None
    except ValueError as err:
        raise InputError(f"{str(arguments.file)!r} is not a study that `inferplan export` wrote: {err}") from None
    header = data.get("header") if isinstance(data, dict) else None
    if isinstance(header, dict):
        study_of(str(data.get("id")), header)  # before it is let in: a header that cannot be read stays out
    with Store(store_path(arguments.store)) as store:
        print(store.import_study(data))
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


def _search(arguments: Arguments, sla: SLA | None, space: Space | None = None) -> int:
    """Make or resume a study, run it, print and write what came of it."""
    path = store_path(arguments.store)
    style = choose_style(arguments.quiet or arguments.json, sys.stderr)

    def tell(text: str) -> None:
        if style != "quiet":
            print(text, file=sys.stderr, flush=True)

    with Store(path) as store:
        if arguments.resume:
            study, infos = _resumed(store, arguments)
        else:
            study, infos = _begun(arguments, sla, space or _space(arguments))
        if arguments.out is not None:
            _check_writable(Path(arguments.out))
        # From here on there is work for all cores, and another study's timings must not pay for it.
        with locks.machine_lock(
            study.id, wait=arguments.wait, override=arguments.no_lock, on_wait=tell, on_override=_warn
        ):
            study = replace(study, checkpoints=_checkpoints(study, infos, tell), finished=False)
            ready = prepare.prepare(study.checkpoints, study.workload, study.plans, infos, tell)
            save_header(store, study)
            progress = Progress(study, style)
            try:
                with progress.showing():
                    study = run(study, store, ready, infos, watch=_watch(study), notify=progress)
            except KeyboardInterrupt:
                return _interrupted(store, study.id, arguments)
            except StoreError:
                print(_how_to_resume(study.id, arguments), file=sys.stderr)
                raise
    return _answer(study, arguments)


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


def _begun(arguments: Arguments, sla: SLA | None, space: Space) -> tuple[Study, dict[str, EngineInfo]]:
    """A new study from arguments; what is wrong with them is found here, before anything heavy."""
    assert sla is not None, "a new study needs an SLA"
    infos = prepare.describe_engines(space.engines)
    now = time.time()
    study = Study(
        id=new_id(now),
        created_at=now,
        space=space,
        workload=_workload(arguments),
        sla=sla,
        objective=_objective(arguments, Objective()),
        machine=machine.detect(),
        settings=_settings(arguments),
        prices=_prices(arguments, Prices()),
        libraries=prepare.libraries(infos),
        rejected=prepare.rejected(space, infos),
    )
    return study, infos


def _resumed(store: Store, arguments: Arguments) -> tuple[Study, dict[str, EngineInfo]]:
    """A study from the store, if this machine and these versions may go on with it, with new terms where given."""
    study = load(store, arguments.resume)
    infos = prepare.describe_engines(study.space.engines)
    check_resumable(study, machine.detect(), prepare.libraries(infos))
    if study.settings.private:
        given = _workload(arguments)
        if given.key != study.workload.key:
            raise InputError(
                f"study {study.id} keeps its prompts only as hashes: give the same --prompts, --prompt-tokens and "
                "--max_new_tokens as when it began to go on with it"
            )
        study = replace(study, workload=given)
    rounds = study.settings.rounds if arguments.rounds is None else arguments.rounds
    every = study.settings.all_rounds or arguments.all_rounds
    return replace(
        study,
        sla=_new_sla(arguments) or study.sla,
        objective=_objective(arguments, study.objective),
        prices=_prices(arguments, study.prices),
        settings=replace(study.settings, rounds=rounds, all_rounds=every),
    ), infos


def _new_sla(arguments: Arguments) -> SLA | None:
    """The SLA that was given on the command line, of either command."""
    if getattr(arguments, "sla_ms", None) is not None:
        return SLA.from_p50_ms(arguments.sla_ms)
    return parse_sla(arguments.sla) if getattr(arguments, "sla", None) else None


def _checkpoints(study: Study, infos: dict[str, EngineInfo], tell: Tell) -> tuple[Checkpoint, ...]:
    """The study's models, resolved; on resuming, the very weights that it began with.

    Raises:
        InputError: the weights that a resumed study began with are not to be had any more.
    """
    kept = [c for c in study.checkpoints if c.provenance != "local" and (c.path / "config.json").is_file()]
    if study.checkpoints:
        tell(f"resuming study {study.id}: {len(study.measurements)} processes so far")
    if kept and len(kept) == len(study.checkpoints):
        return study.checkpoints  # in our cache or the hub's: named by content, so they are what they were
    if study.settings.trust_remote_code:
        _warn("--trust-remote-code accepts models that bring Python code of their own; it can do anything you can")
    resolved = prepare.resolve_models(
        study.space,
        infos,
        weights=study.settings.weights,
        trust_remote_code=study.settings.trust_remote_code,
        tell=tell,
    )
    was = {checkpoint.name: checkpoint.content_hash for checkpoint in study.checkpoints}
    if changed := [c.name for c in resolved if was and c.content_hash != was.get(c.name)]:
        raise InputError(
            f"the weights of {', '.join(changed)} are not those that study {study.id} began with, and those are gone "
            "from the cache: start a new study"
        )
    return resolved


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


def _space(arguments: Arguments) -> Space:
    return Space(
        models=tuple(arguments.models),
        engines=tuple(arguments.engines),
        precisions=tuple(arguments.precisions),
        threads=tuple(arguments.threads),
        kv_cache=tuple(value == "on" for value in arguments.kv_cache),
        options=tuple(_option(text) for text in arguments.option),
    )


def _option(text: str) -> tuple[str, tuple[OptionValue, ...]]:
    name, equals, values = text.partition("=")
    if not (name and equals and values):
        raise InputError(f"--option {text!r} is not NAME=VALUE or NAME=V1,V2")
    return name, tuple(option_value(value) for value in values.split(","))


def _workload(arguments: Arguments) -> Workload:
    if arguments.prompts is not None and arguments.prompt_tokens is not None:
        raise InputError("give either --prompts or --prompt-tokens, not both")
    if arguments.prompt_tokens is not None:
        prompts = tuple(Prompt(prompt_tokens=count) for count in _counts(arguments.prompt_tokens))
    elif arguments.prompts is not None:
        prompts = read_prompts(Path(arguments.prompts))
    else:
        shipped = files("inferplan") / "data" / "prompts.txt"
        prompts = parse_prompts(shipped.read_text(encoding="utf-8"), jsonl=False)
    return Workload(prompts, max_new_tokens=arguments.max_new_tokens)


def _counts(text: str) -> Sequence[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--prompt-tokens {text!r} is not a list of whole numbers, such as 32,512,2048") from None


def _settings(arguments: Arguments) -> Settings:
    return Settings(
        rounds=_ROUNDS if arguments.rounds is None else arguments.rounds,
        all_rounds=arguments.all_rounds,
        early_stop=arguments.early_stop,
        private=arguments.private,
        weights=arguments.weights,
        retakes=arguments.retakes,
        request_timeout_s=arguments.request_timeout,
        load_timeout_s=arguments.load_timeout,
        trust_remote_code=arguments.trust_remote_code,
        watch_outside=not arguments.no_watch,
    )


def _objective(arguments: Arguments, default: Objective) -> Objective:
    if arguments.minimize is None:
        return default
    return Objective(cast(Literal["latency", "memory", "cost"], arguments.minimize))


def _prices(arguments: Arguments, default: Prices) -> Prices:
    return default if arguments.prices is None else read_prices(arguments.prices)


def _put(text: str, out: str | None) -> None:
    if out is None:
        print(text)
        return
    try:
        Path(out).write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8")
    except OSError as err:
        raise InputError(f"{out!r} cannot be written: {err.strerror}") from None
