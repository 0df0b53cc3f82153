"""`python -m tools.train evaluate NAME`: measure a trained model on held-out text, into its evaluation.json."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from allotrope.hw.fingerprint import versions
from tools.train.evaluation import baselines, chats, drafting, functions, likelihood, samples, summaries, targets, texts
from tools.train.evaluation.lm import LanguageModel
from tools.train.spec import MODELS, WORK, load

FILE = "evaluation.json"
DATA = MODELS / "data"
TRIGRAM_BYTES = 24_000_000  # of training text
MORE_BYTES = {"cpu": 0, "cuda": 4_000_000}  # of the work folder's held-out text, beside the bundled one
ROUNDED_BYTES = 80_000  # of the bundled text, for the cost of rounded weights
CHATS = 1000  # conversations
HOLES = 320  # functions with a line taken out
DIGITS = 6  # of a figure that is written


def main(argv: list[str] | None = None) -> int:
    """Entry of the step; see `--help`."""
    parser = argparse.ArgumentParser(prog="python -m tools.train evaluate", description=__doc__)
    parser.add_argument("name", metavar="NAME", help="a model that has been trained")
    parser.add_argument("--work", type=Path, default=WORK, help="where the corpus is (%(default)s)")
    parser.add_argument("--out", type=Path, default=MODELS, help="where the models are (%(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--more", type=int, metavar="BYTES", help="of other held-out text (CPU: none; GPU: 4 MB)")
    chosen = parser.parse_args(argv)
    found = Evaluation(chosen.name, chosen.out, chosen.work, chosen.device, chosen.more).run()
    path = chosen.out / chosen.name / FILE
    path.write_text(json.dumps(short(found), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for target in found["targets"]:
        word = "met" if target["met"] else "MISSED"
        sys.stdout.write(f"{word:7}{target['what']}: {target['value']:.4g} (wanted {target['wanted']})\n")
    sys.stdout.write(f"{path}: {found['text']['bits_per_byte']:.3f} bits per byte, {found['seconds_in_all']:.0f} s\n")
    return 0


class Evaluation:
    """One model's measurements, in parts that are timed."""

    def __init__(self, name: str, models: Path, work: Path, device: str = "auto", more: int | None = None) -> None:
        self.name, self.models, self.work = name, models, work
        self.spec = load(name)
        self.model = LanguageModel(models / name, device)
        self.more = MORE_BYTES[self.model.device.kind] if more is None else more
        self.chat = self.spec.parts[0].form == "chat"
        self.seconds: dict[str, float] = {}

    def run(self) -> dict[str, Any]:
        """Everything that evaluation.json holds."""
        found: dict[str, Any] = {"model": self.name, "command": f"python -m tools.train evaluate {self.name}"}
        found |= self._circumstances()
        with self._timed("text"):
            found |= self._text()
        for task in TASKS[self.name]:
            with self._timed(task.__name__.removeprefix("_")):
                found |= task(self)
        found["targets"] = [target.told(found) for target in targets.of(self.name)]
        return {**found, "seconds": self.seconds, "seconds_in_all": sum(self.seconds.values())}

    @cached_property
    def documents(self) -> list[str]:
        """The held-out text that comes with the repository."""
        return texts.bundled(DATA, self.name)

    def read(self, documents: list[str]) -> texts.Text:
        """Documents as the model reads them."""
        return texts.read(self.model.tokenizer, documents, chat=self.chat)

    def _circumstances(self) -> dict[str, Any]:
        weights = (self.model.folder / "model.safetensors").read_bytes()
        return {
            "parameters": self.model.parameters,
            "weights_sha256": hashlib.sha256(weights).hexdigest(),
            "device": self.model.device.name,
            "versions": versions(),
            "method": likelihood.METHOD,
        }

    def _text(self) -> dict[str, Any]:
        trained = texts.corpus(self.work, self.spec, "train", TRIGRAM_BYTES)
        read = (ids[1:] for ids in self.read(trained).documents)
        trigram = baselines.Trigram(read, self.spec.vocabulary.size, self.model.begin)
        found = {"text": self._measure(self.documents, trigram)}
        if self.more:
            more = texts.corpus(self.work, self.spec, "heldout", self.more)
            found["more_text"] = self._measure(more, trigram)
        return found

    def _measure(self, documents: list[str], trigram: baselines.Trigram | None) -> dict[str, Any]:
        text = self.read(documents)
        return likelihood.measure(text, self.model.surprise(text.documents), trigram)

    def _bodies(self) -> dict[str, Any]:
        judged = functions.bodies(self.model, texts.functions(DATA))
        return {"bodies": functions.measure_bodies(judged), "samples": samples.bodies(judged)}

    def _fill_in(self) -> dict[str, Any]:
        return {"fill_in": functions.fill(self.model, texts.functions(DATA)[:HOLES])}

    def _rounded(self) -> dict[str, Any]:
        return {"rounded": likelihood.rounded(self.model, self.read(texts.sample(self.documents, ROUNDED_BYTES)))}

    def _summaries(self) -> dict[str, Any]:
        listed = texts.functions(DATA)
        measured, said = summaries.measure(self.model, listed)
        return {"summaries": measured, "samples": samples.summaries(listed, said)}

    def _chat(self) -> dict[str, Any]:
        listed = texts.conversations(self.work, self.spec)[:CHATS]
        fitting = chats.fitting(self.model, listed)
        answers = chats.answer(self.model, fitting)
        long = chats.answer_long(self.model, chats.longer(self.model, listed))
        return {
            "chat": chats.measure(answers),
            "chat_beyond_training_length": chats.measure(long),
            "samples": samples.chats(fitting, answers),
        }

    def _drafting(self) -> dict[str, Any]:
        large = LanguageModel(self.models / self.spec.teacher, self.model.device.kind)
        return {"drafting": {"for": self.spec.teacher, **drafting.measure(large, self.model, self.documents)}}

    def _prose(self) -> dict[str, Any]:
        return {"samples": samples.continuations(self.model, self.name, self.documents, temperature=0.6)}

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[part] = round(time.perf_counter() - began, 1)


TASKS: dict[str, tuple[Callable[[Evaluation], dict[str, Any]], ...]] = {
    "pycoder": (Evaluation._bodies, Evaluation._fill_in, Evaluation._rounded),
    "docsum": (Evaluation._summaries, Evaluation._rounded),
    "tinychat": (Evaluation._chat, Evaluation._rounded),
    "tinygal": (Evaluation._prose, Evaluation._rounded),
    "tinygal-draft": (Evaluation._drafting,),
    "tinygpt2": (Evaluation._prose, Evaluation._rounded),
}


def short(value: Any) -> Any:
    """Figures with as many digits as mean something."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: short(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [short(one) for one in value]
    return value


if __name__ == "__main__":
    raise SystemExit(main())
