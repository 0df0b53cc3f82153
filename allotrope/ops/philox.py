"""Philox4x32-10, the counter-based random generator of Salmon, Moraes, Dror and Shaw (SC 2011).

A draw is a pure function of (seed, position), so every executor, whatever its order of work, draws alike.
The same code serves NumPy arrays and torch tensors: 32-bit words travel in int64, whose product wraps
modulo 2^64 in both. (`sample/uniforms.py` is the same for torch, in fewer steps.)
"""

from __future__ import annotations

from typing import Any, TypeAlias

Words: TypeAlias = Any
"""An int64 NumPy array or torch tensor of words below 2^32, of at least one dimension."""

ROUNDS = 10
UNIFORM_BITS = 53
LOW = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)


def philox4x32(counter: tuple[Words, Words, Words, Words], key: tuple[Words, Words]) -> tuple[Words, ...]:
    """The four random words of each (counter, key)."""
    a, b, c, d = counter
    first, second = key
    for _ in range(ROUNDS):
        left, right = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        # the shift repeats the sign bit, and the mask removes that again
        a, b, c, d = (
            (right >> 32 & LOW) ^ b ^ first,
            right & LOW,
            (left >> 32 & LOW) ^ d ^ second,
            left & LOW,
        )
        first, second = (first + KEY_STEPS[0]) & LOW, (second + KEY_STEPS[1]) & LOW
    return a, b, c, d


def uniform_bits(seeds: Words, positions: Words) -> Words:
    """For each (seed, position), both int64, an integer below 2^53; divided by that, a uniform in [0, 1)."""
    zero = positions * 0
    a, b, _, _ = philox4x32((positions & LOW, positions >> 32 & LOW, zero, zero), (seeds & LOW, seeds >> 32 & LOW))
    return a << (UNIFORM_BITS - 32) | b >> (64 - UNIFORM_BITS)
