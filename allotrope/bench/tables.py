"""The grid's figures as tables: for a terminal, as CSV with the columns that reports have, and as Markdown."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from allotrope.artifact.plan import Plan
from allotrope.bench.agreement import words
from allotrope.bench.runners import OURS

HEADERS = ("batch", "runner", "ms", "spread", "ctx ms", "tokens/s", "decode/s", "memory", "limit")
_MEGA, _GIGA = 1e6, 1e9
_COLUMNS = (
    "model_name",
    "runner",
    "version",
    "weights",
    "activations",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "hidden_size",
    "vocab_size",
    "batch_size",
    "input_length",
    "output_length",
    "peak_mem(gb)",
    "build_time(s)",
    "load_time(s)",
    "tokens_per_sec",
    "percentile95(ms)",
    "percentile99(ms)",
    "latency(ms)",
    "spread",
    "t_ctx(ms)",
    "t_gen(ms)",
    "prefill_tokens_per_sec",
    "generation_tokens_per_second",
    "share_of_limit",
    "reason_absent",
)


def runners(cell: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The engine's figures in a cell and the peers', the fastest peer first, the absent last."""
    yield OURS, cell
    yield from sorted(
        cell["peers"].items(), key=lambda item: (item[1]["latency_ms"] is None, item[1]["latency_ms"] or 0)
    )


def terminal(shown: Mapping[str, Any]) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    """A title and rows for each pair of lengths."""
    lengths = dict.fromkeys((cell["input"], cell["output"]) for cell in shown["cells"])
    for into, output in lengths:
        rows = []
        for cell in shown["cells"]:
            if (cell["input"], cell["output"]) != (into, output):
                continue
            for name, one in runners(cell):
                if one["latency_ms"] is not None:
                    rows.append(_row(cell, name, one))
        yield f"{into} in, {output} out", rows


def _row(cell: Mapping[str, Any], name: str, one: Mapping[str, Any]) -> tuple[str, ...]:
    share = one.get("share_of_limit")
    return (
        str(cell["batch"]) if name == OURS else "",
        name + (" (!)" if one.get("different") else ""),
        _short(one["latency_ms"]),
        f"{one['spread']:.0%}",
        _short(one["t_ctx_ms"]),
        _short(one["tokens_per_s"]),
        _short(one["decode_tokens_per_s"]),
        f"{one['peak_memory_bytes'] / _MEGA:.0f} MB",
        "" if share is None else f"{share:.0%}",
    )


def _short(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def notes(shown: Mapping[str, Any]) -> Iterator[str]:
    """What stands below the tables: the ratios, who is who, what they said, who is missing and why."""
    for cell in shown["cells"]:
        if cell["best_peer"] is not None:
            ratios = [
                f"{word} {best['ratio']:.2f} times {best['peer']}"
                for word, best in cell["best"].items()
                if best["ratio"] is not None
            ]
            yield f"batch {cell['batch']}, {cell['input']} in, {cell['output']} out: {', '.join(ratios)}"
    for name in shown["peers"]:
        cells = [cell["peers"][name] for cell in shown["cells"]]
        present = [one for one in cells if one["reason_absent"] is None]
        if present:
            form = present[0]["format"]
            kept = f", keys and values {form['kv']}" if "kv" in form else ""
            yield f"{name}: {present[0]['version']}; weights {form['weights']}, activations {form['activations']}{kept}"
            agreed = [one["agreement"] for one in present if one["agreement"]]
            if agreed:
                worst = max(agreed, key=lambda said: (said["different"], -said["equal"] / said["texts"]))
                yield f"  beside ours: {words(worst)}"
        for reason in dict.fromkeys(one["reason_absent"] for one in cells if one["reason_absent"] is not None):
            missing = [one for one in cells if one["reason_absent"] == reason]
            where = "" if len(missing) == len(cells) else f" in {len(missing)} of {len(cells)} cells"
            yield f"{name} is absent{where}: {reason}"
    busy = max((one["foreign"] or 0 for cell in shown["cells"] for _, one in runners(cell)), default=0)
    if busy > _BUSY:
        yield f"the machine was not idle: other processes had up to {busy:.2g} cores during a sample that counts"


_BUSY = 0.15  # cores that others may have had before it is worth a word


def write_csv(path: Path, model: str, plan: Plan, shown: Mapping[str, Any]) -> None:
    """One line per runner and cell."""
    facts = _shape(plan)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        writer.writeheader()
        for cell in shown["cells"]:
            for name, one in runners(cell):
                writer.writerow({"model_name": model, **facts, **_line(shown, cell, name, one)})


def _shape(plan: Plan) -> dict[str, Any]:
    attention = next((call.params for call in plan.calls if call.op == "attention"), None)
    layers = sum(call.op == "attention" for call in plan.calls)
    if attention is None:
        return {}
    heads, kv_heads, size = (int(attention[name]) for name in ("heads", "kv_heads", "head_dim"))
    shape = {"num_layers": layers, "num_heads": heads, "num_kv_heads": kv_heads}
    return {**shape, "hidden_size": heads * size, "vocab_size": plan.vocab}


def _line(shown: Mapping[str, Any], cell: Mapping[str, Any], name: str, one: Mapping[str, Any]) -> dict[str, Any]:
    facts = shown["engine"] if name == OURS else shown["peers"][name]
    form, peak = one.get("format") or {}, one["peak_memory_bytes"]
    versions = facts.get("versions") or {}
    return {
        "runner": name,
        "version": " ".join(f"{library} {version}" for library, version in versions.items()),
        "weights": form.get("weights"),
        "activations": form.get("activations"),
        "batch_size": cell["batch"],
        "input_length": cell["input"],
        "output_length": cell["output"],
        "peak_mem(gb)": None if peak is None else round(peak / _GIGA, 4),
        "build_time(s)": facts.get("build_s", facts.get("conversion_s")),
        "load_time(s)": facts.get("load_s"),
        "tokens_per_sec": one["tokens_per_s"],
        "percentile95(ms)": one["latency_p95_ms"],
        "percentile99(ms)": one["latency_p99_ms"],
        "latency(ms)": one["latency_ms"],
        "spread": one["spread"],
        "t_ctx(ms)": one["t_ctx_ms"],
        "t_gen(ms)": one["t_gen_ms"],
        "prefill_tokens_per_sec": one["prefill_tokens_per_s"],
        "generation_tokens_per_second": one["decode_tokens_per_s"],
        "share_of_limit": one.get("share_of_limit"),
        "reason_absent": one.get("reason_absent"),
    }


def write_markdown(path: Path, model: str, shown: Mapping[str, Any]) -> None:
    """The terminal's tables, for a repository."""
    lines = [f"# {model}", ""]
    for title, rows in terminal(shown):
        lines += [f"## {title}", "", f"| {' | '.join(HEADERS)} |", "|" + "---|" * len(HEADERS)]
        lines += [f"| {' | '.join(row)} |" for row in rows]
        lines.append("")
    lines += [f"- {line.strip()}" for line in notes(shown)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
