"""The three layouts written value by value in plain Python, as their documentation describes them."""

from __future__ import annotations

import numpy as np

from allotrope.models.quantised.stored import Stored
from tests.quantised_kit import Array, Grid, int32

# Of the eight outputs that share a word: the lowest bit of each
LOWEST_BIT = {0: 0, 1: 16, 2: 4, 3: 20, 4: 8, 5: 24, 6: 12, 7: 28}


def gptq(codes: Grid, zeros: Grid, scales: Array, group_of: list[int], bits: int, less: int) -> dict[str, Array]:
    """The tensors, from unsigned codes [out, in] and zeros [out, groups].

    qweight[r, o] has input r·n + k of output o in its bits k·bits and on; qzeros[g, c] has the zero point of output
    c·n + k, less one in the first layout, in its bits k·bits and on; n = 32 / bits.
    """
    n, outputs, inputs, groups = 32 // bits, len(codes), len(codes[0]), len(zeros[0])
    weight = [[0] * outputs for _ in range(inputs // n)]
    for o in range(outputs):
        for i in range(inputs):
            weight[i // n][o] |= codes[o][i] << bits * (i % n)
    points = [[0] * (outputs // n) for _ in range(groups)]
    for g in range(groups):
        for o in range(outputs):
            points[g][o // n] |= (zeros[o][g] - less) << bits * (o % n)
    index = np.array(group_of, np.int32)
    return {"qweight": int32(weight), "qzeros": int32(points), "scales": scales.T.copy(), "g_idx": index}


def awq(codes: Grid, zeros: Grid, scales: Array) -> dict[str, Array]:
    """The tensors, from codes [out, in] and zeros [out, groups]: rows are inputs (groups), eight outputs to a word."""
    outputs, inputs, groups = len(codes), len(codes[0]), len(zeros[0])
    weight = [[0] * (outputs // 8) for _ in range(inputs)]
    points = [[0] * (outputs // 8) for _ in range(groups)]
    for o in range(outputs):
        for i in range(inputs):
            weight[i][o // 8] |= codes[o][i] << LOWEST_BIT[o % 8]
        for g in range(groups):
            points[g][o // 8] |= zeros[o][g] << LOWEST_BIT[o % 8]
    return {"qweight": int32(weight), "qzeros": int32(points), "scales": scales.T.copy()}


def along_rows(values: Grid, bits: int) -> Grid:
    """value + 2^(bits−1), n = 32 / bits of a row to a word: value k of a word in its bits k·bits and on."""
    n, half = 32 // bits, 1 << bits - 1
    words = [[0] * -(-len(row) // n) for row in values]
    for r, row in enumerate(values):
        for c, value in enumerate(row):
            words[r][c // n] |= (value + half) << bits * (c % n)
    return words


def turned(values: Grid) -> Grid:
    return [list(row) for row in zip(*values, strict=True)]


def compressed(stored: Stored, codes: Grid, zeros: Grid, scales: Array, group_of: list[int]) -> dict[str, Array]:
    """The tensors, from signed codes [out, in] and zeros [out, groups]."""
    found: dict[str, Array] = {}
    if stored.form == "pack-quantized":
        found["weight_packed"] = int32(along_rows(codes, stored.bits))
        found["weight_shape"] = np.array([len(codes), len(codes[0])], np.int64)
        points = int32(turned(along_rows(turned(zeros), stored.bits)))
    else:
        found["weight"] = np.array(codes, np.uint8 if stored.floating else np.int8)
        points = np.array(zeros, np.int8)
    found["weight_scale"] = scales[0] if stored.per_tensor else scales
    if not stored.symmetric:
        found["weight_zero_point"] = points[0] if stored.per_tensor else points
    if stored.desc_act:
        found["weight_g_idx"] = np.array(group_of, np.int32)
    return found
