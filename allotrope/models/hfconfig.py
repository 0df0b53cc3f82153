"""Reading a config.json: every key is consumed, by a rule that says what it may be.

A key that no rule knows is an error, because it could change the mathematics; keys that never do are
listed as ignored, here for all families and in a family's own file for that family.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from allotrope.errors import CheckpointError

MANDATORY = object()
"""The default of a key that must be there."""


def names(text: str) -> frozenset[str]:
    """The words of `text`."""
    return frozenset(text.split())


IGNORED = (
    # what it is called, how it was stored, by what it was written
    names("""architectures model_type _name_or_path name_or_path _commit_hash transformers_version torch_dtype
        dtype use_bfloat16 torchscript tokenizer_class unsloth_version unsloth_fixed transformers.js_config""")
    # training, and the choice of an implementation of the same mathematics
    | names("""use_cache gradient_checkpointing initializer_range init_std attention_dropout hidden_dropout
        dropout attn_implementation _attn_implementation _attn_implementation_autoset _flash_attn_2_enabled
        chunk_size_feed_forward output_attentions output_hidden_states output_scores output_past return_dict
        return_dict_in_generate remove_invalid_values""")
    # tasks other than writing text
    | names("""task_specific_params finetuning_task id2label label2id num_labels _num_labels problem_type prefix
        is_decoder tie_encoder_decoder tf_legacy_loss decoder_start_token_id sep_token_id""")
    # generation: kept for the tokenizer and as sampling defaults, no part of the model
    | names("""bos_token_id eos_token_id pad_token_id unk_token_id max_length min_length max_new_tokens do_sample
        early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p
        repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
        num_return_sequences exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id
        begin_suppress_tokens suppress_tokens""")
)

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_fast": "gelu_tanh",  # its constant is cut at ten digits, which no float32 can tell
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
"""transformers' names of an activation → the op's."""

_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a word",
    dict: "an object",
    list: "a list",
}


@dataclass(frozen=True)
class Key:
    """The rule for one key. `low` and `high` bound numbers; `among`, if given, lists all values allowed."""

    name: str
    kind: type
    default: Any = MANDATORY
    null: bool = False  # null may stand for "not set"
    low: float = 1
    high: float = 2**24
    among: tuple[Any, ...] = ()
    aliases: tuple[str, ...] = ()  # other names of the same setting
    why: str = ""  # why nothing else is allowed


def count(
    name: str, default: Any = MANDATORY, *, high: float = 2**24, low: float = 1, aliases: tuple[str, ...] = ()
) -> Key:
    """A whole number from `low` to `high`; null only where the default is None."""
    return Key(name, int, default, default is None, low, high, aliases=aliases)


def number(name: str, default: Any = MANDATORY, *, low: float = 0.0, high: float = 1e12) -> Key:
    """A finite number from `low` to `high`."""
    return Key(name, float, default, default is None, low, high)


def flag(name: str, default: bool) -> Key:
    """True or false."""
    return Key(name, bool, default)


def word(name: str, default: Any, among: Iterable[str]) -> Key:
    """One of the words in `among`."""
    return Key(name, str, default, among=tuple(among))


def tree(name: str, kind: type = dict) -> Key:
    """An object (or a list) that the family reads further, or null."""
    return Key(name, kind, None, null=True)


def activation(name: str, default: str) -> Key:
    """An activation under any of its names in transformers; `Values.activation` gives the op's name."""
    return word(name, default, ACTIVATIONS)


def fixed(name: str, value: Any, why: str) -> Key:
    """A setting that may be stated, and must then be `value`."""
    return Key(name, type(value), value, null=value is None, among=(value,), why=why)


COMMON = (
    fixed("is_encoder_decoder", False, "only decoder-only models are supported"),
    fixed("add_cross_attention", False, "cross-attention needs an encoder"),
    fixed("cross_attention_hidden_size", None, "cross-attention needs an encoder"),
    fixed("pruned_heads", {}, "pruned heads are not supported"),
    fixed("quantization_config", None, "its weights are quantised already: give the original checkpoint instead"),
)
"""Rules that hold for every family."""


@dataclass(frozen=True)
class Values:
    """A config's settings by the rules' names, all there and within bounds."""

    where: str
    settings: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.settings[name]

    def activation(self, name: str) -> str:
        """The op's name of the activation that setting `name` names."""
        return ACTIVATIONS[self[name]]

    def bad(self, problem: str, remedy: str = "correct config.json") -> CheckpointError:
        """The error for settings that cannot go together."""
        return CheckpointError(problem, where=self.where, remedy=remedy)

    def share(self, total: str, parts: str) -> int:
        """Setting `total` divided by setting `parts`, which must go without a remainder."""
        whole, pieces = self[total], self[parts]
        if whole % pieces:
            raise self.bad(f"{total} {whole} is not a multiple of {parts} {pieces}")
        return int(whole // pieces)


def read(config: Mapping[str, Any], keys: Iterable[Key], ignored: Iterable[str], where: str) -> Values:
    """Consume `config`. A key without a rule, a missing one or a value out of bounds is an error."""
    settings: dict[str, Any] = {}
    known = set(IGNORED) | set(ignored)
    for key in (*COMMON, *keys):
        known |= {key.name, *key.aliases}
        settings[key.name] = _value(config, key, where)
    for name, value in config.items():
        if name not in known:
            raise CheckpointError(
                f"unknown key {name} ({shown(value)}) could change what the model computes",
                where=where,
                remedy="remove it if it does not, else this variant is not supported",
            )
    return Values(where, settings)


def shown(value: Any) -> str:
    """A value as an error shows it: short, whatever the file holds."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 200:
        return "a number of over 60 digits"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _value(config: Mapping[str, Any], key: Key, where: str) -> Any:
    given = [name for name in (key.name, *key.aliases) if name in config]
    if not given:
        if key.default is MANDATORY:
            raise CheckpointError(f"{key.name} is missing", where=where, remedy="take config.json from the original")
        return key.default
    first = config[given[0]]
    for other in given[1:]:
        if config[other] != first:
            problem = f"{given[0]} {shown(first)} and {other} {shown(config[other])} contradict each other"
            raise CheckpointError(problem, where=where, remedy="keep the one that is right")
    return check(first, key, given[0], where)


def check(value: Any, key: Key, name: str, where: str) -> Any:
    """`value` if the rule allows it."""
    if value is None and key.null:
        return None
    problem = _problem(value, key)
    if problem:
        remedy = key.why or "take config.json from the original"
        raise CheckpointError(f"{name} is {shown(value)}, {problem}", where=where, remedy=remedy)
    return float(value) if key.kind is float and not key.among else value


def _problem(value: Any, key: Key) -> str | None:
    if key.among:
        # True equals 1 in Python, and false 0; in a config they are different things
        if any(value == item and isinstance(value, bool) is isinstance(item, bool) for item in key.among):
            return None
        return f"which is not supported: it must be {' or '.join(repr(item) for item in key.among)}"
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if key.kind is float and is_number:
        pass
    elif not isinstance(value, key.kind) or (key.kind is int and isinstance(value, bool)):
        return f"not {_NAMES[key.kind]}"
    if key.kind in (int, float):
        if isinstance(value, float) and not math.isfinite(value):
            return "not a finite number"
        if not key.low <= value <= key.high:
            return f"outside {key.low:g} to {key.high:g}"
    return None
