"""Who takes part: the engine and each peer, opened or with the reason why not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from allotrope.bench.catalogue import Peer, install_command, python_of
from allotrope.bench.converted import converted, size
from allotrope.bench.workers import Worker, WorkerFailed
from allotrope.errors import BuildError

OURS = "allotrope"
_SHARE = 0.85  # of the free memory that workers may take together
_BESIDE = 1 << 29  # bytes that a runtime takes besides its weights
_COPIES = {"openvino": 2.0, "onnxruntime": 2.0, "ctranslate2": 1.2}  # of the files, in memory, while loading


@dataclass
class Runner:
    """One runtime in one format. `reason` says why it is not there, or not there any more.

    `absent`: it cannot take part by what it is, it is not installed, or it failed; None: it is there.
    """

    name: str
    script: str
    form: Any
    python: Path | None = None
    folder: Path | None = None
    peer: Peer | None = None
    reason: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    worker: Worker | None = None
    failures: int = 0
    missing: str | None = None  # `cannot` or `not installed`, from the start

    @property
    def absent(self) -> str | None:
        """Which kind of reason keeps it away."""
        return self.missing or (None if self.reason is None else "failed")

    @property
    def need(self) -> int:
        """Bytes that it is expected to take."""
        copies = _COPIES.get(self.peer.name, 1.1) if self.peer else 1.1
        return _BESIDE + int(copies * size(self.folder)) if self.folder else 0

    def open(self, asked: Mapping[str, Any]) -> None:
        """Start its process and load the model; the reason is noted if that fails."""
        if self.python is None or self.folder is None:
            return
        worker = Worker(self.name, self.python, self.script, threads=asked["threads"], own=self.peer is None)
        try:
            variant = self.peer.variant if self.peer else ""
            opened = worker.ask("open", folder=str(self.folder), asked={**asked, "form": self.form, "variant": variant})
        except BaseException:
            worker.kill()
            raise
        self.facts |= {key: opened[key] for key in ("versions", "import_s", "load_s", "first_token_s")}
        self.facts |= {"format": opened["actual"], "loaded_memory_bytes": opened["memory"]["peak"]}
        self.facts |= opened["facts"]
        self.worker, self.reason = worker, None

    def try_open(self, asked: Mapping[str, Any]) -> None:
        """Open a peer; one that cannot be opened stays away with its last words."""
        try:
            self.open(asked)
        except WorkerFailed as error:
            self.reason = str(error)

    def close(self) -> None:
        """End its process."""
        if self.worker is not None:
            self.worker.close()
            self.worker = None


@dataclass(frozen=True)
class Wanted:
    """Which peers are asked for, and what for."""

    peers: Sequence[Peer]
    environments: Path
    precision: str
    wide: str  # the checkpoint's own dtype
    device: str
    model_type: str
    beams: int
    threads: int


def candidates(wanted: Wanted, source: Callable[[], Path], said: Callable[[str], None]) -> Iterator[Runner]:
    """A runner per peer and format, its checkpoint converted; or with the reason why it stays away.

    `source` writes the checkpoint out for them, when the first needs it.
    """
    for peer in wanted.peers:
        reason = peer.why_not(wanted.precision, wanted.device, wanted.model_type, wanted.beams)
        python, missing = python_of(peer, wanted.environments), "cannot"
        if reason is None and python is None:
            reason = f"not installed; run: {install_command(peer, wanted.environments)}"
            missing = "not installed"
        if reason is not None or python is None:
            yield Runner(peer.name, peer.script, None, peer=peer, reason=reason, missing=missing)
            continue
        forms = peer.forms_for(wanted.precision, wanted.wide, wanted.device)
        for form in forms:
            name = peer.name if form == forms[0] else f"{peer.name}:{form}"
            runner, folder = Runner(name, peer.script, form, python, peer=peer), source()
            try:
                runner.folder, seconds = converted(peer, form, folder, python, wanted.threads, said)
                runner.facts |= {"conversion_s": seconds, "bytes": size(runner.folder)}
            except (WorkerFailed, BuildError, OSError) as error:
                runner.reason = str(error)
            yield runner


def groups(ours: Runner, peers: Sequence[Runner], free: int) -> list[list[Runner]]:
    """The peers that are there, in groups that fit beside the engine into so many bytes; most often that is one."""
    room = int(free * _SHARE) - ours.need
    found: list[list[Runner]] = []
    left = 0
    for runner in (one for one in peers if one.reason is None):
        if not found or runner.need > left:
            found.append([])
            left = room
        found[-1].append(runner)
        left -= runner.need
    return found or [[]]
