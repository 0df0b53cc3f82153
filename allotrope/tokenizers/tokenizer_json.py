"""Reading a tokenizer.json: bounded by size and counts, its patterns tried out in a process of their own.

The library parses about a megabyte per 40 ms, so the byte cap and the entry count bound the time of an honest or a
hostile file alike. What they do not bound is a regular expression. Patterns that publishers are known to use are
taken as they are; any other makes the whole file load and encode awkward text in a helper process first, under a
time and a memory limit, and only then here.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Tokenizer as Library

from allotrope.errors import TokenizerError
from allotrope.tokenizers import isolated, pieces
from allotrope.tokenizers.files import MIB, Json, read_json
from allotrope.tokenizers.hf import LibraryVocabulary
from allotrope.tokenizers.patterns import KNOWN
from allotrope.tokenizers.post_processor import frame
from allotrope.tokenizers.side_files import MAX_ADDED, Added

MAX_BYTES = 64 * MIB  # Gemma's, the largest in use, has 33 MB
MAX_ITEMS = 6_000_000  # commas; Gemma's 262,144 tokens and 580,604 merges make 2 million
MAX_TOKENS = 2_000_000
MAX_PATTERN = 10_000
PROBE_SECONDS = 10.0
MODELS = ("BPE", "Unigram", "WordLevel", "WordPiece")


def load(path: Path, added: Iterable[Added]) -> LibraryVocabulary:
    """The vocabulary of a tokenizer.json, with the tokens that the files beside it add."""
    content = read_json(path, MAX_BYTES, max_items=MAX_ITEMS)
    _check(content, path.name)
    # Read here and never run there: the library ends in a panic on one that names a token it does not define.
    around = frame(content.get("post_processor"), path.name)
    to_bytes, leading_space, raw_added = pieces.from_decoder(content.get("decoder"), path.name)
    if any(pattern not in KNOWN for pattern in _patterns(content, path.name)):
        _probe(path)
    try:
        library = Library.from_file(str(path))
    except Exception as error:
        # The library raises bare Exception for whatever it does not like.
        raise TokenizerError(_line(error), where=path.name) from error
    return LibraryVocabulary(
        library,
        to_bytes,
        leading_space=leading_space,
        added=added,
        where=path.name,
        raw_added=raw_added,
        frame=around,
    )


def _line(error: Exception) -> str:
    text = str(error).strip()
    return f"the tokenizers library refuses it ({text.splitlines()[0][:200] if text else type(error).__name__})"


def _check(content: Json, where: str) -> None:
    model, added = content.get("model"), content.get("added_tokens") or []
    if not isinstance(model, dict) or model.get("type", "BPE") not in MODELS:
        raise TokenizerError(f"model is none of {', '.join(MODELS)}", where=where)
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get("type", "BPE") == "BPE" and model.get(key):
            raise TokenizerError(f"{key} {model[key]!r:.40} is not supported", where=where)
    for key in ("vocab", "merges"):
        entries = model.get(key) or ()
        if not isinstance(entries, dict | list | tuple) or len(entries) > MAX_TOKENS:
            raise TokenizerError(f"{key} must have at most {MAX_TOKENS:,} entries", where=where)
    vocab = model.get("vocab")
    if isinstance(vocab, dict):
        check_ids(vocab, where)
        check_merges(vocab, _merges(model.get("merges") or (), where), where)
    if not isinstance(added, list) or len(added) > MAX_ADDED:
        raise TokenizerError(f"added_tokens must have at most {MAX_ADDED:,} entries", where=where)
    for token in added:
        number = token.get("id") if isinstance(token, dict) else None
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 1 << 24:
            raise TokenizerError(f"an added token's id is {number!r:.40}", where=where)
    _check_added(added, model, where)


def _check_added(added: list[dict[str, object]], model: Json, where: str) -> None:
    """The library numbers added tokens itself where they do not continue the vocabulary; so a gap moves ids."""
    vocab = model.get("vocab")
    size = len(vocab) if isinstance(vocab, dict | list) else 0
    inside = vocab if isinstance(vocab, dict) else {}
    for token in sorted(added, key=lambda token: int(str(token["id"]))):
        content, number = token.get("content"), token["id"]
        if isinstance(vocab, list) and int(str(number)) < size:
            continue
        expected = inside.get(str(content), size)
        size += expected == size
        if number != expected:
            raise TokenizerError(
                f"the added token {str(content)[:60]!r} has id {number}, but the one that follows is {expected}",
                where=where,
                remedy="an added token is missing; restore the publisher's file",
            )


def check_ids(vocab: Json, where: str) -> None:
    """Every id a whole number, once, and none so large that a table of them would be mostly holes."""
    seen: set[int] = set()
    for token, number in vocab.items():
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 2 * MAX_TOKENS:
            raise TokenizerError(f"the id of {token[:40]!r} is {number!r:.40}", where=where)
        seen.add(number)
    if len(seen) != len(vocab):
        raise TokenizerError("two tokens have the same id", where=where)


def check_merges(vocab: Json, merges: Iterable[tuple[str, str]], where: str) -> None:
    """Each pair and what it becomes must be tokens; the library ends in a panic on some that are not."""
    for place, (left, right) in enumerate(merges, 1):
        for token in (left, right, left + right):
            if token not in vocab:
                raise TokenizerError(f"merge {place} needs {token[:40]!r}, which is no token", where=where)


def _merges(listed: Iterable[object], where: str) -> Iterator[tuple[str, str]]:
    """A merge is written "left right" or ["left", "right"]."""
    for merge in listed:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(token, str) for token in pair):
            raise TokenizerError(f"{merge!r:.40} is no merge", where=where)
        yield pair[0], pair[1]


def _patterns(value: object, where: str) -> Iterator[str]:
    """Every regular expression in the normaliser, the pre-tokeniser and the decoder."""
    if not isinstance(value, dict):
        return
    queue: list[object] = [value.get(key) for key in ("normalizer", "pre_tokenizer", "decoder")]
    while queue:
        item = queue.pop()
        if isinstance(item, dict):
            regex = item.get("Regex")
            if isinstance(regex, str):
                if len(regex) > MAX_PATTERN:
                    raise TokenizerError(f"a pattern is longer than {MAX_PATTERN:,} characters", where=where)
                yield regex
            queue.extend(item.values())
        elif isinstance(item, list):
            queue.extend(item)


def _probe(path: Path) -> None:
    """Load the file in a helper process first; it fails there or not at all."""
    process = isolated.start("probe_child.py", ("tokenizers",), str(path.resolve()))
    try:
        answer = process.communicate(timeout=PROBE_SECONDS)[0].decode(errors="replace").strip()
    except subprocess.TimeoutExpired as error:
        process.kill()
        process.communicate()
        raise TokenizerError(
            f"a pattern in it takes more than {PROBE_SECONDS:g} s on a short text", where=path.name
        ) from error
    if answer != "ok":
        reason = answer[:200] or "the memory limit, or a crash"
        raise TokenizerError(f"the tokenizers library refuses it ({reason})", where=path.name)
