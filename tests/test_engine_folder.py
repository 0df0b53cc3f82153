"""The engine folder: what goes in comes out, and whatever was changed is found and said in one line."""

from __future__ import annotations

import copy
import json
import random
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from allotrope.artifact import layout, manifest
from allotrope.artifact.engine import Engine, open_engine, rebuild_command
from allotrope.artifact.plan import Plan
from allotrope.errors import EngineError
from allotrope.hw.detect import detect
from allotrope.models.lower import lower
from tests import engine_kit


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    engine_kit.write(tmp_path / "engine")
    return tmp_path / "engine"


def refusal(path: Path, **options: Any) -> str:
    """The one line with which an engine is refused."""
    with pytest.raises(EngineError) as caught:
        open_engine(path, **options)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 600
    return text


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = engine_kit.load(path)
    change(data)
    engine_kit.store(path, data)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_weights_come_back_bit_for_bit(tmp_path: Path, dtype: str) -> None:
    weights = engine_kit.write(tmp_path / "e", dtype=dtype)
    opened = open_engine(tmp_path / "e", check_digests=True)
    assert opened.manifest.plan == lower(engine_kit.RECIPE, dtype)
    for name, values in weights.items():
        assert opened.dtype(name) == dtype
        assert np.array_equal(opened.array(name).view(np.uint8), values.view(np.uint8)), name
        assert opened.array(name).ctypes.data % min(64, opened.array(name).itemsize) == 0


def test_the_safetensors_library_reads_the_files(engine: Path) -> None:
    """Another implementation's opinion of our files."""
    weights = engine_kit.packed(lower(engine_kit.RECIPE, "fp32"))
    (path,) = (engine / "weights").iterdir()
    with safe_open(path, framework="numpy") as file:
        assert set(file.keys()) == set(weights)
        for name, values in weights.items():
            assert np.array_equal(file.get_tensor(name), values)
    header = int.from_bytes(path.read_bytes()[:8], "little")
    assert (8 + header) % 64 == 0


def test_sharded_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "SHARD_BYTES", 8192)
    weights = engine_kit.write(tmp_path / "e")
    assert len(list((tmp_path / "e" / "weights").iterdir())) > 3
    opened = open_engine(tmp_path / "e", check_digests=True)
    assert all(np.array_equal(opened.array(name), values) for name, values in weights.items())


def test_opening_needs_no_torch_and_wrapping_gives_no_warning(engine: Path) -> None:
    code = (
        "import sys; from allotrope.artifact.engine import open_engine\n"
        f"engine = open_engine({str(engine)!r}); print('torch' in sys.modules)\n"
        "import torch; t = torch.from_numpy(engine.array('embed.weight')); t[0, 0] = 5\n"
        f"print(open_engine({str(engine)!r}, check_digests=True).array('embed.weight')[0, 0] == 5)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-O", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.stdout.split(), done.stderr) == (["False", "False"], "")


def test_arrays_are_views_of_one_mapping_and_can_be_let_go(engine: Path) -> None:
    opened = open_engine(engine)
    first, again = opened.array("embed.weight"), opened.array("embed.weight")
    assert np.shares_memory(first, again)
    expected = first.copy()
    opened.forget()
    assert np.array_equal(first, expected)


def test_engine_json_is_plain_and_diffable(engine: Path) -> None:
    text = (engine / "engine.json").read_text(encoding="utf-8")
    assert json.loads(text)["family"] == "kit"
    assert len(text.splitlines()) > 100


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def test_a_bit_flip_anywhere_is_found(engine: Path, tmp_path: Path) -> None:
    chance = random.Random(0)
    (shard,) = (engine / "weights").iterdir()
    header = 8 + int.from_bytes(shard.read_bytes()[:8], "little")
    files = [path for path in engine.rglob("*") if path.is_file()]
    assert len(files) == 3
    for path in files:
        size = path.stat().st_size
        edges = [0, 7, header - 1, header, size - 1] if path == shard else [0, size - 1]
        for place in edges + [chance.randrange(size) for _ in range(25)]:
            original = path.read_bytes()
            flip(path, place * 8 + chance.randrange(8))
            at_once = path.name == "engine.json" or (path == shard and place < header)
            text = refusal(engine, check_digests=not at_once)
            assert str(engine) in text
            path.write_bytes(original)
    open_engine(engine, check_digests=True)


def test_truncated_and_missing_files(engine: Path) -> None:
    for path in [path for path in engine.rglob("*") if path.is_file()]:
        original = path.read_bytes()
        for cut in (original[:-1], original[: len(original) // 2], original + b" ", b""):
            path.write_bytes(cut)
            text = refusal(engine)
            assert path.name in text
        path.unlink()
        assert "incomplete build" in refusal(engine)
        path.write_bytes(original)
    open_engine(engine)


def test_what_is_no_engine(tmp_path: Path, engine: Path) -> None:
    assert "no such engine folder" in refusal(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert "not an engine (no engine.json)" in refusal(tmp_path / "empty")
    shutil.copytree(engine, tmp_path / ".e.tmp-123-deadbeef")
    assert "incomplete build" in refusal(tmp_path / ".e.tmp-123-deadbeef")
    (engine / "engine.json").write_bytes(b"[" * 100_000)
    assert "not valid JSON" in refusal(engine)
    (engine / "engine.json").write_bytes(b"[]")
    assert "not a JSON object" in refusal(engine)


def test_other_schemas_and_fields(engine: Path) -> None:
    original = engine_kit.load(engine)
    engine_kit.store(engine, {**original, "schema": 1})
    assert "schema version 1, this Allotrope reads 3; another version built it; build it again" in refusal(engine)
    engine_kit.store(engine, {**original, "extra": 1})
    assert "unknown field 'extra'" in refusal(engine)
    engine_kit.store(engine, {name: value for name, value in original.items() if name != "limits"})
    assert "missing field 'limits'" in refusal(engine)
    text = (engine / "engine.json").read_text(encoding="utf-8")
    (engine / "engine.json").write_text(text.replace('"family"', '"schema": 2, "family"', 1), encoding="utf-8")
    assert "not valid JSON" in refusal(engine)  # a duplicate key


def test_another_machine_refuses_with_both_values_and_the_command(engine: Path) -> None:
    here = detect("cpu")
    text = refusal(engine, device=replace(here, arch="arm64-asimd"))
    assert here.arch in text and "'arm64-asimd'" in text
    assert f"allotrope build random:kit -o {engine}" in text
    text = refusal(engine, device=replace(here, features=("sse2",)))
    assert "'sse2'" in text


def test_another_driver_warns_once(engine: Path) -> None:
    with pytest.warns(UserWarning, match="same results, perhaps other speeds") as seen:
        open_engine(engine, device=replace(detect("cpu"), name="Another Name"))
    assert len(seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_engine(engine)


def test_another_tactic_version_refuses(engine: Path) -> None:
    edit(engine, lambda data: data["tactics"].update({"linear/reference": 7}))
    text = refusal(engine)
    assert "linear/reference was version 7, is 1" in text and "allotrope build" in text
    edit(engine, lambda data: data["tactics"].update({"linear/reference": 1, "linear/nobody_knows": 1}))
    assert "nobody_knows" in refusal(engine)


LIES: dict[str, Callable[[dict[str, Any]], None]] = {
    "weight shape": lambda d: d["plan"]["weights"]["embed.weight"]["parts"][0].__setitem__(1, [2**31 - 1, 2**13]),
    "overflowing shape": lambda d: d["plan"]["weights"]["embed.weight"]["parts"][0].__setitem__(1, [2**70, 24]),
    "negative shape": lambda d: d["plan"]["weights"]["embed.weight"]["parts"][0].__setitem__(1, [-99, 24]),
    "boolean size": lambda d: d["plan"]["weights"]["embed.weight"]["parts"][0].__setitem__(1, [True, 24]),
    "packing": lambda d: d["plan"]["weights"]["embed.weight"].update(packing="zigzag"),
    "no parts": lambda d: d["plan"]["weights"]["embed.weight"].update(parts=[]),
    "dtype": lambda d: d["plan"].update(dtype="fp12"),
    "other dtype": lambda d: d.update(dtype="bf16"),
    "buffer width": lambda d: d["plan"]["buffers"]["x"].update(width=2**30),
    "wide buffer": lambda d: d["plan"]["buffers"]["acted"].update(width=2**62),
    "part outside": lambda d: d["plan"]["buffers"]["q"].update(of="x", start=20),
    "layers": lambda d: d["plan"]["cache"].update(dtypes=["compute"] * 60_000),
    "heads": lambda d: d["plan"]["cache"].update(kv_heads=60_000),
    "vocabulary": lambda d: d["plan"].update(vocab=10**30),
    "length": lambda d: d["limits"].update(max_len=65),
    "batch": lambda d: d["limits"].update(max_batch=10**12),
    "op": lambda d: d["plan"]["calls"][0].update(op="os.system"),
    "operand": lambda d: d["plan"]["calls"][0]["ins"].pop("ids"),
    "parameter": lambda d: d["plan"]["calls"][1]["params"].update(surprise=1),
    "slot": lambda d: d["plan"]["calls"][1]["ins"].update(x="b:nowhere"),
    "tactic": lambda d: d["plan"]["calls"][0].update(tactics=[[None, "../../evil"]]),
    "row bounds": lambda d: d["plan"]["calls"][0].update(tactics=[[8, "reference"]]),
    "file": lambda d: d["files"].update({"../../etc/passwd": {"bytes": 1, "digest": "", "tensors": {}}}),
    "absolute file": lambda d: d["files"].update({"/etc/passwd": {"bytes": 1, "digest": "", "tensors": {}}}),
    "no weights": lambda d: d.update(files={}),
    "call's form": lambda d: d["plan"]["calls"][0].update(surprise=1),
    "plan's form": lambda d: d.update(plan={"calls": []}),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_with_a_fitting_digest_are_refused(engine: Path, lie: str) -> None:
    """Nothing is mapped or allocated because engine.json says so."""
    edit(engine, LIES[lie])
    assert str(engine) in refusal(engine)


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] + [leaf for key, item in items for leaf in _leaves(item, (*path, key))]


def test_any_value_may_be_replaced_by_any_other(engine: Path) -> None:
    """Whatever one puts anywhere into the plan: a typed error, or an engine; never another exception."""
    original = engine_kit.load(engine)
    chance = random.Random(1)
    places = [place for place in _leaves(original) if len(place) > 1 or place[:1] not in ((), ("digest",))]
    for _ in range(400):
        data, place = copy.deepcopy(original), chance.choice(places)
        holder: Any = data
        for key in place[:-1]:
            holder = holder[key]
        holder[place[-1]] = chance.choice([None, -1, 0, 2**80, 1.5, "", "w:x", [], {}, [[]], True, {"a": []}])
        engine_kit.store(engine, data)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert isinstance(open_engine(engine), Engine)
        except EngineError as error:
            assert "\n" not in str(error)


def test_a_plan_survives_its_json(engine: Path) -> None:
    plan = open_engine(engine).manifest.plan
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert manifest.read(engine) == open_engine(engine).manifest


def test_the_command_that_builds_it_anew_has_the_options_that_make_it_what_it_is(tmp_path: Path) -> None:
    described = replace(
        engine_kit.describe(lower(engine_kit.RECIPE, "fp32")),
        options={"weights": "int4", "group_size": 64, "kv": "int8", "dtype": "auto"},
    )
    said = rebuild_command(described, tmp_path / "an engine")
    asked = f"allotrope build random:kit -o '{tmp_path}/an engine' --weights int4 --group-size 64 --kv int8"
    assert said == f"rebuild it: {asked}"
    kept = replace(described, options={"keep": ["blocks.0.*=wide"], "asymmetric": True, "max_len": None})
    assert rebuild_command(kept, Path("e")).endswith("-o e --asymmetric --keep 'blocks.0.*=wide'")
