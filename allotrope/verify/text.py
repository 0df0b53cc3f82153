"""The result in words and figures, for 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from allotrope.ops.check import ErrorStats
from allotrope.verify.records import BlockRow, Layers, Logits, Preflight, Tokens
from allotrope.verify.session import Result
from allotrope.verify.verdict import CLOSE, DEGRADED, IDENTICAL, PROVING, WITHIN

_MEANS = {
    IDENTICAL: "every block within the numerics policy, every token the original's",
    WITHIN: "every block adds no more error than its dtype explains",
    CLOSE: "it is not what rounding explains, but the distributions are near",
    DEGRADED: "it is not the same model",
}
_SHOWN = 12  # rows of blocks; more are cut in the middle
BLOCK_HEADERS = ("block", "injected", "floor", "ratio", "total", "mean abs", "<1e-3", "")


def sentences(result: Result) -> list[str]:
    """The verdict, and what it means."""
    findings = result.findings
    if findings.verdict is None:
        return [f"Nothing wrong was found; a verdict needs the levels {', '.join(PROVING)}."]
    return [f"Verdict: {findings.verdict} ({findings.dtype})", f"  {_MEANS[findings.verdict]}"]


def preflight_lines(found: Preflight) -> list[str]:
    """One line per check."""
    marks = {True: "ok", False: "WRONG", None: "–"}
    lines = list[str]()
    for check in found.checks:
        line = f"  {marks[check.ok]:5} {check.name}: {check.detail}"
        lines += _wrapped(line, indent=8) if check.ok is False else [_cut(line)]
    return lines


def block_rows(found: Layers) -> list[tuple[str, ...]]:
    """The table's rows: first blocks, last blocks, and whatever is wrong; errors relative to the RMS."""
    rows = list(found.rows)
    if len(rows) <= _SHOWN:
        return [_block(row) for row in rows]
    half = _SHOWN // 2
    kept = {*range(half), *range(len(rows) - half, len(rows))}
    kept |= {place for place, row in enumerate(rows) if row.complaint is not None}
    table, skipped = list[tuple[str, ...]](), 0
    for place, row in enumerate(rows):
        if place in kept:
            if skipped:
                table.append((f"({skipped} more)", *[""] * (len(BLOCK_HEADERS) - 1)))
            table.append(_block(row))
            skipped = 0
        else:
            skipped += 1
    return table


def _block(row: BlockRow) -> tuple[str, ...]:
    ratio = row.injected.rms_rel_rms / row.floor.rms_rel_rms if row.floor.rms_rel_rms else None
    return (
        row.block,
        _rms(row.injected),
        _rms(row.floor),
        "–" if ratio is None else f"{ratio:.2f}",
        _rms(row.total),
        f"{row.total.mean_abs:.1e}",
        "yes" if row.mean_under_1e3 else "no",
        "" if row.complaint is None else "WRONG",
    )


def _rms(stats: ErrorStats) -> str:
    return f"{stats.rms_rel_rms:.1e}"


def layers_line(found: Layers) -> str:
    """What the table shows, in a line."""
    wrong = sum(row.complaint is not None for row in found.rows)
    told = f"{wrong} of {len(found.rows)} blocks are wrong" if wrong else f"all {len(found.rows)} blocks are right"
    ops = f", {len(found.ops)} ops looked at" if found.ops else ""
    return f"layers: {told}{ops} (RMS over the truth's)"


def logits_lines(found: Logits) -> list[str]:
    """The distributions."""
    return [
        f"logits: {found.positions} positions, KL mean {found.mean_kl:.2e} max {found.max_kl:.2e} nats "
        f"(floor {found.floor['mean_kl']:.2e})",
        f"  same top-1 {found.same_top1:.2%}, largest change in log-probability {found.max_logprob_change:.2e}",
        f"  perplexity {found.perplexity:.4f}, the original's {found.original_perplexity:.4f} "
        f"(ratio {found.perplexity_ratio:.6f})",
    ]


def tokens_lines(found: Tokens) -> list[str]:
    """The greedy text."""
    lines = [f"tokens: {found.equal} of {found.total} equal, {found.exact_prompts} of {found.prompts} prompts exact"]
    for divergence in found.divergences[:3]:
        told = "noise" if divergence.explained else "NOT NOISE"
        lines.append(
            _cut(
                f"  {divergence.prompt}, place {divergence.position}: {divergence.engine} for {divergence.original}, "
                f"margin {divergence.margin:.1e}, floor {divergence.floor:.1e}: {told}"
            )
        )
    return lines


def located_lines(result: Result) -> list[str]:
    """Where it is wrong."""
    located = result.findings.located
    if located is None:
        return []
    op = f", op {located.op}" if located.op else ""
    return [f"Located: {located.path} (block {located.block}{op})", *_wrapped(f"  {located.detail}", indent=2)]


def _wrapped(text: str, indent: int, width: int = 80) -> Sequence[str]:
    import textwrap

    return textwrap.wrap(text, width, subsequent_indent=" " * indent)


def _cut(line: str, width: int = 80) -> str:
    return line if len(line) <= width else f"{line[: width - 1]}…"
