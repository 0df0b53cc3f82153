"""The strict reader of safetensors files: equal to the format's own library on good files, refusing bad ones."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file

from allotrope.errors import CheckpointError
from allotrope.models.readers.safetensors_file import open_file

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16]
DTYPES += [torch.int8, torch.uint8, torch.bool]


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    found = {str(dtype): torch.randn(5, 7, generator=generator).mul(50).to(dtype) for dtype in DTYPES}
    return found | {"scalar": torch.tensor(2.5), "none": torch.empty(0, 4), "deep": torch.arange(24.0).view(2, 3, 4)}


def bits(tensor: torch.Tensor) -> np.ndarray:
    return (tensor.view(torch.int16).numpy().view(np.uint16)) if tensor.dtype == torch.bfloat16 else tensor.numpy()


def test_reads_what_the_library_reads(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "m.safetensors", metadata={"format": "pt"})
    ours, theirs = open_file(tmp_path / "m.safetensors"), load_file(tmp_path / "m.safetensors")
    assert set(ours.tensors) == set(theirs)
    for name, tensor in theirs.items():
        got = ours.read(name)
        assert got.dtype == bits(tensor).dtype, name
        assert got.tobytes() == bits(tensor).tobytes(), name
        assert got.shape == ours.tensors[name].shape == tuple(tensor.shape), name
        assert got.nbytes == ours.tensors[name].nbytes, name
    assert ours.tensors["torch.bfloat16"].dtype == "bf16"


def test_rows(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "m.safetensors")
    file = open_file(tmp_path / "m.safetensors")
    for name in ("torch.bfloat16", "deep", "none"):
        whole = file.read(name)
        for start in range(len(whole) + 1):
            for stop in range(start, len(whole) + 1):
                assert np.array_equal(file.read_rows(name, start, stop), whole[start:stop])
    for start, stop in ((-1, 2), (0, 6), (3, 2)):
        with pytest.raises(ValueError, match="has no rows"):
            file.read_rows("torch.float32", start, stop)


def test_an_array_is_its_own_memory(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "m.safetensors")
    file = open_file(tmp_path / "m.safetensors")
    first = file.read("deep")
    first[:] = 0
    assert file.read("deep").sum() == 276


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def raw(header: object, data: bytes = bytes(8), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


GOOD = json.dumps(entry())
TWO = {"a": entry(), "b": entry(offsets=(8, 16))}
BAD = {
    "empty": (b"", "truncated: 0 bytes are too few"),
    "short": (b"\x01\x00", "truncated: 2 bytes are too few"),
    "huge header": (raw({}, length=2**63), f"length is {2**63}, over the bound of 100000000"),
    "many names": (raw(b'{"":' * 600_000), "the header has about 600,000 keys, over the bound of 500,000"),
    "long header": (raw({"a": entry()}, length=5000), "header's length is 5000, but the file has"),
    "not utf-8": (raw(b'{"\xff":1}'), "header is not UTF-8 (byte 2)"),
    "not json": (raw(b"{nonsense}"), "'\"' wanted at character 1, 'n' found"),
    "no header": (raw(b"", b""), "does not begin with '{'"),
    "a list": (raw(b"[]"), "does not begin with '{'"),
    "leading space": (raw(b" {}", b""), "does not begin with '{'"),
    "goes on": (raw(b"{} {}", b""), "goes on after its end"),
    "unfinished": (raw(b'{"a"', b""), "':' wanted at character 4, the end found"),
    "bad string": (raw(b'{"a\n":1}', b""), "Invalid control character"),
    "trailing comma": (raw(f'{{"a":{GOOD},}}'.encode()), "'\"' wanted"),
    "deep": (raw(b'{"a":' + b"[" * 100_000), "'{' wanted"),
    "deep in shape": (raw(b'{"a":{"shape":' + b"[" * 100_000), "in its shape '[[["),
    "duplicate tensor": (raw(f'{{"a":{GOOD},"a":{GOOD}}}'.encode()), "the header names 'a' twice"),
    "duplicate by escape": (raw(f'{{"a":{GOOD},"\\u0061":{GOOD}}}'.encode()), "the header names 'a' twice"),
    "duplicate key": (raw(b'{"a":{"dtype":"F32","dtype":"F16"}}'), "tensor 'a' names 'dtype' twice"),
    "duplicate metadata": (raw(b'{"__metadata__":{"x":"1","x":"2"}}', b""), "metadata names 'x' twice"),
    "metadata no text": (raw({"__metadata__": {"x": 1}}, b""), "'\"' wanted"),
    "unknown key": (raw({"a": entry() | {"strides": "x"}}), "tensor 'a' has the unknown key 'strides'"),
    "no dtype": (raw({"a": {"shape": [2], "data_offsets": [0, 8]}}), "tensor 'a' has no dtype"),
    "no shape": (raw({"a": {"dtype": "F32", "data_offsets": [0, 8]}}), "tensor 'a' has no shape"),
    "no offsets": (raw({"a": {"dtype": "F32", "shape": [2]}}), "tensor 'a' has no data_offsets"),
    "unknown dtype": (raw({"a": entry("F8_E5M2", (8,))}), "tensor 'a' has dtype 'F8_E5M2', which is none of F64"),
    "dtype no text": (raw({"a": entry(7)}), "'\"' wanted"),
    "negative shape": (raw({"a": entry(shape=(-2,))}), "in its shape '-2', which is no whole number"),
    "fraction": (raw({"a": entry(shape=(2.5,))}), "',' wanted"),
    "leading zero": (raw(b'{"a":{"shape":[02]}}'), "',' wanted"),
    "bool": (raw({"a": entry(shape=(True,))}), "in its shape 'true'"),
    "null shape": (raw({"a": entry(shape=None)}), "'[' wanted"),
    "text in shape": (raw({"a": entry(shape=("2",))}), "in its shape '\"2\"'"),
    "5,000 digits": (raw(b'{"a":{"shape":[' + b"9" * 5000 + b"]}}"), "no whole number under 2^63"),
    "rank": (raw({"a": entry(shape=[1] * 50_000)}), "in its shape more than 8 numbers"),
    "overflow": (raw({"a": entry(shape=(2**40, 2**40))}), "whose size overflows 63 bits"),
    "overflow to zero": (raw({"a": entry(shape=(2**32, 2**32), offsets=(0, 0))}, b""), "overflows 63 bits"),
    "one offset": (raw({"a": entry(offsets=(0,))}), "data_offsets [0], which are no begin and end"),
    "three offsets": (raw({"a": entry(offsets=(0, 4, 8))}), "in its data_offsets more than 2 numbers"),
    "backwards": (raw({"a": entry(offsets=(8, 0))}), "data_offsets [8, 0], which are no begin and end"),
    "mismatch": (raw({"a": entry(shape=(3,))}), "and dtype F32, which is 12 bytes, but its data_offsets [0, 8] span 8"),
    "lie of 1 TB": (raw({"a": entry(shape=(2**38,), offsets=(0, 2**40))}), f"'a' ends at byte {2**40} of"),
    "truncated": (raw(TWO, bytes(12)), "truncated: tensor 'b' ends at byte 16 of the data, but only 12 bytes"),
    "trailing": (raw({"a": entry()}, bytes(9)), "1 bytes trail after tensor 'a', which ends at byte 8"),
    "data without tensors": (raw({}, bytes(4)), "4 bytes trail after the header"),
    "hole": (
        raw(TWO | {"b": entry(offsets=(12, 20))}, bytes(20)),
        "12 and leaves a hole after tensor 'a', which ends at 8",
    ),
    "hole in front": (raw({"a": entry(offsets=(4, 12))}, bytes(12)), "leaves a hole after the header, which ends at 0"),
    "overlap": (raw(TWO | {"b": entry(offsets=(4, 12))}, bytes(12)), "byte 4 and overlaps tensor 'a', which ends at 8"),
    "the same bytes": (raw(TWO | {"b": entry()}), "begins at byte 0 and overlaps tensor"),
}


@pytest.mark.parametrize("case", BAD)
def test_refused_in_one_line_that_names_the_file(case: str, tmp_path: Path) -> None:
    content, message = BAD[case]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as refusal:
        open_file(path)
    assert message in str(refusal.value)
    assert str(refusal.value).startswith(str(path))
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < len(str(path)) + 400


def test_a_hostile_name_is_shown_on_one_short_line(tmp_path: Path) -> None:
    name = "x\r\n\x1b[31m" + "y" * 10_000
    (tmp_path / "bad.safetensors").write_bytes(raw({name: entry(shape=(3,))}))
    with pytest.raises(CheckpointError, match=r"tensor 'x.r.n.x1b") as refusal:
        open_file(tmp_path / "bad.safetensors")
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 500


def test_no_memory_for_a_lie(tmp_path: Path) -> None:
    """A sparse file as long as its header claims: still nothing is read before it is asked for, and then by rows."""
    size = 1 << 36
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw({"a": entry("U8", (1 << 20, 1 << 16), (0, size))}, b""))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert open_file(path).read_rows("a", 999_990, 1_000_000).shape == (10, 1 << 16)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_a_long_header_costs_little(tmp_path: Path) -> None:
    """10,000 tensors, more than any published shard has, in well under a second."""
    header = {f"model.layers.{i}.mlp.up_proj.weight": entry(offsets=(8 * i, 8 * i + 8)) for i in range(10_000)}
    (tmp_path / "m.safetensors").write_bytes(raw(header, bytes(80_000)))
    assert len(open_file(tmp_path / "m.safetensors").tensors) == 10_000


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("change", [grow, cut])
def test_a_file_that_changes_while_open(change: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw({"a": entry()}))
    file = open_file(path)
    change(path)
    with pytest.raises(CheckpointError, match="changed while it was being read"):
        file.read("a")


def test_what_is_no_file(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.safetensors")  # would hang a reader that waits for a writer
    with pytest.raises(CheckpointError, match="not a regular file"):
        open_file(tmp_path / "pipe.safetensors")
    with pytest.raises(CheckpointError, match="cannot be opened: No such file"):
        open_file(tmp_path / "absent.safetensors")


@hypothesis_settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 200), value=st.integers(0, 255))
def test_one_byte_changed_is_never_read_where_the_library_refuses(at: int, value: int, tmp_path: Path) -> None:
    content = bytearray(save({"a": torch.ones(2, 3), "b": torch.ones(4).half()}))
    content[at % len(content)] = value
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    try:
        ours = {name: open_file(path).read(name).tobytes() for name in open_file(path).tensors}
    except CheckpointError:
        return  # stricter than the library is allowed
    try:
        theirs = {name: bits(tensor).tobytes() for name, tensor in load_file(path).items()}
    except (SafetensorError, UnicodeDecodeError) as error:
        pytest.fail(f"read what the library refuses: {error}")
    assert ours == theirs
