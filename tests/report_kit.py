"""An engine's folder with every result beside it, as small JSON: what a report is made from."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from tests import report_results as of

DATE = "2026-11-29T15:05:09Z"
DEVICE = {
    "kind": "cpu",
    "name": "AMD EPYC",
    "arch": "x86_64-avx512f",
    "cores": 2,
    "memory_bytes": 2**34,
    "features": ["avx2", "avx512f"],
}
FINGERPRINT = {"hard": {"device": "cpu"}, "soft": {"name": "AMD EPYC"}}
VERBS = ("verify", "bench", "summarize", "eval", "ablate", "explain")


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def engine(folder: Path, **changed: Any) -> Path:
    """An engine.json with a true digest."""
    folder.mkdir(parents=True, exist_ok=True)
    body = json.dumps({**manifest(), **changed}).encode()[1:]
    (folder / "engine.json").write_bytes(
        b'{"digest": "%s",' % hashlib.blake2b(body, digest_size=32).hexdigest().encode() + body
    )
    return folder


def digest(folder: Path) -> str:
    found = json.loads((folder / "engine.json").read_text(encoding="utf-8"))["digest"]
    assert isinstance(found, str)
    return found


def full(folder: Path, results: Mapping[str, Any] | None = None) -> Path:
    """An engine with every result; `results` replaces some, and a None leaves one out."""
    engine(folder)
    made: dict[str, Any] = {
        "verify": of.verify(),
        "bench": of.bench(),
        "summarize": of.summarize(),
        "eval": of.evaluated(),
        "ablate": of.ablate(),
        "explain": of.explain(),
        **(results or {}),
    }
    for verb, value in made.items():
        if value is not None:
            write(folder / f"{verb}.json", _kept(folder, verb, value) if isinstance(value, dict) else value)
    return folder


def _kept(folder: Path, verb: str, value: dict[str, Any]) -> dict[str, Any]:
    """As it is kept, and the runs before it likewise."""
    before = {"earlier": [run | kept(folder, verb) for run in value["earlier"]]} if "earlier" in value else {}
    return value | kept(folder, verb) | before


def kept(folder: Path, verb: str) -> dict[str, Any]:
    """What a kept result has besides its own keys."""
    where = {"device": DEVICE, "versions": {"torch": "2.13.0"}, "fingerprint": FINGERPRINT}
    found = {"environment": where, "command": f"allotrope {verb} {folder.name}", "date": DATE}
    return {**found, "engine_digest": digest(folder)}


def manifest() -> dict[str, Any]:
    bucket = {
        "up_to_rows": None,
        "tried_rows": 64,
        "tactic": "torch_tile8",
        "seconds": 7.09e-5,
        "noise": 1e-6,
        "error": 6.4e-7,
        "plain_error": 6.4e-7,
        "floor_s": 1.14e-5,
        "runners_up": [{"tactic": "torch_flip4", "seconds": 4.47e-5}],
        "refused": [{"tactic": "inductor", "reason": "a cpu has no launches to save"}],
    }
    weights = {"blocks.0.attn.qkv.weight": {"parts": [["blocks.0.attn.q.weight", [256, 1000]]]}}
    choice = {"op": "linear", "paths": ["blocks.0.attn.qkv", "blocks.1.attn.qkv"], "buckets": [bucket]}
    return {
        "schema": 2,
        "version": "0.1.0",
        "family": "decicoder",
        "plan": {"weights": weights},
        "source": {"path": "models/pycoder", "digest": "5" * 64, "random": False},
        "dtype": "fp32",
        "device": DEVICE,
        "fingerprint": FINGERPRINT,
        "limits": {"max_batch": 64, "max_len": 2048},
        "options": {"tune": "fast", "seed": 0, "without": [], "weights": "int4"},
        "files": {"weights/00001.safetensors": {"bytes": 30_300_000, "digest": "6" * 64, "tensors": {}}},
        "kernels": {},
        "evidence": {
            "choices": [choice],
            "fusions": {"qkv": "in: not slower than apart"},
            "executor": {"kind": "eager"},
            "batch_variance": {"allowed": False, "calls_without_row_class": []},
            "quantisation": quantisation(),
            "kv": {"format": "compute", "bytes_per_token": 2048, "bytes_per_token_wide": 2048},
            "notes": [],
            "versions": {"torch": "2.13.0"},
            "date": DATE,
            "seconds": 7.8,
            "peak_memory_bytes": 168_000_000,
        },
    }


def quantisation() -> dict[str, Any]:
    rows = [
        {
            "path": f"blocks.{i}.mlp.down",
            "format": "int4 in groups of 32",
            "weights": 36864,
            "nbytes": 20736,
            "relative": 0.08 + i / 100,
            "sqnr_db": 20.0 - i,
            "max_abs": 0.02,
        }
        for i in range(3)
    ]
    total = {"weights": 110_592, "nbytes": 62_208, "bits_per_weight": 4.5, "relative": 0.097, "sqnr_db": 20.3}
    return {"method": "gptq", "policy": {}, "exceptions": {"head": "wide: asked for"}, "total": total, "weights": rows}


class Page(HTMLParser):
    """A page taken apart: its elements, and whether they nest."""

    VOID = frozenset({"meta", "link"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.problems: list[str] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        self.problems += [f"never closed: {name}" for name in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        if len(set(names)) < len(names):
            self.problems.append(f"{tag} has an attribute twice")
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.problems.append(f"{tag} closed out of place")

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def scripts(text: str) -> list[str]:
    return re.findall(r"<script[^>]*>(.*?)</script>", text, re.DOTALL)
