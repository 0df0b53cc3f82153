"""The result in words and figures, for 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from allotrope.ops.check import ErrorStats
from allotrope.units import bytes_text
from allotrope.verify.records import Attribution, BlockRow, Cost, Layers, Logits, Preflight, Share, Tokens
from allotrope.verify.session import Result
from allotrope.verify.verdict import CLOSE, COSTING, DEGRADED, IDENTICAL, PROVING, WITHIN, Findings

_MEANS = {
    IDENTICAL: "every block within the numerics policy, every token the original's",
    WITHIN: "every block adds no more error than its dtype explains",
    CLOSE: "it is not what rounding explains, but the distributions are near",
    DEGRADED: "it is not the same model",
}
ATTRIBUTION_HEADERS = ("module", "format", "KL alone", "share", "saved", "extra bytes")
_SHOWN = 12  # rows of blocks; more are cut in the middle
BLOCK_HEADERS = ("block", "injected", "floor", "ratio", "total", "mean abs", "<1e-3", "")


def sentences(result: Result) -> list[str]:
    """The verdict, and what it means."""
    findings = result.findings
    if findings.formats:
        return _two_answers(findings)
    if findings.verdict is None:
        return [f"Nothing wrong was found; a verdict needs the levels {', '.join(PROVING)}."]
    return [f"Verdict: {findings.verdict} ({findings.dtype})", f"  {_MEANS[findings.verdict]}"]


def _two_answers(findings: Findings) -> list[str]:
    """Of a quantised engine: whether it computes what its weights say, and what these cost."""
    needed = f"a verdict needs the levels {', '.join(COSTING)}"
    head = f"Nothing wrong was found; {needed}." if findings.verdict is None else f"Verdict: {findings.verdict}"
    quantised = f"  quantised: {', '.join(findings.formats)}; computed in {findings.dtype}"
    lines = [*_wrapped(head, indent=0), *_wrapped(quantised, indent=4)]
    word = findings.implementation
    if word is not None:
        means = "it does not compute what its own weights say" if word in (CLOSE, DEGRADED) else _MEANS[word]
        if word == IDENTICAL:  # of codes a word may fall either way where two are equally likely
            means = "every block within the numerics policy, every token its weights' own or as likely within the noise"
        lines += _wrapped(f"  implementation: {word}; {means}", indent=4)
    if findings.cost is not None:
        lines += _cost_lines(findings.cost)
    return lines


def _cost_lines(cost: Cost) -> list[str]:
    found, at = cost.figures, cost.figures.kl_percentiles
    kl = f"mean {found.mean_kl:.2e}, median {at['50']:.1e}, p99 {at['99']:.1e}, max {found.max_kl:.1e}"
    line = f"  cost: {cost.word}; KL to the original {kl} nats (mean {found.floor['mean_kl']:.1e} by rounding alone)"
    second = f"    same top-1 {found.same_top1:.2%}, perplexity {found.perplexity:.4f}, the original's "
    second += f"{found.original_perplexity:.4f} (ratio {found.perplexity_ratio:.5f}), {found.positions} tokens"
    return [*_wrapped(line, indent=4), *_wrapped(second, indent=4)]


def attribution_lines(found: Attribution) -> list[str]:
    """The whole, and how far the parts add up to it."""
    kind = "blocks" if found.blocks else "modules"
    ratio = f"{found.sum_alone / found.whole:.0%}" if found.whole else "nothing"
    told = f"attribution: KL {found.whole:.2e} nats over {found.positions} tokens. {len(found.parts)} {kind}, each "
    told += f"alone, add up to {ratio} of it (interaction {found.whole - found.sum_alone:+.1e}); "
    told += f"what each saves where it alone is wide, to {found.sum_saved:.2e}."
    return list(_wrapped(told, indent=2))


def attribution_rows(shares: Sequence[Share]) -> list[tuple[str, ...]]:
    """The modules (or blocks) that cost the most, the worst first."""
    return [
        (
            share.module,
            share.format,
            f"{share.alone:.1e}",
            f"{share.share:.1%}",
            f"{share.saved:.1e}",
            bytes_text(share.extra_bytes),
        )
        for share in shares[:_SHOWN]
    ]


def widening_lines(found: Attribution) -> list[str]:
    """What buys back the most for its bytes, as `build` takes it."""
    if not found.widen:
        return []
    first = found.widen[0]
    told = f"Widening {first.module} buys back the most for its bytes: KL {first.saved:.1e} for "
    told += f"{bytes_text(first.extra_bytes)}. In order: {', '.join(share.module for share in found.widen)}."
    return [*_wrapped(told, indent=2), f"  allotrope build … --keep '{first.module}=wide'"]


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
    return [
        *_wrapped(f"Located: {located.path} (block {located.block}{op})", indent=2),
        *_wrapped(f"  {located.detail}", indent=2),
    ]


def _wrapped(text: str, indent: int, width: int = 80) -> Sequence[str]:
    import textwrap

    return textwrap.wrap(text, width, subsequent_indent=" " * indent)


def _cut(line: str, width: int = 80) -> str:
    return line if len(line) <= width else f"{line[: width - 1]}…"
