"""What a quantised module's headers must say, given the matrix that it stands for: known before a byte is read."""

from __future__ import annotations

from collections.abc import Mapping

from allotrope.errors import CheckpointError
from allotrope.models.checkpoint import TensorInfo
from allotrope.models.quantised import compressed
from allotrope.models.quantised.parts import SCALES
from allotrope.models.quantised.stored import PER_CHANNEL, Stored

Shape = tuple[int, ...]
Wanted = tuple[tuple[str, Shape], ...]  # the dtypes that a part may have, each with its shape
_INDEX = ("int32", "int64")


def check_headers(
    parts: Mapping[str, str], stored: Stored, matrix: tuple[int, int], tensors: Mapping[str, TensorInfo], where: str
) -> None:
    """An error unless `parts`, by the last part of the name, hold a matrix [out, in]."""
    first = next(iter(parts.values()))
    if problem := _unfit(stored, matrix):
        raise CheckpointError(f"{first} cannot be: {problem}", where=where, remedy="correct config.json")
    wanted = _wanted(stored, matrix)
    for part, name in parts.items():
        found, dtypes = tensors[name], [dtype for dtype, _ in wanted[part]]
        if found.dtype not in dtypes:
            problem = f"tensor {name} is {found.dtype}, not {' or '.join(dict.fromkeys(dtypes))}"
            raise CheckpointError(problem, where=where, remedy="take both files from the original")
        shapes = [shape for dtype, shape in wanted[part] if dtype == found.dtype]
        if found.shape not in shapes:
            raise CheckpointError(
                f"tensor {name} is {list(found.shape)}, the config makes it {list(shapes[0])}",
                where=where,
                remedy="correct config.json, or take both files from the original",
            )


def _unfit(stored: Stored, matrix: tuple[int, int]) -> str | None:
    """Why this layout has no such matrix, or None."""
    out, into = matrix
    if stored.group != PER_CHANNEL and into % stored.group:
        return f"groups of {stored.group} do not divide its {into} inputs"
    per_word = 32 // stored.bits
    if stored.method != "compressed-tensors" and out % per_word:
        return f"its {out} outputs do not fill words of {per_word}"
    if stored.method == "gptq" and into % per_word:
        return f"its {into} inputs do not fill words of {per_word}"
    return None


def _wanted(stored: Stored, matrix: tuple[int, int]) -> dict[str, Wanted]:
    out, into = matrix
    groups = 1 if stored.group == PER_CHANNEL else into // stored.group
    if stored.method == "compressed-tensors":
        return _compressed(stored, out, into, groups)
    per_word = 32 // stored.bits
    words = (into, out // per_word) if stored.method == "awq" else (into // per_word, out)
    return {
        "qweight": (("int32", words),),
        "qzeros": (("int32", (groups, out // per_word)),),
        "scales": _all(SCALES, (groups, out)),
        "g_idx": _all(_INDEX, (into,)),
    }


def _compressed(stored: Stored, out: int, into: int, groups: int) -> dict[str, Wanted]:
    def words(count: int) -> int:
        return -(-count * stored.bits // 32)

    per_tensor = stored.per_tensor
    sides: tuple[Shape, ...] = ((1,), ()) if per_tensor else ((out, groups),)
    zeros = tuple(("int8", side) for side in sides)
    if stored.form == compressed.PACKED and not per_tensor:
        zeros = (("int32", (words(out), groups)), *zeros)
    return {
        "weight": (("fp8" if stored.floating else "int8", (out, into)),),
        "weight_packed": (("int32", (out, words(into))),),
        "weight_shape": _all(_INDEX, (2,)),
        "weight_scale": tuple((dtype, side) for dtype in SCALES for side in sides),
        "weight_zero_point": zeros,
        "weight_g_idx": _all(_INDEX, (into,)),
    }


def _all(dtypes: tuple[str, ...], shape: Shape) -> Wanted:
    return tuple((dtype, shape) for dtype in dtypes)
