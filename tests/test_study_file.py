"""Study files: what is written is read back as the same study, and what cannot be meant is refused by name."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from inferplan import cli, terms
from inferplan.cost import Prices
from inferplan.errors import InputError
from inferplan.plan import OptionValue
from inferplan.prepare import describe_engines
from inferplan.store import Store, default_store_path
from inferplan.study import RACES, STRATEGIES, Study, load
from inferplan.study_file import read_study, study_text
from inferplan.workload import Prompt, Workload

FAST = ["--no-lock", "--no-watch"]
FILE = """
[space]
models = ["tiny"]
engines = ["fake"]
precisions = ["fp32"]
threads = [1]
kv_cache = [true]

[workload]
prompt_tokens = [8, 16, 24]
max_new_tokens = 3

[choice]
sla = ["p50<=10s", "peak_rss<=4GB"]
minimize = "memory"
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(FILE)
    return path


def begun(*arguments: str) -> Study:
    """What a command line asks for, nothing measured."""
    parsed = cli.parse(["optimize", *arguments])
    sla = terms.new_sla(parsed)
    assert sla is not None
    space = terms.space_of(parsed)
    return terms.begun(parsed, sla, space, describe_engines(space.engines))


def asked(study: Study) -> object:
    """All of a study that its file is about."""
    return study.space, study.workload, study.sla, study.objective, study.settings, study.prices


def test_a_file_is_measured_and_saved_again_as_the_same_study(
    study: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "saved.toml"
    assert cli.main(["optimize", "--study", str(study), *FAST, "--save-study", str(saved)]) == 0
    with Store(default_store_path()) as store:
        first = load(store, "latest")
    assert [plan.id for plan in first.plans] == ["tiny/fake/fp32/t1/kv"]
    assert [prompt.prompt_tokens for prompt in first.workload.prompts] == [8, 16, 24]
    assert (str(first.sla), first.objective.metric) == ("p50<=10s, peak_rss<=4GB", "memory")
    assert asked(begun("--study", str(saved))) == asked(first)


def test_a_flag_that_is_given_counts_instead_of_the_files(study: Path) -> None:
    found = begun("--study", str(study), "--sla", "p50<=2s", "--threads", "2", "4", "--prompt-tokens", "5")
    assert (str(found.sla), found.space.threads) == ("p50<=2s", (2, 4))
    assert [prompt.prompt_tokens for prompt in found.workload.prompts] == [5]
    assert (found.objective.metric, found.workload.max_new_tokens) == ("memory", 3)


def test_a_price_that_a_file_leaves_out_is_none_of_ours(study: Path) -> None:
    study.write_text(FILE.replace('minimize = "memory"', 'minimize = "cost"\nprices = { usd_per_vcpu_hour = 0.02 }'))
    assert begun("--study", str(study)).prices == Prices(0.02, 0.0, study.name)


def test_prompts_of_a_file_are_found_beside_the_study(study: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("one\ntwo\n")
    study.write_text(FILE.replace("prompt_tokens = [8, 16, 24]", 'prompts = "mine.txt"'))
    assert [prompt.text for prompt in begun("--study", str(study)).workload.prompts] == ["one", "two"]


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("threads", "thread", "unknown key of [space] 'thread'"),
        ("[space]", "[spaces]", "unknown table 'spaces'"),
        ("threads = [1]", "threads = [1.5]", "threads in [space] must be a list of whole numbers, not [1.5]"),
        ("threads = [1]", "threads = []", "must be a list of whole numbers, not []"),
        ("kv_cache = [true]", 'kv_cache = ["on"]', "must be a list of true and false"),
        ("max_new_tokens = 3", "max_new_tokens = true", "must be a whole number, not True"),
        ("max_new_tokens = 3", 'prompts = "x.txt"', "give one of prompts and prompt_tokens"),
        ("max_new_tokens = 3", "trust_remote_code = true", "unknown key of [workload]"),
        ("prompt_tokens = [8, 16, 24]", '[[workload.prompt]]\ntext = "a"', "prompt 1: unknown key 'text'"),
        ('minimize = "memory"', "[choice.prices]\nusd = 1", "unknown key 'usd'"),
        ('minimize = "memory"', "[choice.prices]\nusd_per_vcpu_hour = -1", "usd_per_vcpu_hour"),
        ("[space]", "[space]\noptions = {spin = 3}", "option spin must be a list"),
        ("[space]", "space = 3\n[x]", "space must be a table"),
        ("[space]", "[space", "cannot be parsed"),
        ("[choice]", '[run]\nstrategy = "rac"\n[choice]', "unknown strategy 'rac'"),
        ("[choice]", '[run]\nbudget = "soon"\n[choice]', "'soon' is not a length of time"),
        ("[choice]", '[run]\nbudget = "0s"\n[choice]', "must be more than 0 seconds"),
        ("[choice]", "[run]\nretakes = -1\n[choice]", "retakes must be 0 or more"),
        ("[choice]", "[run]\nload_timeout = 0\n[choice]", "load_timeout must be more than 0 seconds"),
        ("[choice]", '[run]\nweights = "none"\n[choice]', "unknown weights 'none'"),
        ('minimize = "memory"', 'minimize = "space"', "cannot minimize 'space'"),
        ("p50<=10s", "p50<=fast", "'fast' is not a number with a unit"),
        ("[choice]", "[run]\nrounds = 3\n[choice]", "rounds cannot be had with the strategy racing"),
        ("[choice]", '[run]\nstrategy = "tpe"\nall_rounds = true\n[choice]', "all_rounds cannot be had with the strat"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_files_name(
    before: str, after: str, words: str, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert before in FILE
    study.write_text(FILE.replace(before, after, 1))
    assert cli.main(["optimize", "--study", str(study)]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "study.toml" in said


def test_a_race_of_a_file_that_has_rounds_is_had_by_a_flag(study: Path) -> None:
    study.write_text(FILE + '\n[run]\nstrategy = "exhaustive"\nrounds = 3\nall_rounds = true\n')
    found = begun("--study", str(study), "--strategy", "racing").settings
    assert (found.strategy, found.rounds, found.all_rounds) == ("racing", terms.ROUNDS, False)
    found = begun("--study", str(study), "--strategy", "random").settings
    assert (found.strategy, found.rounds, found.all_rounds) == ("random", 3, True)


def test_a_missing_file_and_a_resumed_study_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["optimize", "--study", str(tmp_path / "none.toml")]) == 2
    assert "does not exist" in capsys.readouterr().err
    (tmp_path / "some.toml").write_text(FILE)
    assert cli.main(["optimize", "--study", str(tmp_path / "some.toml"), "--resume", "latest"]) == 2
    assert "either --study" in capsys.readouterr().err


def test_a_private_study_is_not_written_out(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = tmp_path / "saved.toml"
    code = cli.main(["optimize", "--study", str(study), "--private", *FAST, "--save-study", str(saved)])
    assert (code, saved.exists()) == (2, False)
    assert "private" in capsys.readouterr().err


@cache
def base() -> Study:
    return begun("--sla", "ttft<=1s", "--engines", "fake", "--models", "tiny", "--threads", "1")


TEXT = some.text(min_size=1).filter(lambda text: bool(text.strip()) and text.isprintable())
NAMES = some.lists(TEXT, min_size=1, max_size=3, unique=True)
VALUES: some.SearchStrategy[OptionValue] = some.one_of(
    some.booleans(), some.integers(), some.sampled_from(["auto", "q8_0"])
)


@given(
    models=NAMES,
    threads=some.lists(some.integers(1, 64), min_size=1, unique=True),
    cache=some.lists(some.booleans(), min_size=1, max_size=2, unique=True),
    values=some.lists(VALUES, min_size=1, max_size=3, unique_by=str),
    texts=some.lists(TEXT, min_size=1, max_size=3),
    rounds=some.integers(1, 9),
    stop=some.booleans(),
    strategy=some.sampled_from(sorted(STRATEGIES)),
    budget_s=some.none() | some.floats(0, 1e9, exclude_min=True),
    max_trials=some.none() | some.integers(1, 999),
)
def test_every_study_is_read_back_as_it_was_written(
    models: list[str],
    threads: list[int],
    cache: list[bool],
    values: list[OptionValue],
    texts: list[str],
    rounds: int,
    stop: bool,
    strategy: str,
    budget_s: float | None,
    max_trials: int | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    wanted = replace(
        base(),
        space=replace(
            base().space,
            models=tuple(models),
            threads=tuple(threads),
            kv_cache=tuple(cache),
            options=(("own", tuple(values)),),
        ),
        workload=Workload(tuple(Prompt(text=text) for text in texts), max_new_tokens=7),
        settings=replace(
            base().settings,
            rounds=terms.ROUNDS if strategy in RACES else rounds,
            early_stop=stop,
            strategy=strategy,
            budget_s=budget_s,
            max_trials=max_trials,
        ),
    )
    text = study_text(wanted)
    assert tomllib.loads(text)["space"]["models"] == models
    path = tmp_path_factory.mktemp("property") / "study.toml"
    path.write_text(text, encoding="utf-8")
    values_read = read_study(path)
    arguments = cli.parse(["optimize", "--study", str(path)])
    assert terms.space_of(arguments) == wanted.space
    assert terms.workload_of(arguments) == wanted.workload
    assert terms.settings_of(arguments) == wanted.settings
    assert terms.prices_of(arguments, base().prices) == wanted.prices
    assert "trust_remote_code" not in values_read


def test_a_study_file_never_lets_a_model_run_its_code(study: Path) -> None:
    study.write_text(FILE + "\n[run]\ntrust_remote_code = true\n")
    with pytest.raises(InputError, match="unknown key of"):
        read_study(study)
