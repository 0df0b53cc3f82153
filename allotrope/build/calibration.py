"""The tokens that a build calibrates on: from a text file, from the bundled text, or drawn for a random shape."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from allotrope import __version__, settings, tokenizers
from allotrope.artifact import digests
from allotrope.artifact.plan import Plan
from allotrope.build.options import BuildOptions
from allotrope.errors import TokenizerError, UsageError
from allotrope.models.model import Model
from allotrope.quant.streamed import Calibration

_PAGE = re.compile(r"\f(?:\r?\n)?")  # between documents
_LENGTH = 512  # tokens of a sequence
_KEYS = 2048  # tokens of a sequence on which keys are looked at: they may differ from position to position
_KEY_TOKENS = 8192  # in all: a mean is soon known
_TOKENS = {"cpu": 16_384, "cuda": 32_768}  # by default; the bundled text has about 15,000


def calibration(model: Model, plan: Plan, options: BuildOptions, kind: str) -> Calibration:
    """Sequences of one length, drawn by the seed; and where finished blocks are kept, by all that decides on them."""
    length = min(_LENGTH, plan.max_len)
    wanted = options.calibration_tokens or _TOKENS[kind]
    if wanted < length:
        problem = f"--calibration-tokens is {wanted}, less than one sequence of {length}"
        raise UsageError(problem, where="build", remedy=f"give at least {length}")
    random = torch.Generator().manual_seed(options.seed)
    facts: dict[str, Any]
    if model.tokenizer_dir is None:
        if options.calibration is not None:
            problem = "a random model reads no text; it is calibrated on random tokens"
            raise UsageError(problem, where=options.calibration, remedy="leave --calibration out")
        ids, facts = torch.randint(model.recipe.vocab, (wanted // length, length), generator=random), {"text": "random"}
    else:
        ids, facts = _read(model, options.calibration, length, wanted, random)
    facts |= {"tokens": ids.numel(), "sequence": length, "seed": options.seed}
    settled = {key: value for key, value in options.to_json().items() if key in _DECIDES}
    parts = [__version__, model.checkpoint.digest(), settled, kind, plan.dtype, digests.of_bytes(ids.numpy().tobytes())]
    key = digests.of_bytes(json.dumps(parts, sort_keys=True).encode())[:24]
    return Calibration(ids, facts, settings.cache_dir() / "calibration" / key)


def key_tokens(model: Model, plan: Plan, options: BuildOptions) -> tuple[torch.Tensor, dict[str, Any]]:
    """Sequences as long as the text and the model's positions allow, for what all keys have alike."""
    wanted = min(_KEY_TOKENS, options.calibration_tokens or _KEY_TOKENS)
    length, random = min(_KEYS, options.max_len or plan.max_len, wanted), torch.Generator().manual_seed(options.seed)
    facts: dict[str, Any]
    if model.tokenizer_dir is None:
        ids, facts = torch.randint(model.recipe.vocab, (wanted // length, length), generator=random), {"text": "random"}
    else:
        where = options.calibration or "the bundled calibration text"
        length = min(length, max(1, len(_encoded(model, text_of(options.calibration), where))))
        ids, facts = _read(model, options.calibration, length, wanted, random)
    return ids, facts | {"tokens": ids.numel(), "sequence": ids.shape[1], "seed": options.seed}


_DECIDES = ("weights", "group_size", "asymmetric", "activations", "method", "keep", "without", "seed")


def _read(
    model: Model, file: str | None, length: int, wanted: int, random: torch.Generator
) -> tuple[torch.Tensor, dict[str, Any]]:
    where = file or "the bundled calibration text"
    text = text_of(file)
    if not text.strip():
        raise UsageError("the calibration text is empty", where=where, remedy="give a file with text")
    ids = _encoded(model, text, where)
    count = len(ids) // length
    if not count:
        problem = f"the calibration text has {len(ids)} tokens, less than one sequence of {length}"
        raise UsageError(problem, where=where, remedy="give a longer text")
    sequences = torch.tensor(ids[: count * length]).view(count, length)
    drawn = torch.randperm(count, generator=random)[: max(1, wanted // length)]
    return sequences[drawn], {"text": file or "bundled", "digest": digests.of_bytes(text.encode())}


def text_of(file: str | None) -> str:
    """The bundled text, or a file's, or an error that says what is wrong with it."""
    if file is None:
        return resources.files("allotrope.quant").joinpath("calibration.txt").read_text(encoding="utf-8")
    try:
        with Path(file).open(encoding="utf-8", newline="") as opened:
            return opened.read()
    except OSError as error:
        problem = f"the calibration text cannot be read: {error.strerror}"
        raise UsageError(problem, where=file or "--calibration ''") from error
    except UnicodeDecodeError as error:
        problem = f"the calibration text is not UTF-8 at byte {error.start}"
        raise UsageError(problem, where=file, remedy="save it as UTF-8") from error
    except ValueError as error:
        raise UsageError(f"the calibration text cannot be read: {error}", where=file) from error


def _encoded(model: Model, text: str, where: str) -> list[int]:
    """Documents one after the other, each behind the mark that begins one."""
    try:
        tokenizer = tokenizers.load(model.tokenizer_dir or Path(), model.recipe.vocab)
        begin = [tokenizer.bos_id] if tokenizer.bos_id is not None else list(tokenizer.eos_ids[:1])
        pages = _PAGE.split(text)
        ids = [[*begin, *tokenizer.encode(page, special=False, allow_special=False)] for page in pages]
    except TokenizerError as error:
        problem = f"the model's tokenizer cannot read the calibration text: {error.problem}"
        remedy = "mend the tokenizer, or leave --method, --max-kl and --calibration… out, to round to nearest"
        raise UsageError(problem, where=where, remedy=remedy) from error
    return [token for page in ids for token in page]
