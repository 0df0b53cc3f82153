"""What pycoder writes itself, as lessons: bodies of functions, and lines between a prefix and a suffix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from allotrope.tokenizers import Tokenizer
from tools.train import reading
from tools.train.evaluation import functions
from tools.train.evaluation.lm import LanguageModel
from tools.train.evaluation.texts import Function
from tools.train.middle import MIDDLE, PREFIX, SUFFIX, Cutter
from tools.train.packing import Batch
from tools.train.spec import Part, Spec

HEADERS = 24_000  # functions for which bodies are written in a round
HOLES = 16_000  # functions in which a line or a few are written anew
TEMPERATURES = (0.3, 0.7)
HOLE_TEMPERATURE = 0.5
LONGEST = 256  # tokens of a header
LONGEST_HOLE = 384  # tokens of a prefix with its suffix
LINE = 24  # tokens that a line may take
LEARNED, AVOIDED, ENDED = 50, -100, 400  # percent: a good body, a repeated line, the end of a middle
Piece = tuple[Sequence[int], list[int]]  # tokens, and the percent that each weighs


def written(
    spec: Spec, folder: Path, work: Path, device: str, seed: int, window: int
) -> tuple[Batch, dict[str, float]]:
    """What the model writes now, as windows with the weight of each token, and how good it was."""
    model, rows = LanguageModel(folder, device), _rows(spec, work)
    made, bodies_told = bodies(model, rows, seed)
    lines, lines_told = middles(model, rows, seed)
    pieces = [*made, *lines]
    np.random.default_rng(seed).shuffle(pieces)
    windows, percent = batch(list(packed(iter(pieces), model.tokenizer.eos_ids[0], window)))
    return (windows.to(device), percent.to(device)), bodies_told | lines_told


def bodies(model: LanguageModel, rows: Sequence[reading.Row], seed: int) -> tuple[list[Piece], dict[str, float]]:
    """A body for each of many headers: all of the good ones is to be learned, and repeated lines are to be avoided."""
    listed = [(prompt, [model.begin, *model.ids(prompt)]) for prompt in headers(rows, seed)]
    listed = [(prompt, ids) for prompt, ids in listed if len(ids) <= LONGEST]
    end, counts, pieces = model.tokenizer.eos_ids[0], Counter[str](), list[Piece]()
    for place, temperature in enumerate(TEMPERATURES):
        some = listed[place :: len(TEMPERATURES)]
        texts = model.write(
            [ids for _, ids in some], functions.BODY_TOKENS, temperature=temperature, seed=2 * seed + place
        )
        for (prompt, ids), text in zip(some, texts, strict=True):
            body = functions.judge(prompt, model.tokenizer.decode(text.ids), text.ended)
            counts["whole"] += body.whole
            counts["repeating"] += body.repeats
            new = [*text.ids, *([end] if text.ended else [])]
            if body.repeats:
                pieces.append(([*ids, *new], [0] * len(ids) + repeated(model.tokenizer, new)))
            elif body.whole:
                pieces.append(([*ids, *new], [0] * len(ids) + [LEARNED] * len(new)))
    total = len(listed)
    return pieces, {"bodies": total, **{name: round(counts[name] / total, 4) for name in ("whole", "repeating")}}


def middles(model: LanguageModel, rows: Sequence[reading.Row], seed: int) -> tuple[list[Piece], dict[str, float]]:
    """As many lines as were taken out of a function, in the model's own words; to be learned is only where they end.

    From the text alone it learns to end where the right middle does. Its own middles are mostly not the right ones,
    and after those it would go on and write the function again.
    """
    end, counts, pieces = model.tokenizer.eos_ids[0], Counter[str](), list[Piece]()
    listed = [hole for hole in holes(model, rows, seed) if len(hole[0]) <= LONGEST_HOLE]
    most = max((lines for _, lines in listed), default=1)
    texts = model.write([ids for ids, _ in listed], most * LINE, temperature=HOLE_TEMPERATURE, seed=seed)
    for (ids, lines), text in zip(listed, texts, strict=True):
        said = model.tokenizer.decode(text.ids).split("\n")
        counts["ended"] += text.ended and len(said) == lines + 1 and not said[-1]
        if len(said) > lines and all(line.strip() for line in said[:lines]):
            own = model.ids("".join(f"{line}\n" for line in said[:lines]))
            pieces.append(([*ids, *own, end], [0] * (len(ids) + len(own) - 1) + [ENDED] * 2))
    total = max(1, len(listed))
    return pieces, {"middles": len(listed), "ended": round(counts["ended"] / total, 4)}


def holes(model: LanguageModel, rows: Sequence[reading.Row], seed: int) -> Iterator[tuple[list[int], int]]:
    """Prefix and suffix of functions without a line or a few, and how many lines these were."""
    random = np.random.default_rng((11, seed))
    cutter = Cutter(model.tokenizer, random, lines=1.0)
    first, second, third = (model.tokenizer.encode(name, special=False)[0] for name in (PREFIX, SUFFIX, MIDDLE))
    for i in random.permutation(len(rows))[:HOLES]:
        ids = [*model.ids(rows[i]["code"]), model.tokenizer.eos_ids[0]]
        made = list(map(int, cutter.rearranged(np.array(ids, np.uint16), 1.0)))
        if made[0] == first and made[1] != second:  # the prefix first: its end, where the middle begins, is marked
            at = made.index(third)
            lines = model.tokenizer.decode(made[at + 1 : -1]).count("\n")
            if lines:
                yield made[: at + 1], lines


def repeated(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    """A negative weight for each token of a line that stands there for the third time or a later one."""
    texts = [tokenizer.decode([token], skip_special=False) for token in ids]
    lines, seen = "".join(texts).split("\n"), Counter[str]()
    circling = []
    for line in lines:
        seen[line.strip()] += bool(line.strip())
        circling.append(seen[line.strip()] >= 3)
    found, place = [], 0
    for text in texts:
        place += text.count("\n")  # a token that ends a line and begins the next belongs to the next
        found.append(AVOIDED if circling[place] else 0)
    return found


def headers(rows: Sequence[reading.Row], seed: int) -> list[str]:
    """Headers of some of the functions, each with its summary."""
    chosen = np.random.default_rng((7, seed)).permutation(len(rows))[:HEADERS]
    made = (functions.header(Function(rows[i]["name"], rows[i]["code"], rows[i]["summary"])) for i in chosen)
    return [header for header in made if header is not None]


def of_functions(part: Part) -> bool:
    """Whether a part gives functions by themselves."""
    return part.form == "function"


def _rows(spec: Spec, work: Path) -> list[reading.Row]:
    """The functions of the training projects."""
    [part] = [part for part in spec.parts if of_functions(part)]
    return list(reading.rows(work, part, "train"))


def packed(pieces: Iterator[Piece], end: int, window: int) -> Iterator[tuple[list[int], list[int]]]:
    """Windows of pieces one after another, after an end mark; a piece that does not fit begins the next window."""
    ids, percent = [end], [0]
    for piece, weights in pieces:
        if len(ids) + len(piece) > window + 1:
            room = window + 1 - len(ids)
            yield ids + [end] * room, percent + [0] * room
            ids, percent = [end], [0]
        ids += piece
        percent += weights
    if len(ids) > 1:
        room = window + 1 - len(ids)
        yield ids + [end] * room, percent + [0] * room


def batch(windows: Sequence[tuple[list[int], list[int]]]) -> Batch:
    """Ids, and the weights of all but the first."""
    ids = torch.tensor([ids for ids, _ in windows], dtype=torch.int32)
    return ids, torch.tensor([percent[1:] for _, percent in windows], dtype=torch.int16)
