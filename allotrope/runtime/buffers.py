"""The executor's memory: activation buffers that grow by capacity, the KV pool, one shared workspace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from allotrope.artifact.plan import LOGITS, SAMPLES, TOKENS, Plan
from allotrope.errors import OutOfMemory
from allotrope.ops.kv_rows import COMPUTE, row_bytes
from allotrope.units import shortage

if TYPE_CHECKING:
    import torch

ITEM_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "fp64": 8, "int32": 4, "int64": 8, "uint8": 1}


def torch_dtype(tag: str, compute: str) -> torch.dtype:
    """torch's name for a dtype tag; `compute` stands in for "compute"."""
    import torch

    names = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "fp64": "float64"}
    tag = compute if tag == "compute" else tag
    dtype: torch.dtype = getattr(torch, names.get(tag, tag))
    return dtype


def allocate(what: str, shape: tuple[int, ...], dtype: torch.dtype, device: str, poison: bool) -> torch.Tensor:
    """Uninitialised memory; poisoned, it is NaN or, in integers, a wild number. What does not fit is said in words."""
    import torch

    try:
        memory = torch.empty(shape, dtype=dtype, device=device)
    except RuntimeError as error:  # torch.OutOfMemoryError on a GPU, a plain one from the CPU's allocator
        if not isinstance(error, torch.OutOfMemoryError) and "memory" not in str(error):
            raise
        needed = torch.empty((), dtype=dtype).element_size() * torch.Size(shape).numel()
        raise OutOfMemory(
            f"{what} need {shortage(needed, available_bytes(device))}",
            remedy="lower max_num_seqs, max_batched_tokens or kv_memory",
        ) from error
    if poison:
        fill_poison(memory)
    return memory


def fill_poison(memory: torch.Tensor) -> None:
    """Make whatever is read before it is written show."""
    memory.fill_(float("nan") if memory.is_floating_point() else 0xFF if memory.element_size() == 1 else -(2**30))


def available_bytes(device: str) -> int:
    """Bytes that a new allocation on the device can expect to get."""
    if device == "cpu":
        from allotrope.hw.detect import available_memory

        return available_memory()
    import torch

    free, _ = torch.cuda.mem_get_info()
    return int(free)


class Buffers:
    """Every `b:` slot, `[capacity, width]`; those that are part of another are its column slices."""

    def __init__(self, plan: Plan, device: str, poison: bool) -> None:
        self._plan, self._device, self._poison = plan, device, poison
        self.capacity = dict.fromkeys((TOKENS, LOGITS, SAMPLES), 0)
        self._whole: dict[str, torch.Tensor] = {}
        self._seen: tuple[Mapping[str, int], dict[str, torch.Tensor]] = ({}, {})

    def reserve(self, rows: Mapping[str, int]) -> bool:
        """Make room for at least so many rows of each kind; returns whether anything moved."""
        grown = {kind for kind, count in rows.items() if count > self.capacity[kind]}
        for kind in grown:
            self.capacity[kind] = rows[kind]
            for name, spec in self._plan.buffers.items():
                if spec.rows == kind and spec.of is None:
                    self._whole.pop(name, None)  # before its successor is made
                    dtype = torch_dtype(spec.dtype, self._plan.dtype)
                    shape = (rows[kind], spec.width)
                    self._whole[name] = allocate("activation buffers", shape, dtype, self._device, self._poison)
        if grown:
            self._seen = ({}, {})
            for name, spec in self._plan.buffers.items():
                if spec.of is not None:
                    self._whole[name] = self._whole[spec.of][:, spec.start : spec.start + spec.width]
        return bool(grown)

    def views(self, rows: Mapping[str, int]) -> dict[str, torch.Tensor]:
        """Each buffer's first rows, by slot. Decoding repeats its row counts, so the last views are kept."""
        if self._poison:
            for name, spec in self._plan.buffers.items():
                if spec.of is None:
                    fill_poison(self._whole[name])
        if self._seen[0] != rows:
            found = {f"b:{name}": self._whole[name][: rows[spec.rows]] for name, spec in self._plan.buffers.items()}
            self._seen = (dict(rows), found)
        return self._seen[1]


def make_caches(plan: Plan, pages: int, page_size: int, device: str, poison: bool) -> dict[str, torch.Tensor]:
    """The KV pool, by `c:` slot: a layer's keys and values are halves of one tensor.

    Memory that nobody touches stays unbacked on a CPU.
    """
    caches: dict[str, torch.Tensor] = {}
    for layer, form in enumerate(plan.cache.dtypes):
        shape = (2, pages, page_size, plan.cache.row_width(form))
        dtype = torch_dtype("compute" if form == COMPUTE else "uint8", plan.dtype)
        both = allocate("the KV pool's pages", shape, dtype, device, poison)
        caches |= {f"c:{layer}.k": both[0], f"c:{layer}.v": both[1]}
    return caches


def page_bytes(plan: Plan, page_size: int) -> int:
    """What one page of the KV pool takes, over all layers."""
    return page_size * sum(token_bytes(plan, form) for form in plan.cache.dtypes)


def token_bytes(plan: Plan, form: str) -> int:
    """What a token's key and value take in a layer of this form."""
    return 2 * row_bytes(form, plan.cache.kv_heads, plan.cache.head_dim, plan.dtype)
