"""A second, short training of pycoder: on its own writing, on filling in a line or a few, and on rounded weights.

After learning from text alone it completes functions well and then runs in circles, seldom ends a middle where the
suffix begins, and loses a fifth of its perplexity when its weights are rounded to four bits. So, in a few rounds:

- It writes bodies for functions of the training projects. Of those that parse and say something, it learns all;
  of those that repeat a line three times, it learns to avoid just the tokens of the repetition, by the likelihood
  that they do not come (Welleck et al., 2019).
- Short functions are rearranged for filling in, and the middle counts more than what is around it.
- It writes lines between a prefix and a suffix, and learns to end after as many as were taken out.
- In most steps the gradient is that at weights rounded in one way or another, so that what is learned does not
  hang on their last digits. No one rounding is used alone: weights should suit them all.
- Half of the rows is the text of the first training, so that nothing of it is lost.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader, IterableDataset

from tools.train import export, fit, network
from tools.train.evaluation import quantised
from tools.train.middle import MIDDLE, Cutter
from tools.train.packing import Batch, Reading
from tools.train.spec import Recipe, Spec
from tools.train.vocabulary import write_json
from tools.train.writing import Piece, batch, of_functions, packed, written

ROUNDS = 2
RECIPE = Recipe(steps=600, rows=64, window=2048, rate=1e-3, matrix_rate=1.5e-3, warmup=30, seed=2)  # of one round
FILLING, WRITTEN = 20, 12  # rows of a batch; the others are text
WHOLE_LINES = 0.7  # of the middles
GIVEN = 15  # percent that what is around a middle weighs
FILL_WORKERS = 6
ROUNDINGS = (quantised.int4_group, quantised.int4_group, quantised.int4_group_offset, None)


def polish(spec: Spec, work: Path, out: Path, device: str) -> None:
    """Train what `fit` has exported some more; its folder and its training.json are brought up to date."""
    begun, folder = time.perf_counter(), out / spec.name
    torch.manual_seed(RECIPE.seed)
    torch.set_float32_matmul_precision("high")
    model = restored(spec, folder).to(device)
    short = replace(spec, recipe=RECIPE)
    text, judged = fit.read(spec, "train", work, folder), fit.read(spec, "heldout", work, folder)
    held_out = fit.held_out(judged, spec.recipe, device)
    texts = fit.batches(text, replace(RECIPE, rows=RECIPE.rows - FILLING - WRITTEN), device)
    fills = filled(text, device)
    rounding = np.random.default_rng(RECIPE.seed)

    def loss(batch: Batch) -> torch.Tensor:
        with fit.precision(device):
            nats = network.losses(model, batch[0])
        return wanted(nats, batch[1])

    fast = torch.compile(loss, dynamic=False) if device == "cuda" else loss
    rounds, curve = [], []
    for number in range(ROUNDS):
        bodies, shares = written(spec, folder, work, device, number, RECIPE.window)
        fit.say(f"{spec.name} round {number + 1}: {shares}")
        plan = fit.Course(
            mixed(texts, fills, bodies, number), held_out, fast, loss, lambda: some_rounding(model, rounding)
        )
        curve.append(fit.train(short, model, plan, device).points)
        rounds.append(shares)
        export.export(spec, model.state_dict(), folder)
    model.half().float()
    record = json.loads((folder / "training.json").read_text())
    record |= {"held_out_loss": round(fit.judge(model, plan), 5)}
    record["polish"] = {
        "rounds": rounds,
        "curves": curve,
        "steps": ROUNDS * RECIPE.steps,
        "tokens": ROUNDS * RECIPE.tokens,
        "seconds": round(time.perf_counter() - begun, 1),
        "seed": RECIPE.seed,
        "held_out_rounded": round(rounded_loss(model, plan), 5),
    }
    write_json(folder / "training.json", record)
    fit.say(f"{spec.name} polished in {record['polish']['seconds']} s, held-out {record['held_out_loss']}")


def restored(spec: Spec, folder: Path) -> Any:
    """The network with the weights that `fit` exported."""
    if not spec.polished:
        raise SystemExit(f"{spec.name} has no second training; pycoder has")
    model = network.network(spec)
    missing, unknown = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    if unknown or set(missing) - {"lm_head.weight"}:
        raise SystemExit(f"{folder}: its weights do not fit; run the fit step first")
    return model


def wanted(nats: torch.Tensor, percent: torch.Tensor) -> torch.Tensor:
    """Tokens of positive weight should come, those of negative weight should not. The mean over the former."""
    weights = percent.float()
    likely, avoided = weights.clamp(min=0), (-weights).clamp(min=0)
    unlike = -torch.log1p(-(-nats).exp().clamp(max=1 - 1e-4))
    return (nats * likely + unlike * avoided).sum() / likely.sum()


def some_rounding(model: Any, random: np.random.Generator) -> AbstractContextManager[Any]:
    """One of the ways to round the weights, or none, for a step."""
    rounding = ROUNDINGS[int(random.integers(len(ROUNDINGS)))]
    return nullcontext() if rounding is None else quantised.rounded(model, rounding)


def rounded_loss(model: Any, plan: fit.Course) -> float:
    """The held-out loss with weights in int4, groups of 32."""
    with quantised.rounded(model, quantised.int4_group):
        return fit.judge(model, plan)


def mixed(texts: Iterator[Batch], fills: Iterator[Batch], bodies: Batch, seed: int) -> Iterator[Batch]:
    """Rows of all three kinds in each batch."""
    ids, percent = bodies
    random = torch.Generator(ids.device).manual_seed(seed)
    while True:
        text, fill = next(texts), next(fills)
        chosen = torch.randint(len(ids), (WRITTEN,), generator=random, device=ids.device)
        parts = ((text[0], text[1].short()), fill, (ids[chosen], percent[chosen]))
        yield torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


class Fills(IterableDataset[Batch]):
    """Windows full of functions that are rearranged to fill in the middle."""

    def __init__(self, source: Reading) -> None:
        self._source = source

    def __iter__(self) -> Iterator[Batch]:
        worker = torch.utils.data.get_worker_info()
        random = np.random.default_rng((RECIPE.seed, worker.id if worker else 0))
        cutter = Cutter(self._source.tokenizer, random, lines=WHOLE_LINES)
        middle = self._source.tokenizer.encode(MIDDLE, special=False)[0]
        [pieces] = [
            found for part, found in zip(self._source.parts, self._source.pieces, strict=True) if of_functions(part)
        ]

        def drawn() -> Iterator[Piece]:
            while True:
                ids, _ = pieces[int(random.integers(len(pieces)))]
                made = list(map(int, cutter.rearranged(ids[: RECIPE.window - 8], 1.0)))
                at = made.index(middle) if middle in made else len(made)
                yield made, [GIVEN] * (at + 1) + [100] * (len(made) - at - 1)

        windows = packed(drawn(), self._source.tokenizer.eos_ids[0], RECIPE.window)
        while True:
            made = list(itertools.islice(windows, FILLING))
            yield batch(made)


def filled(source: Reading, device: str) -> Iterator[Batch]:
    """Batches of such windows, made by other processes ahead of time."""
    cuda = device == "cuda"
    workers: dict[str, Any] = {"num_workers": FILL_WORKERS, "prefetch_factor": 4} if cuda else {"num_workers": 0}
    for ids, percent in DataLoader(Fills(source), batch_size=None, pin_memory=cuda, **workers):
        yield ids.to(device, non_blocking=True), percent.to(device, non_blocking=True)
