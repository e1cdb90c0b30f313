"""Our figures against what each engine reports of itself: the same file, threads and request, tokens 2 to n.

One process a plan, in which every request is made twice, once as the worker times it and once through the engine's own
interface with its own clock; which comes first alternates. Own figures: llama.cpp's `timings` of a completion,
openvino.genai's `perf_metrics`. vLLM's own latency benchmark is a program that loads its model itself, so there
processes alternate, and its latencies of n tokens and of one are subtracted; it draws its 32 prompt tokens at random
and its answers too, at temperature 1, which no option of it changes. Prints decode tokens/s, ours over the engine's
own, paired by repeat and prompt, for vLLM by round.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from _common import Bench, Key, header, make_ready, ratio_of, say, show_ratio

from inferplan import environments, machine, measure
from inferplan._codec import decode, encode
from inferplan.measurement import Request, Trial
from inferplan.plan import Plan
from inferplan.prepare import describe_engines
from inferplan.study import pin

WITHIN = 0.03
MODELS = ("gpt2", "smollm2-135m-instruct")
_VLLM_PROMPT = 32  # tokens of a prompt
Own = Callable[[Any, Sequence[int], int], float]


def llamacpp(engine: Any, prompt: Sequence[int], tokens: int) -> float:
    """Seconds that llama.cpp says it took for a token, of tokens 2 to n.

    Its clock for the prompt ends with the first token; `predicted_ms` is that of the others, `predicted_n` counts all.
    """
    request = {"prompt": list(prompt), "n_predict": tokens, "cache_prompt": False, "temperature": 0.0, "top_k": 1}
    answer = engine._server.handle_completions({**request, "samplers": ["top_k"], "stream": False})
    timings = answer["timings"]
    if timings["predicted_n"] != tokens:
        raise SystemExit(f"llama.cpp gave {timings['predicted_n']} tokens, not {tokens}")
    return float(timings["predicted_ms"]) / 1000 / (tokens - 1)


def openvino(engine: Any, prompt: Sequence[int], tokens: int) -> float:
    """Seconds for a token as openvino.genai says: its TPOT, which leaves out the first."""
    import numpy as np
    import openvino
    import openvino_genai as library

    config = library.GenerationConfig()
    config.max_new_tokens, config.ignore_eos, config.do_sample = tokens, True, False
    config.eos_token_id, config.apply_chat_template = engine._vocabulary, False
    ids = np.array([prompt], dtype=np.int64)
    inputs = library.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
    metrics = engine._pipeline.generate(inputs, config).perf_metrics
    return float(metrics.get_tpot().mean) / 1000


OWN: Mapping[str, Own] = {"llamacpp": llamacpp, "openvino": openvino}


def child() -> None:
    """One plan in this process: pairs of seconds a token, ours and the engine's own, by (repeat, prompt)."""
    task = json.loads(sys.stdin.readline())
    if task["cpus"]:
        os.sched_setaffinity(0, task["cpus"])
    from inferplan.engines import load_engine
    from inferplan.worker import _generate

    plan, tokens = decode(Plan, task["plan"]), task["tokens"]
    engine: Any = load_engine(plan.engine)
    engine.load(plan, Path(task["artifact"]))
    own = OWN[plan.engine]

    def ours(prompt: Sequence[int]) -> float:
        times: list[float] = _generate(engine, {"prompt_ids": prompt, "max_tokens": tokens})["token_times_s"]
        return (times[-1] - times[0]) / (len(times) - 1)

    pairs = []
    ours(task["prompts"][0])
    own(engine, task["prompts"][0], tokens)
    for repeat in range(task["repeats"]):
        for index, prompt in enumerate(task["prompts"]):
            found = {}
            for side in ("ours", "own") if (repeat + index) % 2 else ("own", "ours"):
                found[side] = ours(prompt) if side == "ours" else own(engine, prompt, tokens)
            pairs.append([repeat, index, found["ours"], found["own"]])
    engine.close()
    print(json.dumps(pairs))


def in_process(bench: Bench, plan: Plan, tokens: int, repeats: int) -> tuple[dict[Key, float], dict[Key, float]]:
    """Seconds a token, ours and the engine's own, from one process of `plan`."""
    trial = bench.trial(plan, 1)
    task = {
        "plan": encode(plan),
        "artifact": str(trial.artifact),
        "prompts": [list(request.prompt_ids) for request in trial.requests],
        "cpus": list(pin(plan.threads, machine.preferred_cpus())),
        "tokens": tokens,
        "repeats": repeats,
    }
    environment = measure.worker_environment(plan, bench.infos[plan.engine])
    command = [sys.executable, str(Path(__file__).resolve()), "--child"]
    done = subprocess.run(
        command, input=json.dumps(task) + "\n", env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"{plan.id}: {done.stderr[-2000:]}")
    pairs = json.loads(done.stdout.splitlines()[-1])
    return {(r, i): a for r, i, a, _ in pairs}, {(r, i): b for r, i, _, b in pairs}


def vllm(bench: Bench, plan: Plan, tokens: int, rounds: int, repeats: int) -> tuple[dict[Key, float], dict[Key, float]]:
    """Seconds a token by round: medians of our requests, and of vLLM's latency benchmark (n tokens less one token)."""
    trial, info = bench.trial(plan, 1), bench.infos["vllm"]
    environment = {**measure.worker_environment(plan, info), "VLLM_CPU_KVCACHE_SPACE": "1"}  # GiB
    drawn = random.Random(0)
    requests = tuple(
        Request(index, tuple(drawn.randrange(10_000) for _ in range(_VLLM_PROMPT)), tokens) for index in range(repeats)
    )
    ours, own = {}, {}
    for round_ in range(rounds):
        for side in ("ours", "own") if round_ % 2 else ("own", "ours"):
            say(f"{plan.id}: round {round_ + 1} of {rounds}, {side}")
            if side == "own":
                long, short = (_vllm_latency(trial, environment, count, repeats) for count in (tokens, 1))
                own[round_, 0] = (long - short) / (tokens - 1)
                continue
            done = measure.measure(replace(trial, requests=requests), info, measure.Watch(2, judge=False))
            if done.status != "ok":
                raise SystemExit(f"{plan.id}: {done.status}: {done.reason}")
            ours[round_, 0] = statistics.median(sample.tpot_s or math.nan for sample in done.samples)
    return ours, own


def _vllm_latency(trial: Trial, environment: Mapping[str, str], tokens: int, repeats: int) -> float:
    """Median seconds of a request as `vllm bench latency` says, on the same checkpoint, threads and CPUs."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "latency.json"
        command = [
            *("taskset", "-c", ",".join(map(str, trial.cpus))),
            *environments.interpreter("vllm"),
            *("-m", "vllm.entrypoints.cli.main"),
            *("bench", "latency", "--model", str(trial.artifact), "--dtype", "float32", "--enforce-eager"),
            *("--skip-tokenizer-init", "--disable-detokenize", "--batch-size", "1", "--max-num-seqs", "1"),
            *("--block-size", "128", "--max-model-len", "1024"),
            *("--input-len", str(_VLLM_PROMPT), "--output-len", str(tokens), "--output-json", str(out)),
            *("--num-iters-warmup", "2", "--num-iters", str(repeats)),
        ]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"vllm bench latency: {done.stderr[-2000:]}")
        return float(statistics.median(json.loads(out.read_text())["latencies"]))


def show(plan: Plan, ours: Mapping[Key, float], own: Mapping[Key, float]) -> None:
    """Tokens a second are one over seconds a token: ours over the engine's own is the ratio the other way round."""
    ratio = ratio_of(own, ours)
    print(show_ratio(f"{plan.id}: decode tokens/s, ours over its own", ratio, 4))
    low, high = ratio.low, ratio.high
    inside = low is not None and high is not None and low > 1 - WITHIN and high < 1 + WITHIN
    print(f"  within {WITHIN:.0%}, interval included: {'yes' if inside else 'no'}")


def main() -> None:
    if sys.argv[1:] == ["--child"]:
        child()
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--engines", nargs="+", default=[*sorted(OWN), "vllm"], choices=[*sorted(OWN), "vllm"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "int8"])
    parser.add_argument("--threads", nargs="+", type=int, default=[2])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=20, help="of every prompt; of vLLM's, requests of a process")
    parser.add_argument("--rounds", type=int, default=4, help="processes of vLLM a side")
    parser.add_argument("--prompts", type=int, default=4, help="how many of the shipped prompts")
    arguments = parser.parse_args()
    plans = [
        Plan(model, engine, precision, threads)
        for model in arguments.models
        for engine, info in describe_engines(arguments.engines).items()
        for precision in arguments.precisions
        for threads in arguments.threads
        if precision in info.precisions
    ]
    bench = make_ready(arguments.models, plans, arguments.tokens, arguments.prompts)
    print(header(bench.checkpoints, arguments.tokens))
    for plan in plans:
        say(plan.id)
        if plan.engine == "vllm":
            show(plan, *vllm(bench, plan, arguments.tokens, arguments.rounds, arguments.repeats))
        else:
            show(plan, *in_process(bench, plan, arguments.tokens, arguments.repeats))


if __name__ == "__main__":
    main()
