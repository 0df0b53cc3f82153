"""What `run` and `chat` share: options of sampling and of running, and how an engine is opened from them."""

from __future__ import annotations

import argparse
import inspect
from typing import TYPE_CHECKING, Any

from allotrope.commands import build as building
from allotrope.commands.output import Output

if TYPE_CHECKING:
    from allotrope.api import LLM, SamplingParams

_RUNTIME = ("threads", "kv_memory", "page_size", "max_batched_tokens", "max_num_seqs", "max_len")


def add_arguments(parser: argparse.ArgumentParser, *, max_tokens: int) -> None:
    """Declare the options."""
    group = parser.add_argument_group("sampling")
    group.add_argument("--max-tokens", type=int, default=max_tokens, metavar="N", help=f"new tokens ({max_tokens})")
    group.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 takes the likeliest token (0)")
    group.add_argument("--top-k", type=int, default=0, metavar="K", help="draw among the K likeliest (0: all)")
    group.add_argument("--top-p", type=float, default=1.0, metavar="P", help="draw among the likeliest of mass P (1)")
    group.add_argument("--min-p", type=float, default=0.0, metavar="P", help="drop what is P times less likely (0)")
    group.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before TEXT (repeatable)")
    group = parser.add_argument_group("running")
    group.add_argument("--kv-memory", metavar="SIZE", help="memory for keys and values, such as 2GiB")
    group.add_argument("--page-size", type=int, metavar="N", help="tokens per page of it (16)")
    group.add_argument("--max-batched-tokens", type=int, metavar="N", help="most tokens in a step (2048)")
    group.add_argument("--max-num-seqs", type=int, metavar="N", help="most requests at once (32)")
    group = parser.add_argument_group("building, if ENGINE is a checkpoint; --threads and --max-len always count")
    building.add_build_options(group)


def open_llm(args: argparse.Namespace, out: Output) -> LLM:
    """The engine that the arguments name, built first if that is a checkpoint, with the options that were given."""
    from allotrope.api import LLM

    running: dict[str, Any] = {name: getattr(args, name) for name in _RUNTIME if getattr(args, name) is not None}
    folder = building.engine_folder(args, out, running=("max_len",))  # a shorter limit needs no engine of its own
    return LLM(folder, device=args.device, **running)


def sampling_params(args: argparse.Namespace) -> SamplingParams:
    """The sampling that the arguments ask for."""
    from allotrope.api import SamplingParams

    names = set(inspect.signature(SamplingParams).parameters)
    return SamplingParams(**{name: value for name, value in vars(args).items() if name in names})
