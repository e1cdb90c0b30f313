"""The help that is written down is the help that the program prints.

Owns the drift between docs/cli.md and the parser. Leaves what each command
does to its own tests.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from inferplan.cli import build_parser, help_document

ROOT = Path(__file__).resolve().parent.parent


def _parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in dict.fromkeys(action.choices.values()):
                yield from _parsers(child)


def test_docs_cli_is_what_the_parser_says() -> None:
    written = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert written == help_document(), "docs/cli.md is not what the parser says: run `make docs`"


def test_docs_cli_names_every_option_of_every_command() -> None:
    document = help_document()
    options = {
        (parser.prog, option)
        for parser in _parsers(build_parser())
        for action in parser._actions
        if action.help != argparse.SUPPRESS
        for option in action.option_strings
    }
    assert options
    assert not [(prog, option) for prog, option in sorted(options) if prog not in document or option not in document]


@pytest.mark.parametrize("width", ["40", "200"])
def test_help_document_does_not_depend_on_the_terminal(width: str, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = help_document()
    monkeypatch.setenv("COLUMNS", width)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert help_document() == usual


def test_every_option_has_help() -> None:
    bare = [
        f"{parser.prog} {action.option_strings or action.dest}"
        for parser in _parsers(build_parser())
        for action in parser._actions
        if not action.help and not isinstance(action, argparse._SubParsersAction)
    ]
    assert not bare


def test_help_works_as_a_module_and_documents_the_exit_codes() -> None:
    done = subprocess.run([sys.executable, "-m", "inferplan", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: inferplan")
    for code in ("0", "2", "3", "4", "130"):
        assert f" {code} " in done.stdout
