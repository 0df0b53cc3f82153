"""`ablate.json`, and the same rows as CSV and Markdown."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from allotrope.ablate import words
from allotrope.ablate.rows import Row, interactions, noise_of
from allotrope.ablate.session import Findings

CSV, MARKDOWN = "ablate.csv", "ablate.md"
_COLUMNS = (
    *("name", "group", "base", "batch", "input", "output"),
    *("latency_ms", "latency_spread_ms", "prefill_ms", "decode_ms", "tokens_per_s", "gain", "gain_low", "gain_high"),
    *("more_than_noise", "memory_bytes", "weights_bytes", "kv_bytes", "peak_memory_bytes", "build_seconds"),
    *("kl", "same_top1", "perplexity_ratio", "verdict", "kl_cost", "same_tokens", "reason", "note"),
)


def shown(found: Findings, all_rows: Sequence[Row]) -> dict[str, Any]:
    """Everything shown, by the keys of the schema."""
    return {
        "checkpoint": found.asked.checkpoint,
        "preset": found.asked.preset,
        "rows": [dict(row.values) for row in all_rows],
        "interactions": [one.to_json() for one in interactions(all_rows)],
        "noise": noise_of(found),
        "rounds": found.rounds,
        "text": {"source": found.text, "positions": found.positions},
        "words": words.paragraph(all_rows),
        "interrupted": found.interrupted,
        "seconds": found.seconds,
    }


def keep_csv(folder: Path, found: Mapping[str, Any]) -> Path:
    """One line per row and cell, for a spreadsheet."""
    path = folder / CSV
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS, extrasaction="ignore")
        writer.writeheader()
        for row in found["rows"]:
            for cell in row["cells"]:
                low, high = cell["gain_interval"] or (None, None)
                reason = row["reason"] or cell["reason"]
                writer.writerow({**row, **cell, "gain_low": low, "gain_high": high, "reason": reason})
    return path


def keep_markdown(folder: Path, found: Findings, all_rows: Sequence[Row]) -> Path:
    """The tables as Markdown."""
    path = folder / MARKDOWN
    path.write_text("\n".join(_markdown(found, all_rows)) + "\n", encoding="utf-8")
    return path


def _markdown(found: Findings, all_rows: Sequence[Row]) -> list[str]:
    lines = [f"# Ablation of {found.asked.checkpoint}", ""]
    for place, cell in enumerate(found.asked.cells):
        lines += [f"## {cell}", ""]
        for heading, table in words.speed_tables(all_rows, place):
            lines += ([heading, ""] if heading else []) + _table(words.SPEED, table)
    lines += [*words.legend(found.rounds, noise_of(found)).splitlines(), ""]
    lines += _table(words.MEMORY, words.memory_table(all_rows))
    lines += [*_table(words.QUALITY, words.quality_table(all_rows)), words.within_line(all_rows), ""]
    lines += [f"- {told}" for told in (*words.notes(all_rows), *words.reasons(all_rows))]
    lines += [f"- {words.interaction_line(one)}" for one in interactions(all_rows)]
    return [*lines, "", words.paragraph(all_rows)]


def _table(headers: Sequence[str], table: Sequence[Sequence[str]]) -> list[str]:
    marks = ["---", *["---:"] * (len(headers) - 1)]
    return [*(f"| {' | '.join(line)} |" for line in (headers, marks, *table)), ""]
