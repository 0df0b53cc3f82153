"""The scheduler under whatever can happen in any order: 20,000 random operations here, more by hand.

python -m tests.test_scheduler_machine 1000000 [seed]
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from collections.abc import Callable

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.scheduler_truth import MAX_LEN, VOCAB
from tests.scheduler_world import World

PREFIXES = [[(7 * i + 3 * j * j + 1) % VOCAB for j in range(MAX_LEN)] for i in range(3)]


def prompt_of(base: int, common: int, tail: list[int]) -> list[int]:
    """Prompts that share beginnings with others."""
    return (PREFIXES[base][:common] + tail)[:MAX_LEN] or [1]


class Machine(RuleBasedStateMachine):
    """Found and made small by hypothesis."""

    world: World

    @initialize(
        pages=st.integers(1, 40),
        page_size=st.integers(1, 8),
        max_num_seqs=st.integers(1, 6),
        max_batched_tokens=st.integers(1, 24),
        policy=st.sampled_from(["fcfs", "priority"]),
        prefix_cache=st.booleans(),
        rotary_lengths=st.sampled_from([(), (8,), (60, 12)]),
    )
    def start(self, **sizes: object) -> None:
        self.world = World(**sizes)

    @rule(
        base=st.integers(0, 2),
        common=st.integers(0, MAX_LEN),
        tail=st.lists(st.integers(0, VOCAB - 1), max_size=6),
        max_tokens=st.integers(1, 14),
        n=st.integers(1, 3),
        priority=st.integers(0, 2),
        salt=st.integers(0, 1),
        how=st.sampled_from(
            [
                {},
                {"logprobs": 2, "stop_token_ids": [3, 4]},
                {"ignore_eos": True},
                {"repetition_penalty": 1.5, "frequency_penalty": 0.5},
                {"bad_words": ["x"], "logit_bias": {2: 5.0}},
                {"logit_bias": {5: 1.5}},
                {"min_tokens": 1, "stop_token_ids": list(range(10))},
                {"prompt_logprobs": 2},
                {"beams": 3, "temperature": 0.0, "n": 1},
            ]
        ),
    )
    def submit(
        self, base: int, common: int, tail: list[int], max_tokens: int, n: int, priority: int, salt: int, how: dict
    ) -> None:
        params = {"max_tokens": max_tokens, "n": n, "seed": 100 * base + common} | how
        self.world.submit(prompt_of(base, common, tail), priority=priority, salt=salt, **params)

    @rule()
    def plan(self) -> None:
        self.world.plan()

    @rule(fault=st.none() | st.integers(0, 5))
    def commit(self, fault: int | None) -> None:
        if self.world.flight:
            self.world.commit(fault)

    @rule(done=st.integers(0, 3))
    def abandon(self, done: int) -> None:
        self.world.abandon(done)

    @rule(which=st.integers(0, 1000), reason=st.sampled_from(["abort", "stop"]))
    def end(self, which: int, reason: str) -> None:
        there = list(self.world.truths)
        if there:
            self.world.end(there[which % len(there)], reason)

    @invariant()
    def check(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.drain()


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def random_world(dice: random.Random) -> World:
    """Sizes of which most are too small for the load."""
    size = dice.choice([1, 2, 3, 4, 8])
    return World(
        page_size=size,
        pages=dice.choice([MAX_LEN // size + 1, dice.randint(1, 3 * MAX_LEN // size), 250 // size]),
        max_num_seqs=dice.choice([1, 3, 6, 9, 12]),
        max_batched_tokens=dice.choice([1, 4, 9, 16, 64]),
        policy=dice.choice(["fcfs", "priority"]),
        prefix_cache=dice.random() < 0.75,
        rotary_lengths=dice.choice([(), (), (10,)]),
    )


def random_submit(world: World, dice: random.Random, grows: bool) -> None:
    """A request of any kind; most begin like others. `grows`: short prompts and long outputs, which cost pages late."""
    common = dice.choice([0, 4, 4] if grows else [0, 4, dice.randint(0, 12), dice.randint(0, MAX_LEN)])
    tail = [dice.randrange(VOCAB) for _ in range(dice.choice([0, 1, 5]))]
    params: dict[str, object] = {"max_tokens": 30 if grows else dice.choice([1, 4, 12, 30]), "ignore_eos": grows}
    params["seed"] = dice.randrange(1000)
    chance = dice.random()
    if chance < 0.12:
        params |= {"beams": dice.randint(2, 4), "temperature": 0.0}
    elif chance < 0.27:
        params |= {"n": dice.randint(2, 4)}
    elif chance < 0.42:
        params |= dice.choice(
            [
                {"repetition_penalty": 1.5, "presence_penalty": 0.5},
                {"bad_words": ["x"], "logit_bias": {2: 5.0}},
                {"min_tokens": 1, "stop_token_ids": list(range(15))},
            ]
        )
    elif chance < 0.5:
        params |= {"prompt_logprobs": dice.randint(0, 3)}
    if dice.random() < 0.3:
        params |= {"stop_token_ids": [dice.randrange(VOCAB), dice.randrange(VOCAB)]}
    if dice.random() < 0.3 and "beams" not in params:
        params |= {"logprobs": dice.randint(0, 4)}
    salt = dice.choice([0, 0, 0, 1])
    world.submit(prompt_of(dice.randrange(3), common, tail), priority=dice.randrange(3), salt=salt, **params)


def one_thing(world: World, dice: random.Random, grows: bool, ahead: int) -> None:
    """One operation, drawn by weight."""
    chance = dice.random()
    if chance < 0.12 and len(world.truths) < 24:
        random_submit(world, dice, grows)
    elif chance < 0.54 and len(world.flight) < ahead:
        world.plan()
    elif chance < 0.94:
        if world.flight:
            world.commit(dice.randrange(9) if dice.random() < 0.01 else None)
        else:
            world.plan()
    elif chance < 0.965:
        world.abandon(dice.randint(0, 3))
    elif world.truths:
        world.end(dice.choice(list(world.truths)), dice.choice(["abort", "stop"]))


def run(
    operations: int, seed: int, report: Callable[[int, Counter[str]], None] = lambda done, seen: None
) -> Counter[str]:
    """So many random operations, in worlds of some hundred each; each world then comes to its end."""
    seen, done = Counter[str](), 0
    while done < operations:
        dice = random.Random(f"{seed} {done}")
        world, grows, ahead = random_world(dice), dice.random() < 0.4, dice.choice([1, 2, 5])
        try:
            for _ in range(min(400, operations - done)):
                one_thing(world, dice, grows, ahead)
                world.check()
            world.drain()
        except BaseException:
            sys.stderr.write(f"the world of seed {seed} that began with operation {done} failed\n")
            raise
        done += 400
        seen += world.seen
        counts = world.scheduler.metrics()
        seen.update({"steps": counts.steps, "preemptions": counts.preemptions, "hits": counts.prefix_hit_tokens})
        report(done, seen)
    return seen


def test_20000_random_operations() -> None:
    seen = run(20_000, seed=1)
    for kind in ("stop", "length", "abort", "error", "refused", "copies", "preempted", "cached"):
        assert seen[kind] > 20, kind  # everything that can happen did


def main() -> None:
    """As many as the first argument says, with progress."""
    operations = int(sys.argv[1])
    start = time.monotonic()

    def report(done: int, seen: Counter[str]) -> None:
        if done % 20_000 == 0:
            sys.stdout.write(f"{done} operations in {time.monotonic() - start:.0f} s: {dict(seen)}\n")
            sys.stdout.flush()

    run(operations, int(sys.argv[2]) if len(sys.argv) > 2 else 1, report)


if __name__ == "__main__":
    main()
