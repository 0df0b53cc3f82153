"""What users ask of formats that cannot be, or that another run has changed meanwhile, is said in one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from allotrope import cli, settings
from allotrope.build import build, cached, narrowing
from allotrope.build import calibration as texts
from allotrope.build.options import BuildOptions
from allotrope.errors import BuildError, UsageError
from allotrope.models.model import open_model
from allotrope.quant.finished import Finished
from tests.narrow_kit import QUICK, checkpoint
from tests.quantised_folder import quantised
from tests.test_builder import LLAMA, shape
from tests.test_quantised_models import STORED
from tests.verifying import VOCAB

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path) -> Iterator[None]:
    with settings.keeping_in(tmp_path / "cache"):
        yield


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"weights": ["int8"]}, r"weights is \['int8'\]"),
        ({"weights": "int8", "keep": 5}, r"keep is \[5\]"),
        ({"weights": "int8", "keep": {"blocks.0.*": "wide"}}, "give PATTERN=FORMAT, or a list of them"),
        ({"weights": "int4", "group_size": 32.0}, "group_size is 32.0"),
        ({"weights": "int8", "group_size": 0}, "group size is 0; it must be one of 32, 64, 128"),
        ({"weights": "int4", "calibration": 5}, "calibration is 5"),
    ],
)
def test_words_of_the_wrong_type(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        BuildOptions.of(**given)


def test_no_group_size_is_not_group_size_zero(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", "random:llama-15m", "--weights", "int8", "--group-size", "0"]) == 2
    assert cli.main(["inspect", "random:llama-15m", "--group-size", "0"]) == 2
    assert capsys.readouterr().err.count("--group-size is 0, but") == 1


def test_a_text_is_named_by_a_path_too(tmp_path: Path) -> None:
    assert BuildOptions.of(calibration=tmp_path / "text").calibration == str(tmp_path / "text")
    with pytest.raises(UsageError, match="cannot be read: embedded null byte"):
        texts.text_of("a\0b")


def test_a_bound_on_nothing(tmp_path: Path) -> None:
    """--max-kl widens what codes cost; where there are none of ours, it would hold nothing."""
    source = str(checkpoint("llama", tmp_path / "ckpt"))
    for given in ({}, {"weights": "fp16"}, {"kv": "int8"}, {"weights": "int8", "keep": "*=wide"}):
        with pytest.raises(UsageError, match="but no weights are to be quantised; add --weights int8"):
            build(source, tmp_path / "engine", max_kl=0.1, **given, **QUICK)
    codes = quantised("llama", tmp_path / "codes", STORED["gptq"])
    with pytest.raises(UsageError, match="but the weights are quantised already; leave it out"):
        build(str(codes), tmp_path / "engine", max_kl=0.1, **QUICK)


def test_too_few_sequences_for_a_bound_are_said_before_the_work(tmp_path: Path) -> None:
    asked = {"weights": "int4", "max_kl": 0.1, "calibration_tokens": 512, **QUICK}
    with pytest.raises(UsageError, match="there are 1; give --calibration-tokens 1536 or more"):
        build("random:llama-15m", tmp_path / "engine", **asked)
    assert not (tmp_path / "cache" / "calibration").exists()


def test_calibration_without_a_tokenizer(tmp_path: Path) -> None:
    """Whoever says how many tokens is told why none can be read; random models are calibrated on random ones."""
    source, asked = str(checkpoint("llama", tmp_path / "ckpt")), {"weights": "int8", "activations": "int8", **QUICK}
    with pytest.raises(UsageError, match="tokenizer cannot read the calibration text: no tokenizer; mend"):
        build(source, tmp_path / "engine", calibration_tokens=512, **asked)
    narrow = build(shape(tmp_path), tmp_path / "engine", calibration_tokens=512, **asked)
    assert narrow.manifest.evidence["quantisation"]["calibration"]["text"] == "random"


def test_documents_are_parted_by_a_form_feed_whatever_ends_a_line(tmp_path: Path) -> None:
    source = checkpoint("llama", tmp_path / "ckpt")
    (source / "bytes.json").write_text(json.dumps({"vocab_size": VOCAB}))
    model, parted = open_model(source), ("\f", "\f\n", "\f\r\n")
    first, *others = (texts._encoded(model, f"ab{page}cd\n", "text") for page in parted)
    assert others == [first, first] and len(first) == 2 * (1 + 2) + 1


def test_a_kept_engine_is_of_the_text_as_it_is_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, text = str(checkpoint("llama", tmp_path / "ckpt")), tmp_path / "text"
    monkeypatch.setattr(texts, "_encoded", lambda model, text, where: [ord(char) % 100 + 3 for char in text] * 200)
    asked = {"weights": "int4", "method": "gptq", "calibration": str(text), "calibration_tokens": 512, **QUICK}
    text.write_text("graphite")
    first = cached(source, **asked)
    assert cached(source, **asked) == first
    text.write_text("diamonds")
    assert cached(source, **asked) != first
    other = text.rename(text.with_name("other"))
    other.write_text("graphite")
    assert cached(source, **asked | {"calibration": str(other)}) == first


@pytest.mark.parametrize("content", [b"", b"PK\3\4 cut off"])
def test_a_finished_block_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "blocks.0.npz").write_bytes(content)
    assert Finished.read(tmp_path / "blocks.0.npz", {}, "cpu") is None


def test_blocks_removed_by_another_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not silently rounded to nearest."""
    streamed = narrowing.streamed

    def robbed(source: Any, chosen: Any, calibration: Any, **given: Any) -> None:
        streamed(source, chosen, calibration, **given)
        calibration.file("blocks.1").unlink()

    monkeypatch.setattr(narrowing, "streamed", robbed)
    asked = {"weights": "int4", "method": "gptq", "calibration_tokens": 512, **QUICK}
    with pytest.raises(BuildError, match=r"blocks\.1: its calibrated codes have been removed meanwhile; build again"):
        build(shape(tmp_path, LLAMA | {"intermediate_size": 64}), tmp_path / "engine", **asked)
