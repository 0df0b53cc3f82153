"""Galactica again, a tenth of the size: it learns what `tinygal` would say next, to draft for it."""

from tools.train.models.tinygal import GENERATION, PARTS, TOKENIZER, config
from tools.train.spec import Recipe, Spec, Vocabulary

SPEC = Spec(
    name="tinygal-draft",
    family="opt",
    config=config(hidden=48, heads=3, ffn=192, layers=5),
    generation=GENERATION,
    tokenizer=TOKENIZER,
    vocabulary=Vocabulary("galactica", 2048, shared="tinygal"),
    parts=PARTS,
    teacher="tinygal",
    recipe=Recipe(steps=5000, rows=24, window=2048, rate=5e-3, matrix_rate=6e-3),
)
