"""Preflight, the question: do engine and original read the same ids out of the same text, and stop alike?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from allotrope.artifact.engine import Engine
from allotrope.errors import TokenizerError
from allotrope.models.model import Model
from allotrope.tokenizers import Tokenizer
from allotrope.verify.records import Check

_CHAT = (
    {"role": "user", "content": "Which of the two is heavier?"},
    {"role": "assistant", "content": "The second, by a little."},
    {"role": "user", "content": "Are you sure?\nWhy?"},
)
Encode = Callable[[str], list[int]]
# the many ways in which transformers says that it has no tokenizer for a folder
_REFUSALS = (OSError, ValueError, KeyError, ImportError, TypeError, AttributeError)


def check_generation(engine: Engine, model: Model, tokenizer: Tokenizer | None) -> Check:
    """Begin, end and padding tokens and the published sampling defaults.

    What the original leaves open the engine may take from its tokenizer, and from nowhere else.
    """
    ours, theirs = engine.manifest.generation, model.generation
    for key, stated in theirs.items():
        found = ours.get(key)
        if found == stated:
            continue
        if stated in (None, []) and tokenizer is not None and found == _named_by(tokenizer).get(key):
            continue
        return Check("generation", False, f"{key} is {found!r}, the original's is {stated!r}")
    return Check("generation", True, f"eos {ours.get('eos_token_ids')}, bos {ours.get('bos_token_id')}, defaults alike")


def _named_by(tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_ids": list(tokenizer.eos_ids),
        "pad_token_id": tokenizer.pad_id,
    }


def check_length(engine: Engine, model: Model) -> Check:
    """How far the original's class is the same model."""
    ours, theirs = int(engine.manifest.limits["max_len"]), model.family.oracle.max_len(model.config)
    if theirs is not None and theirs < ours:
        detail = f"the original is compared up to {theirs} tokens, beyond which transformers has no such model"
        return Check("length", None, f"{detail} (the engine takes {ours})")
    return Check("length", True, f"compared at any length up to {ours}")


def check_tokens(tokenizer: Tokenizer | None, model: Model, texts: Sequence[str]) -> list[Check]:
    """Token ids (the BOS among them) and the chat template's text, beside transformers' own tokenizer."""
    if tokenizer is None:
        return []
    theirs, reason = _load(model.tokenizer_dir)
    if theirs is not None and 2 * len(theirs) < tokenizer.vocab_size:
        # Where it does not know a folder's files transformers makes an empty tokenizer and says nothing.
        theirs, reason = None, "transformers does not find the original's vocabulary"
    if theirs is None:
        return [Check("token ids", None, reason)]
    found = _ids(tokenizer, theirs, texts)
    if found.ok is False:
        found = _as_the_file_says(tokenizer, model.tokenizer_dir, theirs, texts) or found
    return [found, _template(tokenizer, theirs)]


def _load(folder: Path | None) -> tuple[Any, str]:
    """transformers' tokenizer of a checkpoint, from its files alone; or why there is none to compare with."""
    import transformers

    if folder is None:
        return None, "the original has no tokenizer"
    try:
        found = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except _REFUSALS as error:
        return None, f"transformers cannot load the original's: {str(error).strip().splitlines()[0][:80]}"
    return found, ""


def _ids(tokenizer: Tokenizer, theirs: Any, texts: Sequence[str]) -> Check:
    for text in texts:
        ours, expected = list(tokenizer.encode(text)), list(theirs(text)["input_ids"])
        if ours != expected:
            at = next(
                (i for i, pair in enumerate(zip(ours, expected, strict=False)) if pair[0] != pair[1]),
                min(len(ours), len(expected)),
            )
            detail = f"{text[:24]!r}: id {at} is {ours[at : at + 1]}, the original's is {expected[at : at + 1]}"
            return Check("token ids", False, detail)
    return Check("token ids", True, f"{len(texts)} texts give the original's ids")


def _as_the_file_says(tokenizer: Tokenizer, folder: Path | None, theirs: Any, texts: Sequence[str]) -> Check | None:
    """Whether the ids are those of the checkpoint's tokenizer file as it stands, whoever reads it.

    For some architectures transformers builds a tokenizer of its own around a file's vocabulary and leaves the
    file's rules aside, spaces among them. Then two readings of one file differ, and the engine keeps to the file.
    """
    if folder is None:
        return None
    for name, reader in (("tokenizer.json", _library_reader), ("tokenizer.model", _sentencepiece_reader)):
        if not (folder / name).is_file():
            continue
        encode = reader(folder, theirs)
        if encode is None or any(list(tokenizer.encode(text)) != encode(text) for text in texts):
            return None
        told = f"those of {name} as it stands; transformers' {type(theirs).__name__} keeps only a part of it"
        return Check("token ids", None, told)
    return None


def _library_reader(folder: Path, theirs: Any) -> Encode | None:
    import transformers

    try:
        plain = transformers.PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
    except _REFUSALS:
        return None
    return lambda text: list(plain(text)["input_ids"])


def _sentencepiece_reader(folder: Path, theirs: Any) -> Encode | None:
    """The publisher's own library, and around the text what transformers puts around an empty one."""
    import sentencepiece

    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    except (OSError, RuntimeError):
        return None
    begin = list(theirs("")["input_ids"])
    return lambda text: [*begin, *model.encode(text)]


def _template(tokenizer: Tokenizer, theirs: Any) -> Check:
    if not theirs.chat_template or not tokenizer.has_chat_template:
        if bool(theirs.chat_template) == tokenizer.has_chat_template:
            return Check("chat template", None, "neither has one")
        owner = "the original" if theirs.chat_template else "the engine"
        return Check("chat template", None, f"only {owner} has one")
    import jinja2

    try:
        expected = theirs.apply_chat_template(list(_CHAT), tokenize=False, add_generation_prompt=True)
        ours = tokenizer.chat(list(_CHAT), add_generation_prompt=True)
    except (jinja2.TemplateError, TokenizerError) as error:
        return Check("chat template", None, f"it refuses the trial conversation: {str(error)[:60]}")
    if ours != expected:
        return Check("chat template", False, f"it gives {ours[:40]!r}…, the original's {expected[:40]!r}…")
    return Check("chat template", True, f"the same {len(ours)} characters")
