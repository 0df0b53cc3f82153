"""What narrow keys and values cost: `python bench/kv.py [NAME …]`, for the bundled models on held-out text.

Each model is built with its KV cache as wide as it computes (fp32), and in each narrow format. All read the same
windows, teacher-forced; keys and values are read from the cache alone, so every token meets the format. `cost` is what
it adds to the perplexity, with a 95 % interval over documents. A step's time is that of one request at a context of
about 250 tokens: the least of several. With `--keep 'blocks.1.attn.kv=wide'` the narrow ones have exceptions.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from allotrope.api import LLM, SamplingParams
from allotrope.artifact.engine import Engine, open_engine
from allotrope.build import cached
from allotrope.commands.output import Output
from allotrope.hw import fingerprint
from allotrope.hw.detect import detect
from allotrope.ops.kv_rows import NARROW
from allotrope.runtime.buffers import page_bytes
from allotrope.tokenizers import load
from allotrope.verify.drive import Driver
from tools.train.evaluation import intervals, texts
from tools.train.evaluation.lm import Window, batches, windows

MODELS = Path(__file__).parents[1] / "models"
NAMES = ("tinygpt2", "tinygal", "docsum", "tinychat", "pycoder")
BUDGET = 4096  # tokens of a walk


@dataclass(frozen=True)
class Read:
    """What an engine thinks of a text: nats of each document, and logits only for as long as they are compared."""

    nats: list[float]
    kl: float  # from the wide engine's, mean per token
    same_top1: float


def main() -> None:
    """Measure, print a table, keep the figures where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME", help="bundled models (all)")
    parser.add_argument("--bytes", type=int, default=40_000, metavar="N", help="of held-out text (%(default)s)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "fp16", "bf16"))
    parser.add_argument("--keep", action="append", default=[], metavar="PATTERN=FORMAT", help="as `build` takes it")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the figures go as JSON")
    args = parser.parse_args()
    out, found = Output(), dict[str, Any]()
    for name in args.names:
        found[name] = measure(MODELS / name, texts.sample(texts.bundled(MODELS / "data", name), args.bytes), args)
        out.line(f"{name}: {found[name]['tokens']} tokens, perplexity {found[name]['perplexity']:.4f}")
        out.table(("kv", "bytes/token", "cost", "95 %, in %", "KL", "same top-1", "ms/step"), rows(found[name]))
        out.line()
    if args.out is not None:
        told = {
            "bytes": args.bytes,
            "dtype": args.dtype,
            "keep": args.keep,
            "versions": fingerprint.versions(),
            "models": found,
        }
        args.out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """The table's."""
    return [
        (
            form,
            str(cell["bytes_per_token"]),
            f"{100 * cell['cost']:+.3f} %",
            f"{100 * cell['interval'][0]:+.3f} {100 * cell['interval'][1]:+.3f}",
            f"{cell['kl']:.1e}",
            f"{100 * cell['same_top1']:.2f} %",
            f"{cell['ms_per_step']:.2f}",
        )
        for form, cell in found["formats"].items()
    ]


def measure(folder: Path, documents: Sequence[str], args: argparse.Namespace) -> dict[str, Any]:
    """One model in every format."""
    options = {"device": args.device, "dtype": args.dtype, "tune": "off"}
    narrow = {form: cached(str(folder), **options, kv=form, keep=tuple(args.keep)) for form in NARROW}
    paths = {None: cached(str(folder), **options), **narrow}
    engines = {form: open_engine(path) for form, path in paths.items()}
    plan = engines[None].manifest.plan
    text = texts.read(load(folder, plan.vocab), documents, chat=folder.name == "tinychat")
    cut = windows(text.documents, plan.max_len, plan.max_len // 2)
    found = read(engines, cut, len(text.documents))
    exact = found[None].nats
    formats = {}
    for form, engine in engines.items():
        gains = [b - a for a, b in zip(exact, found[form].nats, strict=True)]
        low, high = intervals.ratio(gains, [len(ids) - 1 for ids in text.documents])
        formats[form or "wide"] = {
            "bytes_per_token": page_bytes(engine.manifest.plan, 1),
            "cost": math.expm1(sum(gains) / text.tokens),
            "interval": (math.expm1(low), math.expm1(high)),
            "kl": found[form].kl,
            "same_top1": found[form].same_top1,
            "ms_per_step": 1e3 * step_s(paths[form], text.documents[0][:2], min(250, plan.max_len - 40)),
        }
    return {"tokens": text.tokens, "perplexity": math.exp(sum(exact) / text.tokens), "formats": formats}


def read(engines: dict[str | None, Engine], cut: Sequence[Window], documents: int) -> dict[str | None, Read]:
    """All engines over the same windows, batch by batch."""
    device = detect(str(engines[None].manifest.device["kind"]))
    nats = {form: [0.0] * documents for form in engines}
    kl, same, told = dict.fromkeys(engines, 0.0), dict.fromkeys(engines, 0), 0
    for batch in batches(sorted(cut, key=lambda window: -len(window.ids)), BUDGET):
        sequences = [window.ids for window in batch]
        longest, total = max(map(len, sequences)), sum(map(len, sequences))
        wide: torch.Tensor | None = None
        for form, engine in engines.items():
            driver = Driver(engine, device, sequences=len(sequences), longest=longest, tokens=total)
            found = driver.walk(sequences).float().log_softmax(-1).cpu()
            wide = found if wide is None else wide
            start = 0
            for window in batch:
                own = slice(start + window.first - 1, start + len(window.ids) - 1)
                targets = torch.tensor(window.ids[window.first :])[:, None]
                nats[form][window.document] -= float(found[own].gather(1, targets).double().sum())
                kl[form] += float((wide[own].exp() * (wide[own] - found[own])).double().sum())
                same[form] += int((wide[own].argmax(-1) == found[own].argmax(-1)).sum())
                told += (form is None) * (own.stop - own.start)
                start += len(window.ids)
    return {form: Read(nats[form], kl[form] / told, same[form] / told) for form in engines}


def step_s(path: Path, begin: Sequence[int], context: int, steps: int = 32, repeats: int = 5) -> float:
    """Seconds of a decoding step around `context` tokens: the least of what `steps` more of them take."""
    llm = LLM(str(path), prefix_cache=False)
    prompt = [int(begin[i % len(begin)]) for i in range(context - steps // 2)]

    def seconds(tokens: int) -> float:
        began = time.perf_counter()
        llm.generate([prompt], SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True))
        return time.perf_counter() - began

    seconds(2)
    found = min(seconds(steps + 1) for _ in range(repeats)) - min(seconds(1) for _ in range(repeats))
    llm.close()
    return found / steps


if __name__ == "__main__":
    main()
