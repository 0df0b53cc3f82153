"""Figures as people say them: three digits that matter, and the unit that suits."""

from __future__ import annotations

import re
import time

_POWERS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
NONE = "–"
_PLAIN = (1e-3, 1e7)  # what lies outside is said with powers of ten
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def number(value: float | None) -> str:
    """`312`, `0.0412`, `12,400`, `3.4 × 10⁻⁷`."""
    if value is None:
        return NONE
    size = abs(value)
    if size and not _PLAIN[0] <= size < _PLAIN[1]:
        mantissa, _, power = f"{value:.1e}".partition("e")
        return f"{mantissa.replace('-', '−')} × 10{str(int(power)).translate(_POWERS)}"
    return (f"{value:,.0f}" if size >= 100 else f"{value:.3g}").replace("-", "−")


def count(value: float | None) -> str:
    """A whole number with its thousands apart."""
    return NONE if value is None else f"{value:,.0f}"


def big(value: float | None) -> str:
    """`7.5 million`, `6.7 billion`."""
    if value is None:
        return NONE
    for least, word in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if value >= least:
            return f"{value / least:.3g} {word}"
    return f"{value:.0f}"


def percent(share: float | None) -> str:
    """`71 %`, `0.42 %`, `100 %`."""
    if share is None:
        return NONE
    value = share * 100
    if value and abs(value) < 0.1:
        return f"{number(value)} %"
    if 99 < abs(value) < 100:  # what is nearly all is not all
        digits = next((digits for digits in (1, 2, 3) if round(abs(value), digits) < 100), 4)
        return f"{value:.{digits}f} %"
    return f"{value:.3g} %" if abs(value) < 1000 else f"{value:,.0f} %"


def ms(value: float | None) -> str:
    """A time given in milliseconds."""
    return NONE if value is None else seconds(value / 1000)


def seconds(value: float | None) -> str:
    """`24.3 µs`, `12.4 ms`, `7.9 s`, `3.2 min`."""
    if value is None:
        return NONE
    if not value:
        return "0 s"
    for least, scale, unit in ((1e-6, 1e9, "ns"), (1e-3, 1e6, "µs"), (1.0, 1e3, "ms"), (120.0, 1.0, "s")):
        if abs(value) < least:
            return f"{number(value * scale)} {unit}"
    return f"{value / 60:.1f} min"


def rate(value: float | None) -> str:
    """Tokens per second."""
    return NONE if value is None else f"{number(value)} tokens/s"


def times(value: float | None) -> str:
    """`3.1×`."""
    if value is None:
        return NONE
    return f"{value:,.0f}×" if value >= 19.5 else f"{value:.1f}×" if value >= 1.95 else f"{value:.2f}×"


def signed(value: float | None) -> str:
    """A difference with its sign."""
    return NONE if value is None else f"{'+' if value > 0 else '−' if value < 0 else ''}{number(abs(value))}"


def signed_percent(share: float | None) -> str:
    """A relative difference with its sign."""
    return NONE if share is None else f"{'+' if share > 0 else '−' if share < 0 else '±'}{percent(abs(share))}"


def flops(value: float | None) -> str:
    """`96.8 GFLOP/s`."""
    if value is None:
        return NONE
    for least, unit in ((1e12, "TFLOP/s"), (1e9, "GFLOP/s"), (1e6, "MFLOP/s")):
        if value >= least:
            return f"{value / least:.3g} {unit}"
    return f"{number(value)} FLOP/s"


def some(count: int, what: str) -> str:
    """`1 choice`, `30 choices`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def date(text: str | None) -> str:
    """`29 Nov 2026, 15:05 UTC`; other forms as they are."""
    if text is None or not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", text):
        return text or "at an unknown time"
    try:
        moment = time.strptime(text, "%Y-%m-%dT%H:%M:%SZ")
    except ValueError:
        return text
    return f"{moment.tm_mday} {_MONTHS[moment.tm_mon - 1]} {moment.tm_year}, {moment.tm_hour:02}:{moment.tm_min:02} UTC"
