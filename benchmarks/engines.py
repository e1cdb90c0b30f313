"""Every engine on the same weights and the same token ids: engine x precision x threads, and stock transformers.

Each plan runs in fresh processes, one a round, in an order drawn anew for each round; stock `model.generate` in FP32
with its default threads is one of them. Prints a table a model (tokens/s and TTFT as medians over all requests, peak
memory of the largest process, seconds and size of the conversion, decode speed as a share of what the read bandwidth
measured in the same run allows), and the ratio of the best plan to the stock one. Every process is written to --keep
as it ends: run again with the same file, it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from _common import MIB, Bench, bandwidth, header, latencies, make_ready, ratio_of, run_script, say, show_ratio

from inferplan import artifacts, fits, measure, terms
from inferplan._codec import decode, encode
from inferplan.engines import HIDDEN, engine_names
from inferplan.measurement import Measurement
from inferplan.plan import Plan, Space
from inferplan.prepare import describe_engines
from inferplan.result import PlanResult

STOCK = "model.generate, FP32"
BANDWIDTH = "read bandwidth"
Record = dict[str, object]


@dataclass(frozen=True, slots=True)
class Task:
    """One process to run: a plan, or one of the two sides that are none.

    Attributes:
        model: empty for the bandwidth, which is the machine's.
        plan: None for `STOCK` and `BANDWIDTH`.
    """

    name: str
    model: str
    round: int
    plan: Plan | None = None
    threads: int = 0

    @property
    def key(self) -> str:
        """What tells it from all others in the file."""
        return f"{self.round} {self.model} {self.name} {self.threads}"


def tasks(plans: Sequence[Plan], models: Sequence[str], threads: Sequence[int], rounds: int) -> list[Task]:
    """Every process of every round, each round in an order of its own."""
    found: list[Task] = []
    for round_ in range(1, rounds + 1):
        batch = [Task(plan.id, plan.model, round_, plan, plan.threads) for plan in plans]
        batch += [Task(STOCK, model, round_) for model in models]
        batch += [Task(BANDWIDTH, "", round_, threads=count) for count in threads]
        random.Random(round_).shuffle(batch)
        found += batch
    return found


def run(task: Task, bench: Bench, tokens: int) -> Record:
    """One process, as JSON."""
    if task.name == BANDWIDTH:
        rate, kernel = bandwidth(task.threads)
        return {"bytes_per_s": rate, "kernel": kernel}
    if task.plan is None:
        plan = {"checkpoint": str(bench.checkpoints[task.model].path), "int8": False, "threads": None}
        prompts = [list(request.prompt_ids) for request in bench.ready.requests(task.model)]
        warmup = list(bench.ready.warmup(task.model)[0].prompt_ids)
        answer = run_script(
            "_naive.py", {"plans": [plan], "prompts": prompts, "warmup": warmup, "tokens": tokens}, None
        )
        stock: Record = answer["plans"][0]
        return stock
    watch = measure.Watch(cores=2, judge=False)
    done = measure.measure(bench.trial(task.plan, task.round), bench.infos[task.plan.engine], watch)
    return {"measurement": encode(done)}


def supported(arguments: argparse.Namespace) -> list[Plan]:
    """The plans of the space that the engines here can run, as far as they tell before trying."""
    known = [name for name in engine_names() if name not in HIDDEN]
    infos = describe_engines(arguments.engines or known)
    asked = Space(
        tuple(arguments.models),
        tuple(infos),
        tuple(arguments.precisions),
        tuple(arguments.threads),
        kv_cache=(True,),
        options=tuple(terms.option_of(text) for text in arguments.option),
    )
    space = terms.fitted(asked, infos)
    for name, info in infos.items():
        if "engine" in info.lacks:
            say(f"left out: {info.lacks['engine']}")
        else:
            print(f"{name}: {', '.join(f'{library} {version}' for library, version in info.libraries.items())}")
    return [plan for plan in space.plans if infos[plan.engine].reject(plan) is None]


def show(model: str, plans: Sequence[Plan], bench: Bench, records: Mapping[str, Sequence[Record]], tokens: int) -> None:
    """The table of one model, and its best plan against the stock one."""
    rates = {
        int(name.rsplit(" ", 1)[1]): statistics.median(float(str(r["bytes_per_s"])) for r in found)
        for name, found in records.items()
        if name.startswith(BANDWIDTH)
    }
    print(f"\n{model}, tokens {tokens}\n")
    print("| plan | tokens/s | TTFT ms | decode tokens/s | share of bandwidth | peak MiB | made in s | made MiB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    stock = records[f"{model} {STOCK}"]
    stock_s = {(r, i): s for r, record in enumerate(stock, 1) for i, s in enumerate(_floats(record["latency_s"]))}
    stock_peak = min(int(str(record["peak_bytes"])) for record in stock)
    median = statistics.median(stock_s.values())
    print(f"| {STOCK}, default threads | {tokens / median:.1f} | | | | {stock_peak / MIB:.0f} | | |")
    ran = {}
    for plan in plans:
        done = tuple(decode(Measurement, record["measurement"]) for record in records.get(plan.id, ()))
        if not done or any(m.status != "ok" for m in done):
            why = next((m.reason for m in done if m.status != "ok"), "not run")
            print(f"| `{_short(plan)}` | {why[:90]} | | | | | | |")
            continue
        ran[plan] = done
        print(_row(plan, done, bench, rates, tokens))
    for plan in sorted(ran, key=lambda p: statistics.median(latencies(ran[p]).values()))[:1]:
        peak = max(m.memory.peak_bytes or 0 for m in ran[plan] if m.memory)
        print(show_ratio(f"\ntokens/s, `{plan.id}` over {STOCK}", ratio_of(stock_s, latencies(ran[plan]))))
        print(f"peak memory of it over {STOCK}: {peak / stock_peak:.3f} (largest of {len(ran[plan])} over smallest)")


def _row(plan: Plan, done: tuple[Measurement, ...], bench: Bench, rates: Mapping[int, float], tokens: int) -> str:
    result = PlanResult(plan, done)
    median = statistics.median(latencies(done).values())
    ttft = result.ttft(0.5, include_disturbed=True).value or float("nan")
    tpot = result.tpot(0.5, include_disturbed=True).value or float("nan")
    peak = max(m.memory.peak_bytes or 0 for m in done if m.memory)
    read = fits.weights_bytes(bench.checkpoints[plan.model].parameters, plan.precision) or 0
    share = f"{read / tpot / rates[plan.threads]:.0%}" if plan.threads in rates else ""
    made_s, made_bytes = _made(bench, plan)
    return (
        f"| `{_short(plan)}` | {tokens / median:.1f} | {1000 * ttft:.0f} | {1 / tpot:.1f} | {share} | {peak / MIB:.0f} "
        f"| {made_s} | {made_bytes} |"
    )


def _made(bench: Bench, plan: Plan) -> tuple[str, str]:
    """Seconds and MiB of the artifact, empty where the checkpoint is loaded as it is."""
    artifact = bench.ready.artifact(plan)
    if isinstance(artifact, tuple) or not (note := artifact / artifacts.NOTE_FILE).is_file():
        return "", ""
    if artifact == bench.checkpoints[plan.model].path:
        return "", ""
    body = json.loads(note.read_text(encoding="utf-8"))
    return f"{body['seconds']:.1f}", f"{body['size_bytes'] / MIB:.0f}"


def _short(plan: Plan) -> str:
    return plan.id.removeprefix(f"{plan.model}/").removesuffix("/kv")


def _floats(values: object) -> list[float]:
    assert isinstance(values, list)
    return [float(value) for value in values]


def _kept(path: Path) -> dict[str, Record]:
    """What an earlier run wrote; a last line that was cut short is left out."""
    found: dict[str, Record] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        found[entry["key"]] = entry["record"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["distilgpt2", "gpt2", "smollm2-135m-instruct"])
    parser.add_argument("--engines", nargs="+", help="default: all that are installed")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16", "int8", "int4"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--option", action="append", default=[], metavar="NAME=V1,V2", help="as for `optimize`")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=4, help="how many of the shipped prompts")
    parser.add_argument("--keep", type=Path, default=Path("build/engines.jsonl"), help="a line a process")
    arguments = parser.parse_args()
    plans = supported(arguments)
    bench = make_ready(arguments.models, plans, arguments.tokens, arguments.prompts)
    plans = [plan for plan in plans if not _refused(bench, plan)]
    print(header(bench.checkpoints, arguments.tokens))
    arguments.keep.parent.mkdir(parents=True, exist_ok=True)
    kept = _kept(arguments.keep)
    todo = tasks(plans, arguments.models, arguments.threads, arguments.rounds)
    with arguments.keep.open("a", encoding="utf-8") as file:
        for place, task in enumerate(todo, 1):
            if task.key not in kept:
                say(f"{place} of {len(todo)}: round {task.round}, {task.model} {task.name}")
                kept[task.key] = run(task, bench, arguments.tokens)
                file.write(json.dumps({"key": task.key, "record": kept[task.key]}) + "\n")
                file.flush()
    records: dict[str, list[Record]] = {}
    for task in todo:
        of = {STOCK: f"{task.model} {STOCK}", BANDWIDTH: f"{BANDWIDTH} {task.threads}"}.get(task.name, task.name)
        records.setdefault(of, []).append(kept[task.key])
    for name, found in records.items():
        if name.startswith(BANDWIDTH):
            rates = ", ".join(f"{float(str(record['bytes_per_s'])) / 1e9:.1f}" for record in found)
            print(f"{name.removeprefix(BANDWIDTH).strip()} threads read {rates} GB/s ({found[0]['kernel']})")
    for model in arguments.models:
        show(model, [plan for plan in plans if plan.model == model], bench, records, arguments.tokens)


def _refused(bench: Bench, plan: Plan) -> bool:
    artifact = bench.ready.artifact(plan)
    if isinstance(artifact, tuple):
        print(f"{plan.id}: {artifact[0]}: {artifact[1]}")
    return isinstance(artifact, tuple)


if __name__ == "__main__":
    main()
