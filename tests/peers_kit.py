"""Peers made for tests: scripts that behave as they are told, and how the catalogue comes to know them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from allotrope.bench import catalogue
from allotrope.bench.catalogue import Peer

_SCRIPT = """
import os, signal, sys, tempfile, time

def versions():
    return {"made-up": "1.0"}

def convert(source, target, form):
    if {refuses!r}:
        raise ValueError("it has no such architecture")
    time.sleep({late})
    open(os.path.join(tempfile.mkdtemp(), "left behind"), "w").write(form)
    open(os.path.join(target, "model"), "w").write(form)

class Model:
    actual = {"weights": "fp32", "activations": "fp32"}
    calls = 0

    def generate(self, prompts, count, beams):
        Model.calls += 1
        if {dies_after} and Model.calls > {dies_after}:
            sys.exit("out of luck") if {aloud!r} else os.kill(os.getpid(), signal.SIGKILL)
        return [[{token}] * (count + {more}) for _ in prompts]

def open_model(folder, asked):
    if {broken!r}:
        raise RuntimeError("cannot open this")
    return Model()
"""
_USUAL = {"refuses": False, "dies_after": 0, "aloud": True, "token": 7, "more": 0, "broken": False, "late": 0}


def made_up(folder: Path, monkeypatch: pytest.MonkeyPatch, known: Mapping[str, Mapping[str, object]]) -> None:
    """Put peers that behave so into the catalogue; it keeps the real ones."""
    peers = dict(catalogue.PEERS)
    for name, behaviour in known.items():
        path = folder / f"{name}.py"
        text = _SCRIPT
        for key, value in {**_USUAL, **behaviour}.items():
            text = text.replace("{" + key + "!r}", repr(value)).replace("{" + key + "}", repr(value))
        path.write_text(text)
        script = str(path.with_suffix(""))  # an absolute path stands for itself
        peers[name] = Peer(name, script, "json", ("cpu",), {"fp32": ("fp32",)}, converter=script, own=False)
    monkeypatch.setattr(catalogue, "PEERS", peers)
