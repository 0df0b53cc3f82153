"""What an answer takes through `LLM.generate`, from the start of a process on: `python bench/generate.py ENGINE …`.

Every engine gets a process of its own, so that its first token counts everything: Python, torch, the weights, the
graphs. Then, per batch size, the same prompts again and again, `--io` tokens in and out, greedy, ends ignored; the
median and the spread of `--repeats` runs after two that do not count. One JSON line a cell, with every sample.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

BORN = time.perf_counter()


def main() -> None:
    """Measure the engines one after the other, or with `--here` one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", nargs="+", metavar="ENGINE", help="folders of engines")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--batch", default="1", help="such as 1,8,64 (%(default)s)")
    parser.add_argument("--io", default="128,120", help="tokens in and out (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="file to which the lines are added")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        measure(args)
        return
    options = [word for word in sys.argv[1:] if word not in args.engines]
    for engine in args.engines:
        began = time.time()
        subprocess.run([sys.executable, __file__, engine, "--here", *options], check=True)
        sys.stdout.write(f"# {engine}: {time.time() - began:.1f} s in all\n")


def measure(args: argparse.Namespace) -> None:
    """One engine's cells."""
    from allotrope.api import LLM, SamplingParams

    [engine], (into, output) = args.engines, map(int, args.io.split(","))
    batches = [int(size) for size in args.batch.split(",")]
    room = {"max_num_seqs": max(batches), "max_len": into + output}
    with LLM(engine, device=args.device, prefix_cache=False, **room) as llm:
        params = SamplingParams(temperature=0, max_tokens=output, ignore_eos=True)
        vocab = llm.engine.manifest.plan.vocab
        prompts = [[3 + (7 * row + 13 * i) % (vocab - 3) for i in range(into)] for row in range(max(batches))]
        llm.generate(prompts[:1], SamplingParams(temperature=0, max_tokens=1, ignore_eos=True))
        first = time.perf_counter() - BORN
        for batch in batches:
            taken, texts = [], set()
            for _ in range(args.repeats + 2):
                before, began = llm.metrics(), time.perf_counter()
                outputs = llm.generate(prompts[:batch], params)
                taken.append(time.perf_counter() - began)
                texts.add(tuple(output.outputs[0].token_ids for output in outputs))
            after = llm.metrics()
            busy, idle = (after[name] - before[name] for name in ("busy_s", "idle_s"))
            median = statistics.median(taken[2:])
            cell = {
                "engine": Path(engine).name,
                "dtype": llm.engine.manifest.dtype,
                "batch": batch,
                "in": into,
                "out": output,
                "ms": round(median * 1e3, 2),
                "spread": round((max(taken[2:]) - min(taken[2:])) / median, 4),
                "tokens_per_s": round(batch * output / median, 1),
                "idle_share": round(idle / (busy + idle), 5) if busy + idle else None,
                "distinct_answers": len(texts),
                "first_token_s": round(first, 2),
                "samples_s": [round(one, 5) for one in taken[2:]],
            }
            line = json.dumps(cell)
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
            if args.out:
                with args.out.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")


if __name__ == "__main__":
    main()
