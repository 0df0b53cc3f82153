"""The pinned list of projects, and which licences may go into weights that are given away."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

from allotrope.errors import AllotropeError

LIST = Path(__file__).parents[1] / "sources.toml"

ALLOWED = frozenset(
    {"0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "MIT", "MIT-0", "PSF-2.0", "Python-2.0"}
)  # MIT, BSD, Apache-2.0, PSF: what issue 3 permits

# Words of a licence's own text that no other allowed licence has, with white space folded to one space.
_TEXTS = {
    "Apache-2.0": ("apache license version 2.0",),
    "MIT": ("permission is hereby granted, free of charge, to any person obtaining a copy",),
    "BSD-2-Clause": ("redistributions in binary form must reproduce the above copyright",),
    "BSD-3-Clause": ("redistributions in binary form must reproduce the above copyright",),
    "PSF-2.0": ("python software foundation license", "license agreement for matplotlib"),
    "Python-2.0": ("python software foundation license",),
}

# What projects without an SPDX expression write in their classifiers or their licence field.
_OLD_NAMES = {
    "apache software license": {"Apache-2.0"},
    "apache license": {"Apache-2.0"},
    "apache license 2.0": {"Apache-2.0"},
    "apache license, version 2.0": {"Apache-2.0"},
    "apache 2.0": {"Apache-2.0"},
    "apache 2.0 license": {"Apache-2.0"},
    "apache-2.0": {"Apache-2.0"},
    "bsd license": {"BSD-2-Clause", "BSD-3-Clause"},
    "bsd": {"BSD-2-Clause", "BSD-3-Clause"},
    "bsd-3-clause": {"BSD-3-Clause"},
    "bsd-2-clause": {"BSD-2-Clause"},
    "mit license": {"MIT"},
    "mit": {"MIT"},
    "python software foundation license": {"PSF-2.0"},
}
_SAYS_NOTHING = {"", "osi approved"}


class SourceError(AllotropeError):
    """A project cannot be used: not what was pinned, or not under a licence that permits it."""

    exit_code = 2


@dataclass(frozen=True)
class Source:
    """One project as pinned in sources.toml."""

    name: str
    version: str
    license: str
    sha256: str
    archive: str  # "wheel" or "sdist"
    heldout: bool

    def __post_init__(self) -> None:
        if self.archive not in ("wheel", "sdist"):
            raise SourceError(
                f"archive is {self.archive!r}", where=f"sources.toml, {self.name}", remedy='write "wheel" or "sdist"'
            )
        refuse_unless_allowed(self.license, where=f"sources.toml, {self.name}")


def read_list(path: Path = LIST) -> tuple[Source, ...]:
    """The pinned projects, in the order of the file; every name at most once."""
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    heldout = set(table["heldout"])
    sources = tuple(
        Source(name=name, heldout=name in heldout, **pinned) for name, pinned in sorted(table["project"].items())
    )
    if missing := heldout - {source.name for source in sources}:
        raise SourceError(
            f"held-out projects are not in the list: {', '.join(sorted(missing))}",
            where=str(path),
            remedy="add them or take them out of `heldout`",
        )
    return sources


def refuse_unless_allowed(expression: str, *, where: str) -> None:
    """An SPDX expression passes if every licence that it binds to, or one of each choice, is allowed."""
    for part in re.split(r"\s+AND\s+", expression.replace("(", " ").replace(")", " ").strip()):
        choices = [choice.strip() for choice in re.split(r"\s+OR\s+", part)]
        if not any(choice in ALLOWED for choice in choices):
            raise SourceError(
                f"licence {part.strip()!r} may not go into the training data",
                where=where,
                remedy=f"take the project out of sources.toml; allowed are {', '.join(sorted(ALLOWED))}",
            )


def check_licence(source: Source, metadata: Message, licence_texts: Mapping[str, str]) -> dict[str, str]:
    """The evidence that the archive is under the pinned licence: what its metadata says and which file holds the text.

    Metadata may be an SPDX expression, classifiers, or an old free-text field; silence is no consent.
    """
    where = f"{source.name} {source.version}"
    said = str(metadata["License-Expression"] or "")
    if said:
        refuse_unless_allowed(said, where=where)
        agrees = source.license == said
    else:
        claims = _old_claims(metadata)
        said = "; ".join(sorted(claims)) or "nothing"
        agrees = bool(claims) and all(source.license in _OLD_NAMES.get(claim, set()) for claim in claims)
    if not agrees:
        raise SourceError(
            f"sources.toml says {source.license!r}, the archive says {said!r}",
            where=where,
            remedy="read the project's licence and correct or remove the entry",
        )
    texts = {**licence_texts, "METADATA": str(metadata["License"] or "")}
    holders = [_holder(part, texts, where) for part in re.split(r"\s+AND\s+", source.license)]
    return {"license": source.license, "metadata": said, "text": ", ".join(dict.fromkeys(holders))}


def _holder(choices: str, texts: Mapping[str, str], where: str) -> str:
    """The name of the first file that has the text of one of the licences to choose from."""
    wanted = [word for name in re.split(r"\s+OR\s+", choices) for word in _TEXTS.get(name, ())]
    for name, text in sorted(texts.items()):
        folded = re.sub(r"[\s*#]+", " ", text).lower()
        if any(word in folded for word in wanted):
            return name
    raise SourceError(
        f"no text of {choices} in the archive",
        where=where,
        remedy="read the project's licence; an archive without its text is not used",
    )


def _old_claims(metadata: Message) -> set[str]:
    """Lower-case licence names of the classifiers, or else of a one-line licence field."""
    classifiers = [str(line) for line in metadata.get_all("Classifier") or [] if str(line).startswith("License ::")]
    claims = {line.rsplit("::", 1)[1].strip().lower() for line in classifiers} - _SAYS_NOTHING
    if not claims:
        field = str(metadata["License"] or "").strip().lower()
        claims = {field} if field and "\n" not in field else set()
    return claims
