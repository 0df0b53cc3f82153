"""Run as a script: does this tokenizer.json load, and encode awkward text, within limits? Prints one line."""

from __future__ import annotations

import resource
import sys
from types import TracebackType

MEMORY = 6 << 30  # address space; the largest published vocabularies take about 1 GB to load
CPU_SECONDS = 20


def main(places: str, path: str) -> None:
    """Load, encode what makes a bad pattern slow, and answer "ok" or the reason."""
    sys.path.extend(place for place in places.split(":") if place not in sys.path)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(path)
    for part in ("a", " ", "\n", "1", "!", "ä", "ab ", "aA", " \n", "a1", "x'"):
        tokenizer.encode(part * 300 + "#", add_special_tokens=False)
    sys.stdout.write("ok")


def _answer(kind: type[BaseException], error: BaseException, _trace: TracebackType | None) -> None:
    sys.stdout.write((str(error) or kind.__name__).splitlines()[0][:200])


if __name__ == "__main__":
    sys.excepthook = _answer
    main(*sys.argv[1:3])
