"""Our INT8 plans against the common recipe: `model.generate` and dynamic quantization of `nn.Linear` alone.

Both sides get the same checkpoints, token ids, output lengths and CPUs, in fresh processes, interleaved
(recipe FP32, recipe INT8, ours, and again); the recipe also runs as it usually is, all plans in one process.
Prints, by model and thread count: our tokens/s over the recipe's best, our peak memory over that of the
recipe's fresh process, both with what they rest on, and each plan's decode speed as a share of what the
read bandwidth measured in the same run allows.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field

from _common import MIB, Bench, Key, bandwidth, header, latencies, make_ready, ratio_of, run_script, say, show_ratio

from inferplan import measure
from inferplan.measurement import Measurement
from inferplan.plan import Plan
from inferplan.result import PlanResult

RECIPE = ("fp32", "int8")
OURS = ("fp32", "int8")


@dataclass(slots=True)
class Recipe:
    """One plan of the recipe: latencies by (round, prompt) and peaks by process."""

    latency_s: dict[Key, float] = field(default_factory=dict)
    peaks: list[int] = field(default_factory=list)

    @property
    def median_s(self) -> float:
        ordered = sorted(self.latency_s.values())
        return ordered[len(ordered) // 2]


def recipe_task(bench: Bench, model: str, precisions: tuple[str, ...], threads: int, tokens: int) -> dict[str, object]:
    checkpoint = str(bench.checkpoints[model].path)
    return {
        "plans": [{"checkpoint": checkpoint, "int8": p == "int8", "threads": threads} for p in precisions],
        "prompts": [list(request.prompt_ids) for request in bench.ready.requests(model)],
        "warmup": list(bench.ready.warmup(model)[0].prompt_ids),
        "tokens": tokens,
    }


def one(bench: Bench, model: str, threads: int, rounds: int, tokens: int) -> None:
    """Every comparison of one model at one thread count."""
    plans = {p: Plan(model, "transformers", p, threads) for p in OURS}
    ours: dict[str, list[Measurement]] = {p: [] for p in OURS}
    fresh = {p: Recipe() for p in RECIPE}
    together = {p: Recipe() for p in RECIPE}
    watch = measure.Watch(cores=2, judge=False)
    for round_ in range(1, rounds + 1):
        for precision in RECIPE:
            say(f"{model}, {threads} threads, round {round_}: recipe {precision}, fresh process")
            task = recipe_task(bench, model, (precision,), threads, tokens)
            collect(fresh[precision], run_script("_naive.py", task, threads)["plans"][0], round_)
        for precision, plan in plans.items():
            say(f"{model}, {threads} threads, round {round_}: ours {precision}")
            ours[precision].append(measure.measure(bench.trial(plan, round_), bench.infos[plan.engine], watch))
        say(f"{model}, {threads} threads, round {round_}: recipe, all plans in one process")
        task = recipe_task(bench, model, RECIPE, threads, tokens)
        for precision, answer in zip(RECIPE, run_script("_naive.py", task, threads)["plans"], strict=True):
            collect(together[precision], answer, round_)
    report(model, threads, tokens, bench, ours, fresh, together)


def collect(into: Recipe, answer: dict[str, list[float]], round_: int) -> None:
    into.latency_s.update({(round_, i): seconds for i, seconds in enumerate(answer["latency_s"])})
    into.peaks.append(int(answer["peak_bytes"]))  # type: ignore[call-overload]


def report(
    model: str,
    threads: int,
    tokens: int,
    bench: Bench,
    ours: dict[str, list[Measurement]],
    fresh: dict[str, Recipe],
    together: dict[str, Recipe],
) -> None:
    rate, kernel = bandwidth(threads)
    print(f"\n{model}, {threads} thread{'s' * (threads > 1)}; read bandwidth {rate / 1e9:.1f} GB/s ({kernel})")
    for precision, side in fresh.items():
        peak = max(side.peaks) / MIB
        alone, shared = tokens / side.median_s, tokens / together[precision].median_s
        print(f"  recipe {precision}, fresh process: {alone:6.1f} tokens/s, peak {peak:5.0f} MiB")
        peak = together[precision].peaks[-1] / MIB
        print(f"  recipe {precision}, one process:   {shared:6.1f} tokens/s, peak {peak:5.0f} MiB")
    for precision, done in ours.items():
        times = latencies(done)
        result = PlanResult(done[0].plan, tuple(done))
        tpot = result.tpot(0.5, include_disturbed=True).value or float("nan")
        read = bench.checkpoints[model].parameters * (1 if precision == "int8" else 4)
        median = sorted(times.values())[len(times) // 2]
        peak = max(m.memory.peak_bytes or 0 for m in done if m.memory) / MIB
        share = done[0].actual.quantized_share if done[0].actual else None
        print(
            f"  ours   {precision}:                {tokens / median:6.1f} tokens/s, peak {peak:5.0f} MiB, "
            f"decode {1 / tpot:.1f} tokens/s = {read / tpot / rate:.0%} of the bandwidth limit"
            + (f", {share:.1%} of linear parameters ran in INT8" if share is not None else "")
        )
    best = min(fresh, key=lambda p: fresh[p].median_s)
    print(
        show_ratio(
            f"  tokens/s, our INT8 over the recipe's best ({best})",
            ratio_of(fresh[best].latency_s, latencies(ours["int8"])),
        )
    )
    print(
        show_ratio(
            "  tokens/s, our FP32 over the recipe's FP32", ratio_of(fresh["fp32"].latency_s, latencies(ours["fp32"]))
        )
    )
    ours_peak = max(m.memory.peak_bytes or 0 for m in ours["int8"] if m.memory)
    for precision, side in fresh.items():
        print(
            f"  peak memory, our INT8 over the recipe's {precision}: {ours_peak / min(side.peaks):.3f} "
            f"(largest of {len(ours['int8'])} processes over smallest of {len(side.peaks)})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["distilgpt2", "gpt2"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=4, help="how many of the shipped prompts")
    arguments = parser.parse_args()
    plans = [Plan(m, "transformers", p, 1) for m in arguments.models for p in OURS]
    bench = make_ready(arguments.models, plans, arguments.tokens, arguments.prompts)
    print(header(bench.checkpoints, arguments.tokens))
    for model in arguments.models:
        for threads in arguments.threads:
            one(bench, model, threads, arguments.rounds, arguments.tokens)


if __name__ == "__main__":
    main()
