"""Options that say in which formats an engine keeps its numbers, and the table of what that cost."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from allotrope.build.options import ACTIVATIONS, KV, METHODS, WEIGHTS
from allotrope.commands.output import Output, count_text, time_text
from allotrope.units import bytes_text

_BLOCK = r"^blocks\.\d+\."
_LEGEND = """\
worst, mean: the error's norm over the weight's. outliers: input channels over
six times the median's largest weight. Every weight's row is in engine.json."""


def add_weight_formats(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup,
    choices: Sequence[str] = WEIGHTS,
    words: str = "format of the blocks' linear layers (as wide as --dtype)",
) -> None:
    """Declare how weights may be stored."""
    parser.add_argument("--weights", choices=choices, help=words)
    parser.add_argument("--group-size", type=int, metavar="N", help="weights per scale: 32, 64, 128 (int4: 32)")
    parser.add_argument("--asymmetric", action="store_true", help="int4 with zeros: each group's ends are met")
    parser.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="PATTERN=FORMAT",
        help="exceptions, the last that matches wins: 'blocks.0.*=wide', '*.down=int8', '*.1.attn.kv=wide'",
    )
    parser.add_argument(
        "--head",
        action=_Head,
        dest="keep",
        metavar="FORMAT",
        default=argparse.SUPPRESS,
        help="format of the head, and of the embedding if tied to it: short for --keep head=FORMAT",
    )


class _Head(argparse.Action):
    """`--head FORMAT` is the first of `--keep`'s exceptions, so that the others may say otherwise."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        namespace.keep = [f"head={values}", *namespace.keep]


def add_formats(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Declare all that a build can be asked for about formats."""
    add_weight_formats(parser)
    parser.add_argument("--activations", choices=ACTIVATIONS, help="format of what these layers read, per token")
    parser.add_argument("--kv", choices=KV, help="format of cached keys and values")
    parser.add_argument("--method", choices=METHODS, default="auto", help="the way onto the formats")
    parser.add_argument("--max-kl", type=float, metavar="X", help="keep the most sensitive layers wide until KL ≤ X")
    parser.add_argument("--calibration", metavar="FILE", help="text to calibrate on (the bundled one)")
    parser.add_argument("--calibration-tokens", type=int, metavar="N", help="how much of it")


def print_errors(found: Mapping[str, Any], out: Output) -> None:
    """A row per kind of weight, and the total; nothing where nothing was quantised."""
    if not found:
        return
    kinds: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for error in found["weights"]:
        kinds.setdefault((re.sub(_BLOCK, "", error["path"]), error["format"]), []).append(error)
    headers = ("weight", "format", "worst", "mean", "SQNR", "cosine", "outliers")
    out.table(headers, [_row(kind, form, errors) for (kind, form), errors in kinds.items()])
    out.line(_LEGEND)
    total = found["total"]
    how = "kept as stored" if found["method"] == "as stored" else f"quantised by {found['method']}"
    out.sentence(
        f"{how}: {count_text(total['weights'])} weights, {bytes_text(total['nbytes'])} at "
        f"{total['bits_per_weight']:.3g} bits each, error {_share(total['relative'])}, SQNR "
        f"{_decibels(total['sqnr_db'])}, in {time_text(found['seconds'])}"
    )
    out.line()


def _row(kind: str, form: str, errors: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    known = list(_figures(errors, "relative"))
    quality = list(_figures(errors, "sqnr_db"))
    return (
        f"{kind} ×{len(errors)}",
        form.replace("in groups of ", "by ").replace("asymmetric", "asym."),
        _share(max(known, default=None)),
        _share(sum(known) / len(known) if known else None),
        _decibels(min(quality, default=None)),
        f"{min(error['cosine'] for error in errors):.6f}",
        str(sum(len(error["outliers"]) for error in errors)),
    )


def _figures(errors: Sequence[Mapping[str, Any]], name: str) -> Iterator[float]:
    return (error[name] for error in errors if error[name] is not None)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.3g} %"


def _decibels(value: float | None) -> str:
    return "exact" if value is None else f"{value:.1f} dB"
