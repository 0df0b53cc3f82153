"""From an engine and a question to the cells' figures: whoever takes part, measured by turns, put side by side."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allotrope.artifact.engine import Engine
from allotrope.artifact.manifest import digest
from allotrope.bench import grid
from allotrope.bench.catalogue import Peer, installed, python_of
from allotrope.bench.floor import floors
from allotrope.bench.grid import Cell, Sample
from allotrope.bench.journal import FILE, Journal
from allotrope.bench.precision import formats, precision
from allotrope.bench.runners import OURS, Runner, Wanted, candidates, groups
from allotrope.bench.turns import Asked, Turns
from allotrope.errors import UsageError
from allotrope.hw.device import Device
from allotrope.hw.peaks import Ceilings
from allotrope.native import identity
from allotrope.runtime.buffers import available_bytes

if TYPE_CHECKING:
    from allotrope.models.model import Model

Said = Callable[[str], None]


@dataclass(frozen=True)
class Question:
    """What is to be measured. `precision` None: the engine's own."""

    cells: Sequence[Cell]
    peers: Sequence[Peer]
    environments: Path
    repeat: int
    warmup: int
    beams: int
    seed: int
    threads: int
    precision: str | None = None
    running: Mapping[str, Any] | None = None  # options of running the engine that were given
    original: str | None = None  # the checkpoint for the peers; None: the one that the engine records
    resume: bool = False


class Comparison:
    """One run of the grid; the journal lies in `folder` until the results do."""

    def __init__(self, engine: Engine, device: Device, asked: Question, folder: Path, said: Said) -> None:
        self.engine, self.device, self._asked, self._said = engine, device, asked, said
        self.form = formats(engine.manifest.plan)
        self.precision = asked.precision or precision(self.form["weights"])
        self.cells, self.skipped = self._fitting()
        self._model: Model | None = None
        question = {
            "engine": engine.manifest.source["digest"],
            "plan": digest(engine.path),
            "device": asdict(device),
            "core": identity() if device.kind == "cpu" else None,
            "peers": {one.name: installed(one, python_of(one, asked.environments)) for one in asked.peers},
            "asked": {
                "warmup": asked.warmup,
                "beams": asked.beams,
                "seed": asked.seed,
                "threads": asked.threads,
                "precision": self.precision,
            },
            "running": dict(asked.running or {}),
            "longest": self._longest,
            "batch": max(cell.batch for cell in self.cells),  # workers are opened for both
            "original": asked.original,  # of the peers
        }
        self.journal = Journal(folder / FILE, question, resume=asked.resume)
        self.ours = Runner(OURS, "ours", self.form, Path(sys.executable), engine.path)
        self.peers: list[Runner] = []
        self.groups = 1

    @property
    def _longest(self) -> int:
        return max(cell.input + cell.output for cell in self.cells)

    def _fitting(self) -> tuple[list[Cell], list[dict[str, Any]]]:
        """The cells that the engine can run, and the others with the reason."""
        limits, fitting, skipped = self.engine.manifest.limits, [], []
        for cell in self._asked.cells:
            reason = cell.why_not(limits["max_len"], limits["max_batch"])
            if reason is None:
                fitting.append(cell)
            else:
                skipped.append({**asdict(cell), "reason": reason})
        if not fitting:
            raise UsageError(
                f"no cell can be measured; the first: {skipped[0]['reason']}", remedy="lower --io or --batch"
            )
        return fitting, skipped

    def prepare(self) -> None:
        """Convert the checkpoint for every peer that can take part."""
        asked = self._asked
        if not asked.peers:
            return
        model = self._original()
        first = next(iter(model.originals))
        wanted = Wanted(
            asked.peers,
            asked.environments,
            self.precision,
            model.original_dtype(first),
            self.device.kind,
            _model_type(model),
            asked.beams,
            asked.threads,
        )
        self.peers = list(candidates(wanted, self._exported, self._said))

    def _original(self) -> Model:
        from allotrope.models.model import open_model

        if self._model is None:
            source = self.engine.manifest.source
            self._model = open_model(self._asked.original or str(source["path"]))
            if self._asked.original is None and self._model.checkpoint.digest() != source["digest"]:
                raise UsageError(
                    "the checkpoint has changed since the engine was built",
                    where=str(source["path"]),
                    remedy="build the engine again, or name the checkpoint with --original",
                )
        return self._model

    def _exported(self) -> Path:
        from allotrope.bench.exported import exported

        return exported(self._original(), self._said)

    def measure(self, done: Callable[[], object] = lambda: None) -> Turns:
        """All turns; the peers in as many groups as memory asks for."""
        asked = self._asked
        cells, threads = self.cells, asked.threads
        batch = max(cell.batch for cell in cells)
        running = {"max_num_seqs": batch * asked.beams, "max_len": self._longest, "threads": threads}
        opening = {
            "threads": threads,
            "max_batch": batch,
            "max_len": self._longest,
            "device": self.device.kind,
            "running": {**running, "device": self.device.kind, **(asked.running or {})},
        }
        vocab = self.engine.manifest.plan.vocab
        turns = Turns(
            Asked(
                cells,
                asked.repeat,
                asked.warmup,
                asked.beams,
                asked.seed,
                vocab,
                self.precision,
                opening,
                patient=bool(self.peers),
            ),
            self.journal,
            self._said,
            done,
        )
        found = self._groups()
        self.groups = len(found)
        try:
            self.ours.open(opening)
            for number, group in enumerate(found):
                turns.run(self.ours, group, number)
        finally:
            self.ours.close()
        return turns

    @property
    def turns(self) -> int:
        """How many there will be, for a progress bar."""
        present = sum(runner.reason is None for runner in self.peers)
        return len(self.cells) * self._asked.repeat * (present + len(self._groups()))

    def _groups(self) -> list[list[Runner]]:
        return groups(self.ours, self.peers, available_bytes(self.device.kind))

    def results(self, turns: Turns, ceilings: Ceilings | None) -> dict[str, Any]:
        """What is shown and kept."""
        return {
            "cells": [self._cell(cell, turns, ceilings) for cell in self.cells],
            "skipped": self.skipped,
            "engine": {
                **self.ours.facts,
                "precision": self.precision,
                "bytes": sum(facts.bytes for facts in self.engine.manifest.files.values()),
                "build_s": self.engine.manifest.evidence.get("seconds"),
            },
            "peers": {
                runner.name: {
                    "reason_absent": runner.reason,
                    "absent": runner.absent,
                    **({"peer": runner.peer.name} if runner.peer else {}),
                    **runner.facts,
                }
                for runner in self.peers
            },
            "options": {
                "repeat": self._asked.repeat,
                "warmup": self._asked.warmup,
                "threads": self._asked.threads,
                "beams": self._asked.beams,
                "seed": self._asked.seed,
                "groups": self.groups,
            },
        }

    def _cell(self, cell: Cell, turns: Turns, ceilings: Ceilings | None) -> dict[str, Any]:
        samples = self._samples(cell, self.ours, turns)
        ours, read = grid.figures(cell, samples), grid.read_rate(samples)
        if ceilings is not None and read is not None:  # memory as it was then, not as it once was
            ceilings = replace(ceilings, read_bytes_per_s=read, cache_read_bytes_per_s={})
        limit = floors(self.engine.manifest.plan, cell, ceilings).to_json(cell, ours)
        peers = {runner.name: self._beside(cell, runner, turns) for runner in self.peers}
        return {
            **asdict(cell),
            "beams": self._asked.beams,
            **ours,
            "format": self.form,
            "read_bytes_per_s": read,
            **limit,
            "peers": peers,
            **grid.beside(peers),
        }

    def _beside(self, cell: Cell, runner: Runner, turns: Turns) -> dict[str, Any]:
        samples, group = self._samples(cell, runner, turns), turns.groups.get(runner.name)
        reason = turns.reasons.get((cell, runner.name)) or (runner.reason if not samples else None)
        common = {"version": _version(runner), "format": runner.facts.get("format"), "reason_absent": reason}
        if not samples or reason:
            return {
                **dict.fromkeys(_ABSENT),
                "ratios": dict.fromkeys(grid.RATES),
                **common,
                "different": False,
                "agreement": None,
            }
        agreed = turns.agreements.get((cell, runner.name))
        theirs = grid.figures(cell, samples)
        ours = self.journal.samples(cell, OURS, group)  # those that were taken in turns with it
        return {
            **theirs,
            "ratios": grid.ratios(grid.figures(cell, ours), theirs),
            **common,
            "different": bool(agreed and agreed["different"]),
            "agreement": agreed,
        }

    def _samples(self, cell: Cell, runner: Runner, turns: Turns) -> list[Sample]:
        """Those that count: not what was taken in other company before the run was stopped."""
        companies = turns.companies if runner.peer is None else {turns.groups.get(runner.name)}
        return [one for one in self.journal.samples(cell, runner.name) if one.group in companies]

    def raw(self, turns: Turns) -> list[dict[str, Any]]:
        """Every sample, for keeping."""
        return [
            {**asdict(cell), "runner": runner.name, **sample.to_json()}
            for cell in self.cells
            for runner in (self.ours, *self.peers)
            for sample in self._samples(cell, runner, turns)
        ]


_ABSENT = tuple(grid.figures(Cell(1, 1, 2), [grid.Sample(1.0, 2.0, 0.0, 0)]))


def _version(runner: Runner) -> str | None:
    versions = runner.facts.get("versions")
    return " ".join(f"{name} {version}" for name, version in versions.items()) if versions else None


def _model_type(model: Model) -> str:
    """As transformers names the class that computes the same."""
    import transformers

    name: str = getattr(transformers, model.family.oracle.config_class).model_type
    return name
