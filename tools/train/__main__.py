"""`python -m tools.train STEP …`: how the models in `models/` were made."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from allotrope.errors import AllotropeError
from allotrope.hw.detect import detect
from tools.train.spec import MODELS, WORK, Spec, load, names


def main(argv: Sequence[str]) -> int:
    """Run one step."""
    if not argv or argv[0] not in STEPS:
        sys.stderr.write(f"usage: python -m tools.train STEP …\nsteps: {', '.join(STEPS)}\n")
        return 2
    try:
        return STEPS[argv[0]](list(argv[1:]))
    except AllotropeError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code


def corpus(argv: list[str]) -> int:
    """Fetch, filter, split."""
    from tools.train.corpus import step

    return step.main(argv)


def tokenizer(argv: list[str]) -> int:
    """Learn a vocabulary."""
    from tools.train import vocabulary

    parser = _parser("tokenizer", several=True)
    chosen = parser.parse_args(argv)
    for name in chosen.names:
        folder = vocabulary.train(load(name), chosen.work, chosen.out)
        sys.stdout.write(f"{name}: {folder}\n")
    return 0


def fit(argv: list[str]) -> int:
    """Train; several models are trained side by side, each in a process of its own."""
    parser = _training(_parser("fit", several=True))
    parser.add_argument(
        "--vocabularies", type=Path, help="folder with the tokenizers' files (default: --out, else models)"
    )
    chosen = parser.parse_args(argv)
    detect(chosen.device)
    specs = [changed(load(name), chosen.set) for name in chosen.names]
    if len(specs) > 1:
        vocabularies = ["--vocabularies", str(chosen.vocabularies)] if chosen.vocabularies else []
        return _side_by_side(specs, [*_places(chosen), *_tried(chosen), *vocabularies])
    from tools.train.fit import fit as run

    [spec] = specs
    name = spec.name
    places = [chosen.vocabularies] if chosen.vocabularies else [chosen.out, MODELS]
    vocabulary = next((place / name for place in places if (place / name / "tokenizer_config.json").is_file()), None)
    if vocabulary is None:
        raise SystemExit(
            f"{name} has no vocabulary in {places[-1]}; run `python -m tools.train tokenizer {name}` first"
        )
    run(spec, chosen.work, vocabulary, chosen.out, chosen.device)
    return 0


def polish(argv: list[str]) -> int:
    """Train pycoder some more, on its own writing."""
    parser = _parser("polish", several=False)
    _device(parser)
    chosen = parser.parse_args(argv)
    detect(chosen.device)
    spec = load(chosen.names[0])
    if spec.polished and not (chosen.out / spec.name / "model.safetensors").is_file():
        raise SystemExit(f"{chosen.out / spec.name} has no weights; run `python -m tools.train fit {spec.name}` first")
    from tools.train.polish import polish as run

    run(spec, chosen.work, chosen.out, chosen.device)
    return 0


def evaluate(argv: list[str]) -> int:
    """Measure a trained model on held-out text."""
    from tools.train import evaluate as step

    return step.main(argv)


def card(argv: list[str]) -> int:
    """Write the model's page and draw its loss curve."""
    from tools.train import card as step

    return step.main(argv)


def everything(argv: list[str]) -> int:
    """All steps for models whose corpus is there; options are the training's."""
    chosen = _training(_parser("all", several=True)).parse_args(argv)
    detect(chosen.device)
    places, device = _places(chosen), ["--device", chosen.device]
    for name in chosen.names:
        spec = changed(load(name), chosen.set)
        # The second training has steps of its own: a trial with few of them stops after the first.
        second = [(polish, [*places, *device])] if spec.polished and not chosen.set else []
        steps = [
            (tokenizer, places),
            (fit, [*places, *_tried(chosen)]),
            *second,
            (evaluate, [*places, *device]),
            (card, ["--out", str(chosen.out)]),
        ]
        for step, options in steps:
            if code := step([name, *options]):
                return code
    return 0


def changed(spec: Spec, settings: Sequence[str]) -> Spec:
    """The model with other numbers in its recipe."""
    kinds = {item.name: type(getattr(spec.recipe, item.name)) for item in fields(spec.recipe)}
    found: dict[str, float] = {}
    for setting in settings:
        key, _, value = setting.partition("=")
        try:
            number = float(value)
            found[key] = kinds[key](number)
        except (KeyError, ValueError, OverflowError):
            raise SystemExit(f"--set {setting}: give KEY=NUMBER, where KEY is one of {', '.join(kinds)}") from None
        if kinds[key] is not float and found[key] != number:
            raise SystemExit(f"--set {setting}: {key} takes {'0 or 1' if kinds[key] is bool else 'a whole number'}")
    return replace(spec, recipe=replace(spec.recipe, **found))  # type: ignore[arg-type]


def _side_by_side(specs: Sequence[Spec], options: Sequence[str]) -> int:
    """A process per model; one with a teacher among the others waits for it."""
    waiting = {spec.name: spec for spec in specs}
    running: dict[str, subprocess.Popen[bytes]] = {}
    failed: list[str] = []
    while waiting or running:
        for name, spec in list(waiting.items()):
            if spec.teacher in failed:
                failed.append(name)
                del waiting[name]
            elif spec.teacher not in waiting and spec.teacher not in running:
                running[name] = subprocess.Popen([sys.executable, "-m", "tools.train", "fit", name, *options])
                del waiting[name]
        for name, process in list(running.items()):
            try:
                failed += [name] if process.wait(timeout=0.5) else []
                del running[name]
            except subprocess.TimeoutExpired:
                continue
    sys.stdout.write(f"failed: {', '.join(failed)}\n" if failed else "all trained\n")
    return int(bool(failed))


def _parser(step: str, *, several: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m tools.train {step}")
    parser.add_argument("names", nargs="+" if several else 1, choices=names(), metavar="NAME", help=", ".join(names()))
    parser.add_argument("--work", type=Path, default=WORK, help="where the corpus lies (default %(default)s)")
    parser.add_argument("--out", type=Path, default=MODELS, help="where models are written (default %(default)s)")
    return parser


def _training(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """What may be tried in training, all of it in `set`: `--steps 3` is `--set steps=3`."""
    _device(parser)
    told: dict[str, Any] = {"dest": "set", "action": "append", "default": []}
    parser.add_argument("--steps", type="steps={}".format, metavar="NUMBER", help="fewer, to try something", **told)
    parser.add_argument("--set", metavar="KEY=NUMBER", help="another value in the recipe, to try something", **told)
    return parser


def _device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default %(default)s")


def _places(chosen: argparse.Namespace) -> list[str]:
    return ["--work", str(chosen.work), "--out", str(chosen.out)]


def _tried(chosen: argparse.Namespace) -> list[str]:
    return ["--device", chosen.device, *(f"--set={setting}" for setting in chosen.set)]


STEPS: dict[str, Callable[[list[str]], int]] = {
    "corpus": corpus,
    "tokenizer": tokenizer,
    "fit": fit,
    "polish": polish,
    "evaluate": evaluate,
    "card": card,
    "all": everything,
}

if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
