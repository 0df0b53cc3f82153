"""Checkpoint folders: what opens, and the sentence for everything that does not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from allotrope.errors import AllotropeError, CheckpointError
from allotrope.models.readers.hf_folder import FileCheckpoint
from allotrope.models.readers.open import open_checkpoint
from allotrope.models.readers.safetensors_file import open_file

CONFIG = {"architectures": ["LlamaForCausalLM"], "eos_token_id": 2}
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def tensor(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float16)


def single(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file({"a": tensor(1, 4, 3), "b": tensor(2, 5)}, folder / "model.safetensors")
    return folder


def sharded(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file({"a": tensor(1, 4, 3), "b": tensor(2, 5)}, folder / ONE)
    save_file({"c": tensor(3, 2)}, folder / TWO)
    index(folder, {"a": ONE, "b": ONE, "c": TWO})
    return folder


def index(folder: Path, weight_map: object) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def refusal(ref: object) -> str:
    with pytest.raises(AllotropeError) as found:
        open_checkpoint(str(ref))
    assert found.value.exit_code == 2
    assert "\n" not in str(found.value)
    return str(found.value)


def test_single(tmp_path: Path) -> None:
    found = open_checkpoint(single(tmp_path / "m"))
    assert found.config == CONFIG
    assert found.generation == {}
    assert found.folder == tmp_path / "m"
    assert found.origin == str(tmp_path / "m")
    assert found.nbytes == 2 * (12 + 5)
    for name, expected in load_file(tmp_path / "m" / "model.safetensors").items():
        assert np.array_equal(found.read(name), expected)
    assert np.array_equal(found.read_rows("a", 1, 3), tensor(1, 4, 3)[1:3])


def test_sharded(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    found = open_checkpoint(folder)
    assert {name: info.shape for name, info in found.tensors.items()} == {"a": (4, 3), "b": (5,), "c": (2,)}
    for shard in (ONE, TWO):
        for name, expected in load_file(folder / shard).items():
            assert np.array_equal(found.read(name), expected)
    assert found.generation == {"eos_token_id": [2, 7]}


def test_digest_follows_headers_sizes_times_and_config(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    seen = [open_checkpoint(folder).digest()]
    assert open_checkpoint(folder).digest() == seen[0]
    os.utime(folder / TWO, ns=(1, 1))
    seen.append(open_checkpoint(folder).digest())
    (folder / "config.json").write_text(json.dumps({**CONFIG, "eos_token_id": 3}))
    seen.append(open_checkpoint(folder).digest())
    save_file({"c": tensor(3, 2, 1)}, folder / TWO)
    os.utime(folder / TWO, ns=(1, 1))
    seen.append(open_checkpoint(folder).digest())
    assert len(set(seen)) == 4


def test_pickles_and_other_layouts_beside_safetensors_are_left_alone(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    (folder / "pytorch_model.bin").write_bytes(b"never opened")
    save_file({"layers.0.w": tensor(1, 2)}, folder / "consolidated.safetensors")
    assert set(open_checkpoint(folder).tensors) == {"a", "b", "c"}


BAD_INDEX: dict[str, tuple[object, str]] = {
    "parent": ({"a": "../" + ONE}, f"tensor 'a' is said to lie in '../{ONE}', which is no plain"),
    "deep parent": ({"a": "x/../../" + ONE}, "which is no plain name"),
    "absolute": ({"a": "/etc/x.safetensors"}, "'/etc/x.safetensors', which is no plain name"),
    "url": ({"a": "https://host/x.safetensors"}, "which is no plain name"),
    "file url": ({"a": "file:x.safetensors"}, "'file:x.safetensors' is missing"),
    "backslash": ({"a": "..\\x.safetensors"}, "which is no plain name"),
    "NUL": ({"a": "x\0.safetensors"}, "is no plain file name"),
    "another kind": ({"a": "config.json"}, "'config.json', which is no plain name of a .safetensors file"),
    "pickle": ({"a": "x.bin"}, "no plain name of a .safetensors file"),
    "no text": ({"a": 3}, "said to lie in '3'"),
    "missing shard": ({"a": "x.safetensors"}, "'x.safetensors' is missing; download it again"),
    "extra shard": ({"a": ONE, "b": ONE}, f"{TWO} lies beside the shards, but {INDEX} does not name it"),
    "unnamed tensor": ({"a": ONE, "c": TWO}, f"tensor 'b' lies in {ONE}, but the index does not name it"),
    "absent tensor": ({"a": ONE, "b": ONE, "c": TWO, "d": TWO}, f"'d' is said to lie in {TWO}, which does not have it"),
    "wrong shard": ({"a": TWO, "b": ONE, "c": TWO}, f"tensor 'a' is said to lie in {TWO}, which does not have it"),
    "empty": ({}, "no weight_map in the index"),
    "a list": ([ONE], "no weight_map in the index"),
}


@pytest.mark.parametrize("case", BAD_INDEX)
def test_bad_index(case: str, tmp_path: Path) -> None:
    weight_map, message = BAD_INDEX[case]
    folder = sharded(tmp_path / "m")
    save_file({"a": tensor(1, 2)}, tmp_path / ONE)  # what `../` would find
    index(folder, weight_map)
    assert message in refusal(folder)


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    save_file({"c": tensor(3, 2), "b": tensor(2, 5)}, folder / TWO)
    assert f"tensor 'b' lies in {TWO}, but the index says {ONE}" in refusal(folder)


def test_no_checkpoint_is_born_with_a_tensor_twice(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    files = (open_file(folder / ONE), open_file(folder / ONE))
    with pytest.raises(CheckpointError, match=f"tensor 'a' is here and in {ONE} too"):
        FileCheckpoint("", folder, {}, {}, files)


def test_duplicate_name_in_the_index(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    (folder / INDEX).write_text(f'{{"weight_map": {{"a": "{ONE}", "a": "{TWO}"}}}}')
    assert "the key 'a' stands twice" in refusal(folder)


def test_a_broken_shard_is_named(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    (folder / TWO).write_bytes((folder / TWO).read_bytes()[:-1])
    assert refusal(folder).startswith(f"{folder / TWO}: truncated")


def test_several_files_without_index(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    (folder / INDEX).unlink()
    assert f"2 safetensors files ({ONE}, {TWO}) and no {INDEX}" in refusal(folder)


def test_links_out_of_the_folder(tmp_path: Path) -> None:
    """Each file that is read, in turn, is a link to a good one elsewhere."""
    elsewhere = sharded(tmp_path / "elsewhere")
    (elsewhere / "generation_config.json").write_text("{}")
    for i, name in enumerate((ONE, TWO, INDEX, "config.json", "generation_config.json")):
        folder = sharded(tmp_path / f"m{i}")
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(elsewhere / name)
        assert f"'{name}' is a link out of the folder" in refusal(folder)
        (folder / name).unlink()
        (folder / name).symlink_to(folder / "nowhere")
        assert f"'{name}' is a link that leads nowhere" in refusal(folder)
    folder = single(tmp_path / "one")
    (folder / "model.safetensors").rename(tmp_path / "outside")
    (folder / "model.safetensors").symlink_to(tmp_path / "outside")
    assert "'model.safetensors' is a link out of the folder" in refusal(folder)


def test_links_inside_the_folder_and_a_link_to_it(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    (folder / TWO).rename(folder / "blob")
    (folder / TWO).symlink_to("blob")
    (tmp_path / "link").symlink_to(folder)
    assert set(open_checkpoint(tmp_path / "link").tensors) == {"a", "b", "c"}


def test_the_download_cache(tmp_path: Path) -> None:
    """`snapshots/<revision>/x` may be a link into the same model's `blobs`, and into no other's."""
    repo = tmp_path / "models--org--name"
    folder = sharded(repo / "snapshots" / "0123abc")
    other = tmp_path / "models--org--other" / "blobs"
    for blobs in (repo / "blobs", other):
        blobs.mkdir(parents=True)
    for name in (ONE, TWO, INDEX, "config.json"):
        (folder / name).rename(repo / "blobs" / f"hash-{name}")
        (folder / name).symlink_to(f"../../blobs/hash-{name}")
    assert set(open_checkpoint(folder).tensors) == {"a", "b", "c"}
    assert "is a download cache, not a checkpoint; give one of the folders in its snapshots/" in refusal(repo)
    (repo / "blobs" / f"hash-{TWO}").rename(other / "hash")
    (folder / TWO).unlink()
    (folder / TWO).symlink_to(other / "hash")
    assert "is a link out of the folder" in refusal(folder)


BAD_JSON = {
    "truncated": (b'{"a": ', "not valid JSON: Expecting value"),
    "not utf-8": (b'{"a": "\xff"}', "not valid JSON: 'utf-8' codec"),
    "duplicate": (b'{"n_layer": 1, "n_layer": 2}', "the key 'n_layer' stands twice"),
    "NaN": (b'{"a": NaN}', "NaN is no number that JSON has"),
    "infinity": (b'{"a": [-Infinity]}', "-Infinity is no number that JSON has"),
    "1e999": (b'{"a": 1e999}', "the number 1e999 is not finite"),
    "5,000 digits": (b'{"a": ' + b"7" * 5000 + b"}", "not valid JSON: Exceeds the limit"),
    "deep": (b'{"a": ' + b"[" * 200_000, "nested too deeply"),
    "deep objects": (b'{"a": ' * 200_000, "nested too deeply"),
    "a list": (b"[1]", "not a JSON object"),
    "null": (b"null", "not a JSON object"),
    "too long": (b'{"a": "' + b"x" * (4 << 20) + b'"}', "4194313 bytes, over the bound of 4194304"),
}


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("case", BAD_JSON)
def test_bad_config(name: str, case: str, tmp_path: Path) -> None:
    content, message = BAD_JSON[case]
    folder = single(tmp_path / "m")
    (folder / name).write_bytes(content)
    assert refusal(folder).startswith(f"{folder / name}: ")
    assert message in refusal(folder)


def test_configs_that_are_no_files(tmp_path: Path) -> None:
    folder = single(tmp_path / "m")
    (folder / "config.json").unlink()
    assert "no config.json; give a folder in Hugging Face layout" in refusal(folder)
    (folder / "config.json").mkdir()
    assert "config.json: not a regular file" in refusal(folder)
    (folder / "config.json").rmdir()
    os.mkfifo(folder / "config.json")
    assert "config.json: not a regular file" in refusal(folder)


def empty(folder: Path) -> None:
    folder.mkdir()


def engine(folder: Path) -> None:
    folder.mkdir()
    (folder / "engine.json").write_text("{}")


def gguf(folder: Path) -> None:
    folder.mkdir()
    (folder / "model.gguf").write_bytes(b"GGUF")


def file(folder: Path) -> None:
    folder.write_bytes(b"x")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (empty, "no weights (*.safetensors) in this folder; download them again"),
        (engine, "is an engine, not a checkpoint; give the checkpoint that it was built from"),
        (gguf, "holds GGUF files, which are not read"),
        (file, "is a file, not a checkpoint; give the folder that holds it"),
        (lambda _: None, "no such folder; a checkpoint is a folder in Hugging Face layout, or random:SHAPE"),
    ],
)
def test_not_a_checkpoint(make: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    make(tmp_path / "m")
    assert refusal(tmp_path / "m") == f"{tmp_path / 'm'}: {message}" or message in refusal(tmp_path / "m")


def test_a_hub_name_gets_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    message = refusal("meta-llama/Llama-2-7b-hf")
    assert "run: hf download meta-llama/Llama-2-7b-hf --local-dir Llama-2-7b-hf" in message
    assert "hf download" not in refusal("./meta-llama/Llama-2-7b-hf")
    assert "hf download" not in refusal("/meta-llama/Llama-2-7b-hf")
    single(tmp_path / "org" / "name")
    assert open_checkpoint("org/name").origin == str(tmp_path / "org" / "name")


def test_unusable_paths() -> None:
    assert "no such folder" in refusal("")
    assert "File name too long" in refusal("x" * 5000)
    assert "'a\\x00b'" in refusal("a\0b")
    assert len(refusal("x" * 5000)) < 200


def test_a_path_with_spaces_and_unicode(tmp_path: Path) -> None:
    folder = single(tmp_path / ("ein Ordner – mit Ümlaut " + "x" * 200) / ("y" * 60))
    assert set(open_checkpoint(folder).tensors) == {"a", "b"}


def test_reading_an_unknown_tensor_is_a_key_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        open_checkpoint(single(tmp_path / "m")).read("nothing")
