"""Makes the environments of the peers: `python -m allotrope.bench.install [NAME …] [--peers DIR]`.

Each has one of its own, since what they need contradicts itself; the pinned packages stand in `peers/requirements`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import venv
from pathlib import Path

from allotrope.bench.catalogue import PEERS, Peer, default_environments, named
from allotrope.errors import AllotropeError, UsageError

_FIRST = "torch"  # by itself and with what it needs; the rest is pinned as a whole


def main() -> None:
    """Make those that were named, or all that a CPU can use."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="as in --against (all with an environment of their own)"
    )
    parser.add_argument("--peers", type=Path, default=None, metavar="DIR", help="where (ALLOTROPE_PEERS, or the cache)")
    args = parser.parse_args()
    try:
        wanted = named(",".join(args.names)) if args.names else usual()
        for peer in wanted:
            install(peer, args.peers or default_environments())
    except AllotropeError as error:
        sys.exit(f"allotrope: {error}")


def usual() -> tuple[Peer, ...]:
    """Those that run on a CPU and that this package's own environment lacks."""
    return tuple(peer for peer in PEERS.values() if peer.own and "cpu" in peer.devices)


def install(peer: Peer, environments: Path) -> None:
    """One environment, made anew."""
    folder = environments / peer.environment
    if not peer.requirements.is_file():
        raise UsageError(f"{peer.name} has no pinned packages", remedy="install it into an environment yourself")
    sys.stdout.write(f"{peer.name}: {folder}\n")
    venv.create(folder, clear=True, with_pip=True)
    lines = peer.requirements.read_text(encoding="utf-8").splitlines()
    first = [line for line in lines if line.startswith(f"{_FIRST}==")]
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    for wanted in (first, ["--no-deps", "-r", str(peer.requirements)]):
        if wanted and subprocess.run([*pip, *wanted], check=False).returncode:
            raise UsageError(f"pip could not install {peer.name}; its own words stand above")


if __name__ == "__main__":
    main()
