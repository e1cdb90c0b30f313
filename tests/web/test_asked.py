"""What a page asks for is a command line, and the two ask for the same."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from inferplan import cli, prepare, terms
from inferplan.cost import Prices, read_prices
from inferplan.engines.base import EngineInfo
from inferplan.engines.fake import FakeEngine
from inferplan.errors import InputError
from inferplan.selection import parse_sla
from inferplan.study import STRATEGIES
from inferplan.web import asked as asking
from inferplan.web.asked import Asked, Prompts

PLAIN = Asked(models=("distilgpt2",), sla=("p50<=1500ms",), engines=("fake",))


@pytest.fixture(scope="module")
def infos() -> Mapping[str, EngineInfo]:
    return prepare.describe_engines(["fake"])


def test_what_the_command_does_by_itself_is_not_said() -> None:
    usual = Asked(models=("distilgpt2",), sla=("p50<=1500ms",), strategy="racing")
    assert usual.command == "inferplan optimize --sla 'p50<=1500ms' --models distilgpt2"


@given(
    models=some.lists(some.sampled_from(["distilgpt2", "gpt2", "a b", "it's", "$(x)"]), min_size=1, unique=True),
    threads=some.lists(some.integers(1, 8), min_size=1, unique=True),
    kv_cache=some.sampled_from([("on",), ("off",), ("on", "off")]),
    precisions=some.sampled_from([("fp32",), ("int8",), ("fp32", "int8")]),
    tokens=some.integers(1, 99),
    strategy=some.sampled_from(sorted(STRATEGIES)),
    rounds=some.integers(1, 5),
    minimize=some.sampled_from(["latency", "memory", "cost"]),
    token_ms=some.lists(some.sampled_from([0.2, 0.5, 2.0]), unique=True),
    switches=some.fixed_dictionaries({n: some.booleans() for n in ("all_rounds", "early_stop", "private", "no_watch")}),
)
def test_the_command_shown_asks_for_the_same_study(
    models: list[str],
    threads: list[int],
    kv_cache: tuple[str, ...],
    precisions: tuple[str, ...],
    tokens: int,
    strategy: str,
    rounds: int,
    minimize: str,
    token_ms: list[float],
    switches: dict[str, bool],
) -> None:
    wanted = Asked(
        models=tuple(models),
        sla=("p50<=1500ms", "peak_rss<=800MB"),
        engines=("fake",),
        precisions=precisions,
        threads=tuple(threads),
        kv_cache=kv_cache,
        options=(("token_ms", tuple(token_ms)),) if token_ms else (),
        max_new_tokens=tokens,
        minimize=minimize,
        strategy=strategy,
        rounds=rounds,
        all_rounds=switches["all_rounds"],
        early_stop=switches["early_stop"],
        private=switches["private"],
        no_watch=switches["no_watch"],
    )
    typed = cli.parse(shlex.split(wanted.command)[1:])
    fake = {"fake": FakeEngine().describe()}
    page = asking.begun(wanted, fake)
    shell = terms.begun(typed, parse_sla(typed.sla), terms.space_of(typed), fake)
    for name in ("space", "workload", "sla", "objective", "settings", "prices", "rejected"):
        assert getattr(page, name) == getattr(shell, name), name


def test_pasted_prompts_and_prices_reach_the_study_through_files(
    tmp_path: Path, infos: Mapping[str, EngineInfo]
) -> None:
    prices = Prices(0.5, 0.25, 'mine "quoted" \\ here')
    wanted = replace(PLAIN, prompts=Prompts("one\ntwo words\n"), prices=prices)
    study = asking.begun(wanted, infos)
    assert [p.text for p in study.workload.prompts] == ["one", "two words"]
    assert study.prices == prices
    for name, text in wanted.files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_prices(tmp_path / "prices.toml") == prices
    assert "--prompts prompts.txt" in wanted.command


def test_uploaded_messages_are_read_as_such(infos: Mapping[str, EngineInfo]) -> None:
    line = '{"messages": [{"role": "user", "content": "hi"}], "max_new_tokens": 3}'
    study = asking.begun(replace(PLAIN, prompts=Prompts(line, jsonl=True)), infos)
    assert study.workload.prompts[0].messages == (("user", "hi"),)
    assert study.workload.output_tokens(0) == 3


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (replace(PLAIN, models=()), "at least one model"),
        (replace(PLAIN, engines=()), "at least one engine"),
        (replace(PLAIN, threads=()), "at least one thread"),
        (replace(PLAIN, precisions=()), "at least one precision"),
        (replace(PLAIN, kv_cache=()), "KV cache"),
        (replace(PLAIN, sla=("p50<=0ms",)), "positive"),
        (replace(PLAIN, sla=("speed<=1ms",)), "speed"),
        (replace(PLAIN, prompts=Prompts("  \n")), "no prompts"),
        (replace(PLAIN, prompts=Prompts("{broken", jsonl=True)), "line 1"),
        (replace(PLAIN, prompts=Prompts("x" * (asking.MOST_PROMPT_BYTES + 1))), "1024 KiB"),
        (replace(PLAIN, prompt_tokens="32,many"), "32,many"),
        (replace(PLAIN, rounds=0), "rounds"),
        (replace(PLAIN, max_new_tokens=0), "max_new_tokens"),
        (replace(PLAIN, models=("--help",)), "--models"),
        (replace(PLAIN, engines=("none",)), "none"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(wrong: Asked, said: str, infos: Mapping[str, EngineInfo]) -> None:
    with pytest.raises(InputError, match=said):
        asking.begun(wrong, infos)


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../secret/model", "a/../../b", "model", "./a/b", "~/m", "a/b/c", "-x/y", "a\\b/c", "a/.."]
)
def test_a_path_is_never_taken_for_a_hub_id(path: str) -> None:
    with pytest.raises(InputError, match="not a model id"):
        asking.hub_ids(path)


def test_hub_ids_are_separated_by_commas_and_spaces() -> None:
    assert asking.hub_ids(" org/name, other/Model-1.5@main\n") == ("org/name", "other/Model-1.5@main")
    assert asking.hub_ids("") == ()


def test_only_models_below_the_directory_are_offered(tmp_path: Path) -> None:
    inside, outside = tmp_path / "models", tmp_path / "outside"
    for place in (inside / "one", inside / "org" / "two", outside):
        place.mkdir(parents=True)
        (place / "config.json").write_text("{}")
    (inside / "three.gguf").write_bytes(b"GGUF")
    (inside / "empty").mkdir()
    (inside / "link").symlink_to(outside)
    offered = asking.local_models(inside)
    assert list(offered) == ["one", "org/two", "three.gguf"]
    assert offered["org/two"] == str(inside / "org" / "two")
    assert asking.local_models(tmp_path / "missing") == {}
    assert asking.local_models(None) == {}
