"""Reading what users evaluate on: whole files of text, with every way that can fail in words."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from allotrope.errors import UsageError

LONGEST = 256 << 20  # bytes


def read_text(path: Path, longest: int = LONGEST) -> str:
    """The text of a file in UTF-8, line ends as they are; one whose name ends in .gz is unpacked."""
    try:
        with path.open("rb") as raw, gzip.open(raw) if path.suffix == ".gz" else raw as file:
            content = file.read(longest + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(f"cannot be unpacked: {error}", where=str(path)) from error
    except (OSError, ValueError) as error:  # a name that no file system takes is a ValueError
        said = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"cannot be read: {said}", where=str(path)) from error
    if len(content) > longest:  # a device may never end
        raise UsageError(f"over {longest:,} bytes", where=str(path), remedy="give a part of it")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"not UTF-8 at byte {error.start}", where=str(path), remedy="convert it to UTF-8") from error
