"""`allotrope eval` as a user calls it, and a model in transformers by itself."""

from __future__ import annotations

import json
from typing import Any

import pytest

from allotrope.cli import main


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any], str]:
    """The exit code, what `--json` printed, and what went to stderr."""
    code = main(["eval", *map(str, arguments), "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out.splitlines()[-1]) if captured.out else {}, captured.err
