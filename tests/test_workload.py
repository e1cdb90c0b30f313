"""Prompts are read as written, and what cannot be read is named with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferplan.errors import WorkloadError
from inferplan.workload import Prompt, Workload, parse_prompts, read_prompts, to_jsonl

_line = st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@given(st.lists(_line, min_size=1, max_size=5))
def test_a_line_is_a_prompt(lines: list[str]) -> None:
    assert [p.text for p in parse_prompts("\n".join(lines) + "\n", jsonl=False)] == lines


@given(st.lists(_line, min_size=1, max_size=5))
def test_jsonl_holds_the_same_prompts(lines: list[str]) -> None:
    text = "\n".join(json.dumps({"prompt": line}, ensure_ascii=False) for line in lines)
    assert [p.text for p in parse_prompts(text, jsonl=True)] == lines


_content = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
_prompt = st.one_of(
    st.builds(lambda text, n: Prompt(text=text, max_new_tokens=n), _content, st.none() | st.integers(1, 99)),
    st.builds(
        lambda messages, n: Prompt(messages=tuple(messages), max_new_tokens=n),
        st.lists(st.tuples(st.sampled_from(["user", "system"]), _content), min_size=1, max_size=3),
        st.none() | st.integers(1, 99),
    ),
)


@given(st.lists(_prompt, min_size=1, max_size=5))
def test_prompts_written_as_json_lines_are_read_back_as_they_were(prompts: list[Prompt]) -> None:
    assert list(parse_prompts(to_jsonl(prompts), jsonl=True)) == prompts


def test_messages_and_lengths_are_read(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "Hi"}], "max_new_tokens": 7}\n\n{"prompt": "x"}\n')
    first, second = read_prompts(path)
    workload = Workload((first, second), max_new_tokens=3)
    assert first.messages == (("user", "Hi"),)
    assert (workload.output_tokens(0), workload.output_tokens(1)) == (7, 3)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{", "line 2: not JSON"),
        ("[]", "line 2: needs an object"),
        ('{"prompt": ""}', "must be text that is not empty"),
        ('{"prompt": 3}', "must be text"),
        ("{}", "either `prompt` or `messages`"),
        ('{"prompt": "a", "messages": []}', "either"),
        ('{"messages": []}', "must be a list"),
        ('{"messages": [{"role": "user"}]}', "must be a list"),
        ('{"prompt": "a", "max_new_tokens": 0}', "not 0"),
        ('{"prompt": "a", "max_new_tokens": true}', "not True"),
        ('{"prompt": "a", "max_tokens": 3}', "unknown key 'max_tokens'"),
    ],
)
def test_a_bad_line_is_named(row: str, words: str) -> None:
    with pytest.raises(WorkloadError, match="line 2") as caught:
        parse_prompts('{"prompt": "fine"}\n' + row, jsonl=True)
    assert words in str(caught.value)


def test_missing_empty_and_binary_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="does not exist"):
        read_prompts(tmp_path / "none.txt")
    empty, binary = tmp_path / "empty.txt", tmp_path / "binary.txt"
    empty.write_text(" \n\n")
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(WorkloadError, match="holds no prompts"):
        read_prompts(empty)
    with pytest.raises(WorkloadError, match="not UTF-8"):
        read_prompts(binary)
    with pytest.raises(WorkloadError, match="cannot be read"):
        read_prompts(tmp_path)


def test_a_workload_without_prompts_or_tokens_is_refused() -> None:
    with pytest.raises(WorkloadError, match="no prompts"):
        Workload(())
    with pytest.raises(WorkloadError, match="not 0"):
        Workload((Prompt(text="x"),), max_new_tokens=0)
    with pytest.raises(WorkloadError, match="not -5"):
        Workload((Prompt(prompt_tokens=-5),))


def test_private_keeps_hash_lengths_and_key() -> None:
    workload = Workload((Prompt(text="a secret"), Prompt(messages=(("user", "another"),))))
    private = workload.private
    assert "secret" not in repr(private) and "another" not in repr(private)
    assert private.key == workload.key
    assert [p.chars for p in private.prompts] == [8, 7]


def test_what_is_asked_is_part_of_the_key() -> None:
    base = Workload((Prompt(text="a"),), max_new_tokens=8)
    assert base.key != Workload((Prompt(text="b"),), max_new_tokens=8).key
    assert base.key != Workload((Prompt(text="a"),), max_new_tokens=9).key
    assert base.key != Workload((Prompt(text="a"),), max_new_tokens=8, seed=1).key
    assert base.key == Workload((Prompt(text="a", max_new_tokens=8),), max_new_tokens=64).key


def test_the_prompts_beside_the_readme_are_those_that_are_shipped() -> None:
    root = Path(__file__).resolve().parent.parent
    shipped = root / "src" / "inferplan" / "data" / "prompts.txt"
    assert (root / "prompts.txt").read_bytes() == shipped.read_bytes()
    prompts = read_prompts(shipped)
    assert len(prompts) == 8
    assert len({prompt.chars for prompt in prompts}) == 8
