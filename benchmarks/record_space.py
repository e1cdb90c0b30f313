"""Records a whole space of plans, several processes each, for the simulator: `benchmarks/data/space.json.gz`.

Every plan runs in fresh processes, one a round, in an order drawn anew for each round, as an exhaustive study would
run it. Plans without a KV cache take most of the time: `--kv-cache on --rounds 4` gives the others more processes, into
the same file. Each process is written to --keep as it ends: run again with the same file, it goes on where it was, so
that hours of recording may be divided. A request that runs longer than --cut seconds is ended and kept as a lower
bound. With --pack nothing is measured but the machine's rates: what was kept is written compactly, with these, the
machine, the dates and the versions.

A file that is there already is added to: what --out holds counts as measured, and --pack keeps it. It has to be of the
same machine, versions and requests. With --again, given to both, the plans asked for are measured anew, and so are the
machine's rates; --pack then leaves out what --out holds of those that were kept.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from _common import Bench, header, make_ready, say

from inferplan import machine, measure, prepare, rates, terms
from inferplan._codec import decode, encode
from inferplan._files import read_config
from inferplan.measurement import Measurement, Sample
from inferplan.plan import Plan, Space

OUT = Path(__file__).resolve().parent / "data" / "space.json.gz"
MODELS = ("distilgpt2", "gpt2", "smollm2-135m-instruct")
ENGINES = ("transformers", "llamacpp", "openvino", "onnxruntime", "ctranslate2")
_DIGITS = 5


def space_of(arguments: argparse.Namespace) -> tuple[list[Plan], dict[str, str]]:
    """The plans that an engine here can run, and the versions of what runs them."""
    infos = prepare.describe_engines(arguments.engines)
    asked = Space(
        tuple(arguments.models),
        tuple(arguments.engines),
        tuple(arguments.precisions),
        tuple(arguments.threads),
        tuple(text == "on" for text in arguments.kv_cache),
        options=tuple(terms.option_of(text) for text in arguments.option),
    )
    space = terms.fitted(asked, infos)
    return [plan for plan in space.plans if infos[plan.engine].reject(plan) is None], prepare.libraries(infos)


def record(arguments: argparse.Namespace) -> None:
    """Measure what neither the kept file nor the packed one holds yet."""
    plans, libraries = space_of(arguments)
    packed = held(arguments, libraries, plans if arguments.again else ())
    bench = make_ready(arguments.models, plans, arguments.tokens, arguments.prompts)
    packed.with_models(bench, arguments.models)
    print(header(bench.checkpoints, arguments.tokens))
    done = {(m.plan, m.round) for m in kept(arguments.keep)}
    done |= {(plan, round_) for plan in plans for round_ in range(1, packed.processes(plan) + 1)}
    arguments.keep.parent.mkdir(parents=True, exist_ok=True)
    watch = measure.Watch(cores=machine.detect().cores_granted, judge=True)
    for round_ in range(1, arguments.rounds + 1):
        order = [plan for plan in plans if (plan, round_) not in done]
        random.Random(round_).shuffle(order)
        for count, plan in enumerate(order, 1):
            say(f"round {round_}, {count} of {len(order)}: {plan.id}")
            with arguments.keep.open("a", encoding="utf-8") as file:
                file.write(json.dumps(encode(_one(bench, plan, round_, arguments.cut, watch))) + "\n")


def _one(bench: Bench, plan: Plan, round_: int, cut_after_s: float, watch: measure.Watch) -> Measurement:
    """One process of `plan`; a plan that cannot be had is a measurement with its reason."""
    found = bench.ready.artifact(plan)
    if isinstance(found, tuple):
        return Measurement(plan, round_, found[0], found[1], started_at=time.time())
    trial = replace(bench.trial(plan, round_), cut_after_s=cut_after_s)
    measured = measure.measure(trial, bench.infos[plan.engine], watch)
    return replace(measured, converted=bench.ready.converted(plan))


def kept(path: Path) -> Iterable[Measurement]:
    """What was recorded so far; a line that was being written when it was cut off is left out."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield decode(Measurement, json.loads(line))
        except ValueError:
            say("a line that was cut off is left out")


@dataclass(frozen=True, slots=True)
class Held:
    """What --out holds already, without the processes of plans that are measured again.

    Attributes:
        about: all but the plans; empty where there is no such file.
        rows: by plan, as `_joined` made it.
    """

    about: Mapping[str, Any]
    rows: Mapping[Plan, Mapping[str, Any]]

    def processes(self, plan: Plan) -> int:
        """How many of `plan` count as measured."""
        return len(self.rows[plan]["processes"]) if plan in self.rows else 0

    def with_models(self, bench: Bench, names: Sequence[str]) -> Mapping[str, Any]:
        """Its models and those of `bench`; SystemExit where one of that name has other weights or requests."""
        before, now = self.about.get("models", {}), {name: _model(bench, name) for name in names}
        if other := [name for name in names if before.get(name, now[name]) != now[name]]:
            raise SystemExit(f"--out holds other weights or requests of {', '.join(other)}: give another --out")
        return {**before, **now}


def held(arguments: argparse.Namespace, libraries: Mapping[str, str], again: Sequence[Plan]) -> Held:
    """Read --out; SystemExit where it was recorded on another machine, with other versions or other requests."""
    if not arguments.out.is_file():
        return Held({}, {})
    data = json.loads(gzip.decompress(arguments.out.read_bytes()))
    rows = {Plan.parse(row["id"]): row for row in data.pop("plans")}
    here = {"machine": _machine(machine.detect()), "max_tokens": arguments.tokens, **libraries}
    recorded = {**here, **data["libraries"], **{name: data[name] for name in ("machine", "max_tokens")}}
    if differ := [f"{what} {recorded[what]}, here {here[what]}" for what in here if recorded[what] != here[what]]:
        raise SystemExit(f"{arguments.out} holds {'; '.join(differ)}: give another --out to begin a record")
    return Held(data, {**rows, **{plan: {**rows[plan], "processes": []} for plan in again if plan in rows}})


def _machine(here: machine.Machine) -> str:
    # Guests of one maker have the same name whatever the CPU beneath, so the instruction sets are told as well.
    memory, isa = f"{here.memory_bytes / 2**30:.1f} GiB", " ".join(here.isa)
    return f"{here.cpu_model}, {here.cores_granted:g} cores, {memory}, {isa or 'instruction sets not known'}"


def pack(arguments: argparse.Namespace) -> None:
    """Write what was kept, and what --out held before, as one compact file."""
    plans, libraries = space_of(arguments)
    found: dict[Plan, list[Measurement]] = {}
    for m in kept(arguments.keep):
        found.setdefault(m.plan, []).append(m)
    if not found:
        raise SystemExit(f"{arguments.keep} holds no process: record some first, without --pack")
    packed = held(arguments, libraries, [plan for plan in plans if plan in found] if arguments.again else ())
    bench = make_ready(arguments.models, plans[:1], arguments.tokens, arguments.prompts)  # for their token ids
    measured = {plan: [m for m in of if m.round > packed.processes(plan)] for plan, of in found.items()}
    dates = [time.strftime("%Y-%m-%d %H:%M", time.gmtime(m.started_at)) for of in measured.values() for m in of]
    dates += packed.about.get("recorded", [])
    about = dict(packed.about)
    if arguments.again or not about:
        about.update(_begun(libraries, arguments.tokens))
    about["recorded"] = [min(dates), max(dates)]
    about["libraries"] = {**about["libraries"], **libraries}
    about["models"] = packed.with_models(bench, arguments.models)
    ours = [plan for plan in dict.fromkeys([*packed.rows, *plans]) if plan in packed.rows or plan in measured]
    data = {**about, "plans": [_joined(packed.rows.get(plan), plan, measured.get(plan, ())) for plan in ours]}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(data, separators=(",", ":"))
    arguments.out.write_bytes(gzip.compress(text.encode(), mtime=0))
    print(f"{arguments.out}: {len(ours)} plans, {arguments.out.stat().st_size / 1024:.0f} KiB")


def _begun(libraries: Mapping[str, str], tokens: int) -> dict[str, Any]:
    """What a new record says of where it was made; measures the machine's rates."""
    here, before = machine.detect(), time.perf_counter()
    measured_rates = rates.measure(here, tell=say)
    return {
        "format": "inferplan recorded space",
        "version": 1,
        "machine": _machine(here),
        "cores": here.cores_granted,
        "libraries": libraries,
        "max_tokens": tokens,
        "rates": encode(measured_rates),
        "rates_s": _short(time.perf_counter() - before),
    }


def _model(bench: Bench, name: str) -> Mapping[str, Any]:
    checkpoint = bench.checkpoints[name]
    return {
        "weights": checkpoint.weights,
        "config": read_config(checkpoint.path),
        "prompt_tokens": [len(request.prompt_ids) for request in bench.ready.requests(name)],
    }


def _joined(before: Mapping[str, Any] | None, plan: Plan, measured: Sequence[Measurement]) -> Mapping[str, Any]:
    made = next((m.converted for m in measured if m.converted is not None), None)
    begun = before or {"id": plan.id, "converted_s": None, "converted_bytes": None, "processes": []}
    cost = {} if before or made is None else {"converted_s": _short(made.seconds), "converted_bytes": made.bytes}
    return {**begun, **cost, "processes": [*begun["processes"], *(_process(m) for m in measured)]}


def _process(m: Measurement) -> Mapping[str, Any]:
    if m.status != "ok" or m.memory is None:
        return {"status": m.status, "reason": m.reason, "wall_s": _short(m.wall_s)}
    return {
        "status": m.status,
        "wall_s": _short(m.wall_s),
        "startup_s": _short(m.startup_s or 0.0),
        "load_s": _short(m.load_s or 0.0),
        "peaks": [m.memory.load_peak_bytes, m.memory.generate_peak_bytes],
        "samples": [_sample(s) for s in m.samples],
    }


def _sample(s: Sample) -> list[float]:
    """Prompt, seconds to the end and to the first token, whether disturbed, whether cut, tokens."""
    return [s.index, _short(s.latency_s), _short(s.ttft_s), int(bool(s.disturbed)), int(s.cut), s.output_tokens]


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--engines", nargs="+", default=list(ENGINES))
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16", "int8", "int4"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--kv-cache", nargs="+", default=["on", "off"], choices=["on", "off"])
    parser.add_argument("--option", action="append", default=[], metavar="NAME=V1,V2", help="as for `optimize`")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=4, help="how many of the shipped prompts")
    parser.add_argument("--cut", type=float, default=15.0, help="seconds after which a request is ended")
    parser.add_argument("--keep", type=Path, default=Path("build/space.jsonl"), help="a line a process")
    parser.add_argument("--again", action="store_true", help="measure anew what --out holds of these plans")
    parser.add_argument("--pack", action="store_true", help="write what was kept compactly to --out")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    if arguments.pack:
        pack(arguments)
    else:
        record(arguments)


if __name__ == "__main__":
    main()
