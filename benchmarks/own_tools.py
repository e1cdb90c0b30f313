"""Our figures against what each engine reports of itself: the same file, threads and request, tokens 2 to n.

One process a plan, in which every request is made twice, once as the worker times it and once through the engine's own
interface with its own clock; which comes first alternates. Own figures: llama.cpp's `timings` of a completion,
openvino.genai's `perf_metrics`. vLLM's own latency benchmark is a program that makes processes of its own, so there
processes alternate, and latencies of n tokens and of one are subtracted. Prints decode tokens/s, ours over the engine's
own, paired by repeat and prompt.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from _common import Bench, Key, header, make_ready, ratio_of, say, show_ratio

from inferplan import machine, measure
from inferplan._codec import decode, encode
from inferplan.plan import Plan
from inferplan.study import pin

WITHIN = 0.03
MODELS = ("gpt2", "smollm2-135m-instruct")
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
    parser.add_argument("--engines", nargs="+", default=sorted(OWN), choices=sorted(OWN))
    parser.add_argument("--precisions", nargs="+", default=["fp32", "int8"])
    parser.add_argument("--threads", nargs="+", type=int, default=[2])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--prompts", type=int, default=4, help="how many of the shipped prompts")
    arguments = parser.parse_args()
    plans = [
        Plan(model, engine, precision, threads)
        for model in arguments.models
        for engine in arguments.engines
        for precision in arguments.precisions
        for threads in arguments.threads
    ]
    bench = make_ready(arguments.models, plans, arguments.tokens, arguments.prompts)
    print(header(bench.checkpoints, arguments.tokens))
    for plan in plans:
        say(plan.id)
        show(plan, *in_process(bench, plan, arguments.tokens, arguments.repeats))


if __name__ == "__main__":
    main()
