"""Reading `quantization_config`: what is supported becomes a `Stored`, everything else one line that says why not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from allotrope.errors import CheckpointError
from allotrope.models.hfconfig import Key, count, fixed, names, shown, tree
from allotrope.models.quantised import schemes
from allotrope.models.quantised.patterns import REGEX
from allotrope.models.quantised.patterns import problem as entry_problem
from allotrope.models.quantised.stored import PER_CHANNEL, REMEDY, Section, Stored
from allotrope.models.readers.strict_json import read_object

GPTQ_FILE = "quantize_config.json"
KEY = "quantization_config"
_LARGEST = 65536

# How it was calibrated, by whom, and which kernel its author likes: nothing that changes what the tensors mean.
_TOLD = names("""quant_method method damp_percent damp_auto_increment static_groups true_sequential model_name_or_path
    model_file_base_name meta tokenizer dataset model_seqlen block_name_to_quantize module_name_preceding_first_block
    modules_in_block_to_quantize batch_size pad_token_id use_exllama disable_exllama exllama_config use_cuda_fp16
    max_input_length cache_block_outputs act_group_aware hyb_act mse lm_head pack_impl""")
_AWQ_TOLD = _TOLD | names("do_fuse fuse_max_seq_len modules_to_fuse sym")

_GROUP = count("group_size", low=PER_CHANNEL, high=_LARGEST, aliases=("q_group_size",))
_GPTQ = (
    Key("bits", int, among=(4, 8), why=REMEDY, aliases=("w_bit",)),
    _GROUP,
    Key("sym", bool),
    Key("desc_act", bool),
    Key("checkpoint_format", str, "gptq", among=("gptq", "gptq_v2"), why=REMEDY, aliases=("format",)),
    Key("backend", str, None, null=True),
    fixed("is_marlin_format", False, REMEDY),
    fixed("pack_dtype", "int32", REMEDY),
    tree("dynamic"),
    tree("modules_to_not_convert", list),
)
_AWQ = (
    Key("bits", int, among=(4,), why=REMEDY, aliases=("w_bit",)),
    _GROUP,
    Key("zero_point", bool, True, among=(True,), why=REMEDY),
    Key("version", str, "gemm", among=("gemm", "GEMM"), why=REMEDY, aliases=("format", "checkpoint_format")),
    Key("backend", str, None, null=True),
    fixed("desc_act", False, REMEDY),
    tree("modules_to_not_convert", list),
)


def find(config: Mapping[str, Any], folder: Path | None, where: str = "config.json") -> Stored | None:
    """How config.json, and a GPTQ checkpoint's own file beside it, say that the weights are stored; None: as floats."""
    said = config.get(KEY)
    stored = None if said is None else parse(said, where)
    beside = folder / GPTQ_FILE if folder else None
    if beside is None or not beside.is_file():
        return stored
    told = read_object(beside)
    told = told if "method" in told else {"quant_method": "gptq", **told}
    second = parse(told, str(beside), GPTQ_FILE.removesuffix(".json"))
    if stored is None:
        return second
    if replace(stored, ignore=second.ignore) != second:
        problem = f"{GPTQ_FILE} says {_told(second)}, but config.json says {_told(stored)}"
        raise CheckpointError(problem, where=str(beside), remedy="remove the one that is wrong")
    return stored


def parse(said: Any, where: str = "config.json", path: str = KEY) -> Stored:
    """What a `quantization_config` says."""
    if not isinstance(said, dict):
        raise CheckpointError(f"{path} is {shown(said)}, not an object", where=where, remedy=REMEDY)
    section = Section(said, path, where)
    # GPTQModel calls it `method` by now, and writes both
    given = [(name, said[name]) for name in ("quant_method", "method") if said.get(name) is not None]
    method = given[0][1] if given else None
    if given and given[-1][1] != method:
        problem = f"{path}: quant_method {shown(method)} and method {shown(given[-1][1])} contradict each other"
        raise CheckpointError(problem, where=where, remedy="keep the one that is right")
    if method == "gptq":
        return _gptq(section)
    if method == "awq":
        return _awq(section)
    if method == "compressed-tensors":
        return schemes.read(section)
    raise section.refuse("quant_method", method, "it must be 'gptq', 'awq' or 'compressed-tensors'")


def _told(stored: Stored) -> str:
    """All that a GPTQ config can say, in a few words."""
    extra = [word for word, said in (("act-order", stored.desc_act), ("zeros less one", stored.zero_offset)) if said]
    return ", ".join((stored.words, *extra))


def _gptq(section: Section) -> Stored:
    said = section.read(_GPTQ, _TOLD)
    _check_backend(section, said)
    return Stored(
        "gptq",
        bits=said["bits"],
        group=_group(section, said),
        symmetric=said["sym"],
        desc_act=said["desc_act"],
        zero_offset=1 if said["checkpoint_format"] == "gptq" else 0,
        ignore=_kept(section, said) + _skipped(section, said["dynamic"]),
    )


def _awq(section: Section) -> Stored:
    said = section.read(_AWQ, _AWQ_TOLD)
    _check_backend(section, said)
    return Stored("awq", bits=said["bits"], group=_group(section, said), symmetric=False, ignore=_kept(section, said))


def _kept(section: Section, said: Mapping[str, Any]) -> tuple[str, ...]:
    return schemes.entries(section, "modules_to_not_convert", said["modules_to_not_convert"])


def _group(section: Section, said: Mapping[str, Any]) -> int:
    group = int(said["group_size"])
    if group == 0:
        raise section.refuse("group_size", group, "it must be −1 for a scale per channel, or 1 and more")
    return group


def _check_backend(section: Section, said: Mapping[str, Any]) -> None:
    """Kernels read the same layout, save for these, whose tools store another."""
    if said["backend"] in ("llm-awq", "marlin", "bitblas"):
        raise section.refuse("backend", said["backend"], "its layout is another than 'gptq' and 'gemm'")


def _skipped(section: Section, dynamic: Mapping[str, Any] | None) -> tuple[str, ...]:
    """GPTQModel's `dynamic`: a module's own settings by expression, or behind `-:` that it is left alone."""
    found = []
    for name, value in (dynamic or {}).items():
        entry = REGEX + name.removeprefix("-:")
        if not name.startswith("-:"):
            raise section.refuse("dynamic", {name: value}, "all modules must be stored alike, or left out by '-:'")
        if why := entry_problem(entry):
            raise section.refuse("dynamic", name, why)
        found.append(entry)
    return tuple(found)
