"""What an outlier channel costs in eight bits, and what smoothing gives back: `PYTHONPATH=. python bench/outlier.py`.

In each norm before linear layers the loudest channel is made 50 times as loud, and what reads it hears it 50 times as
softly: outliers of large models come from norms, too, and the function stays what it was. Then it is asked what W8A8
costs with and without smoothing, as perplexity on the model's held-out text, beside the engine of the model as it was.
A line of JSON per cell in `bench/results/outlier.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from allotrope.build import build
from allotrope.commands.output import Output
from allotrope.hw.detect import detect
from allotrope.hw.fingerprint import versions
from bench.formats import RESULTS, W8A8, figures, held_out, logits, summary
from tools.train.spec import MODELS

FACTOR = 50.0
CASES: dict[str, dict[str, Any]] = {
    "fp32": {},
    "W8A8, nearest, not smoothed": {**W8A8, "method": "nearest", "without": "smooth"},
    "W8A8, not smoothed": {**W8A8, "without": "smooth"},
    "W8A8, smoothed": W8A8,
}
READERS = {  # of LLaMA's, DeciCoder's and OPT's norms
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
    "self_attn_layer_norm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "final_layer_norm": ("fc1",),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["pycoder", "docsum", "tinygal"])
    parser.add_argument("--documents", type=int, default=24, help="at most (%(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS / "outlier.jsonl")
    args = parser.parse_args()
    for name in args.models:
        with tempfile.TemporaryDirectory() as folder:
            for case, found in costs(name, Path(folder), args.documents):
                with args.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"model": name, "case": case, **found, "versions": versions()}) + "\n")
                low, high = (f"{100 * end:+.2f}" for end in found["perplexity_interval"])
                Output().line(f"{name}, {case}: perplexity {100 * found['perplexity']:+.2f} % ({low} … {high})")


def costs(
    name: str, folder: Path, documents: int, cases: Mapping[str, Mapping[str, Any]] = CASES
) -> Iterator[tuple[str, dict[str, Any]]]:
    """For each case what the planted model's engine says of the held-out text, beside the original's in fp32."""
    device, common = detect("cpu"), {"device": "cpu", "dtype": "fp32", "tune": "off", "executor": "eager"}
    told = held_out(name, documents, 0)
    build(str(MODELS / name), folder / "wide", **common)
    exact = list(logits(folder / "wide", device, told))
    planted(MODELS / name, folder / "planted")
    for case, asked in cases.items():
        build(str(folder / "planted"), folder / "engine", **common, **asked)
        yield case, {"documents": len(told), **summary(figures(exact, logits(folder / "engine", device, told), told))}


def planted(source: Path, folder: Path) -> None:
    """The checkpoint with its outliers, in fp32: in 16 bits the quiet columns would lose theirs."""
    shutil.copytree(source, folder)
    tensors = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    for name in tensors:
        stem, _, norm = name.removesuffix(".weight").rpartition(".")
        if norm in READERS and ".layers." in stem and name.endswith(".weight"):
            _plant(tensors, stem, norm)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    told = {key: "float32" for key in ("dtype", "torch_dtype") if key in config}
    (folder / "config.json").write_text(json.dumps(config | told))


def _plant(tensors: dict[str, torch.Tensor], stem: str, norm: str) -> None:
    loudest = int(tensors[f"{stem}.{norm}.weight"].abs().argmax())
    for part in ("weight", "bias"):
        if f"{stem}.{norm}.{part}" in tensors:
            tensors[f"{stem}.{norm}.{part}"][loudest] *= FACTOR
    for reader in READERS[norm]:
        tensors[f"{stem}.{reader}.weight"][:, loudest] /= FACTOR


if __name__ == "__main__":
    main()
