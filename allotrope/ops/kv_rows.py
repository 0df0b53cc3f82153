"""How a token's keys (or values) lie in a layer's cache, one row per token.

    compute   [ kv_heads · head_dim elements of the compute dtype ]
    fp16      [ kv_heads · head_dim fp16, as bytes ]
    int8      [ kv_heads · head_dim bytes of codes | zeros up to 4 bytes | kv_heads scales, fp32 ]
    fp8       the same, with e4m3 codes

A narrow row is bytes and carries its scales along, so that pages are copied, shared and given away as they are.
"""

from __future__ import annotations

from allotrope.ops.contract import ELEMENT_BYTES

COMPUTE = "compute"
CODED = ("int8", "fp8")  # with a scale per token and head
NARROW = (*CODED, "fp16")
FORMS = (COMPUTE, *NARROW)
_SCALE = ELEMENT_BYTES["fp32"]


def scales_at(heads: int, head_dim: int) -> int:
    """At which byte of a narrow row the scales begin."""
    return -(-heads * head_dim // _SCALE) * _SCALE


def row_width(form: str, heads: int, head_dim: int) -> int:
    """Elements of a row: of the compute dtype, or bytes."""
    if form in CODED:
        return scales_at(heads, head_dim) + heads * _SCALE
    return heads * head_dim * (1 if form == COMPUTE else ELEMENT_BYTES[form])


def item_bytes(form: str, dtype: str) -> int:
    """Bytes of one of these elements."""
    return ELEMENT_BYTES[dtype if form == COMPUTE else "uint8"]


def row_bytes(form: str, heads: int, head_dim: int, dtype: str) -> int:
    """Bytes of a row, in a plan that computes in `dtype`."""
    return row_width(form, heads, head_dim) * item_bytes(form, dtype)


def misfit(form: str, heads: int, head_dim: int, width: int) -> str | None:
    """Why rows of `width` elements cannot be rows of this form; None if they can."""
    if form not in FORMS:
        return f"KV format {form!r} is unknown; there are {', '.join(FORMS)}"
    wanted = row_width(form, heads, head_dim)
    if width != wanted:
        return f"the cache's rows are {width} wide; {heads} heads of {head_dim} as {form} take {wanted}"
    return None
