"""Training one model: so many steps, never so many seconds, so that another run gives the same model."""

from __future__ import annotations

import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.data import DataLoader

from allotrope import tokenizers
from tools.train import data, export, network, reading, sturdy
from tools.train.muon import Muon
from tools.train.packing import Batch, Reading, Windows
from tools.train.spec import Recipe, Spec
from tools.train.vocabulary import write_json

WORKERS = 3  # processes that put windows together; their number is part of what a seed means
CLIP = 1.0
REPORTS = 60  # points of the loss curve
HELD_OUT_TOKENS = 393_216
HELD_OUT_SEED = 20_231_127
StepLoss = Callable[[Batch], torch.Tensor]


@dataclass
class Curve:
    """The losses along the way: [step, training loss since the last point, held-out loss]."""

    points: list[list[float]] = field(default_factory=list)
    best: float = float("inf")
    weights: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Course:
    """What the loop needs: batches to learn from, batches to be judged by, the loss of each."""

    batches: Iterator[Batch]
    held_out: list[Batch]
    loss: StepLoss
    judge: StepLoss
    around: Callable[[], AbstractContextManager[Any]] = nullcontext  # entered for each step's gradient


def read(spec: Spec, split: str, work: Path, folder: Path) -> Reading:
    """A split's tokens. `folder` holds the vocabulary."""
    tokenizer = tokenizers.load(folder, spec.config["vocab_size"])
    pieces = tuple(data.pieces(spec, part, split, work, folder) for part in spec.parts)
    return Reading(spec.parts, pieces, tokenizer)


def batches(source: Reading, recipe: Recipe, device: str) -> Iterator[Batch]:
    """Training batches on the device, made by other processes ahead of time."""
    windows = Windows(source, recipe.rows, recipe.window, pack=recipe.pack, seed=recipe.seed)
    cuda = device == "cuda"
    loader = DataLoader(
        windows,
        batch_size=None,
        num_workers=WORKERS if cuda else 0,
        pin_memory=cuda,
        prefetch_factor=8 if cuda else None,
    )
    for ids, percent in loader:
        yield ids.to(device, non_blocking=True), percent.to(device, non_blocking=True)


def held_out(source: Reading, recipe: Recipe, device: str) -> list[Batch]:
    """The same windows each time, nothing rearranged; about `HELD_OUT_TOKENS` of them."""
    rows = max(1, min(recipe.rows, 16))
    windows = Windows(source, rows, recipe.window, pack=recipe.pack, seed=HELD_OUT_SEED, middle=False)
    count = max(1, min(HELD_OUT_TOKENS, recipe.tokens // 8) // (rows * recipe.window))
    made = iter(windows)
    return [(ids.to(device), percent.to(device)) for ids, percent in (next(made) for _ in range(count))]


def precision(device: str) -> Any:
    """bf16 arithmetic over fp32 weights on a GPU."""
    return torch.autocast("cuda", torch.bfloat16, enabled=device == "cuda")


def course(spec: Spec, model: Any, work: Path, folder: Path, device: str) -> Course:
    """Learning from text."""

    def loss(batch: Batch) -> torch.Tensor:
        with precision(device):
            nats = network.losses(model, batch[0])
        return network.weighted(nats, batch[1])

    fast = torch.compile(loss, dynamic=False) if device == "cuda" else loss
    training, judged = read(spec, "train", work, folder), read(spec, "heldout", work, folder)
    return Course(batches(training, spec.recipe, device), held_out(judged, spec.recipe, device), fast, loss)


def rate_at(step: int, recipe: Recipe) -> float:
    """The share of the full rate: up in a line, then down in a line to 0 after the last step."""
    warmup = min(recipe.warmup, recipe.steps // 10 + 1)
    return min((step + 1) / warmup, (recipe.steps - step) / (recipe.steps - warmup + 1))


def optimizers(model: Any, recipe: Recipe, device: str) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for the rest, which decays only if it is a table or a head."""
    inside, outside = network.matrices(model)
    tables = [p for p in outside if p.ndim == 2]
    vectors = [p for p in outside if p.ndim != 2]
    groups = [{"params": tables, "weight_decay": recipe.weight_decay / 10}, {"params": vectors, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.95), fused=device == "cuda")
    return [Muon(inside, recipe.matrix_rate, decay=recipe.weight_decay), adam]


def train(spec: Spec, model: Any, plan: Course, device: str) -> Curve:
    """The loop. What it returns has the best weights where the recipe asks for them."""
    recipe, curve = spec.recipe, Curve()
    found = optimizers(model, recipe, device)
    random = torch.Generator(device).manual_seed(recipe.seed)
    full = [[group["lr"] for group in optimizer.param_groups] for optimizer in found]
    trained = [p for p in model.parameters() if p.requires_grad]
    total, counted = torch.zeros((), device=device), 0
    every, begun = max(1, recipe.steps // REPORTS), time.perf_counter()
    for step in range(recipe.steps):
        batch = next(plan.batches)
        with plan.around(), sturdy.shaken(model, recipe.noise, random):
            loss = plan.loss(batch)
            loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        share = rate_at(step, recipe)
        for optimizer, rates in zip(found, full, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * share
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if recipe.logit_limit and (step + 1) % sturdy.LIMIT_EVERY == 0:
            with precision(device):
                sturdy.limit_logits(model, batch[0][:1, :-1], recipe.logit_limit)
        total, counted = total + loss.detach(), counted + 1
        if (step + 1) % every == 0 or step + 1 == recipe.steps:
            report(spec, model, plan, curve, step + 1, float(total) / counted, begun)
            total, counted = torch.zeros((), device=device), 0
    return curve


def report(spec: Spec, model: Any, plan: Course, curve: Curve, step: int, loss: float, begun: float) -> None:
    """Measure the held-out loss, say where training is, keep the weights if they are the best and that is asked for."""
    seconds = time.perf_counter() - begun
    judged = judge(model, plan)
    curve.points.append([step, round(loss, 5), round(judged, 5)])
    if spec.recipe.best and judged < curve.best:
        curve.weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    curve.best = min(curve.best, judged)
    speed = step * spec.recipe.rows * spec.recipe.window / seconds / 1e6
    place = f"{spec.name} {step}/{spec.recipe.steps}"
    say(f"{place} loss {loss:.4f} held-out {judged:.4f} {speed:.3f} Mtok/s {seconds:.0f} s")


@torch.no_grad()
def judge(model: Any, plan: Course) -> float:
    """The mean loss over the held-out windows."""
    training = model.training
    model.eval()
    found = [float(plan.judge(batch)) for batch in plan.held_out]
    model.train(training)
    return sum(found) / len(found)


def fit(spec: Spec, work: Path, vocabulary: Path, out: Path, device: str) -> Path:
    """Train and write the folder. `vocabulary` is the folder with the tokenizer's files, `out` where models go."""
    begun, recipe = time.perf_counter(), spec.recipe
    torch.manual_seed(recipe.seed)
    torch.set_float32_matmul_precision("high")
    model = network.network(spec).to(device)
    plan = plan_of(spec, model, work, vocabulary, out, device)
    curve = train(spec, model, plan, device)
    if curve.weights:
        model.load_state_dict(curve.weights)
    folder = out / spec.name
    export.export(spec, model.state_dict(), folder)
    for path in tokenizers.files(vocabulary):
        if not (folder / path.name).exists():
            shutil.copy(path, folder)
    model.half().float()  # judged as it is stored
    record = {
        "name": spec.name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": recipe.steps,
        "tokens": recipe.tokens,
        "seconds": round(time.perf_counter() - begun, 1),
        "seed": recipe.seed,
        "held_out_loss": round(judge(model, plan), 5),
        "curve": curve.points,
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "versions": versions(),
        "data": sources(spec, work),
        "spec": asdict(spec) | {"config": None, "generation": None, "tokenizer": None},
    }
    write_json(folder / "training.json", record)
    say(f"{spec.name} done in {record['seconds']} s, held-out {record['held_out_loss']}, in {folder}")
    return folder


def plan_of(spec: Spec, model: Any, work: Path, vocabulary: Path, out: Path, device: str) -> Course:
    """Text to learn from, or a teacher."""
    if spec.teacher:
        from tools.train import distil

        return distil.course(spec, model, work, vocabulary, out / spec.teacher, device)
    return course(spec, model, work, vocabulary, device)


def versions() -> dict[str, str]:
    """What the run depends on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def sources(spec: Spec, work: Path) -> dict[str, str]:
    """The files that were read, with their digests."""
    paths = {reading.path_of(work, part, split) for part in spec.parts for split in ("train", "heldout")}
    return {str(path.relative_to(work)): reading.digest(path) for path in sorted(paths)}


def say(line: str) -> None:
    """Print at once: the output may go to a file that somebody watches."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
