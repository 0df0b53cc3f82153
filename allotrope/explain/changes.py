"""What might be changed about an engine, as the words that `--predict` takes.

int8    weights=int8,activations=int8    int4,group_size=128    kv=int8    dtype=bf16    batch=8
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from allotrope.artifact.manifest import Manifest
from allotrope.artifact.plan import Plan
from allotrope.build.options import DTYPES, KV, WEIGHTS
from allotrope.errors import UsageError
from allotrope.explain.drive import Asked
from allotrope.explain.formats import formats
from allotrope.explain.outline import Outline, outline
from allotrope.quant.policy import WIDE, Wanted

_MOST_BATCH = 4096


def _whole(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) < 8 else None


_READ: Mapping[str, Callable[[str], Any]] = {
    "weights": lambda text: text if text in (*WEIGHTS, WIDE) else None,
    "activations": lambda text: text if text in ("int8", "fp8") else None,
    "group_size": _whole,
    "asymmetric": {"true": True}.get,
    "kv": lambda text: text if text in (*KV, WIDE) else None,
    "dtype": lambda text: text if text in DTYPES[1:] else None,
    "batch": lambda text: number if (number := _whole(text)) and number <= _MOST_BATCH else None,
}


@dataclass(frozen=True)
class Change:
    """A change, in the words that asked for it."""

    words: str
    given: Mapping[str, Any]

    @staticmethod
    def parse(words: str) -> Change:
        """A UsageError unless every word is one."""
        given: dict[str, Any] = {}
        for part in words.split(","):
            name, equals, value = part.strip().replace("-", "_").partition("=")
            if not equals:
                name, value = "weights", name
            read = _READ.get(name)
            found = None if read is None else read(value)
            if found is None:
                known = f"{', '.join(WEIGHTS)}, kv=int8, batch=8, dtype=bf16, or several with commas between"
                problem = f"--predict is {words[:60]!r}; {part.strip()[:30]!r} is no change"
                raise UsageError(problem, remedy=f"give {known}")
            given[name] = found
        if given.get("weights") != WIDE:
            names = ("weights", "activations", "group_size", "asymmetric")
            Wanted(**{name: given[name] for name in names if name in given})  # what cannot go together is said there
        return Change(words, given)

    @property
    def built(self) -> dict[str, Any]:
        """What a build would be asked for."""
        given = {name: value for name, value in self.given.items() if name != "batch"}
        return {name: None if value == WIDE else value for name, value in given.items()}

    def outline(self, described: Manifest, kind: str) -> Outline | None:
        """The plan that the engine would have; None if it stays the same."""
        if not self.built:
            return None
        found = outline(described, self.built, kind)
        if formats(found.plan) == formats(described.plan) and "batch" not in self.given:
            raise UsageError(f"--predict is {self.words[:60]!r}: the engine is like that already")
        return found

    def asked(self, asked: Asked) -> Asked:
        """What it would be asked for."""
        if "batch" not in self.given:
            return asked
        if self.given["batch"] == asked.batch and len(self.given) == 1:
            raise UsageError(f"--predict is {self.words[:60]!r}: that is what --batch says already")
        return replace(asked, batch=self.given["batch"])

    def told(self, plan: Plan) -> str:
        """What changes, in a few words."""
        found, parts = formats(plan), []
        if "weights" in self.given:
            acts = [one for one in found["activations"] if one != found["dtype"]]
            parts.append(f"{', '.join(found['weights'])} weights" + "".join(f" with {one} activations" for one in acts))
        if "kv" in self.given:
            kept = found["dtype"] if found["kv"] == "compute" else found["kv"]
            parts.append(f"{kept} keys and values")
        if "dtype" in self.given:
            parts.append(f"computing in {found['dtype']}")
        if "batch" in self.given:
            parts.append(f"{self.given['batch']} prompts at a time")
        return " and ".join(parts)


def usual(plan: Plan) -> list[str]:
    """What is worth knowing of an engine: what narrower weights than it has would do."""
    return ["int8"] if formats(plan)["weights"] == [plan.dtype] else []
