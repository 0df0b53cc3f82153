"""The peers: what each is called, where it runs, in which formats, and what installs it."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from allotrope import settings
from allotrope.errors import UsageError

SCRIPTS = Path(__file__).parent / "peers"
WORKER = SCRIPTS / "worker.py"
PRECISIONS = ("fp32", "16", "8", "4")
"""Bits of a weight, as engines and peers are compared: like with like."""


_WIDE = {"f16": "fp16", "fp16": "fp16", "bf16": "bf16"}


@dataclass(frozen=True)
class Peer:
    """A runtime that users could pick instead.

    `forms` are its formats by precision; `script` and `converter` are files beside `worker.py` (no converter: it reads
    the Hugging Face folder as it is). `package` is what its environment must be able to import.
    """

    name: str
    script: str
    package: str
    devices: tuple[str, ...]
    forms: Mapping[str, tuple[str, ...]]
    converter: str | None = None
    variant: str = ""
    beams: bool = False  # whether it can search with beams
    own: bool = True  # it has an environment of its own; else the package's own is enough where that has it
    families: tuple[str, ...] | None = None  # model types that it has; None: it says so itself
    lacking: Mapping[str, str] = field(default_factory=dict)  # precision → why it has none

    def why_not(self, precision: str, device: str, model_type: str, beams: int) -> str | None:
        """Why it cannot take part in a comparison, or None."""
        if device not in self.devices:
            return f"it is compared on {'a GPU' if self.devices == ('cuda',) else 'a CPU'}, and this is none"
        if beams > 1 and not self.beams:
            return "no beam search is driven here"
        if self.families is not None and model_type not in self.families:
            return f"it has no architecture that computes what a {model_type} model does"
        if precision not in self.forms:
            return self.lacking.get(precision, f"it has no {_words(precision)}")
        if self.name.startswith("hf") and precision == "8" and model_type == "gpt2":
            return "torch's dynamic quantisation takes nn.Linear, and this model's layers are another class"
        return None

    def forms_for(self, precision: str, wide: str, device: str) -> tuple[str, ...]:
        """The formats of a precision that are fair to a checkpoint in `wide`: none that would lose of it by being 16
        bits of the other kind, and on a CPU both where neither loses much, since either may be the faster."""
        found = self.forms[precision]
        if precision != "16" or len(found) == 1:
            return found
        if device == "cpu" and self.package == "transformers":
            return ("bf16",)  # torch has kernels for it; fp16 it widens op by op
        if device == "cuda" or wide == "bf16":
            return tuple(form for form in found if _WIDE[form] == wide) or found[:1]
        return found

    @property
    def requirements(self) -> Path:
        """The pinned packages of its environment."""
        return SCRIPTS / "requirements" / f"{self.environment}.txt"

    @property
    def environment(self) -> str:
        """The folder of its environment; several peers may share one."""
        return self.name.partition("-")[0]


def _words(precision: str) -> str:
    return "fp32" if precision == "fp32" else f"weights of {precision} bits on a CPU"


_LLAMAS = ("llama", "mistral", "qwen2", "qwen3")
_HF = {"fp32": ("fp32",), "16": ("bf16", "fp16"), "8": ("int8",)}
_HF_LACKS = {"4": "transformers by itself has no weights of 4 bits on a CPU"}
PEERS: Mapping[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer("hf", "hf", "transformers", ("cpu", "cuda"), _HF, beams=True, own=False, lacking=_HF_LACKS),
        Peer(
            "hf-compiled",
            "hf",
            "transformers",
            ("cpu", "cuda"),
            {"fp32": ("fp32",), "16": ("bf16", "fp16")},
            variant="compiled",
            own=False,
            lacking=_HF_LACKS | {"8": "torch's dynamic quantisation does not go with its compiler"},
        ),
        Peer(
            "llama.cpp",
            "llama_cpp",
            "llama_cpp",
            ("cpu",),
            {"fp32": ("f32",), "16": ("f16", "bf16"), "8": ("q8_0",), "4": ("q4_0",)},
            converter="gguf_file",
            families=("gpt2", *_LLAMAS),
        ),
        Peer(
            "ctranslate2",
            "ctranslate2",
            "ctranslate2",
            ("cpu",),
            {"fp32": ("fp32",), "16": ("bf16",), "8": ("int8",)},
            converter="ctranslate2",
            beams=True,
            lacking={"4": "it has no weights of 4 bits on a CPU"},
        ),
        Peer(
            "openvino",
            "openvino",
            "openvino_genai",
            ("cpu",),
            {"fp32": ("fp32",), "16": ("fp16", "bf16"), "8": ("int8",), "4": ("int4",)},
            converter="openvino",
            beams=True,
        ),
        Peer(
            "onnxruntime",
            "onnxruntime",
            "onnxruntime_genai",
            ("cpu",),
            {"fp32": ("fp32",), "8": ("int8",), "4": ("int4",)},
            converter="onnxruntime",
            beams=True,
            families=_LLAMAS,
            lacking={"16": "its model builder has no weights of 16 bits for a CPU"},
        ),
        Peer("vllm", "vllm", "vllm", ("cuda",), {"fp32": ("fp32",), "16": ("bf16", "fp16"), "8": ("fp8",)}),
    )
}


def named(text: str) -> tuple[Peer, ...]:
    """The peers of a list such as `hf,llama.cpp`."""
    found = []
    for name in dict.fromkeys(word.strip() for word in text.split(",")):
        if name not in PEERS:
            near = difflib.get_close_matches(name, PEERS, n=1)
            known = f"peers are {', '.join(PEERS)}"
            remedy = f"did you mean {near[0]}? {known}" if near else known
            raise UsageError(f"no peer {name[:40]!r}", where="--against", remedy=remedy)
        found.append(PEERS[name])
    return tuple(found)


def python_of(peer: Peer, environments: Path) -> Path | None:
    """The Python that has it, or None. An environment of the peer's own goes first."""
    path = environments / peer.environment / "bin" / "python"
    if path.exists():
        return path
    if not peer.own and importlib.util.find_spec(peer.package) is not None:
        return Path(sys.executable)
    return None


def installed(peer: Peer, python: Path | None) -> str:
    """Its package's version, and a digest of all packages' beside the Python that runs it; "" if there is none."""
    places = () if python is None else python.parent.parent.glob("lib/python3*/site-packages")
    names = sorted(found.stem for place in places for found in place.glob("*.dist-info"))
    own = [name for name in names if name.rpartition("-")[0] == peer.package]
    return " ".join([*own, hashlib.sha256(" ".join(names).encode()).hexdigest()[:12]]) if names else ""


def default_environments() -> Path:
    """Where environments are looked for without `--peers`: ALLOTROPE_PEERS, or `peers` in the cache."""
    return settings.peers_dir()


def install_command(peer: Peer, environments: Path) -> str:
    """What makes its environment."""
    where = "" if environments == default_environments() else f" --peers {environments}"
    return f"python -m allotrope.bench.install {peer.environment}{where}"
