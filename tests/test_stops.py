"""Stop strings against the plainest possible finder, under every way of cutting the text."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from allotrope.runtime.stops import StopFilter, TextStream


def plain(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The first stop string to complete (the longest, if several do at once), and the text before it."""
    for end in range(1, len(text) + 1):
        done = [stop for stop in stops if text[:end].endswith(stop)]
        if done:
            stop = max(done, key=len)
            return text[: end - len(stop)], stop
    return text, None


def cut(text: str, borders: list[int]) -> list[str]:
    edges = [0, *sorted(border % (len(text) + 1) for border in borders), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


@settings(max_examples=400)
@given(
    st.text("ab🙂", max_size=24),
    st.lists(st.text("ab🙂", min_size=1, max_size=5), max_size=4),
    st.lists(st.integers(0, 30), max_size=6),
)
def test_like_the_plain_finder_however_the_text_is_cut(text: str, stops: list[str], borders: list[int]) -> None:
    expected, found = plain(text, stops)
    stream, shown, seen = StopFilter(stops), "", ""
    for piece in cut(text, borders):
        seen += piece
        shown += stream.push(piece)
        # Never shown: text that a stop string would have cut, or may yet cut.
        assert expected.startswith(shown)
        if stream.found is None:
            may_become = [n for stop in stops for n in range(1, len(stop)) if seen.endswith(stop[:n])]
            assert len(seen) - len(shown) == max(may_become, default=0)
    if stream.found is None:
        shown += stream.flush()
    assert (shown, stream.found) == (expected, found)


def test_nothing_is_held_that_cannot_become_a_stop() -> None:
    stream = StopFilter(["STOP"])
    assert stream.push("a ST") == "a "
    assert stream.push("A") == "STA"
    assert stream.push("SS") == "S"
    assert stream.flush() == "S"


def test_a_stop_inside_a_token_cuts_before_it_and_ends() -> None:
    stream = StopFilter(["\n\n"])
    assert stream.push("one\n\ntwo\n\nthree") == "one"
    assert stream.found == "\n\n"
    assert stream.push("more") == ""


def test_the_first_to_complete_counts_then_the_longest() -> None:
    stream = StopFilter(["bc", "abcd"])
    assert (stream.push("xabcd"), stream.found) == ("xa", "bc")
    stream = StopFilter(["bc", "abc"])
    assert (stream.push("xabc"), stream.found) == ("x", "abc")


class Pieces:
    """A detokenizer that gives out recorded pieces, and one more at the end."""

    def __init__(self, pieces: list[str], rest: str) -> None:
        self._pieces, self._rest = pieces, rest

    def push(self, token: int) -> str:
        return self._pieces[token]

    def flush(self) -> str:
        return self._rest


def test_a_text_stream_closes_with_what_was_held() -> None:
    stream = TextStream(Pieces(["Hel", "lo E", "N"], ""), ["END"])
    assert [stream.push(i) for i in range(3)] == ["Hel", "lo ", ""]
    assert stream.close() == "EN"
    assert stream.found is None


def test_a_stop_string_that_completes_only_at_the_end_still_cuts() -> None:
    stream = TextStream(Pieces(["Hello E"], "ND."), ["END"])
    assert stream.push(0) == "Hello "
    assert stream.close() == ""
    assert stream.found == "END"
