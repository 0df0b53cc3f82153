"""A model as a folder that every peer can read: transformers' class that computes the same, and a dummy tokenizer.

A checkpoint of random weights, one in another layout or one whose publisher's class transformers lacks is written out
under the names of the oracle's class, which is the same mathematics; peers are only ever given token ids, so the
tokenizer needs as many words as the embedding has rows and no more. Folders are kept by the checkpoint's digest.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allotrope import settings
from allotrope.artifact import atomic
from allotrope.errors import CheckpointError
from allotrope.units import bytes_text

if TYPE_CHECKING:
    import torch

    from allotrope.models.model import Model

_SCHEME = 3  # change it when the same checkpoint is written in another way
_SHARD = 2 << 30  # bytes
_DONE = "complete.json"
_PATIENCE_S = 0.2
Said = Callable[[str], None]


def conversions(digest: str) -> Path:
    """Where everything made of a checkpoint with this digest is kept."""
    key = hashlib.sha256(f"{_SCHEME}:{digest}".encode()).hexdigest()[:24]
    return settings.cache_dir() / "conversions" / key


def complete(folder: Path) -> bool:
    """Whether a conversion was finished."""
    return (folder / _DONE).is_file()


class _There(Exception):
    """It has come meanwhile."""


def once(folder: Path, there: Callable[[], bool], fill: Callable[[Path], dict[str, Any]], said: Said) -> None:
    """Have `folder` filled, and what `fill` gives noted in it, whole or not at all; unless it is there.

    While another process fills it, wait.
    """
    waited = False
    while not there():
        try:
            with atomic.folder(folder, replaces=_DONE) as fresh:
                if there():
                    raise _There
                facts = fill(fresh)
                atomic.sync_files(fresh)
                atomic.write_file(fresh / _DONE, json.dumps(facts).encode())
        except _There:
            return
        except atomic.Busy as busy:
            if not waited:
                said(f"waiting: {busy.problem}, {folder}")
            waited = True
            time.sleep(_PATIENCE_S)


def facts_of(folder: Path) -> dict[str, Any]:
    """What was noted when it was finished."""
    found: dict[str, Any] = json.loads((folder / _DONE).read_text(encoding="utf-8"))
    return found


def exported(model: Model, said: Said = lambda _: None) -> Path:
    """The folder of `model`, written now or kept from before."""
    folder = conversions(model.checkpoint.digest()) / "hf"

    def fill(fresh: Path) -> dict[str, Any]:
        from safetensors import SafetensorError

        try:
            _write_config(model, fresh)
            _write_weights(model, fresh)
            _write_tokenizer(model.recipe.vocab, fresh)
        except (OSError, SafetensorError) as error:
            left = bytes_text(shutil.disk_usage(fresh).free)
            raise CheckpointError(
                f"cannot be written for the peers: {error}; {left} are left", where=str(folder)
            ) from error
        return {}

    once(folder, lambda: complete(folder), fill, said)
    return folder


def _write_config(model: Model, folder: Path) -> None:
    import transformers

    described = model.family.oracle
    made = getattr(transformers, described.config_class)(**described.config(model.config))
    made.architectures = [described.model_class]
    kinds = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
    made.dtype = kinds.get(model.original_dtype(next(iter(model.originals))), "float32")
    made.pad_token_id = None
    made.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    # What was written for older readers: each peer pins a transformers of its own.
    config["torch_dtype"] = config.get("torch_dtype") or config.pop("dtype", None) or made.dtype
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        config.setdefault("rope_theta", rope["rope_theta"])
        config.setdefault("rope_scaling", rope if rope.get("rope_type", "default") != "default" else None)
    path.write_text(json.dumps(config, indent=1), encoding="utf-8")


def _write_weights(model: Model, folder: Path) -> None:
    """In shards of some size, so that no model need be in memory as a whole."""
    from safetensors.torch import save_file

    shards = list[list[str]]()
    for shard in _shards(model):
        name = f"part-{len(shards) + 1:05}.safetensors"
        save_file(shard, folder / name, {"format": "pt"})
        shards.append(list(shard))
    if len(shards) == 1:
        (folder / "part-00001.safetensors").rename(folder / "model.safetensors")
        return
    where = dict[str, str]()
    for number, names in enumerate(shards, 1):
        path = folder / f"part-{number:05}.safetensors"
        final = f"model-{number:05}-of-{len(shards):05}.safetensors"
        path.rename(folder / final)
        where |= dict.fromkeys(names, final)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _shards(model: Model) -> Iterator[dict[str, torch.Tensor]]:
    from allotrope.verify.original import loaders

    held, size = dict[str, "torch.Tensor"](), 0
    for name, load in loaders(model).items():
        value = load().contiguous()
        if held and size + value.nbytes > _SHARD:
            yield held
            held, size = {}, 0
        held[name], size = value, size + value.nbytes
    if not held:
        raise CheckpointError("there is no weight to export", where=model.checkpoint.origin)
    yield held


def _write_tokenizer(vocab: int, folder: Path) -> None:
    """A vocabulary of exactly so many words; bytes are among them where there is room, as readers expect."""
    words = ["<unk>", "<s>", "</s>"][: max(vocab, 1)]
    if vocab >= len(words) + 256:
        words += _byte_alphabet()
    words += [f"word{i}" for i in range(len(words), vocab)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    special = [
        {
            "id": i,
            "content": word,
            "special": True,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
        for i, word in enumerate(words[:3])
    ]
    model = {"type": "BPE", "vocab": {word: i for i, word in enumerate(words)}, "merges": []}
    whole = {
        "version": "1.0",
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"dropout": None, "unk_token": "<unk>", "fuse_unk": False, "byte_fallback": False, **model},
    }
    (folder / "tokenizer.json").write_text(json.dumps(whole), encoding="utf-8")
    settled = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<unk>",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settled), encoding="utf-8")


def _byte_alphabet() -> list[str]:
    """A printable character for each byte, as byte-level vocabularies write them."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) for byte in shown] + [chr(256 + i) for i in range(len(hidden))]
