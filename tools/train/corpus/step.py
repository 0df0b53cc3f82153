"""`python -m tools.train corpus`: from the pinned list to the work folder."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from allotrope import settings
from allotrope.errors import UsageError
from tools.train.corpus import dedupe, fetch, rows, sources, stories
from tools.train.corpus.chat import conversations
from tools.train.corpus.harvest import Harvest, harvest, harvest_standard_library
from tools.train.corpus.heldout import DATA, write_heldout

WORK = Path("build/train")
Row = dict[str, str]


def main(argv: list[str] | None = None) -> int:
    """Entry of the step; see `--help`."""
    parser = argparse.ArgumentParser(prog="python -m tools.train corpus", description=__doc__)
    parser.add_argument("--work", type=Path, default=WORK, help="where the corpus is written (default %(default)s)")
    parser.add_argument(
        "--data", type=Path, default=DATA, help="where the held-out texts are written (default %(default)s)"
    )
    parser.add_argument("--assets", type=Path, default=None, help="folder that has text/tinystories.txt")
    parser.add_argument("--processes", type=int, default=2, help="projects read at the same time (default %(default)s)")
    chosen = parser.parse_args(argv)
    build(chosen.work, chosen.data, chosen.assets or settings.assets(), chosen.processes)
    return 0


def build(work: Path, data: Path, assets: Path, processes: int = 2) -> None:
    """Fetch, filter, deduplicate, split, write."""
    if processes < 1:
        raise UsageError(f"{processes} processes cannot read anything", where="--processes", remedy="give 1 or more")
    stories.texts(assets)  # whether they are there is said before the minutes that the rest takes
    listed = sources.read_list()
    archives = fetch.fetch(listed, work / "downloads")
    with multiprocessing.Pool(processes) as pool:
        library = pool.apply_async(harvest_standard_library)
        gathered = pool.starmap(harvest, [(source, archives[source.name]) for source in listed], chunksize=1)
        gathered.insert(0, library.get())
    train = [found for found in gathered if not found.heldout]
    heldout = [found for found in gathered if found.heldout]
    seen = dedupe.Seen()
    dedupe.keep_new(train, seen)
    dedupe.keep_unseen(heldout, seen)
    dedupe.cap_shares(train)
    _write_split(work, "train", train, assets)
    _write_split(work, "heldout", heldout, assets)
    write_heldout(work, data)
    _write_sources(work / "sources.json", gathered)
    _write_sources(data / "sources.json", gathered)  # so that cards can be made again without the corpus


def _write_split(work: Path, split: str, harvests: list[Harvest], assets: Path) -> None:
    kinds: dict[str, Callable[[], Iterator[Mapping[str, object]]]] = {
        "code": lambda: _code(harvests),
        "docs": lambda: _docs(harvests),
        "functions": lambda: _functions(harvests),
        "stories": lambda: stories.stories(assets, heldout=split == "heldout"),
        "chat": lambda: conversations(list(_functions(harvests)), split),
    }

    def write(kind: tuple[str, Callable[[], Iterator[Mapping[str, object]]]]) -> int:
        return rows.write(work / kind[0] / f"{split}.jsonl.xz", kind[1]())

    with ThreadPoolExecutor(2) as pool:  # compression leaves the interpreter's lock alone
        for kind, count in zip(kinds, pool.map(write, kinds.items()), strict=True):
            _say(f"{kind}/{split}: {count} rows")


def _code(harvests: list[Harvest]) -> Iterator[Row]:
    for found in harvests:
        for file in found.code:
            yield {"project": found.name, "path": file.path, "text": file.text}


def _docs(harvests: list[Harvest]) -> Iterator[Row]:
    for found in harvests:
        for path, text in found.docs:
            yield {"project": found.name, "path": path, "text": text}


def _functions(harvests: list[Harvest]) -> Iterator[Row]:
    for found in harvests:
        for path, pair in found.pairs:
            told = {"name": pair.name, "code": pair.code, "summary": pair.summary}
            yield {"project": found.name, "path": path, **told}


def _write_sources(path: Path, harvests: list[Harvest]) -> None:
    table = [
        {
            "project": found.name,
            "version": found.version,
            **found.evidence,
            "split": "heldout" if found.heldout else "train",
            "code_files": len(found.code),
            "code_bytes": sum(len(file.text.encode()) for file in found.code),
            "docs_files": len(found.docs),
            "docs_bytes": sum(len(text.encode()) for _, text in found.docs),
            "functions": len(found.pairs),
        }
        for found in harvests
    ]
    lines = ",\n".join(f" {json.dumps(row)}" for row in table)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
