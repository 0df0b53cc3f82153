"""The command line where stdout, the disk or a signal ends it: one line, the right code, nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from allotrope import tokenizers
from allotrope.build import build
from allotrope.errors import AllotropeError, CheckpointError, TokenizerError
from allotrope.models.readers.open import open_checkpoint
from tests.test_tokenizer_faults import small
from tests.tiny import rewrite_tensors, tiny


def run(*argv: str, flags: tuple[str, ...] = (), redirect: str = "") -> tuple[int, str]:
    words = [sys.executable, *flags, "-m", "allotrope", *argv]
    done = subprocess.run(["/bin/sh", "-c", f'"$@" {redirect}', "sh", *words], capture_output=True, check=False)
    return done.returncode, done.stderr.decode()


def test_a_closed_or_full_stdout() -> None:
    assert run("--help", redirect=">&-") == (0, "")
    assert run("inspect", "random:llama-15m", redirect=">&-") == (0, "")
    assert run("inspect", "random:llama-15m", redirect="> /dev/full") == (1, "allotrope: No space left on device\n")


def test_paths_too_long_for_any_system() -> None:
    for verb in ("inspect", "verify"):
        code, text = run(verb, "n" * 300)
        *progress, last = text.splitlines()
        assert code in (1, 2) and last.startswith("allotrope: ") and os.strerror(errno.ENAMETOOLONG) in last
        assert all(line.startswith("verifying: ") for line in progress), "on a busy machine it says that it lives"


def test_sigterm_leaves_nothing_half_written(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "allotrope", "build", "random:llama-15m", "-o", str(tmp_path / "e"), "--quiet"]
    with subprocess.Popen(argv, stderr=subprocess.PIPE) as process:
        until = time.monotonic() + 30
        while not list(tmp_path.glob(".e.tmp-*")) and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, text = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM and b"Traceback" not in text
    assert list(tmp_path.iterdir()) == []


SWALLOWED = """
import os, signal, time
from allotrope import cli

class Deaf:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(100):
            time.sleep(0.001)

def main():
    Deaf()
    try:
        time.sleep(20)
    finally:
        time.sleep(1.2)
        print("removed", flush=True)
    return 0

cli.main = main
cli.entry()
"""


def test_sigterm_is_raised_again_where_it_was_swallowed_and_never_while_it_cleans() -> None:
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-c", SWALLOWED], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, "removed\n")
    assert time.monotonic() - begin < 15 and done.stderr.startswith("Exception ignored in: <function Deaf.__del__")


def test_a_warning_is_one_line_and_an_error_if_asked(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    folder = tiny("llama", tmp_path / "ck")

    def damage(tensors: dict) -> dict:
        tensors[name][3, 4] = float("nan")
        return tensors

    rewrite_tensors(folder, damage)
    argv = ("build", str(folder), "-o", str(tmp_path / "e"), "--tune", "off", "--quiet", "--allow-nan")
    argv += ("--device", "cpu")
    code, text = run(*argv)
    assert (code, text.count("\n")) == (0, 1) and text.startswith("allotrope: warning: ") and name in text
    code, text = run(*argv, flags=("-W", "error"))
    assert code == 1 and "Traceback" not in text and name in text.splitlines()[-1]


def test_an_unusable_tokenizer_is_said_before_anything_is_built(tmp_path: Path) -> None:
    folder = tiny("llama", tmp_path / "ck")
    for content in (b"", b"[]", b'{"a":' * 10**5, b"\xff", json.dumps(small(model=None)).encode()):
        (folder / "tokenizer.json").write_bytes(content)
        with pytest.raises(TokenizerError, match=r"^tokenizer.json: "):
            build(str(folder), tmp_path / "e", tune="off")
    assert [path.name for path in tmp_path.iterdir()] == ["ck"]


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "tokenizer_config.json"])
def test_tokenizer_files_are_not_followed_out_of_the_folder(tmp_path: Path, name: str) -> None:
    """Else a checkpoint could have any file of this machine copied into an engine, and shown to a model."""
    folder = tmp_path / "ck"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(small()), encoding="utf-8")
    (tmp_path / "secret").write_text((folder / "tokenizer.json").read_text(encoding="utf-8"), encoding="utf-8")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("../secret")
    for read in (tokenizers.load, tokenizers.files):
        with pytest.raises(TokenizerError, match=rf"^{name}: is a link out of the folder, to .*secret; copy the file"):
            read(folder)


def test_tokenizer_files_of_a_download_cache_are_followed(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "abc").write_text(json.dumps(small()), encoding="utf-8")
    (tmp_path / "snapshots" / "1").mkdir(parents=True)
    (tmp_path / "snapshots" / "1" / "tokenizer.json").symlink_to("../../blobs/abc")
    assert tokenizers.load(tmp_path / "snapshots" / "1").encode("ab") == [2]
    assert len(tokenizers.files(tmp_path / "snapshots" / "1")) == 1


@pytest.mark.parametrize("shard", ["a" * 300 + ".safetensors", "\ud800.safetensors"])
def test_an_index_with_names_that_no_file_can_have(tmp_path: Path, shard: str) -> None:
    folder = tiny("llama", tmp_path)
    index = {"weight_map": {"x": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(CheckpointError, match="is no plain file name inside the folder") as caught:
        open_checkpoint(folder)
    assert len(str(caught.value)) < 500


def test_a_message_is_one_line_that_ends() -> None:
    text = str(AllotropeError("a\nb\x1b[31m\ud800" + "x" * 10**6, where="p\r\nq", remedy="r\0s"))
    assert text.startswith(r"p\r\nq: a\nb\x1b[31m\ud800xxx") and text.endswith(r"xxx; r\x00s") and "…" in text
    assert text.isprintable() and len(text) < 600
    assert str(AllotropeError("naïve – 模型")) == "naïve – 模型"


def test_available_memory_knows_the_process_s_own_limit() -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))\n"
        "from allotrope.hw.detect import available_memory; print(available_memory())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < 2**30
