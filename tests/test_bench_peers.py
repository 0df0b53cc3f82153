"""What peers are compared in and by: formats, words, conversions, memory; the real ones where they are installed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from allotrope import settings
from allotrope.artifact.engine import open_engine
from allotrope.bench import catalogue, exported, floor, runners, tables
from allotrope.bench.agreement import agreement, words
from allotrope.bench.catalogue import PEERS, Peer
from allotrope.bench.converted import converted
from allotrope.bench.grid import Cell
from allotrope.bench.peers import worker
from allotrope.bench.precision import formats, precision
from allotrope.bench.runners import Runner
from allotrope.bench.workers import WorkerFailed
from allotrope.cli import main
from allotrope.errors import CheckpointError
from allotrope.hw.peaks import Ceilings
from allotrope.models.model import open_model
from tests.peers_kit import made_up
from tests.tiny import tiny
from tests.verifying import Forge

pytestmark = pytest.mark.usefixtures("one_thread")


def likeliest(*known: dict[str, float]) -> object:
    """What an engine thinks of each place where texts part."""

    def score(texts: list[list[int]]) -> list[dict[str, float]]:
        assert len(texts) == len(known)
        return list(known)

    return score


def test_where_texts_part_the_margin_decides() -> None:
    prompts, ours = [[1, 2], [3, 4], [5, 6]], [[7, 8, 9], [7, 8, 9], [7, 8, 9]]
    same = agreement(prompts, ours, ours, likeliest(), "fp32")  # type: ignore[arg-type]
    assert same["equal"] == 3 and not same["different"] and words(same) == "all 3 tokens equal"
    parting = likeliest({"8": -1.0, "4": -1.5})
    for bits, different in (("fp32", True), ("8", False)):
        found = agreement(prompts, ours, [[7, 4, 4], *ours[1:]], parting, bits)  # type: ignore[arg-type]
        assert found["first_divergence"] == 1 and found["margin_nats"] == pytest.approx(0.5)
        assert found["different"] == different, bits
    unlikely = likeliest({"7": 0.0}, {"7": 0.0}, {"7": 0.0})
    for wrong, different in ((1, False), (3, True)):
        theirs = [[99, 8, 9] if i < wrong else ours[i] for i in range(3)]
        score = unlikely if wrong == 3 else likeliest({"7": 0.0})
        found = agreement(prompts, ours, theirs, score, "4")  # type: ignore[arg-type]
        assert found["unlikely"] == wrong and found["different"] == different


@pytest.mark.parametrize(
    ("peer", "bits", "wide", "device", "forms"),
    [
        ("llama.cpp", "16", "fp16", "cpu", ("f16", "bf16")),
        ("llama.cpp", "16", "bf16", "cpu", ("bf16",)),
        ("llama.cpp", "8", "fp16", "cpu", ("q8_0",)),
        ("hf", "16", "fp16", "cpu", ("bf16",)),
        ("hf", "16", "fp16", "cuda", ("fp16",)),
        ("vllm", "16", "bf16", "cuda", ("bf16",)),
    ],
)
def test_like_is_compared_with_like(peer: str, bits: str, wide: str, device: str, forms: tuple[str, ...]) -> None:
    assert PEERS[peer].forms_for(bits, wide, device) == forms


@pytest.mark.parametrize(
    ("peer", "bits", "kind", "beams", "reason"),
    [
        ("llama.cpp", "8", "opt", 1, "no architecture that computes what a opt model does"),
        ("ctranslate2", "4", "llama", 1, "no weights of 4 bits on a CPU"),
        ("onnxruntime", "16", "llama", 1, "no weights of 16 bits for a CPU"),
        ("hf", "8", "gpt2", 1, "this model's layers are another class"),
        ("llama.cpp", "8", "llama", 4, "no beam search"),
        ("vllm", "16", "llama", 1, "it is compared on a GPU, and this is none"),
        ("llama.cpp", "8", "llama", 1, None),
    ],
)
def test_a_peer_says_why_it_stays_away(peer: str, bits: str, kind: str, beams: int, reason: str | None) -> None:
    said = PEERS[peer].why_not(bits, "cpu", kind, beams)
    assert (said is None) if reason is None else (said is not None and reason in said)


def test_environments_are_pinned() -> None:
    for peer in PEERS.values():
        lines = [line for line in peer.requirements.read_text().splitlines() if line and not line.startswith("#")]
        assert any(peer.package.replace("_genai", "").replace("_cpp", "") in line for line in lines), peer.name
        assert all(re.match(r"[\w.\-\[\]]+(==[\w.]+( --config-settings=.+)?)?$", line) for line in lines), peer.name
        assert (catalogue.SCRIPTS / f"{peer.script}.py").is_file()


def test_what_an_engine_is_in(forge: Forge) -> None:
    plan = open_engine(forge.built("llama")).manifest.plan
    assert formats(plan) == {"weights": "fp32", "activations": "fp32", "kv": "fp32"}
    bits = {"fp32": "fp32", "bf16": "16", "fp16": "16", "int8": "8", "fp8": "8", "int4": "4"}
    assert {form: precision(form) for form in bits} == bits
    found = floor.floors(plan, Cell(2, 8, 3), Ceilings(1e9, {"fp32": 1e12}, {}, 1, "now"))
    weights = sum(facts.bytes for facts in open_engine(forge.built("llama")).manifest.files.values())
    assert 0.5 * weights < found.decode.bytes / 2 < 1.2 * weights, "two steps read the weights twice"
    assert found.prefill.seconds == pytest.approx(found.prefill.bytes / 1e9)
    cached = Ceilings(1e9, {"fp32": 1e12}, {}, 1, "now", {"1000": 8e9, "1000000000": 8e9})
    assert floor.floors(plan, Cell(2, 8, 3), cached).decode.seconds == pytest.approx(found.decode.bytes / 8e9)


def test_what_does_not_fit_together_comes_in_groups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(runners, "_BESIDE", 0)
    (tmp_path / "model").write_bytes(bytes(300))

    def runner(name: str, reason: str | None = None) -> Runner:
        return Runner(name, "x", "fp32", folder=tmp_path, peer=PEERS["llama.cpp"], reason=reason)

    peers = [runner("a"), runner("b", "absent"), runner("c"), runner("d")]
    found = runners.groups(Runner("ours", "ours", None, folder=tmp_path), peers, free=1000)
    assert [[one.name for one in group] for group in found] == [["a"], ["c"], ["d"]]
    assert len(runners.groups(Runner("ours", "ours", None, folder=tmp_path), peers, free=10**6)) == 1


@pytest.mark.parametrize("kind", ["decicoder", "gpt2", "galactica"])
def test_what_peers_read_is_the_same_model(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the names of the class that computes the same, in shards, with a word per row of the embedding."""
    import torch
    import transformers

    from allotrope.hw.detect import detect
    from allotrope.verify.oracle import LOGITS
    from allotrope.verify.original import oracle

    monkeypatch.setattr(exported, "_SHARD", 30_000)
    model = open_model(str(tiny(kind, tmp_path / kind, seed=3)))
    folder = exported.exported(model)
    assert exported.exported(model) == folder and len(list(folder.glob("*.safetensors"))) > 1
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = [5, 9, 70, 33, 8]
    truth = oracle(model, "fp32", detect("cpu")).walk([prompt], {})[LOGITS]
    with torch.no_grad():
        torch.testing.assert_close(theirs(torch.tensor([prompt])).logits[0], truth)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == model.recipe.vocab
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == {"decicoder": "llama", "galactica": "opt"}.get(kind, kind)


def test_of_a_short_go_what_its_threads_waited_for_is_known() -> None:
    """/proc's hundredths of a second say nothing of a few milliseconds."""
    assert worker._foreign((10.0, 1.0, 0.5), (10.02, 1.01, 0.503), 0.01) == pytest.approx(0.3)
    assert worker._foreign((10.0, 1.0, 0.5), (12.0, 2.0, 0.5), 2.0) == pytest.approx(0.5)
    assert worker._foreign(None, (1.0, 1.0, 0.0), 1.0) == 0 and worker._waited() >= 0


def test_notes_name_everybody() -> None:
    absent = {"reason_absent": "not installed; run: x", "latency_ms": None, "foreign": None}
    cell = {"batch": 1, "input": 2, "output": 3, "best_peer": None, "foreign": 0.9, "peers": {"vllm": absent}}
    said = " ".join(tables.notes({"cells": [cell], "peers": {"vllm": {}}}))
    assert "vllm is absent: not installed; run: x" in said and "the machine was not idle" in said


def installed() -> Sequence[str]:
    return [name for name, peer in PEERS.items() if peer.own and (settings.peers_dir() / peer.environment).is_dir()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2", "qwen3"])
def test_every_installed_peer_says_the_same(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`make peers` first, or ALLOTROPE_PEERS."""
    if not installed():
        pytest.skip("no peer is installed (make peers)")
    config = {
        "gpt2": {"n_embd": 128, "n_head": 4, "n_layer": 2, "n_positions": 256, "vocab_size": 512},
    }.get(kind) or {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
        "max_position_embeddings": 256,
        "vocab_size": 512,
    }
    source = tiny(kind, tmp_path / kind, **config)
    asked = ("--tune", "off", "--cell", "3:40,8", "--repeat", "1", "--against", ",".join(installed()), "--json")
    assert main(["bench", str(source), *asked, "-o", str(tmp_path / "kept")]) == 0
    (cell,) = json.loads(capsys.readouterr().out)["cells"]
    present = {name: one for name, one in cell["peers"].items() if one["reason_absent"] is None}
    assert present and not any(one["different"] for one in present.values())


def test_what_a_converter_leaves_in_temporary_files_goes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up(tmp_path, monkeypatch, {"litters": {}})
    source, elsewhere = tmp_path / "kept" / "hf", tmp_path / "elsewhere"
    for folder in (source, elsewhere):
        folder.mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(elsewhere))
    folder, seconds = converted(catalogue.PEERS["litters"], "fp32", source, Path(sys.executable), 1, print)
    assert (folder / "model").read_text() == "fp32" and seconds is not None
    assert sorted(path.name for path in source.parent.iterdir()) == ["hf", "litters-fp32"]
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize(("free", "told"), [(100, True), (1 << 40, False)])
def test_a_conversion_that_failed_on_a_full_disk_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, told: bool
) -> None:
    made_up(tmp_path, monkeypatch, {"refuses": {"refuses": True}})
    source = tmp_path / "kept" / "hf"
    source.mkdir(parents=True)
    (source / "model.safetensors").write_bytes(bytes(5000))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    with pytest.raises(WorkerFailed, match="refuses's converter ended: it has no such architecture") as failed:
        converted(catalogue.PEERS["refuses"], "fp32", source, Path(sys.executable), 1, print)
    assert ("(100 B are left on the disk, the model has 5 kB)" in str(failed.value)) == told
    assert [path.name for path in source.parent.iterdir()] == ["hf"]


def test_a_peer_s_environment_is_known_by_all_that_is_in_it(tmp_path: Path) -> None:
    python, packages = tmp_path / "bin" / "python", tmp_path / "lib" / "python3.11" / "site-packages"
    assert catalogue.installed(PEERS["openvino"], None) == catalogue.installed(PEERS["openvino"], python) == ""
    seen = []
    for name in ("openvino_genai-2026.4.1.0", "openvino_genai_extra-1.0", "openvino-2026.4.1", "numpy-2.4"):
        packages.joinpath(f"{name}.dist-info").mkdir(parents=True)
        seen.append(catalogue.installed(PEERS["openvino"], python))
    assert len(set(seen)) == 4 and all(one.startswith("openvino_genai-2026.4.1.0 ") for one in seen)


def test_one_of_two_that_convert_the_same_waits_for_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up(tmp_path, monkeypatch, {"slow": {"late": 0.5}})
    source, said = tmp_path / "kept" / "hf", list[str]()
    source.mkdir(parents=True)
    asked = (catalogue.PEERS["slow"], "fp32", source, Path(sys.executable), 1, said.append)
    with ThreadPoolExecutor(2) as pool:  # each lock is a file's own, so threads are as good as processes
        folders = [one.result()[0] for one in [pool.submit(converted, *asked) for _ in range(2)]]
    assert folders[0] == folders[1] and (folders[0] / "model").read_text() == "fp32"
    assert [path.name for path in sorted(source.parent.iterdir())] == ["hf", "slow-fp32"]


def test_an_export_that_finds_no_room_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model(str(tiny("llama", tmp_path / "model")))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exported, "_write_weights", full)
    said = r"cannot be written for the peers: .*No space left on device; .* are left"
    with pytest.raises(CheckpointError, match=said):
        exported.exported(model)
    assert not list(exported.conversions(model.checkpoint.digest()).iterdir())


def test_a_peer_that_cannot_be_converted_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up(tmp_path, monkeypatch, {"one": {}, "other": {}})

    def kept(peer: Peer, *_: object) -> tuple[Path, float]:
        if peer.name == "one":
            raise OSError(30, "Read-only file system")
        return tmp_path, 0.0

    monkeypatch.setattr(runners, "converted", kept)
    peers = tuple(catalogue.PEERS[name] for name in ("one", "other"))
    wanted = runners.Wanted(peers, tmp_path, "fp32", "fp32", "cpu", "llama", 1, 1)
    one, other = runners.candidates(wanted, lambda: tmp_path, print)
    assert one.absent == "failed" and "Read-only" in str(one.reason)
    assert other.reason is other.absent is None and other.folder == tmp_path


def test_a_converter_ends_with_whoever_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up(tmp_path, monkeypatch, {"slow": {"late": 60}})
    script = catalogue.PEERS["slow"].script
    code = (
        "import sys, threading, time; from pathlib import Path; from allotrope.bench.workers import Worker\n"
        f"w = Worker('x', Path(sys.executable), {script!r}, threads=1); print(w.pid, flush=True)\n"
        f"w.ask('convert', source='', target={str(tmp_path)!r}, form='fp32')\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, process_group=0)
    assert parent.stdout is not None
    child = Path("/proc") / parent.stdout.readline().strip()
    time.sleep(1.0)  # by then it is at work
    assert child.exists()
    parent.kill()
    parent.wait()
    for _ in range(100):
        if not child.exists() or "\nState:\tZ" in child.joinpath("status").read_text():
            break
        time.sleep(0.05)
    else:
        pytest.fail("it goes on")
