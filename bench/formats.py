"""What each format costs on the bundled models: `PYTHONPATH=. python bench/formats.py`, then the same with `--table`.

For each model, format and method an engine is built and told the model's own held-out documents (each cut to the
calibration's reach of 512 tokens), beside the fp32 engine on the same tokens: change of the perplexity with its 95 %
bootstrap interval over documents, KL divergence, same likeliest token, bytes of the weights, seconds of the build.
A line of JSON per cell in `bench/results/`; cells that are there are not measured again. With `--from 48` what is read
begins at that document, and what `bench/kv.py` or the models' evaluation draws is left out: text that no choice was
made by, if none was made by documents from there on.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from allotrope import tokenizers
from allotrope.artifact.engine import open_engine
from allotrope.artifact.plan import Call, Plan
from allotrope.build import build
from allotrope.commands.output import Output
from allotrope.hw.detect import detect
from allotrope.hw.device import Device
from allotrope.hw.fingerprint import versions
from allotrope.runtime.weights import weight_bytes
from allotrope.verify.drive import Driver
from tools.train.evaluate import ROUNDED_BYTES
from tools.train.evaluation import intervals, texts
from tools.train.spec import MODELS

RESULTS = Path(__file__).parent / "results"
LENGTH = 512
INT4 = {"weights": "int4", "group_size": 32}
W8A8 = {"weights": "int8", "activations": "int8"}
FP8 = {"weights": "fp8", "activations": "fp8"}
CASES: dict[str, dict[str, Any]] = {
    "int8": {"weights": "int8"},
    "int8, gptq": {"weights": "int8", "method": "gptq"},
    "fp8": {"weights": "fp8"},
    "int4 by 32, nearest": {**INT4, "method": "nearest"},
    "int4 by 32, awq": {**INT4, "method": "awq"},
    "int4 by 32, gptq": {**INT4, "method": "gptq"},
    "int4 by 32 asymmetric, gptq": {**INT4, "method": "gptq", "asymmetric": True},
    "int8 activations too, not smoothed": {**W8A8, "without": "smooth"},
    "int8 activations too": W8A8,
    "fp8 activations too": FP8,
    "int8 cache": {"kv": "int8"},
    "fp8 cache": {"kv": "fp8"},
}
NAMES = ("pycoder", "docsum", "tinychat", "tinygal", "tinygpt2")
Figures = dict[str, list[float]]


def main() -> None:
    """Measure what is missing, or print what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(NAMES))
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES), metavar="CASE")
    parser.add_argument("--documents", type=int, default=24, help="at most (%(default)s)")
    parser.add_argument("--from", type=int, default=0, dest="first", help="what was looked at, left out (%(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS / "formats.jsonl")
    parser.add_argument("--table", action="store_true", help="print the table of what has been measured")
    args = parser.parse_args()
    done = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.is_file() else []
    done = [cell for cell in done if cell.get("from", 0) == args.first]
    if args.table:
        for row in table(done):
            Output().line(row)
        return
    for name in args.models:
        measure(name, detect(args.device), args, {cell["case"] for cell in done if cell["model"] == name})


def measure(name: str, device: Device, args: argparse.Namespace, there: set[str]) -> None:
    """All cells of a model that are not there."""
    todo = [case for case in args.cases if case not in there]
    if not todo:
        return
    with tempfile.TemporaryDirectory() as folder:
        common = {"device": device.kind, "dtype": "fp32", "tune": "off", "executor": "eager"}
        build(str(MODELS / name), Path(folder) / "wide", **common)
        documents = held_out(name, args.documents, args.first)
        exact = list(logits(Path(folder) / "wide", device, documents))
        for case in todo:
            built = build(str(MODELS / name), Path(folder) / "narrow", **common, **CASES[case])
            found = figures(exact, logits(Path(folder) / "narrow", device, documents), documents)
            cell = {"model": name, "case": case, "from": args.first, "documents": len(documents), **summary(found)}
            cell["bytes"] = weight_bytes(built.manifest.plan)
            cell |= {"build_seconds": round(built.seconds, 1), "device": device.name, "versions": versions()}
            with args.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(cell) + "\n")
            Output().line(f"{name}, {case}: perplexity {100 * cell['perplexity']:+.2f} %, KL {cell['kl']:.5f}")


def held_out(name: str, most: int, first: int) -> list[tuple[int, ...]]:
    """Documents of the model's held-out text from `first` on, cut; past 0, without those that are drawn elsewhere."""
    tokenizer = tokenizers.load(MODELS / name)
    listed = texts.bundled(MODELS / "data", name)
    drawn = set(texts.sample(listed, ROUNDED_BYTES)) if first else set()  # what bench/kv.py draws is the first of these
    chosen = [text for text in listed[first:] if text not in drawn]
    read = texts.read(tokenizer, chosen[:most], chat=name == "tinychat")
    return [ids[:LENGTH] for ids in read.documents if len(ids) > 2]


def logits(engine: Path, device: Device, documents: list[tuple[int, ...]]) -> Iterator[torch.Tensor]:
    """Of each document, on the host."""
    opened = open_engine(engine)
    driver = Driver(
        opened, device, sequences=1, longest=LENGTH, tokens=LENGTH, plan=whole_products(opened.manifest.plan)
    )
    for ids in documents:
        yield driver.walk([ids]).float().cpu()


def whole_products(plan: Plan) -> Plan:
    """The plan with tactics for whole documents: what is compared is what formats mean, and not how fast."""
    faster = {"linear": "torch_mm", "linear_codes": "torch_mm", "attention": "torch_sdpa"}

    def swapped(call: Call) -> Call:
        narrow = "none" not in str(call.params.get("activations", "none")) or "kv" in call.params
        return replace(call, tactics=((None, faster[call.op]),)) if call.op in faster and not narrow else call

    return replace(plan, calls=tuple(swapped(call) for call in plan.calls))


def figures(exact: list[torch.Tensor], found: Iterator[torch.Tensor], documents: list[tuple[int, ...]]) -> Figures:
    """Sums over each document's told tokens."""
    told: Figures = {"tokens": [], "nats": [], "kl": [], "same": []}
    for right, other, ids in zip(exact, found, documents, strict=True):
        a, b = (one[:-1].double().log_softmax(-1) for one in (right, other))
        target = torch.tensor(ids[1:]).unsqueeze(1)
        told["tokens"].append(len(target))
        told["nats"].append(float((a.gather(1, target) - b.gather(1, target)).sum()))
        told["kl"].append(float((a.exp() * (a - b)).sum()))
        told["same"].append(float((a.argmax(-1) == b.argmax(-1)).sum()))
    return told


def summary(told: Figures) -> dict[str, Any]:
    """As shares; the perplexity's interval is the documents'."""
    tokens = sum(told["tokens"])
    low, high = intervals.ratio(told["nats"], told["tokens"])
    return {
        "perplexity": math.expm1(sum(told["nats"]) / tokens),
        "perplexity_interval": [math.expm1(low), math.expm1(high)],
        "kl": sum(told["kl"]) / tokens,
        "same_top1": sum(told["same"]) / tokens,
        "tokens": tokens,
    }


def table(cells: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown."""
    yield "| model | format | perplexity | 95 % interval | KL | same top-1 | bytes | build |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for cell in sorted(cells, key=lambda cell: (NAMES.index(cell["model"]), list(CASES).index(cell["case"]))):
        low, high = (f"{100 * end:+.2f}" for end in cell["perplexity_interval"])
        yield (
            f"| {cell['model']} | {cell['case']} | {100 * cell['perplexity']:+.2f} % | {low} to {high} % "
            f"| {cell['kl']:.5f} | {100 * cell['same_top1']:.1f} % | {cell['bytes'] / 1e6:.2f} MB "
            f"| {cell['build_seconds']:.0f} s |"
        )


if __name__ == "__main__":
    main()
