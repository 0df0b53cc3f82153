"""Results as the verbs keep them, small: each is what its schema says."""

from __future__ import annotations

from typing import Any

from tests.schemas import schema


def filled(verb: str, value: dict[str, Any]) -> dict[str, Any]:
    """The value with whatever else its schema requires, as little as that allows."""
    root = schema(verb)

    def fill(spec: dict[str, Any], found: Any) -> Any:
        spec = _followed(root, spec)
        if isinstance(found, list):
            return [fill(spec.get("items", {}), one) for one in found]
        if not isinstance(found, dict):
            return found
        inner, others = spec.get("properties", {}), spec.get("additionalProperties")
        other = others if isinstance(others, dict) else {}
        whole = {name: fill(inner.get(name, other), one) for name, one in found.items()}
        missing = [name for name in spec.get("required", ()) if name not in whole]
        return whole | {name: fill(inner[name], _least(_followed(root, inner[name]))) for name in missing}

    made = fill(root, value)
    return {"samples": [], **made}


def _followed(root: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    """The definition that a reference names."""
    while "$ref" in spec:
        named = root
        for part in spec["$ref"].removeprefix("#/").split("/"):
            named = named[part]
        spec = named
    return spec


def _least(spec: dict[str, Any]) -> Any:
    kinds = spec.get("type", "null")
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if "enum" in spec or "null" in kinds:
        return spec.get("enum", [None])[0]
    return {"string": "", "boolean": False, "array": [], "object": {}}.get(kinds[0], spec.get("minimum", 0))


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
    skipped = [{"batch": 64, "input": 4096, "output": 8, "reason": "the engine's limit is 2048 tokens"}]
    found = {"cells": cells, "skipped": skipped, "load": load, "samples": {"engine": [1.0, 1.1]}}
    return filled("bench", found)


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
    slow = {
        **ours,
        "tokens_per_s": rate / 3.1,
        "version": "5.17.0",
        "format": {"weights": "fp32", "activations": "fp32"},
        "reason_absent": None,
    }
    fast = {
        **ours,
        "tokens_per_s": rate / 1.2,
        "version": "0.3.16",
        "format": {"weights": "f32", "activations": "f32"},
        "reason_absent": None,
    }
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
    found = {
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
    return filled("summarize", found)


def evaluated() -> dict[str, Any]:
    kl = {"mean": 0.0081, "median": 0.002, "p99": 0.1, "max": 0.4}
    text = {"file": "held_out.txt", "tokens": 9000, "read": 8192, "scored": 8190}
    paired = {"examples": 20, "difference": -0.05, "interval": [-0.15, 0.0], "p_value": 1.0, "changed": 1}
    code = {"file": "problems.jsonl", "problems": 20, "same_completions": 18, "executed": True}
    found = {"perplexity": 12.31123, "nll_per_token": 2.5104, "original_perplexity": 12.25, "kl": kl, "text": text}
    found |= {"perplexity_ratio": 1.005, "perplexity_ratio_interval": [1.001, 1.009], "same_top1": 0.974}
    found |= {"probability_change": {"mean": -0.001, "rms": 0.02}, "pass_at_1": 0.45, "original_pass_at_1": 0.5}
    before = filled("eval", {**found, "perplexity": 8.8, "text": {**text, "file": "stories.txt"}})
    return filled("eval", found | {"pass_at_1_paired": paired, "code": code, "earlier": [before]})


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
    words = "The tactics buy most: ×1.56."
    return filled("ablate", {"checkpoint": "models/pycoder", "rows": rows, "interactions": [apart], "words": words})


def explain() -> dict[str, Any]:
    def op(ms: float, floor: float, calls: int, intensity: float) -> dict[str, Any]:
        tactic = {"tactic": "torch_tile8", "phase": "decode", "why": "71 µs; torch_flip4 takes 45 µs"}
        found = {"ms": ms, "floor_ms": floor, "share": ms / 380, "share_of_limit": floor / ms, "calls": calls}
        found |= {"flops_per_byte": intensity, "flops_per_s": 3e10 * intensity / ms * floor, "tactics": [tactic]}
        return found

    steps = [{"kind": "context" if i == 0 else "decode", "tokens": 64 if i == 0 else 1} for i in range(32)]
    steps = [{**step, "busy_s": 0.043 if i == 0 else 0.01, "idle_s": 0.0006} for i, step in enumerate(steps)]
    scored = {"total_ms": {"predicted": 320.0, "measured": 331.0, "error": -0.033}}
    found = {
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
        "predicted": [
            {"change": "--weights int8", "total_ms": 320.0, "words": "int8 weights would save 1.9 ms a step"}
        ],
        "scored": {"change": "--weights int4", "command": "allotrope explain old --predict int4", "rows": scored},
        "trace": None,
        "samples": {"plain_s": [0.36], "timed": [{"seconds": 0.378, "steps": steps}]},
    }
    return filled("explain", found)
