"""A load put on an engine, measured: tokens per second, latencies, idleness, and the limit beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from allotrope.artifact.plan import Plan
from allotrope.bench.drive import Clock, Driven, Times, drive
from allotrope.bench.limit import Limit, limit
from allotrope.bench.summary import Latencies, latencies
from allotrope.bench.watch import Watched
from allotrope.bench.workload import Job, Workload, exactly
from allotrope.hw.peaks import Ceilings
from allotrope.runtime.loop import Loop

_WARM_TOKENS = 4
_COUNTED = ("steps", "computed_tokens", "prefix_query_tokens", "prefix_hit_tokens", "preemptions", "busy_s", "idle_s")


@dataclass(frozen=True)
class Measured:
    """A load's figures and the samples behind them."""

    workload: Workload
    driven: Driven
    latencies: Latencies
    urgent: Latencies | None  # of those that go before the others, if there are any
    counted: Mapping[str, float]  # what the runtime counted meanwhile
    peak_running: int  # the most requests that took part in one step
    limit: Limit
    ceilings: Ceilings | None

    @property
    def times(self) -> Sequence[Times]:
        """Each request's clock."""
        return self.driven.times

    @property
    def output_tokens(self) -> int:
        """Tokens that were generated and could be read."""
        return sum(len(one.tokens) for one in self.times)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompts that were answered."""
        return sum(len(one.job.prompt) for one in self.times if one.tokens)

    @property
    def idle_share(self) -> float:
        """The share of its time, while there was a request, in which the device stood still between steps."""
        whole = self.counted["busy_s"] + self.counted["idle_s"]
        return self.counted["idle_s"] / whole if whole else 0.0

    @property
    def share_of_limit(self) -> float | None:
        """The least time over the time taken; moments without any request do not count."""
        taken = self.driven.seconds - self.driven.absent_s
        return None if self.limit.seconds is None or taken <= 0 else self.limit.seconds / taken

    def to_json(self) -> dict[str, Any]:
        """The figures, without the samples."""
        seconds, limit_s = self.driven.seconds, self.limit.seconds
        reasons = [one.finish_reason or "none" for one in self.times]
        return {
            "requests": len(self.times),
            "finished": {reason: reasons.count(reason) for reason in sorted(set(reasons))},
            "seconds": seconds,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "output_tokens_per_s": self.output_tokens / seconds,
            "total_tokens_per_s": (self.prompt_tokens + self.output_tokens) / seconds,
            "requests_per_s": reasons.count("length") / seconds,
            **_milliseconds(self.latencies),
            "urgent": None if self.urgent is None else _milliseconds(self.urgent),
            "idle_share": self.idle_share,
            "peak_running": self.peak_running,
            **self.counted,
            "limit": {
                **asdict(self.limit),
                "output_tokens_per_s": None if not limit_s else self.output_tokens / limit_s,
                "read_bytes_per_s": None if self.ceilings is None else self.ceilings.read_bytes_per_s,
                "threads": None if self.ceilings is None else self.ceilings.threads,
            },
            "share_of_limit": self.share_of_limit,
            "workload": dict(self.workload.described),
        }


def measure(
    loop: Loop,
    watched: Watched,
    plan: Plan,
    workload: Workload,
    *,
    ceilings: Ceilings | None,
    clock: Clock | None = None,
    ended: Callable[[], object] = lambda: None,
) -> Measured:
    """Warm up, then run the load. `watched` is the loop's executor; other requests in it would be measured, too.

    `ended` is called whenever a request of the load has ended.
    """
    drive(loop, warm_up(workload, loop.scheduler.max_num_seqs, plan.vocab), clock)
    watched.steps.clear()
    before = loop.metrics()
    driven = drive(loop, workload.jobs, clock, ended)
    after = loop.metrics()
    urgent = [one for one in driven.times if one.job.priority < 0]
    return Measured(
        workload=workload,
        driven=driven,
        latencies=latencies(driven.times),
        urgent=latencies(urgent) if urgent else None,
        counted={name: after[name] - before[name] for name in _COUNTED},
        peak_running=max(len(step.first) for step in watched.steps),
        limit=limit(plan, watched.steps, ceilings),
        ceilings=ceilings,
    )


def warm_up(workload: Workload, count: int, vocab: int) -> list[Job]:
    """The first jobs cut short, all at once, with other tokens, so that the load itself meets no kept prefix."""
    return [
        replace(
            job,
            arrival=0.0,
            prompt=tuple((token + 1) % vocab for token in job.prompt),
            params=exactly(min(job.params.max_tokens, _WARM_TOKENS)),
        )
        for job in workload.jobs[:count]
    ]


def _milliseconds(found: Latencies) -> dict[str, Any]:
    return {f"{name}_ms": values for name, values in asdict(found).items()}
