"""Starting a small Python process for work that must not be able to take this one down."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from allotrope.errors import TokenizerError


def start(script: str, modules: tuple[str, ...], *arguments: str) -> subprocess.Popen[bytes]:
    """Run a script of this folder with an isolated interpreter that can import `modules` and no more is promised.

    The script gets pipes for stdin and stdout; it sets its own limits before it touches what it was sent.
    """
    places = dict.fromkeys(str(_home(module)) for module in modules)
    command = [sys.executable, "-I", str(Path(__file__).with_name(script)), ":".join(places), *arguments]
    try:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, close_fds=True
        )
    except OSError as error:
        raise TokenizerError(f"no helper process could be started ({error.strerror})") from error


def _home(module: str) -> Path:
    """The folder that must be on the path for `module` to be importable."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise TokenizerError(f"the package {module} is missing", remedy=f"pip install {module}")
    return Path(spec.origin).parent.parent
