"""`allotrope inspect`: what a checkpoint is, proven from its headers, and the fastest it could run here."""

from __future__ import annotations

import argparse

from allotrope.build.options import compute_dtype
from allotrope.commands.formats import add_weight_formats
from allotrope.commands.output import Output, count_text, time_text
from allotrope.errors import UsageError
from allotrope.hw import detect, peaks
from allotrope.hw.peaks import Ceilings
from allotrope.models.inspect import Inspection, Narrow, describe, inspect
from allotrope.models.model import Model, open_model
from allotrope.ops.kv_rows import COMPUTE, NARROW
from allotrope.units import bytes_text

WORK = "inspecting"
HELP = "What a checkpoint is, its bytes, and the fastest that it could run here."
_FORMATS = ("int8", "int4", "fp8")
_DTYPES = ("fp32", "fp16", "bf16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("ckpt", metavar="CKPT", help="a folder in Hugging Face layout, or random:SHAPE")
    add_weight_formats(parser, (*_DTYPES, *_FORMATS), "predict for weights stored so (as they are)")
    parser.add_argument(
        "--kv",
        choices=tuple(dict.fromkeys((*_DTYPES, *NARROW))),
        help="predict for keys and values stored so (as the weights)",
    )
    parser.add_argument("--max-len", type=int, metavar="N", help="tokens per sequence (the model's limit)")
    parser.add_argument("--max-batch", type=int, metavar="N", help="sequences at once (1)")
    parser.add_argument("--allow-pickle", action="store_true", help="convert a .bin checkpoint, weights only")


def run(args: argparse.Namespace, out: Output) -> int:
    """Inspect and print."""
    model = open_model(args.ckpt, allow_pickle=args.allow_pickle)
    device = detect.detect(args.device)
    ceilings = peaks.load(device)
    narrow, kv = _narrow(args, model, device.kind)
    found = inspect(
        model,
        device,
        ceilings,
        weights=args.weights if narrow is None else compute_dtype("auto", model.dtypes[0], device.kind),
        kv=kv,
        max_len=args.max_len,
        max_batch=args.max_batch,
        narrow=narrow,
    )
    _print(found, ceilings, out)
    out.result({**found.to_json(), "ceilings": None if ceilings is None else vars(ceilings)})
    return 0


def _narrow(args: argparse.Namespace, model: Model, kind: str) -> tuple[Narrow | None, tuple[str, ...]]:
    """What `build` would store in few bits with these options, None for nothing; and each layer's keys and values."""
    layers = len(model.recipe.blocks)
    if args.weights not in _FORMATS and not (args.keep or args.group_size is not None or args.asymmetric):
        return None, (args.kv,) * layers if args.kv else ()
    if args.weights in _DTYPES:
        problem = f"--weights {args.weights} is one dtype for all weights, and has no exceptions or groups"
        raise UsageError(problem, remedy=f"predict for --weights {', '.join(_FORMATS)}")
    from allotrope.artifact.plan import name
    from allotrope.models.lower import lower
    from allotrope.quant.held import held
    from allotrope.quant.policy import Wanted, linears, policy, with_tables

    plan = lower(model.recipe, compute_dtype("auto", model.dtypes[0], kind))
    wanted = Wanted(
        args.weights, args.group_size, args.asymmetric, kv=args.kv if args.kv in NARROW else None, keep=tuple(args.keep)
    )
    chosen = with_tables(policy(plan, wanted, held(model, plan)), plan, model.dtype_of)
    nbytes = {}
    for call in linears(plan):
        slot, form = name(call.ins["weight"]), chosen.formats[call.path]
        if form is not None:
            nbytes[slot] = form.nbytes(plan.weights[slot].parts[0][1])
    for call in plan.calls:
        if call.path in chosen.tables:
            slot = name(call.ins["table"])
            nbytes[slot] = chosen.tables[call.path].nbytes(plan.weights[slot].parts[0][1])
    kv = [plan.dtype if form == COMPUTE else form for form in chosen.kv.values()] or [args.kv or plan.dtype] * layers
    return Narrow("; ".join(dict.fromkeys(map(str, filter(None, chosen.formats.values())))), nbytes), tuple(kv)


def _print(found: Inspection, ceilings: Ceilings | None, out: Output) -> None:
    model = found.model
    stored = f"{bytes_text(model.checkpoint.nbytes)} stored as {', '.join(model.dtypes)}"
    stored += " and codes" if found.codes else ""
    lines = [
        ("family", f"{model.family.name}, {count_text(model.parameters)} parameters, {stored}"),
        *([("codes", found.codes)] if found.codes else []),
        *describe(model.recipe),
        *(("note", note) for note in model.notes),
        ("weights", f"{bytes_text(found.weight_bytes)} as {found.weights}"),
        ("KV cache", f"{bytes_text(found.kv_per_token)} per token as {found.kv}"),
        ("", f"{bytes_text(found.kv_bytes)} for {found.max_batch} × {found.max_len} tokens"),
        ("memory", f"{bytes_text(found.device.memory_bytes)}: {'fits' if found.fits else 'does not fit'}"),
    ]
    for name, text in lines:
        out.line(f"{name:11} {text}")
    out.line()
    if ceilings is None:
        out.line("How fast at best: not known before `allotrope doctor --measure` (a few seconds).")
        return
    rate = f"{ceilings.read_bytes_per_s / 1e9:.1f} GB/s"
    out.line(f"Least time per step on {found.device.name[:36]}, reading {rate}:")
    rows = [
        (floor.batch, time_text(floor.short_s), time_text(floor.full_s), f"{floor.batch / floor.short_s:.4g}")
        for floor in found.floors
        if floor.short_s is not None and floor.full_s is not None
    ]
    out.table(("batch", "at 1 token", f"at {found.max_len} tokens", "tokens/s at most"), rows)
