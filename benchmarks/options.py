"""What an engine's own options change: plans that differ in them alone, the same request to each in turn.

With several engines, plans that differ in the engine (llama.cpp from a wheel, and built for this CPU). All combinations
of the values given are loaded side by side, one process each; those out of turn are suspended. The
first combination is what the others are compared with: latency, TTFT and seconds a token after the first, as ratios
paired by round, repeat and prompt, and the peak memory of the largest process.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from dataclasses import replace

from _common import MIB, Key, header, make_ready, ratio_of, say, show_ratio
from _side_by_side import loaded

from inferplan import measure
from inferplan.errors import InputError
from inferplan.measurement import Sample
from inferplan.plan import OptionValue, Plan, option_text, option_value


def combinations(texts: list[str]) -> list[tuple[tuple[str, OptionValue], ...]]:
    """Every choice of one value for each `NAME=V1,V2`, the first values first."""
    axes = []
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals:
            raise InputError(f"--option {text!r} is not NAME=V1,V2")
        axes.append([(name, option_value(value)) for value in values.split(",")])
    return list(itertools.product(*axes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--engines", nargs="+", default=["onnxruntime"])
    parser.add_argument("--precision", default="int4")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--option", action="append", default=[], metavar="NAME=V1,V2", help="values to compare")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="of every prompt, within one set of processes")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--prompts", type=int, default=4, help="how many of the shipped prompts")
    arguments = parser.parse_args()
    base = Plan(arguments.model, arguments.engines[0], arguments.precision, arguments.threads)
    plans = {
        " ".join([engine, *(f"{name}={option_text(value)}" for name, value in options)]): replace(
            base, engine=engine, options=options
        )
        for engine in arguments.engines
        for options in combinations(arguments.option)
    }
    bench = make_ready([arguments.model], list(plans.values()), arguments.tokens, arguments.prompts)
    for name, plan in list(plans.items()):
        if isinstance(refused := bench.ready.artifact(plan), tuple):
            print(f"{name}: {refused[0]}: {refused[1]}")
            del plans[name]
    print(header(bench.checkpoints, arguments.tokens))
    samples: dict[str, dict[Key, Sample]] = {name: {} for name in plans}
    peaks = dict.fromkeys(plans, 0)
    for round_ in range(arguments.rounds):
        say(f"{base.id}: round {round_ + 1} of {arguments.rounds}")
        with loaded(bench, plans, round_ + 1, measure.Watch(cores=2, judge=False)) as sides:
            for repeat in range(arguments.repeats):
                for request in bench.ready.requests(arguments.model):
                    key = (round_ * arguments.repeats + repeat, request.index)
                    for name, sample in sides.rotate(sum(key), request):
                        samples[name][key] = sample
            peaks = {name: max(peaks[name], sides.peak_bytes(name)) for name in plans}
    usual = next(iter(plans))
    print(f"\n{base.id}: over {usual}")
    for name, found in samples.items():
        latency = statistics.median(sample.latency_s for sample in found.values())
        print(f"  {name}: {arguments.tokens / latency:.1f} tokens/s, peak {peaks[name] / MIB:.0f} MiB")
        if name == usual:
            continue
        figures = {"latency": "latency_s", "TTFT": "ttft_s", "time per token after it": "tpot_s"}
        for what, field in figures.items():
            a, b = ({key: getattr(s, field) for key, s in samples[side].items()} for side in (name, usual))
            print(f"    {show_ratio(what, ratio_of(a, b))}")


if __name__ == "__main__":
    main()
