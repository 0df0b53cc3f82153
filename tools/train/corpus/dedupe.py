"""Duplicates among all projects, and the cap on what any one of them gives."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TypeVar

from tools.train.corpus.functions import Function, fingerprint
from tools.train.corpus.harvest import CodeFile, Harvest

LARGEST_SHARE = 0.08  # of all training code, for one project
LARGEST_SHARE_OF_PAIRS = 0.12  # of documented functions, of which some projects have far more than others
_MOSTLY = 0.7  # of a file's characters in functions seen before: a near copy
_SAME_SUMMARY = 20  # how many functions may have one and the same sentence


T = TypeVar("T")


class Seen:
    """What was kept so far: whole files, functions, prose, pairs and sentences."""

    def __init__(self) -> None:
        self.files: set[bytes] = set()
        self.functions: set[bytes] = set()
        self.prose: set[bytes] = set()
        self.pairs: set[bytes] = set()
        self.summaries: Counter[str] = Counter()


def keep_new(harvests: Iterable[Harvest], seen: Seen) -> None:
    """Take out, in place, what came before: equal files, files mostly of known functions, equal prose and pairs."""
    for found in harvests:
        found.code = [file for file in found.code if _new_file(file, seen)]
        found.docs = [(path, text) for path, text in found.docs if _new_prose(text, seen)]
        found.pairs = [(path, pair) for path, pair in found.pairs if _new_pair(pair, seen)]


def keep_unseen(heldout: Iterable[Harvest], train: Seen) -> None:
    """Take out of held-out projects every file and pair with a function of training's, then copies as in `keep_new`."""
    for found in heldout:
        found.code = [file for file in found.code if not train.functions & file.parts.keys()]
        found.pairs = [(path, pair) for path, pair in found.pairs if fingerprint(pair.code) not in train.functions]
    keep_new(heldout, train)


def _new_file(file: CodeFile, seen: Seen) -> bool:
    known = sum(size for part, size in file.parts.items() if part in seen.functions)
    copied = known > _MOSTLY * max(1, sum(file.parts.values()))
    if file.whole in seen.files or copied:
        return False
    seen.files.add(file.whole)
    seen.functions.update(file.parts)
    return True


def _new_prose(text: str, seen: Seen) -> bool:
    """Paragraph by paragraph: a text half of whose longer paragraphs are known is a copy."""
    marks = {_mark(part) for part in text.split("\n\n") if len(part) > 80}
    if not marks or 2 * len(marks & seen.prose) >= len(marks):
        return False
    seen.prose.update(marks)
    return True


def _mark(paragraph: str) -> bytes:
    return hashlib.blake2b(" ".join(paragraph.split()).lower().encode(), digest_size=12).digest()


def _new_pair(pair: Function, seen: Seen) -> bool:
    mark = fingerprint(pair.code)
    if mark in seen.pairs or seen.summaries[pair.summary] >= _SAME_SUMMARY:
        return False
    seen.pairs.add(mark)
    seen.summaries[pair.summary] += 1
    return True


def cap_shares(train: list[Harvest], code: float = LARGEST_SHARE, pairs: float = LARGEST_SHARE_OF_PAIRS) -> None:
    """Leave files and pairs out, in an order by hash, until no project gives more than its share of either."""
    of_code = _cap([sum(len(file.text) for file in found.code) for found in train], code)
    of_pairs = _cap([len(found.pairs) for found in train], pairs)
    for found in train:
        found.code = _within(found.code, of_code, lambda file: (file.path, len(file.text)))
        found.pairs = _within(found.pairs, of_pairs, lambda pair: (f"{pair[0]} {pair[1].code}", 1))


def _within(items: list[T], cap: float, name_and_size: Callable[[T], tuple[str, int]]) -> list[T]:
    """As many of the items as the cap has room for, chosen by a hash of their names, in the order they came."""
    told = enumerate(map(name_and_size, items))
    named = [(hashlib.sha256(name.encode()).digest(), at, size) for at, (name, size) in told]
    kept, total = set(), 0
    for _, at, size in sorted(named):
        total += size
        if total > cap:
            break
        kept.add(at)
    return [item for at, item in enumerate(items) if at in kept]


def _cap(sizes: list[int], share: float) -> float:
    """The largest size that is at most `share` of the sum once all sizes are cut to it; no cap for a few projects."""
    if len(sizes) * share <= 1:
        return float("inf")
    cap = float(max(sizes, default=0))
    while cap > share * sum(min(size, cap) for size in sizes) + 1:
        cap = share * sum(min(size, cap) for size in sizes)
    return cap
