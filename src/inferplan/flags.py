"""Flags that several commands share, in groups.

Owns their names, defaults and help. Leaves the commands to `cli`, what the values mean to `terms`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .engines import DEFAULT

Group = argparse._ActionsContainer  # a parser, or a group of its arguments
WEIGHTS = ("auto", "hub", "synthetic")


def sla_flag(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """The constraints."""
    parser.add_argument(
        "--sla",
        action="append",
        metavar="CONSTRAINT",
        help='such as "p50<=1500ms", "p95<=2s", "ttft<=300ms", "peak_rss<=800MB", "load<=5s"; give it once for each'
        + ("" if required else " (default: the study's own)"),
    )


def space_flags(parser: argparse.ArgumentParser, full: bool = True) -> None:
    """The axes of a space; without `full`, those of benchmark.py alone."""
    group = parser.add_argument_group("space")
    group.add_argument(
        "--models",
        nargs="+",
        default=["distilgpt2", "gpt2"],
        metavar="MODEL",
        help="a directory, a GGUF file, a hub id (ORG/NAME[@REVISION]) or a shipped name (default: distilgpt2 gpt2)",
    )
    group.add_argument("--threads", nargs="+", type=int, default=[1, 2, 4], metavar="N", help="default: 1 2 4")
    if not full:
        group.set_defaults(engines=list(DEFAULT), precisions=["fp32", "int8"], kv_cache=["on", "off"], option=[])
        return
    usual = " ".join(DEFAULT)
    group.add_argument("--engines", nargs="+", default=list(DEFAULT), metavar="ENGINE", help=f"default: {usual}")
    group.add_argument(
        "--precisions", nargs="+", default=["fp32", "int8"], metavar="PRECISION", help="default: fp32 int8"
    )
    group.add_argument("--kv-cache", nargs="+", default=["on", "off"], choices=["on", "off"], help="default: on off")
    group.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=V1,V2",
        help="one of an engine's own axes, with the values to try (`inferplan engines` lists them); for every engine "
        "that has it, or as ENGINE.NAME=V1,V2 for one",
    )


def workload_flags(parser: argparse.ArgumentParser) -> None:
    """The requests."""
    group = parser.add_argument_group("workload (one request at a time)")
    group.add_argument(
        "--prompts",
        metavar="FILE",
        help=".txt (a line each) or .jsonl (`prompt` or `messages`); `-`: JSON lines from standard input; default: "
        "8 shipped ones",
    )
    group.add_argument(
        "--prompt-tokens", metavar="N,N,...", help="instead: prompts of so many tokens, cut from the shipped text"
    )
    group.add_argument(
        "--max_new_tokens",
        "--max-new-tokens",
        type=int,
        default=64,
        metavar="N",
        help="tokens to produce, exactly (default: 64)",
    )
    group.add_argument("--private", action="store_true", help="keep prompts and outputs only as hashes and lengths")
    parser.set_defaults(given_prompts=None)


def objective_flags(parser: argparse.ArgumentParser) -> None:
    """What is minimised, and prices."""
    group = parser.add_argument_group("choice")
    group.add_argument(
        "--minimize", metavar="WHAT", help="latency (p50), memory (peak) or cost, among the plans that meet the SLA"
    )
    group.add_argument(
        "--prices", metavar="FILE", type=Path, help="TOML or JSON with usd_per_vcpu_hour and usd_per_gb_hour"
    )
    parser.set_defaults(given_prices=None)


def run_flags(parser: argparse.ArgumentParser, store: bool = True, resume: bool = True) -> None:
    """How processes are run."""
    group = parser.add_argument_group("run")
    group.add_argument(
        "--rounds",
        type=int,
        metavar="N",
        help="fresh processes a plan, interleaved (default: 2); the "
        "first for every plan, further ones for those that could still be chosen",
    )
    group.add_argument("--all-rounds", action="store_true", help="give every round to every plan")
    group.add_argument(
        "--early-stop", action="store_true", help="end a request that has already taken longer than the SLA allows"
    )
    group.add_argument(
        "--retakes", type=int, default=4, metavar="N", help="disturbed samples taken again per process (default: 4)"
    )
    group.add_argument(
        "--weights",
        default="auto",
        choices=WEIGHTS,
        help="auto: the hub, else packaged, else synthetic weights; hub: nothing else; synthetic: no network",
    )
    group.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="accept a model that brings Python code of its own, and let it run where its weights are made: it can "
        "do anything you can. The transformers engine still uses the library's own class of that architecture",
    )
    group.add_argument(
        "--request-timeout", type=float, default=600.0, metavar="S", help="a longer request is a hang (default: 600)"
    )
    group.add_argument(
        "--load-timeout", type=float, default=600.0, metavar="S", help="a longer load is a hang (default: 600)"
    )
    group.add_argument(
        "--no-watch",
        action="store_true",
        help="do not mark samples that other processes disturbed: on a machine that is never quiet, where it is "
        "the noise that you want to measure",
    )
    lock_flags(group)
    if store:
        group.add_argument(
            "--store", metavar="PATH", help="file that keeps the studies (default: in the user's data directory)"
        )
    if resume:
        group.add_argument(
            "--resume",
            metavar="STUDY",
            help="go on with a study (its id, the start of it, or `latest`); of the other "
            "flags, those of the SLA, the choice, --rounds, --all-rounds, --budget and --max-trials may be given anew",
        )


def lock_flags(group: Group) -> None:
    """What to do when another timed study holds the machine."""
    group.add_argument("--no-lock", action="store_true", help="measure although another timed study runs here")
    group.add_argument("--wait", action="store_true", help="wait until another timed study has ended")


def search_flags(parser: argparse.ArgumentParser, offered: bool = True) -> None:
    """How the space is searched, and for how long; where that is not `offered`, every plan is measured."""
    if not offered:  # not as defaults beside flags: `cli` would take them for given, and a study file for overruled
        parser.set_defaults(strategy="exhaustive", budget=None, max_trials=None, reuse=False)
        return
    group = parser.add_argument_group("search")
    group.add_argument(
        "--strategy",
        default="racing",
        metavar="NAME",
        help="racing (default): rule most plans out by prediction or after a look, confirm the best in six fresh "
        "processes. tpe, nsga2: as racing, with Optuna to say which plan is looked at next. exhaustive: measure every "
        "plan. random: as exhaustive, in a random order",
    )
    group.add_argument(
        "--budget", metavar="TIME", help="stop measuring after 90s, 5m or 1h; what is best then is what you get"
    )
    group.add_argument("--max-trials", type=int, metavar="N", help="start so many processes at most")
    group.add_argument(
        "--reuse",
        action="store_true",
        help="take over what earlier studies in the store measured of the same plans, with the same requests, weights, "
        "library versions and machine; the best of these plans is measured again first, to see whether it still holds",
    )


def output_flags(parser: argparse.ArgumentParser, out_default: str | None = None) -> None:
    """What is written and printed."""
    group = parser.add_argument_group("output")
    group.add_argument(
        "--out",
        default=out_default,
        metavar="DIR",
        help="where results.csv, summary.csv and chosen_plan.csv go (default: "
        + ("here)" if out_default else "not written)"),
    )
    group.add_argument(
        "--save-study",
        metavar="FILE",
        type=Path,
        help="write what is asked to FILE, for `inferplan optimize --study FILE`",
    )
    group.add_argument("--json", action="store_true", help="print the report as JSON")
    group.add_argument("--quiet", action="store_true", help="no progress; errors and the answer only")
