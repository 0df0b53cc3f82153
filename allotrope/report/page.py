"""The page: one HTML file with style, script, pictures and the results themselves, and no way to a network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from allotrope.report.contents import Account, Comparison
from allotrope.report.escape import markup, script_json
from allotrope.report.html import Names, Renderer
from allotrope.report.raw import Saved
from allotrope.report.sections import answer

_SCRIPTS = ("theme.js", "tabs.js", "sort.js", "tips.js", "page.js")
_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Cpath d='M8 1l6 7-6 7-6-7z' fill='%230a6b74'/%3E%3C/svg%3E"
)


@dataclass(frozen=True)
class _Part:
    """An engine's article, with the anchors in it."""

    html: str
    anchors: tuple[tuple[str, str], ...]


def page(accounts: Sequence[Account], comparison: Comparison | None, saved: Sequence[Saved], made: str) -> str:
    """The whole file."""
    style = f"{asset('style.css')}{asset('plots.css')}"
    script = "".join(asset(name) for name in _SCRIPTS)
    names = Names()
    several = comparison is not None
    parts = [_article(account, names, i, several) for i, account in enumerate(accounts)]
    title = comparison.title if comparison is not None else f"{accounts[0].subject.name}: {accounts[0].standing.word}"
    body = [
        '<a class="skip" href="#content">To the content</a><div class="frame">',
        f'<header class="top"><p><strong>Allotrope</strong> report · {markup(made)}</p>',
        '<button class="theme" type="button" hidden>Dark</button></header><main id="content">',
    ]
    if comparison is not None:
        body.append(f"<h1>{markup(comparison.title)}</h1>")
        body.append(Renderer(names, 2).blocks(comparison.blocks))
        links = "".join(
            f'<li><a href="#engine-{i + 1}">{markup(account.subject.name)}</a></li>'
            for i, account in enumerate(accounts)
        )
        body.append(f'<nav class="switch" aria-label="Engines"><ul>{links}</ul></nav>')
    body += [part.html for part in parts]
    body.append(_saved(saved))
    body.append(f"</main><footer><p>{markup(_FOOT)}</p></footer></div>")
    body += [f'<script type="application/json" id="{one.anchor}">{script_json(one.value)}</script>' for one in saved]
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" '
        f'content="{_policy(style, script)}"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="referrer" content="no-referrer"><title>{markup(title)} · Allotrope report</title>'
        f'<link rel="icon" href="{_ICON}"><style>{style}</style></head>\n<body>{"".join(body)}'
        f"<script>{script}</script></body></html>\n"
    )


_FOOT = (
    "Made from the engine's own result files by `allotrope report`; it holds no figure that is not in them. "
    "Nothing on this page comes from a network, and nothing goes there."
)


def asset(name: str) -> str:
    """A file that lies beside this module, for the page."""
    return (resources.files("allotrope.report") / "page" / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Only this style and this script may run; no address may be asked for anything."""
    of_style, of_script = (
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)
    )
    return (
        f"default-src 'none'; style-src 'sha256-{of_style}'; script-src 'sha256-{of_script}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _article(account: Account, names: Names, place: int, several: bool) -> _Part:
    """One engine: its answer, a list of what follows, and the sections."""
    prefix = f"e{place + 1}-" if several else ""
    renderer = Renderer(names, 3 if several else 2, prefix)
    made: list[str] = []
    anchors: list[tuple[str, str]] = []
    for section in account.sections:
        html, anchor = renderer.section(section)
        made.append(html)
        anchors.append((anchor, section.title))
    links = "".join(f'<li><a href="#{anchor}">{markup(title)}</a></li>' for anchor, title in anchors)
    heading = "h2" if several else "h1"
    whose = f", {markup(account.subject.name)}" if several else ""
    contents = f'<nav class="contents" aria-label="On this page{whose}"><ul>{links}</ul></nav>'
    html = (
        f'<div class="engine" id="engine-{place + 1}">'
        f"{answer.html(account.answer, renderer, heading)}{contents}{''.join(made)}</div>"
    )
    return _Part(html, tuple(anchors))


def _saved(saved: Sequence[Saved]) -> str:
    if not saved:
        return ""
    buttons = "".join(
        f'<button type="button" hidden data-save="{one.anchor}" data-name="{markup(one.name)}">'
        f"{markup(one.label)}</button>"
        for one in saved
    )
    cut = [one for one in saved if one.cut]
    told = "".join(f'<p class="quiet">{markup(one.cut)}</p>' for one in cut)
    return (
        '<section aria-labelledby="raw"><h2 id="raw">Raw results</h2><p>Every figure above, and the samples behind it, '
        f'are in this file as JSON.</p><div class="buttons">{buttons}</div>{told}</section>'
    )
