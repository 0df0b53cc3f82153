"""`python -m tools.train card NAME`: a model's README.md and loss.svg, from what training and evaluation recorded."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allotrope.models.model import open_model
from tools.train import card_sections as sections
from tools.train import chart
from tools.train.evaluate import DATA
from tools.train.evaluate import FILE as EVALUATION
from tools.train.spec import MODELS, Spec, load

TRAINING, SOURCES, CARD, CURVE = "training.json", "sources.json", "README.md", "loss.svg"


@dataclass(frozen=True)
class Records:
    """Everything that a card is made of."""

    spec: Spec
    training: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    sources: list[dict[str, Any]]

    @staticmethod
    def read(name: str, folder: Path, sources: Path) -> Records:
        """The records of one model."""
        return Records(load(name), _json(folder / TRAINING), _json(folder / EVALUATION), _json(sources))


def main(argv: list[str] | None = None) -> int:
    """Entry of the step; see `--help`."""
    parser = argparse.ArgumentParser(prog="python -m tools.train card", description=__doc__)
    parser.add_argument("name", metavar="NAME", help="a model that has been trained and evaluated")
    parser.add_argument("--out", type=Path, default=MODELS, help="where the models are (%(default)s)")
    chosen = parser.parse_args(argv)
    folder = chosen.out / chosen.name
    records = Records.read(chosen.name, folder, DATA / SOURCES)
    (folder / CURVE).write_text(curve(records), encoding="utf-8")
    (folder / CARD).write_text(card(records, folder), encoding="utf-8")
    sys.stdout.write(f"{folder / CARD}\n")
    return 0


def curve(records: Records) -> str:
    """The picture of the losses."""
    teacher = records.spec.teacher
    unit = f"distance from {teacher} (nats per token)" if teacher else "loss (nats per token)"
    return chart.loss_curve(f"{records.spec.name}: loss while training", records.training["curve"], unit)


def card(records: Records, folder: Path) -> str:
    """README.md."""
    spec, evaluation = records.spec, records.evaluation
    parts = [
        sections.header(spec),
        sections.opening(spec),
        sections.shape(open_model(folder), spec),
        sections.training(spec, records.training, CURVE),
        sections.sturdiness(spec, records.training, evaluation),
        sections.quality(evaluation),
        sections.tasks(evaluation),
        sections.samples(evaluation),
        sections.data(spec, records.sources),
        sections.limits(spec),
    ]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SystemExit(f"{path}: {error.strerror}; run the steps fit and evaluate first") from error


if __name__ == "__main__":
    raise SystemExit(main())
