"""Training a model to say what a larger one would say: on text, and on what the larger one wrote itself."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch.nn import functional

from allotrope.models.family import by_name
from tools.train import fit, network
from tools.train.packing import Batch, Reading
from tools.train.spec import Spec

PROMPT, NEW = 64, 48  # tokens of a text's beginning, and of what the teacher adds
PROMPTS = 1_048_576  # at most; a short run makes no more than it can read
TOGETHER = 16_384  # continuations that are written at a time
OWN = 0.9  # of the batches are the teacher's continuations, the others are text
GIVEN = 10  # percent that a prompt's tokens weigh beside those that the teacher wrote
GRAM = 8  # from where a continuation repeats so many tokens in a row it runs in circles, and teaches nothing
FORCED = 0.9  # of the loss is about the teacher's likeliest token, which is what a greedy draft needs


def course(spec: Spec, model: Any, work: Path, vocabulary: Path, teacher: Path, device: str) -> fit.Course:
    """Batches of text and of continuations."""
    large = load(spec, teacher, device)
    training, judged = fit.read(spec, "train", work, vocabulary), fit.read(spec, "heldout", work, vocabulary)
    recipe = spec.recipe
    count = min(PROMPTS, recipe.steps * recipe.rows * recipe.window // (PROMPT + NEW))
    written = continuations(large, training, count, device)
    straight = float((written[1][:, PROMPT - 1 :] > 0).float().mean() * 100)
    fit.say(f"{spec.name} {len(written[0]):,} continuations by {spec.teacher}, {straight:.0f} % before they repeat")
    rows = max(1, recipe.rows * recipe.window // (PROMPT + NEW))

    def loss(batch: Batch) -> torch.Tensor:
        with fit.precision(device):
            with torch.no_grad():
                theirs = large(input_ids=batch[0][:, :-1], use_cache=False).logits
            ours = model(input_ids=batch[0][:, :-1], use_cache=False).logits
        return network.weighted(apart(ours.float(), theirs.float()), batch[1])

    fast = torch.compile(loss, dynamic=False) if device == "cuda" else loss
    texts = fit.batches(training, recipe, device)
    return fit.Course(alternate(texts, written, rows, recipe.seed), fit.held_out(judged, recipe, device), fast, loss)


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """How far our distributions are from theirs, and from their likeliest token: nats per place."""
    mine, target = functional.log_softmax(ours, -1), functional.log_softmax(theirs, -1)
    spread = (target.exp() * (target - mine)).sum(-1)
    forced = -mine.gather(-1, theirs.argmax(-1, keepdim=True)).squeeze(-1)
    return (1 - FORCED) * spread + FORCED * forced


def load(spec: Spec, folder: Path, device: str) -> Any:
    """The teacher, as it was exported."""
    if not (folder / "model.safetensors").is_file():
        raise SystemExit(f"{spec.name} learns from {spec.teacher}, which is not in {folder}; train that first")
    transformers.AttentionInterface.register(network.CAUSAL, network.causal_attention)
    kind = getattr(transformers, by_name(spec.family).oracle.model_class)
    model = kind.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    model.set_attn_implementation(network.CAUSAL)
    return model.requires_grad_(False)


@torch.no_grad()
def continuations(teacher: Any, source: Reading, count: int, device: str) -> Batch:
    """Stretches from anywhere in the text, each with what the teacher says next, likeliest token first.

    Ids [count, PROMPT + NEW], and the weights of all but the first.
    """
    teacher.set_attn_implementation("sdpa")  # a cache needs masks that know its length
    made: list[torch.Tensor] = []
    prompts = stretches(source, count).to(device)
    for start in range(0, len(prompts), TOGETHER):
        with fit.precision(device):
            made.append(greedy(teacher, prompts[start : start + TOGETHER]).int())
    teacher.set_attn_implementation(network.CAUSAL)
    ids = torch.cat(made)
    return ids, fresh(ids)


def stretches(source: Reading, count: int) -> torch.Tensor:
    """At most `count` times `PROMPT` tokens in a row in which no text ends."""
    [pieces] = source.pieces
    starts = np.random.default_rng(1).integers(0, len(pieces.ids) - PROMPT, count)
    ids = pieces.ids[starts[:, None] + np.arange(PROMPT)].astype(np.int64)
    return torch.from_numpy(ids[(ids != source.tokenizer.eos_ids[0]).all(1)])


def greedy(teacher: Any, prompts: torch.Tensor) -> torch.Tensor:
    """The prompts and `NEW` more tokens each, end marks ignored."""
    cache = transformers.DynamicCache(config=teacher.config)
    ids, step = prompts, prompts
    for _ in range(NEW):
        logits = teacher(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        step = logits[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat([ids, step], 1)
    return ids


def fresh(ids: torch.Tensor) -> torch.Tensor:
    """Percent for each token after the first: none from where the teacher says `GRAM` tokens a second time."""
    grams = ids[:, PROMPT:].unfold(1, GRAM, 1)
    again = torch.zeros(grams.shape[:2], dtype=torch.bool, device=ids.device)
    for ahead in range(1, grams.shape[1]):
        again[:, ahead:] |= (grams[:, ahead:] == grams[:, :-ahead]).all(-1)
    circling = functional.pad(again.cumsum(1) > 0, (PROMPT, 0))
    circling = torch.cat([circling, circling[:, -1:].expand(-1, GRAM - 1)], 1)
    percent = (~circling[:, 1:]).to(torch.uint8) * 100
    percent[:, : PROMPT - 1] = GIVEN
    return percent


def alternate(texts: Iterator[Batch], written: Batch, rows: int, seed: int) -> Iterator[Batch]:
    """Batches of text and of continuations, the latter in the share `OWN`, evenly spread."""
    ids, percent = written
    random = torch.Generator(ids.device).manual_seed(seed)
    for turn in itertools.count():
        if int((turn + 1) * OWN) == int(turn * OWN):
            yield next(texts)
        else:
            chosen = torch.randint(len(ids), (rows,), generator=random, device=ids.device)
            yield ids[chosen], percent[chosen]
