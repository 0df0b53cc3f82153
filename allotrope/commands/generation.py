"""What verbs that generate share: options of sampling and of running, and how an engine is opened from them."""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allotrope.commands import build as building
from allotrope.commands.output import Output
from allotrope.errors import UsageError

if TYPE_CHECKING:
    from allotrope.api import LLM, SamplingParams
    from allotrope.runtime.options import RuntimeOptions

_RUNTIME = (
    "executor",
    "threads",
    "kv_memory",
    "page_size",
    "max_batched_tokens",
    "max_num_seqs",
    "max_len",
    "prefix_cache",
    "skip_step",
    "check_step",
)
_EXECUTORS = ("auto", "native", "eager", "graph")
_SWITCH = {"on": True, "off": False}
_STOPPING: dict[str, bool | str] = {"false": False, "true": True, "never": "never"}


def add_sampling(parser: argparse.ArgumentParser, *, max_tokens: int) -> None:
    """Declare how tokens are drawn and when an answer ends."""
    group = parser.add_argument_group("sampling")
    group.add_argument("--max-tokens", type=int, default=max_tokens, metavar="N", help=f"new tokens ({max_tokens})")
    group.add_argument("--min-tokens", type=int, default=0, metavar="N", help="nothing ends an answer before (0)")
    group.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 takes the likeliest token (0)")
    group.add_argument("--top-k", type=int, default=0, metavar="K", help="draw among the K likeliest (0: all)")
    group.add_argument("--top-p", type=float, default=1.0, metavar="P", help="draw among the likeliest of mass P (1)")
    group.add_argument("--min-p", type=float, default=0.0, metavar="P", help="drop what is P times less likely (0)")
    group.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        metavar="X",
        help="above 1: against what was said, or asked (1)",
    )
    group.add_argument("--presence-penalty", type=float, default=0.0, metavar="X", help="against what was said (0)")
    group.add_argument("--frequency-penalty", type=float, default=0.0, metavar="X", help="and for each time (0)")
    group.add_argument(
        "--logit-bias", type=_bias, action="append", default=[], metavar="ID:X", help="add X to a token's (repeatable)"
    )
    group.add_argument("--bad-words", action="append", default=[], metavar="TEXT", help="never say TEXT (repeatable)")
    group.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before TEXT (repeatable)")
    group.add_argument("--ignore-eos", action="store_true", help="go on after an end of text")
    group.add_argument("--beams", type=int, default=1, metavar="N", help="search with N beams (1: do not)")
    group.add_argument(
        "--length-penalty", type=float, default=1.0, metavar="X", help="beams: above 0 favours long answers (1)"
    )
    group.add_argument(
        "--early-stopping", choices=_STOPPING, default="false", help="beams: end with the first N answers (false)"
    )


def add_running(parser: argparse.ArgumentParser) -> None:
    """Declare how an engine is run, and built if a checkpoint stands in its place."""
    group = parser.add_argument_group("running")
    group.add_argument("--executor", choices=_EXECUTORS, help="auto: native or graph where they can, else eager")
    group.add_argument("--kv-memory", metavar="SIZE", help="memory for keys and values, such as 2GiB")
    group.add_argument("--page-size", type=int, metavar="N", help="tokens per page of it (16)")
    group.add_argument("--max-batched-tokens", type=int, metavar="N", help="most tokens in a step (2048)")
    group.add_argument("--max-num-seqs", type=int, metavar="N", help="most requests at once (32)")
    group.add_argument("--prefix-cache", choices=_SWITCH, help="keep what prompts begin with (on)")
    group.add_argument("--skip-step", type=int, metavar="N", help="do not look at the first N steps (0)")
    group.add_argument("--check-step", type=int, metavar="N", help="then look at every Nth step (1)")
    group = parser.add_argument_group("building, if ENGINE is a checkpoint; --threads and --max-len always count")
    building.add_build_options(group)


def open_llm(args: argparse.Namespace, out: Output) -> LLM:
    """The engine that the arguments name, built first if that is a checkpoint, with the options that were given."""
    from allotrope.api import LLM

    folder = building.engine_folder(args, out, running=("max_len",))  # a shorter limit needs no engine of its own
    return LLM(folder, **_running(args))


def evaluated(args: argparse.Namespace, out: Output) -> Path:
    """The engine's folder; a checkpoint in its place is built first. --allow-pickle is for the original, too."""
    from allotrope.artifact.manifest import FILE

    reading = ("allow_pickle",) if (Path(args.engine) / FILE).exists() else ()
    return building.engine_folder(args, out, running=("max_len", *reading))


def runtime_options(args: argparse.Namespace, **more: Any) -> RuntimeOptions:
    """The options of running that the arguments ask for, and some that the verb adds."""
    from allotrope.runtime.options import RuntimeOptions

    return RuntimeOptions(**_running(args), **more)


def sampling_params(args: argparse.Namespace) -> SamplingParams:
    """The sampling that the arguments ask for."""
    from allotrope.api import SamplingParams

    names = set(inspect.signature(SamplingParams).parameters)
    given = {name: value for name, value in vars(args).items() if name in names}
    given["early_stopping"] = _STOPPING[args.early_stopping]
    if len(dict(args.logit_bias)) < len(args.logit_bias):
        raise UsageError("--logit-bias names a token twice", remedy="give one value for each")
    given["logit_bias"] = dict(args.logit_bias)
    return SamplingParams(**given)


def _running(args: argparse.Namespace) -> dict[str, Any]:
    given = {name: getattr(args, name) for name in _RUNTIME if getattr(args, name) is not None}
    if args.prefix_cache is not None:
        given["prefix_cache"] = _SWITCH[args.prefix_cache]
    return given | {"device": args.device}


def _bias(text: str) -> tuple[int, float]:
    token, _, value = text.rpartition(":")
    try:
        return int(token), float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a token's id and a number, such as 42:-1.5") from None
