"""Our transformers loop against llama.cpp, decode phase only, and what a decode step of ours is made of.

Ours and llama.cpp's lie in one process each, both loaded, and get the same request in turn; which goes first
rotates, and those whose turn it is not are suspended. A round is a new set of processes. Compared are seconds a token
from the second token to the last, paired by round, repeat and prompt: FP32 with F32, INT8 with Q8_0, and ours with the
library's Python code at every step (`step=library`), which is what our loop was before it was recorded; `--compile`
adds the compiled step.

The profile runs in a process of its own (`_step_profile.py`): the operations of a step by kind, as torch's profiler
sees them, beside the time of a step without the profiler.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from dataclasses import replace

from _common import Bench, Key, bandwidth, header, make_ready, ratio_of, run_script, say, show_ratio
from _side_by_side import loaded

from inferplan import measure
from inferplan._codec import encode
from inferplan.measurement import Sample
from inferplan.plan import Plan

PRECISIONS = ("fp32", "int8")
# Bytes that a token reads of each parameter: INT8 has scales by row, Q8_0 one of two bytes in a block of 32.
BYTES = {"fp32": 4.0, "int8": 1.0}
Times = dict[Key, float]


def sides(model: str, threads: int, compiled: bool) -> dict[str, Plan]:
    """Every plan by the name that the table gives it."""
    found: dict[str, Plan] = {}
    for precision in PRECISIONS:
        found[f"ours {precision}"] = plan = Plan(model, "transformers", precision, threads)
        found[f"library {precision}"] = replace(plan, options=(("step", "library"),))
        found[f"llama.cpp {precision}"] = Plan(model, "llamacpp", precision, threads)
    if compiled:
        found["compiled fp32"] = Plan(model, "transformers", "fp32", threads, options=(("compile", True),))
    return found


def decode_s(sample: Sample) -> float:
    """Seconds a token after the first."""
    if sample.tpot_s is None:
        raise SystemExit("a decode phase takes at least two tokens: raise --tokens")
    return sample.tpot_s


def one_round(bench: Bench, plans: Mapping[str, Plan], round_: int, repeats: int, times: Mapping[str, Times]) -> None:
    """Load every side in a process of its own, then send each request to all of them in turn."""
    requests = bench.ready.requests(next(iter(plans.values())).model)
    with loaded(bench, plans, round_, measure.Watch(cores=2, judge=False)) as sides_:
        for repeat in range(repeats):
            for request in requests:
                key = (round_ * repeats + repeat, request.index)
                for name, sample in sides_.rotate(sum(key), request):
                    times[name][key] = decode_s(sample)


def compare(bench: Bench, model: str, threads: int, rounds: int, repeats: int, compiled: bool) -> None:
    """All ratios of one model at one thread count."""
    plans = sides(model, threads, compiled)
    times: dict[str, Times] = {name: {} for name in plans}
    for round_ in range(1, rounds + 1):
        say(f"{model}, {threads} threads: round {round_} of {rounds}")
        one_round(bench, plans, round_, repeats, times)
    rate, kernel = bandwidth(threads)
    print(f"\n{model}, {threads} thread{'s' * (threads > 1)}; read bandwidth {rate / 1e9:.1f} GB/s ({kernel})")
    for name, found in times.items():
        seconds = statistics.median(found.values())
        share = bench.checkpoints[model].parameters * BYTES[plans[name].precision] / seconds / rate
        print(
            f"  {name:15} {1 / seconds:6.1f} tokens/s, {1000 * seconds:6.2f} ms a token, {share:.0%} of the bandwidth"
        )
    for precision, theirs in (("fp32", "F32"), ("int8", "Q8_0")):
        ours = times[f"ours {precision}"]
        what = f"  decode tokens/s, our {precision.upper()} over llama.cpp's {theirs}"
        print(show_ratio(what, ratio_of(times[f"llama.cpp {precision}"], ours)))
        what = f"  decode tokens/s, our {precision.upper()} recorded over the library's code"
        print(show_ratio(what, ratio_of(times[f"library {precision}"], ours)))
    if compiled:
        compiled_times = times["compiled fp32"]
        what = "  decode tokens/s, our FP32 compiled over"
        print(show_ratio(f"{what} recorded", ratio_of(times["ours fp32"], compiled_times)))
        print(show_ratio(f"{what} llama.cpp's F32", ratio_of(times["llama.cpp fp32"], compiled_times)))


def profile(bench: Bench, model: str, threads: int, tokens: int) -> None:
    """What a decode step is made of, by kind of operation."""
    for precision in PRECISIONS:
        plan = Plan(model, "transformers", precision, threads)
        trial = bench.trial(plan, 1)
        prompt = list(trial.requests[0].prompt_ids)
        task = {"plan": encode(plan), "artifact": str(trial.artifact), "prompt": prompt, "tokens": tokens}
        found = run_script("_step_profile.py", task, threads)
        total = sum(found["kinds"].values())
        print(f"\n{plan.id}: {1000 * found['step_s']:.2f} ms a token ({found['step']})")
        print(f"  the library's code instead of the recording: {1000 * found['library_s']:.2f} ms a token")
        print(f"  products and attention put out, all else as it is: {1000 * found['rest_s']:.2f} ms a token")
        for kind, seconds in sorted(found["kinds"].items(), key=lambda item: -item[1]):
            print(
                f"    {kind:28} {seconds / total:6.1%} of the time in operations, {found['counts'][kind]:5.0f} a token"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["distilgpt2", "gpt2", "smollm2-135m-instruct"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=4, help="of every prompt, within one set of processes")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--prompts", type=int, default=4, help="how many of the shipped prompts")
    parser.add_argument("--compile", action="store_true", help="also with compile=on: a minute or more to load")
    parser.add_argument("--only-profile", action="store_true")
    arguments = parser.parse_args()
    plans = [plan for model in arguments.models for plan in sides(model, 1, compiled=False).values()]
    bench = make_ready(arguments.models, plans, arguments.tokens, arguments.prompts)
    print(header(bench.checkpoints, arguments.tokens))
    for model in arguments.models:
        for threads in arguments.threads:
            if not arguments.only_profile:
                compare(bench, model, threads, arguments.rounds, arguments.repeats, arguments.compile)
            profile(bench, model, threads, arguments.tokens)


if __name__ == "__main__":
    main()
