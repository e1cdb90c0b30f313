"""The command line: arguments only. What the commands do is in `commands`.

Building the parser imports nothing heavy, so `inferplan --help` is instant.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from . import __version__
from .engines import HIDDEN, engine_names
from .errors import BusyError, InferplanError, InputError
from .flags import (
    lock_flags,
    objective_flags,
    output_flags,
    run_flags,
    search_flags,
    sla_flag,
    space_flags,
    workload_flags,
)
from .sla import METRICS

EXIT_CODES = """\
exit codes:
  0    a plan was chosen (for other commands: done)
  1    a fault of inferplan itself, or a gate of `compare --fail-if` that fails
  2    bad input: the message says what was wrong and what to do
  3    no plan meets the SLA: the nearest one is named, with by how much it misses
  4    undecided with this many samples: what would settle it is named
  130  interrupted: what was measured is kept, and how to resume is shown
  141  whoever read the output left before its end
"""
_HELP_WIDTH = "100"
_BROKEN_PIPE = 141  # 128 + SIGPIPE, as a shell has it


Build = Callable[[], argparse.ArgumentParser]


class _Complaint(InputError):
    """Arguments that cannot be parsed, with the name of the command that was given them."""

    def __init__(self, command: str, message: str) -> None:
        super().__init__(message)
        self.command = command


class _Parser(argparse.ArgumentParser):
    """An argument parser that raises its complaints, so that a page can show them too."""

    def error(self, message: str) -> NoReturn:
        raise _Complaint(self.prog, message)


def main(argv: Sequence[str] | None = None) -> int:
    """The `inferplan` command; returns its exit code."""
    return _guarded(build_parser, argv)


def benchmark_main(argv: Sequence[str] | None = None) -> int:
    """The `benchmark.py` command; returns its exit code."""
    return _guarded(build_benchmark_parser, argv)


def _guarded(build: Build, argv: Sequence[str] | None) -> int:
    parser = build()
    try:
        arguments = _parsed(build, argv)
    except _Complaint as err:
        print(f"{err.command}: {err}\nSee `{err.command} --help`.", file=sys.stderr)
        return 2
    except InputError as err:
        print(f"{parser.prog}: {err}", file=sys.stderr)
        return 2
    run: Callable[[argparse.Namespace], int] = arguments.run
    before = signal.signal(signal.SIGTERM, _interrupt)  # ended politely is ended with everything kept
    try:
        return run(arguments)
    except (InputError, BusyError) as err:
        print(f"{parser.prog}: {err}", file=sys.stderr)
        return 2
    except InferplanError as err:
        print(f"{parser.prog}: {err}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


def _parsed(build: Build, argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments as given, else as the study file has them, else their defaults.

    Those that were given themselves are named in `given`, where it matters: beside a study file, or on resuming.

    Raises:
        InputError: they cannot be parsed, or the study file cannot.
    """
    arguments = build().parse_args(argv)
    file = getattr(arguments, "study_file", None)
    if file is None and getattr(arguments, "resume", None) is None:
        return arguments
    given = _given(build(), argv)
    arguments.given = frozenset(given)
    if file is None:
        return arguments
    from .study_file import fill_in

    fill_in(arguments, file, given)
    return arguments


def _given(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> set[str]:
    """The names of the arguments that stand on the command line. The parser is of no other use afterwards."""
    actions = [action for one in (parser, *_subparsers(parser).values()) for action in one._actions]
    for action in actions:
        action.default = argparse.SUPPRESS
    return {action.dest for action in actions} & set(vars(parser.parse_args(argv)))


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found.update(action.choices)
    return found


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of an `inferplan` command line.

    Raises:
        InputError: they cannot be parsed.
    """
    return _parsed(build_parser, argv)


def build_parser() -> argparse.ArgumentParser:
    """The parser of `inferplan` and all its subcommands."""
    parser = _Parser(
        prog="inferplan",
        description="Find the cheapest way to run a language model here that still meets your latency SLA.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"inferplan {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_optimize(commands)
    _add_plans(commands)
    _add_bench(commands)
    _add_studies(commands)
    _add_report(commands)
    _add_compare(commands)
    _add_delete(commands)
    _add_transfer(commands)
    _add_doctor(commands)
    _add_predict(commands)
    _add_engines(commands)
    _add_cache(commands)
    _add_web(commands)
    return parser


def build_benchmark_parser() -> argparse.ArgumentParser:
    """The parser of `benchmark.py`: underscores in its first flags, as they were first published."""
    parser = _Parser(
        prog="benchmark.py",
        description="Measure model x INT8 on/off x threads x KV cache on/off and choose the best plan under the SLA. "
        "Writes results.csv, summary.csv and chosen_plan.csv.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--sla_ms",
        "--sla-ms",
        type=float,
        metavar="MS",
        help="limit on the median latency of a request, in milliseconds (default: 1500)",
    )
    space_flags(parser, full=False)
    workload_flags(parser)
    run_flags(parser)
    search_flags(parser, offered=False)
    output_flags(parser, out_default=".")
    objective_flags(parser)
    parser.set_defaults(run=_command("benchmark"))
    return parser


def help_document() -> str:
    """Help of every command, as docs/cli.md; a test keeps the two equal."""
    width = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = _HELP_WIDTH
    try:
        parser = build_parser()
        pages = [("inferplan", parser.format_help())]
        pages += [(f"inferplan {name}", sub.format_help()) for name, sub in _subparsers(parser).items()]
        pages.append(("benchmark.py", build_benchmark_parser().format_help()))
    finally:
        if width is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = width
    body = "\n".join(f"## {title}\n\n```text\n{text.rstrip()}\n```\n" for title, text in pages)
    return f"# The command line\n\nGenerated by `make docs`; a test fails when it is out of date.\n\n{body}"


Commands = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _command(name: str) -> Callable[[argparse.Namespace], int]:
    """A command that is imported when it is run."""

    def run(arguments: argparse.Namespace) -> int:
        from . import commands

        verb: Callable[[argparse.Namespace], int] = getattr(commands, name)
        return verb(arguments)

    return run


def _add(commands: Commands, name: str, verb: str, text: str, epilog: str = "") -> argparse.ArgumentParser:  # type: ignore[valid-type]
    parser: argparse.ArgumentParser = commands.add_parser(  # type: ignore[attr-defined]
        name, help=text, description=text, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--store", metavar="PATH", help="file that keeps the studies (default: in the user's data directory)"
    )
    parser.set_defaults(run=_command(verb))
    return parser


def _add_optimize(commands: Commands) -> None:  # type: ignore[valid-type]
    parser = _add(
        commands,
        "optimize",
        "optimize",
        "Measure a space of plans and choose the best one under an SLA.",
        f"{_metrics()}\n{EXIT_CODES}",
    )
    parser.add_argument(
        "--study",
        dest="study_file",
        metavar="FILE",
        type=Path,
        help="TOML file that says what is asked (docs/guides/study-files.md); flags that are given too count instead",
    )
    sla_flag(parser)
    space_flags(parser)
    workload_flags(parser)
    objective_flags(parser)
    run_flags(parser, store=False)
    search_flags(parser)
    output_flags(parser)


def _metrics() -> str:
    """What an SLA can be about, from the one table of metrics."""
    rows = "\n".join(f"  {name:<13}{metric.op}  {metric.help}" for name, metric in METRICS.items())
    return f"metrics of --sla:\n{rows}\n"


def _add_plans(commands: Commands) -> None:  # type: ignore[valid-type]
    parser = _add(commands, "plans", "plans", "List the plans of a space, and those that cannot run here, with why.")
    space_flags(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_bench(commands: Commands) -> None:  # type: ignore[valid-type]
    parser = _add(commands, "bench", "bench", "Measure one plan.", EXIT_CODES)
    parser.add_argument("plan", metavar="PLAN_ID", help="as listed by `inferplan plans`")
    parser.add_argument(
        "--sla", action="append", metavar="CONSTRAINT", help='such as "p50<=1500ms"; without, only figures are shown'
    )
    workload_flags(parser)
    run_flags(parser, store=False, resume=False)
    search_flags(parser, offered=False)
    output_flags(parser)


def _add_studies(commands: Commands) -> None:  # type: ignore[valid-type]
    parser = _add(commands, "studies", "studies", "List the studies in the store.")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_report(commands: Commands) -> None:  # type: ignore[valid-type]
    parser = _add(
        commands, "report", "show", "Show a study again; other terms re-select without measuring.", EXIT_CODES
    )
    parser.add_argument("study", metavar="STUDY", help="its id, the start of it, or `latest`")
    parser.add_argument(
        "--format", default="table", metavar="FORMAT", help="table, csv, json, md or html (default: table)"
    )
    parser.add_argument("--out", metavar="FILE", help="write to FILE instead of standard output")
    sla_flag(parser, required=False)
    objective_flags(parser)


def _add_compare(commands: Commands) -> None:  # type: ignore[valid-type]
    parser = _add(commands, "compare", "compare", "Compare the same plans of two studies, paired by prompt.")
    parser.add_argument("a", metavar="A", help="the study to compare against")
    parser.add_argument("b", metavar="B", help="the study that is compared; ratios are B over A")
    parser.add_argument(
        "--fail-if",
        action="append",
        default=[],
        metavar="GATE",
        help='exit with 1 when the change is shown, such as "p50>+5%%" or "tokens_per_s<-5%%"',
    )
    parser.add_argument("--format", default="table", metavar="FORMAT", help="table, json or md (default: table)")


def _add_delete(commands: Commands) -> None:  # type: ignore[valid-type]
    parser = _add(commands, "delete", "delete", "Delete a study and all its measurements.")
    parser.add_argument("study", metavar="STUDY", help="its id, the start of it, or `latest`")
    parser.add_argument("--yes", action="store_true", help="do not ask")


def _add_transfer(commands: Commands) -> None:  # type: ignore[valid-type]
    out = _add(commands, "export", "export", "Write a study as one JSON file.")
    out.add_argument("study", metavar="STUDY", help="its id, the start of it, or `latest`")
    out.add_argument("--out", metavar="FILE", help="write to FILE instead of standard output")
    back = _add(commands, "import", "import_", "Read a study from a JSON file that `export` wrote.")
    back.add_argument("file", metavar="FILE", type=Path, help="what `inferplan export` wrote")


def _add_doctor(commands: Commands) -> None:  # type: ignore[valid-type]
    parser = _add(commands, "doctor", "doctor", "Show the machine, what works here, and what would disturb a study.")
    parser.add_argument("--quick", action="store_true", help="leave out the read bandwidth, which takes seconds")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_predict(commands: Commands) -> None:  # type: ignore[valid-type]
    text = "Predict which plans of a model would meet an SLA here; without a model, how far off predictions were."
    parser: argparse.ArgumentParser = commands.add_parser("predict", help=text, description=text)  # type: ignore[attr-defined]
    parser.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help="a shipped name, a directory, a hub id in the local cache, or a config.json: no weights are needed",
    )
    sla_flag(parser)
    group = parser.add_argument_group("space")
    group.add_argument("--engines", nargs="+", metavar="ENGINE", help="default: all that are known")
    group.add_argument(
        "--precisions", nargs="+", default=["fp32", "int8", "int4"], metavar="PRECISION", help="default: fp32 int8 int4"
    )
    group.add_argument("--threads", nargs="+", type=int, default=[1, 2, 4], metavar="N", help="default: 1 2 4")
    group.add_argument("--kv-cache", nargs="+", default=["on"], choices=["on", "off"], help="default: on")
    group.add_argument("--option", action="append", default=[], metavar="NAME=V1,V2", help="as for `optimize`")
    group.add_argument("--prompt-tokens", type=int, default=32, metavar="N", help="length of a prompt (default: 32)")
    group.add_argument(
        "--max_new_tokens", "--max-new-tokens", type=int, default=64, metavar="N", help="tokens out (default: 64)"
    )
    parser.add_argument("--refresh", action="store_true", help="measure the rates of this machine again")
    lock_flags(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--store", metavar="PATH", help="file that keeps the studies (default: in the user's data directory)"
    )
    parser.set_defaults(run=_predict)


def _predict(arguments: argparse.Namespace) -> int:
    from . import predict_command

    if arguments.engines is None:
        arguments.engines = [name for name in engine_names() if name not in HIDDEN]
    return predict_command.predict(arguments)


def _add_engines(commands: Commands) -> None:  # type: ignore[valid-type]
    text = "List the engines, installed or not, with what each can do here; install one, or remove it."
    parser: argparse.ArgumentParser = commands.add_parser("engines", help=text, description=text)  # type: ignore[attr-defined]
    parser.add_argument(
        "action",
        nargs="?",
        default="list",
        choices=["list", "install", "remove"],
        help="default: list",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="the engine to install or remove")
    parser.add_argument(
        "--native", action="store_true", help="install llamacpp built for this CPU, in an environment of its own"
    )
    parser.add_argument(
        "--pip-arg",
        action="append",
        default=[],
        metavar="ARG",
        help="a further argument of pip, such as --pip-arg=--find-links=DIRECTORY; give it once for each",
    )
    parser.add_argument("--json", action="store_true", help="print the list as JSON")
    parser.add_argument("--yes", action="store_true", help="remove without being asked")
    parser.add_argument("-v", "--verbose", action="store_true", help="show all that pip says")
    parser.set_defaults(run=_engines)


def _engines(arguments: argparse.Namespace) -> int:
    from . import engines_command

    return engines_command.engines(arguments)


def _add_cache(commands: Commands) -> None:  # type: ignore[valid-type]
    text = "List what was converted, dequantized or made up and is kept on disk; prune what is no longer wanted."
    parser: argparse.ArgumentParser = commands.add_parser("cache", help=text, description=text)  # type: ignore[attr-defined]
    parser.add_argument("action", nargs="?", default="list", choices=["list", "prune"], help="default: list")
    parser.add_argument("--older-than", metavar="AGE", help="not used for so long: 30d, 12h, 2w")
    parser.add_argument("--engine", metavar="NAME", help="converted for this engine")
    parser.add_argument("--model", metavar="NAME", help="of this model, as it was named")
    parser.add_argument("--all", action="store_true", help="prune everything")
    parser.add_argument("--dry-run", action="store_true", help="show what would be pruned, and remove nothing")
    parser.add_argument("--yes", action="store_true", help="prune without being asked")
    parser.add_argument("--json", action="store_true", help="print the list as JSON")
    parser.set_defaults(run=_cache)


def _cache(arguments: argparse.Namespace) -> int:
    from . import cache_command

    return cache_command.cache(arguments)


def _add_web(commands: Commands) -> None:  # type: ignore[valid-type]
    parser = _add(commands, "web", "web", "Open the web app: start studies, watch them, see the trade-offs.")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on (default: 127.0.0.1, this machine alone). Whoever reaches the page can start and "
        "delete studies: it asks for no password",
    )
    parser.add_argument("--port", type=int, default=8501, metavar="N", help="default: 8501")
    parser.add_argument("--models-dir", metavar="DIR", type=Path, help="directory whose models the page offers")
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser")


if __name__ == "__main__":
    sys.exit(main())
