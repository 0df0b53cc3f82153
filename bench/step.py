"""What a step costs here: `make bench`, or `python bench/step.py [random:SHAPE …]`.

For each checkpoint: the engine as built by default (deterministic rows), the same built with
`--allow-batch-variance`, and transformers eager on the same weights, interleaved in one run. A cell's
tokens/s is batch · output / latency, prefill included, and stands beside the machine's limit: the bytes
that each step must read over the measured read bandwidth. Raw samples go to `bench/results/`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from allotrope.api import LLM, SamplingParams
from allotrope.build import cached
from allotrope.commands.output import Output, time_text
from allotrope.hw import detect, fingerprint, peaks
from allotrope.hw.device import Device
from allotrope.hw.peaks import Ceilings
from allotrope.runtime.buffers import page_bytes

RESULTS = Path(__file__).parent / "results"
VARIANTS = {"deterministic": {}, "variance": {"allow_batch_variance": True}}


def main() -> None:
    """Measure, print one table per checkpoint, keep the samples."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="*", default=["random:galactica-125m"])
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--dtype", default="auto", choices=("auto", "fp32", "fp16", "bf16"))
    parser.add_argument("--batch", default="1,8,32")
    parser.add_argument("--io", default="64,32", help="prompt and output length")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-peer", action="store_true", help="leave transformers out")
    parser.add_argument("--tune", default="fast", choices=("full", "fast", "off"))
    args = parser.parse_args()
    device, out = detect.detect(args.device), Output()
    ceilings = ceilings_of(device)
    record: dict[str, Any] = {
        "device": vars(device),
        "versions": fingerprint.versions(),
        "ceilings": vars(ceilings),
        "io": args.io,
        "cells": [],
    }
    for ref in args.checkpoints:
        cells = measure(ref, args, device, out)
        record["cells"] += cells
        out.line(f"{ref}, {args.io.replace(',', ' in, ')} out, {device.name}")
        rows = [
            (
                cell["batch"],
                cell["name"],
                f"{cell['tokens_per_s']:.4g}",
                f"{cell['spread']:.1%}",
                f"{cell['tokens_per_s'] / cell['limit_tokens_per_s']:.0%}",
            )
            for cell in cells
        ]
        out.table(("batch", "runner", "tokens/s", "spread", "of the limit"), rows)
        out.line()
    RESULTS.mkdir(exist_ok=True)
    stamp = time.strftime("%Y-%m-%dT%H%M%S", time.gmtime())
    path = RESULTS / f"step-{device.kind}-{stamp}.json"
    path.write_text(json.dumps(record, indent=1, default=str), encoding="utf-8")
    out.line(f"raw samples: {path.name}")


def measure(ref: str, args: argparse.Namespace, device: Device, out: Output) -> list[dict[str, Any]]:
    """All cells of one checkpoint: runners interleaved, medians over repeats."""
    into, output = map(int, args.io.split(","))
    batches = [int(size) for size in args.batch.split(",")]
    runners: dict[str, Callable[[int], None]] = {}
    for name, options in VARIANTS.items():
        began = time.perf_counter()
        folder = cached(ref, device=args.device, dtype=args.dtype, tune=args.tune, **options)
        built = time.perf_counter()
        llm = LLM(folder, device=args.device, max_num_seqs=max(batches), max_len=into + output)
        runners[name] = ours(llm, into, output)
        loaded = time.perf_counter()
        runners[name](1)
        times = (built - began, loaded - built, time.perf_counter() - loaded)
        out.line("{}: build {}, load {}, first answer {}".format(name, *map(time_text, times)))
    if not args.no_peer:
        runners["transformers"] = peer(ref, device, llm.engine.manifest.dtype, into, output)
    cells = []
    for batch in batches:
        samples = interleaved(runners, batch, args.repeats)
        floor = output * step_bytes(llm, batch, into + output / 2) / ceilings_of(device).read_bytes_per_s
        cells += [
            {
                "checkpoint": ref,
                "dtype": llm.engine.manifest.dtype,
                "batch": batch,
                "name": name,
                "seconds": seen,
                "tokens_per_s": batch * output / statistics.median(seen),
                "spread": (max(seen) - min(seen)) / statistics.median(seen),
                "limit_tokens_per_s": batch * output / floor,
            }
            for name, seen in samples.items()
        ]
    return cells


def interleaved(runners: dict[str, Callable[[int], None]], batch: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of each runner: warmed up, then in turn, so that a noisy minute meets them all."""
    samples: dict[str, list[float]] = {name: [] for name in runners}
    for runner in runners.values():
        runner(batch)
    for _ in range(repeats):
        for name, runner in runners.items():
            began = time.perf_counter()
            runner(batch)
            samples[name].append(time.perf_counter() - began)
    return samples


def step_bytes(llm: LLM, batch: int, context: float) -> float:
    """What one decode step must read: every weight once, and the keys and values of all requests."""
    manifest = llm.engine.manifest
    weights = sum(facts.bytes for name, facts in manifest.files.items() if name.startswith("weights"))
    return weights + batch * context * page_bytes(manifest.plan, 1)


def ceilings_of(device: Device) -> Ceilings:
    """The kept ceilings, measured now if there are none."""
    found = peaks.load(device)
    if found is None:
        found = peaks.measure(device)
        peaks.keep(device, found)
    return found


def ours(llm: LLM, into: int, output: int) -> Callable[[int], None]:
    """Generate with an engine: `output` greedy tokens for each of `batch` prompts, ends ignored."""
    params = SamplingParams(temperature=0, max_tokens=output, ignore_eos=True)
    vocab = llm.engine.manifest.plan.vocab

    def generate(batch: int) -> None:
        prompts = [[3 + (7 * row + 13 * i) % (vocab - 3) for i in range(into)] for row in range(batch)]
        outputs = llm.generate(prompts, params)
        if any(len(one.outputs[0].token_ids) != output for one in outputs):
            raise RuntimeError("an output has the wrong length")

    return generate


def peer(ref: str, device: Device, dtype: str, into: int, output: int) -> Callable[[int], None]:
    """transformers on the same weights: eager, its default attention, its own greedy generate."""
    import torch
    import transformers

    from allotrope.models.model import open_model
    from allotrope.verify.original import loaders

    model = open_model(ref)
    described = model.family.oracle
    config = getattr(transformers, described.config_class)(**described.config(model.config))
    torch_dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    with torch.device(device.torch_name):
        theirs = getattr(transformers, described.model_class)(config).to(torch_dtype).eval()
    state = {name: load() for name, load in loaders(model).items()}
    theirs.load_state_dict({name: value.to(torch_dtype) for name, value in state.items()}, strict=False)
    theirs.generation_config.eos_token_id = None
    theirs.generation_config.pad_token_id = 0
    vocab = model.recipe.vocab

    def generate(batch: int) -> None:
        ids = torch.tensor([[3 + (7 * row + 13 * i) % (vocab - 3) for i in range(into)] for row in range(batch)])
        ids = ids.to(device.torch_name)
        with torch.inference_mode():
            theirs.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=output,
                min_new_tokens=output,
                do_sample=False,
                use_cache=True,
            )
        if device.kind == "cuda":
            torch.cuda.synchronize()

    return generate


if __name__ == "__main__":
    main()
