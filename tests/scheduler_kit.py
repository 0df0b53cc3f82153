"""Small words for tests of the scheduler."""

from __future__ import annotations

import numpy as np

from allotrope.runtime.request import Request
from allotrope.runtime.step import StepInput
from tests.scheduler_world import World

PAGE = 4


def world(**sizes: object) -> World:
    """Room enough, unless told otherwise, and no prefix cache."""
    sizes = {
        "pages": 100,
        "page_size": PAGE,
        "max_num_seqs": 4,
        "max_batched_tokens": 64,
        "prefix_cache": False,
    } | sizes
    return World(**sizes)


def free(one: World, prompt: list[int], max_tokens: int, **params: object) -> Request:
    """A request that only its length ends."""
    (request,) = one.submit(prompt, max_tokens=max_tokens, ignore_eos=True, **params)
    return request


def planned(one: World) -> StepInput:
    """Launch a step, which there must be."""
    step = one.plan()
    assert step is not None
    return step


def step(one: World) -> StepInput:
    """Launch a step and read the oldest."""
    done = planned(one)
    one.commit()
    one.check()
    return done


def counts(step: StepInput) -> list[int]:
    """How many tokens each row has."""
    return np.diff(step.starts).tolist()
