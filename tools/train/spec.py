"""What a model is before it is trained: its published config, its vocabulary, what it reads, and how it learns."""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.train import models

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "models"
WORK = ROOT / "build" / "train"


@dataclass(frozen=True)
class Part:
    """A kind of text and its share of the tokens.

    `form` says how a row becomes tokens: `text`, `function` (a function with its summary as docstring), `summary` (a
    function, " TL;DR:", its summary) or `chat`. Of a part with `middle`, that fraction of the pieces is rearranged for
    filling in the middle. `only` keeps the rows whose `project` it names.
    """

    kind: str
    share: float
    form: str = "text"
    middle: float = 0.0
    only: str = ""

    @property
    def label(self) -> str:
        """A short name of the part, unique within a model."""
        return "-".join(filter(None, (self.kind, self.form, self.only)))


@dataclass(frozen=True)
class Vocabulary:
    """`style` names a family's file format; `size` counts ids, specials included. `shared` takes another model's."""

    style: str
    size: int
    shared: str = ""
    megabytes: float = 24.0  # of text to learn merges from


LEAST = {"steps": 1, "rows": 1, "window": 32, "warmup": 1, "seed": 0, "weight_decay": 0}  # of a recipe


@dataclass(frozen=True)
class Recipe:
    """How it learns. One step reads `rows` windows of `window` tokens; rates rise for `warmup` steps, then fall to 0.

    `matrix_rate` is Muon's, for matrices inside the blocks; `rate` is AdamW's, for everything else. Both are in units
    of the root mean square of an update. `pack` fills a window with many pieces; without it each has its own.
    `best` keeps the weights of the lowest held-out loss instead of the last ones. `noise` and `logit_limit` make it
    stand rounding (`sturdy.py`), and are 0 where they are not wanted: weights are off by up to half of so many steps of
    int4 in each gradient, and logits of one token and head lie at most so far apart.
    """

    steps: int
    rows: int
    window: int
    rate: float = 3e-3
    matrix_rate: float = 4e-3
    weight_decay: float = 0.1
    warmup: int = 200
    dropout: float = 0.0
    seed: int = 1
    pack: bool = True
    best: bool = False
    noise: float = 0.0
    logit_limit: float = 0.0

    def __post_init__(self) -> None:
        for key, least in LEAST.items():
            if not least <= getattr(self, key):
                raise SystemExit(f"recipe: {key} is {getattr(self, key)}; it must be at least {least}")
        for key in ("rate", "matrix_rate"):
            if not 0 < getattr(self, key) < math.inf:
                raise SystemExit(f"recipe: {key} is {getattr(self, key)}; it must be above 0")
        for key in ("noise", "logit_limit"):
            if not 0 <= getattr(self, key) < math.inf:
                raise SystemExit(f"recipe: {key} is {getattr(self, key)}; it must be a number from 0 on")
        if not 0 <= self.dropout < 1:
            raise SystemExit(f"recipe: dropout is {self.dropout}; it must be from 0 to below 1")

    @property
    def tokens(self) -> int:
        """How many tokens training reads, padding included."""
        return self.steps * self.rows * self.window


@dataclass(frozen=True)
class Spec:
    """A model: `config` is its config.json, in its publisher's layout, and `generation` its generation_config.json."""

    name: str
    family: str
    config: Mapping[str, Any]
    generation: Mapping[str, Any]
    vocabulary: Vocabulary
    parts: tuple[Part, ...]
    recipe: Recipe
    teacher: str = ""
    polished: bool = False  # whether a second training follows the first (`polish.py`)
    tokenizer: Mapping[str, Any] = field(default_factory=dict)  # tokenizer_config.json

    def __post_init__(self) -> None:
        if self.config["vocab_size"] != self.vocabulary.size:
            raise SystemExit(f"{self.name}: config has {self.config['vocab_size']} ids, its vocabulary another number")
        if abs(sum(part.share for part in self.parts) - 1) > 1e-6:
            raise SystemExit(f"{self.name}: the shares of its parts must add up to 1")
        if self.recipe.logit_limit and self.family != "opt":
            raise SystemExit(
                f"{self.name}: logit_limit is {self.recipe.logit_limit:g}, but only the family opt can be limited, "
                f"and this is {self.family}; leave it at 0"
            )


def names() -> list[str]:
    """Every model that can be trained."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(models.__path__))


def load(name: str) -> Spec:
    """The model of that name."""
    if name not in names():
        raise SystemExit(f"no model {name!r}: there is {', '.join(names())}")
    spec = importlib.import_module(f"{models.__name__}.{name.replace('-', '_')}").SPEC
    if not isinstance(spec, Spec):
        raise SystemExit(f"tools/train/models/{name}: SPEC is no Spec")
    return spec
