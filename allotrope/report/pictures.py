"""Plots as PNG files, by resvg: one small wheel, no browser and no system library but a font."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from allotrope.errors import UsageError
from allotrope.report.blocks import Plot
from allotrope.report.html import WIDE
from allotrope.report.page import asset

_TWICE = 2  # pixels for each unit, so that it is sharp on dense screens
_PROBE = '<svg xmlns="http://www.w3.org/2000/svg" width="20" height="20">{}</svg>'


@contextmanager
def said_of(folder: Path) -> Iterator[None]:
    """What cannot be written in `folder` is a line that says so."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"cannot be written: {error.strerror}", where=str(folder), remedy="name another folder"
        ) from error


def check() -> None:
    """A UsageError where pictures cannot be drawn, or would be without a word in them."""
    try:
        import resvg_py
    except ImportError as error:
        raise UsageError("--markdown needs resvg-py", remedy="pip install 'allotrope[report]'") from error
    blank, word = (
        bytes(resvg_py.svg_to_bytes(svg_string=_PROBE.format(inside))) for inside in ("", '<text y="15">M</text>')
    )
    if blank == word:
        raise UsageError(
            "this system has no font, so plots would have no words",
            remedy="install one (Debian: apt-get install fonts-dejavu-core)",
        )


def draw(plot: Plot, path: Path) -> None:
    """Write the plot in the light colours of the page."""
    import resvg_py

    svg = plot.draw(WIDE).alone(style())
    path.write_bytes(bytes(resvg_py.svg_to_bytes(svg_string=svg, zoom=_TWICE, background="#ffffff")))


def style() -> str:
    """The plots' style with the page's light colours in place of their names."""
    root = re.search(r":root \{(.*?)\}", asset("style.css"), re.DOTALL)
    colours = dict(re.findall(r"--([a-z-]+): light-dark\((#[0-9a-f]+), #[0-9a-f]+\);", root[1])) if root else {}
    return re.sub(r"var\(--([a-z-]+)\)", lambda found: colours[found[1]], asset("plots.css"))
