"""How an engine is built and run, as options by name, and what a part changes of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_LISTS = ("without", "plus", "keep")
REFERENCE = "reference"


@dataclass(frozen=True)
class Change:
    """Other values for some options. Lists of parts grow; every other value replaces what was there."""

    build: Mapping[str, Any] = field(default_factory=dict)
    running: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """Options of a build and of running it; those that are not named have their defaults."""

    build: Mapping[str, Any]
    running: Mapping[str, Any]

    def but(self, change: Change | None) -> Setting:
        """With a change."""
        if change is None:
            return self
        build = dict(self.build)
        for name, value in change.build.items():
            build[name] = (*build.get(name, ()), *value) if name in _LISTS and value else value
        return Setting(build, {**self.running, **change.running})

    @property
    def bare(self) -> Setting:
        """The reference plan in the compute dtype, run call by call and looked at after each step."""
        kept = ("device", "dtype", "threads", "seed", "max_batch", "max_len", "allow_pickle", "allow_nan")
        build = {name: self.build[name] for name in kept if name in self.build}
        running = {**self.running, "executor": "auto", "check_step": 1, "skip_step": 0}
        return Setting({**build, "plan": REFERENCE}, running)

    @property
    def key(self) -> str:
        """The same for settings that are the same."""
        return json.dumps([dict(self.build), dict(self.running)], sort_keys=True, default=str)
