"""The common recipe, as tutorials have it: FP32 loaded first, `quantize_dynamic` of `nn.Linear`, `model.generate`.

Reads a task from standard input: {"plans": [{"checkpoint", "int8", "threads"}], "prompts": [[ids]],
"warmup": [ids], "tokens": n, "cpus": [..]}, threads null for torch's default; prints latencies, load time and peak
memory for each plan as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")


def peak_bytes() -> int:
    """The high-water mark of this process (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) << 10
    raise SystemExit("no VmHWM here")


def run(plan: dict[str, Any], task: dict[str, Any]) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM

    if plan["threads"] is not None:
        torch.set_num_threads(plan["threads"])
    start = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(plan["checkpoint"], dtype=torch.float32).eval()
    if plan["int8"]:
        model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    load_s = time.perf_counter() - start
    count = task["tokens"]

    def generate(ids: list[int]) -> list[int]:
        prompt = torch.tensor([ids])
        with torch.no_grad():
            out = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=False,
                min_new_tokens=count,
                max_new_tokens=count,
                pad_token_id=0,
                use_cache=True,
            )
        return [int(token) for token in out[0, len(ids) :]]

    generate(task["warmup"])
    times, outputs = [], []
    for ids in task["prompts"]:
        start = time.perf_counter()
        outputs.append(generate(ids))
        times.append(time.perf_counter() - start)
    return {"load_s": load_s, "latency_s": times, "outputs": outputs, "peak_bytes": peak_bytes()}


def main() -> None:
    task = json.loads(sys.stdin.read())
    if task["cpus"] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, task["cpus"])
    print(json.dumps({"plans": [run(plan, task) for plan in task["plans"]]}))


if __name__ == "__main__":
    main()
