"""An engine's folder with every result beside it, as small JSON: what a report is made from."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

DATE = "2026-11-29T15:05:09Z"
DEVICE = {
    "kind": "cpu",
    "name": "AMD EPYC",
    "arch": "x86_64-avx512f",
    "cores": 2,
    "memory_bytes": 2**34,
    "features": ["avx2", "avx512f"],
}
FINGERPRINT = {"hard": {"device": "cpu"}, "soft": {"name": "AMD EPYC"}}
VERBS = ("verify", "bench", "summarize", "eval", "ablate", "explain")


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def engine(folder: Path, **changed: Any) -> Path:
    """An engine.json with a true digest."""
    folder.mkdir(parents=True, exist_ok=True)
    body = json.dumps({**manifest(), **changed}).encode()[1:]
    (folder / "engine.json").write_bytes(
        b'{"digest": "%s",' % hashlib.blake2b(body, digest_size=32).hexdigest().encode() + body
    )
    return folder


def digest(folder: Path) -> str:
    found = json.loads((folder / "engine.json").read_text(encoding="utf-8"))["digest"]
    assert isinstance(found, str)
    return found


def full(folder: Path, results: Mapping[str, Any] | None = None) -> Path:
    """An engine with every result; `results` replaces some, and a None leaves one out."""
    engine(folder)
    made: dict[str, Any] = {
        "verify": verify(),
        "bench": bench(),
        "summarize": summarize(),
        "eval": evaluated(),
        "ablate": ablate(),
        "explain": explain(),
        **(results or {}),
    }
    for verb, value in made.items():
        if value is not None:
            write(folder / f"{verb}.json", value | kept(folder, verb) if isinstance(value, dict) else value)
    return folder


def kept(folder: Path, verb: str) -> dict[str, Any]:
    """What a kept result has besides its own keys."""
    where = {"device": DEVICE, "versions": {"torch": "2.13.0"}, "fingerprint": FINGERPRINT}
    found = {"environment": where, "command": f"allotrope {verb} {folder.name}", "date": DATE}
    return {**found, "engine_digest": digest(folder)}


def manifest() -> dict[str, Any]:
    bucket = {
        "up_to_rows": None,
        "tried_rows": 64,
        "tactic": "torch_tile8",
        "seconds": 7.09e-5,
        "noise": 1e-6,
        "error": 6.4e-7,
        "plain_error": 6.4e-7,
        "floor_s": 1.14e-5,
        "runners_up": [{"tactic": "torch_flip4", "seconds": 4.47e-5}],
        "refused": [{"tactic": "inductor", "reason": "a cpu has no launches to save"}],
    }
    weights = {"blocks.0.attn.qkv.weight": {"parts": [["blocks.0.attn.q.weight", [256, 1000]]]}}
    choice = {"op": "linear", "paths": ["blocks.0.attn.qkv", "blocks.1.attn.qkv"], "buckets": [bucket]}
    return {
        "schema": 2,
        "version": "0.1.0",
        "family": "decicoder",
        "plan": {"weights": weights},
        "source": {"path": "models/pycoder", "digest": "5" * 64, "random": False},
        "dtype": "fp32",
        "device": DEVICE,
        "fingerprint": FINGERPRINT,
        "limits": {"max_batch": 64, "max_len": 2048},
        "options": {"tune": "fast", "seed": 0, "without": [], "weights": "int4"},
        "files": {"weights/00001.safetensors": {"bytes": 30_300_000, "digest": "6" * 64, "tensors": {}}},
        "kernels": {},
        "evidence": {
            "choices": [choice],
            "fusions": {"qkv": "in: not slower than apart"},
            "executor": {"kind": "eager"},
            "batch_variance": {"allowed": False, "calls_without_row_class": []},
            "quantisation": quantisation(),
            "kv": {"format": "compute", "bytes_per_token": 2048, "bytes_per_token_wide": 2048},
            "notes": [],
            "versions": {"torch": "2.13.0"},
            "date": DATE,
            "seconds": 7.8,
            "peak_memory_bytes": 168_000_000,
        },
    }


def quantisation() -> dict[str, Any]:
    rows = [
        {
            "path": f"blocks.{i}.mlp.down",
            "format": "int4 in groups of 32",
            "weights": 36864,
            "nbytes": 20736,
            "relative": 0.08 + i / 100,
            "sqnr_db": 20.0 - i,
            "max_abs": 0.02,
        }
        for i in range(3)
    ]
    total = {"weights": 110_592, "nbytes": 62_208, "bits_per_weight": 4.5, "relative": 0.097, "sqnr_db": 20.3}
    return {"method": "gptq", "policy": {}, "exceptions": {"head": "wide: asked for"}, "total": total, "weights": rows}


def stats(value: float) -> dict[str, float]:
    return {"max_abs": value * 9, "mean_abs": value, "median_abs": value, "rms_rel_rms": value, "max_rel_rms": value}


def verify(**changed: Any) -> dict[str, Any]:
    names = ["embed", *(f"blocks.{i}" for i in range(12)), "head"]
    rows = [
        {
            "block": name,
            "total": stats(3e-7 * (i + 1)),
            "inherited": None,
            "injected": stats(0.0 if i == 0 else 3.1e-7),
            "floor": stats(0.0 if i == 0 else 3.4e-7),
            "ok": True,
            "complaint": None,
            "mean_under_1e-3": True,
        }
        for i, name in enumerate(names)
    ]
    logits = {
        "positions": 601,
        "mean_kl": 3.1e-12,
        "max_kl": 6.5e-11,
        "same_top1": 1.0,
        "max_logprob_change": 5.2e-5,
        "perplexity": 4104.257930,
        "original_perplexity": 4104.257047,
        "perplexity_ratio": 1.0000002,
        "kl_percentiles": {"50": 2e-12, "99": 1e-11},
        "floor": {"mean_kl": 3.2e-12, "max_kl": 4e-11, "same_top1": 1.0, "max_logprob_change": 4e-5},
    }
    divergence = {"prompt": "text 2", "position": 17, "engine": 5, "original": 9, "margin": 2e-6, "floor": 9e-6}
    divergence |= {"explained": True}
    tokens = {"ok": True, "total": 224, "equal": 223, "exact_prompts": 6, "prompts": 7, "divergences": [divergence]}
    check = {"name": "digests", "ok": True, "detail": "5 files hold what was written", "located": []}
    modules = [
        {"module": f"blocks.{i}.mlp.down", "format": "int4", "alone": 0.004 / (i + 1), "saved": 0.003, "share": 0.4}
        | {"extra_bytes": 337_920, "saved_per_mib": 0.01}
        for i in range(3)
    ]
    attribution = {"whole": 0.008, "positions": 156, "modules": modules, "blocks": [], "sum_alone": 0.0073}
    return {
        "engine": "engine",
        "verdict": "close",
        "implementation": "identical",
        "cost": {**logits, "word": "close", "mean_kl": 0.0081, "same_top1": 0.974, "perplexity": 4110.1},
        "formats": ["3 weights int4"],
        "levels": {
            "preflight": {"ok": True, "checks": [check]},
            "layers": {"ok": True, "rows": rows, "ops": []},
            "logits": logits,
            "tokens": tokens,
        },
        "first_divergence": divergence,
        "located": None,
        "attribution": {**attribution, "sum_over_whole": 0.91, "widen": ["blocks.0.mlp.down"]},
        "dtype": "fp32",
        "original": "models/pycoder",
        "prompts": [{"name": "text 1", "tokens": 16, "new": 32}],
        "seconds": 13.2,
        "required": "close",
        "passed": True,
        "samples": [],
        **changed,
    }


def bench() -> dict[str, Any]:
    cells = [_cell(batch, into, out) for into, out in ((64, 20), (128, 120)) for batch in (1, 8)]
    spread = {"mean": 17.2, "p50": 16.0, "p90": 19.9, "p99": 21.6}
    latencies = {f"{name}_ms": spread for name in ("queue", "ttft", "tpot", "itl", "total")}
    load = {
        "requests": 16,
        "finished": {"length": 16},
        "seconds": 1.1,
        "prompt_tokens": 1024,
        "output_tokens": 512,
        "output_tokens_per_s": 460.3,
        "total_tokens_per_s": 1380.8,
        "requests_per_s": 14.4,
        **latencies,
        "idle_share": 0.024,
        "share_of_limit": 0.31,
        "limit": {},
        "workload": {},
    }
    return {"cells": cells, "load": load, "samples": {"engine": [1.0, 1.1]}}


def _cell(batch: int, into: int, out: int) -> dict[str, Any]:
    rate = 31.0 * batch**0.7
    ours = {
        "latency_ms": 1e3 * batch * out / rate,
        "latency_p95_ms": 1.1e3 * batch * out / rate,
        "latency_p99_ms": 1.2e3 * batch * out / rate,
        "spread": 0.04,
        "t_ctx_ms": 45.0,
        "t_gen_ms": 600.0,
        "tokens_per_s": rate,
        "prefill_tokens_per_s": rate * 9,
        "decode_tokens_per_s": rate * 1.1,
        "peak_memory_bytes": 420_000_000,
    }
    slow = {**ours, "tokens_per_s": rate / 3.1, "version": "5.17.0", "format": "fp32", "reason_absent": None}
    fast = {**ours, "tokens_per_s": rate / 1.2, "version": "0.3.16", "format": "f32", "reason_absent": None}
    absent = {"version": None, "format": None, "reason_absent": "not installed; python -m allotrope.bench.install vllm"}
    peers = {"hf": {**slow, "different": False}, "llama.cpp": {**fast, "different": False}, "vllm": absent}
    return {
        "batch": batch,
        "input": into,
        "output": out,
        **ours,
        "share_of_limit": 0.71,
        "peers": peers,
        "best_peer": "llama.cpp",
        "ratio_to_best": 1.2,
    }


def summarize() -> dict[str, Any]:
    measures = ("rouge1", "rouge2", "rougeL", "rougeLsum")
    paired = {"examples": 20, "difference": -0.42, "interval": [-1.6, 0.8], "p_value": 0.51, "detectable": 1.9}
    samples = [
        {"id": "mean", "reference": "Return the mean.", "engine": "Return the mean.", "original": "Return the mean."},
        {"id": "sort", "reference": "Sort it.", "engine": "Sort the list.", "original": "Sort the array."},
    ]
    apart = {"example": "sort", "position": 2, "margin": 1e-5, "floor": 3e-5, "explained": True}
    return {
        "data": {"file": "articles.csv", "examples": 20, "cut": 3},
        "rouge": {"engine": dict.fromkeys(measures, 31.2), "original": dict.fromkeys(measures, 31.6)},
        "paired": {"measure": "rouge1", **paired},
        "paired_by": {name: {**paired, "difference": -0.42 + i / 10} for i, name in enumerate(measures)},
        "same_texts": 19,
        "divergences": [apart],
        "threshold": 2.0,
        "passed": True,
        "seconds": 12.0,
        "samples": samples,
    }


def evaluated() -> dict[str, Any]:
    return {"perplexity": 12.31, "nll_per_token": 2.5104, "kl": {"mean": 0.0081, "max": 0.4}, "same_top1": 0.974}


def ablate() -> dict[str, Any]:
    def row(name: str, group: str, latency: float | None, **more: Any) -> dict[str, Any]:
        found = {"name": name, "group": group, "base": None if name == "all on" else "all on", "latency_ms": latency}
        found |= {"gain": 1.2, "gain_interval": [1.1, 1.3], "more_than_noise": True, "memory_bytes": 3e7}
        return found | {"build_seconds": 3.0, "kl": 0.0081, "verdict": "close", "reason": None, **more}

    rows = [
        row("all on", "whole", 640.0, gain=None, gain_interval=None, more_than_noise=None),
        row("reference", "whole", 1310.0),
        row("without tactics", "off", 1000.0, removed=["tactics"]),
        row("without fusions", "off", 720.0, removed=["fusions"]),
        row("without late-stop", "off", 630.0, removed=["late-stop"], more_than_noise=False),
        row("only qk_rotary", "alone", None, added=["qk_rotary"], reason="it saves launches, and a cpu has none"),
    ]
    each = {"tactics": 1.56, "fusions": 1.12, "late-stop": 0.98}
    apart = {"what": "each part off", "whole": 2.05, "each": each, "product": 1.71, "interaction": 1.19}
    return {"checkpoint": "models/pycoder", "rows": rows, "interactions": [apart], "noise": 0.01}


def explain() -> dict[str, Any]:
    def op(ms: float, floor: float, calls: int, intensity: float) -> dict[str, Any]:
        tactic = {"tactic": "torch_tile8", "phase": "decode", "why": "71 µs; torch_flip4 takes 45 µs"}
        found = {"ms": ms, "floor_ms": floor, "share": ms / 380, "share_of_limit": floor / ms, "calls": calls}
        found |= {"flops_per_byte": intensity, "flops_per_s": 3e10 * intensity / ms * floor, "tactics": [tactic]}
        return found

    steps = [{"kind": "context" if i == 0 else "decode", "tokens": 64 if i == 0 else 1} for i in range(32)]
    steps = [{**step, "busy_s": 0.043 if i == 0 else 0.01, "idle_s": 0.0006} for i, step in enumerate(steps)]
    return {
        "asked": {"batch": 1, "input": 64, "output": 32},
        "total_ms": 380.0,
        "t_ctx_ms": 50.0,
        "t_gen_ms": 330.0,
        "accounted": {
            "linear": op(216, 60, 33, 0.5),
            "attention": op(60, 1.2, 8, 8.0),
            "rmsnorm": op(27, 0.4, 17, 1.1),
        },
        "kinds": {"attn.qkv": op(50, 12, 8, 0.5)},
        "gaps_ms": {"planning": 1.7, "returning": 8.7, "unaccounted": 0.4},
        "unaccounted_share": 0.001,
        "ceilings": {"read_bytes_per_s": 3.06e10, "step_read_bytes_per_s": 7.2e10, "flops_per_s": 9.7e10},
        "words": ["One answer of 32 tokens to 64 took 380 ms.", "Reading weights: 55 % of the time."],
        "predicted": [{"change": "int8 weights", "step_ms": 3.2}],
        "scored": {"change": "fp16", "rows": {"step_ms": {"predicted": 320.0, "measured": 331.0, "error": -0.033}}},
        "trace": None,
        "samples": {"plain_s": [0.36], "timed": [{"seconds": 0.378, "steps": steps}]},
    }


class Page(HTMLParser):
    """A page taken apart: its elements, and whether they nest."""

    VOID = frozenset({"meta", "link"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.problems: list[str] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        self.problems += [f"never closed: {name}" for name in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        if len(set(names)) < len(names):
            self.problems.append(f"{tag} has an attribute twice")
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.problems.append(f"{tag} closed out of place")

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def scripts(text: str) -> list[str]:
    return re.findall(r"<script[^>]*>(.*?)</script>", text, re.DOTALL)
