"""What a checkpoint says about its tokenizer beside the vocabulary: names, added tokens, BOS and EOS, templates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from allotrope.errors import TokenizerError
from allotrope.tokenizers.files import MIB, Json, optional_json, read_text

# In the order in which they are read; an engine keeps those that exist, so that its tokenizer is the checkpoint's.
NAMES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "config.json",
    "chat_template.jinja",
)
ROLES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
CONFIG_BYTES = 16 * MIB  # some publishers list thousands of added tokens
TEMPLATE_BYTES = 256 * 1024  # the longest in use has about 30 KB
MAX_ADDED = 100_000


@dataclass(frozen=True)
class Added:
    """A token outside the vocabulary file, or one inside that is always cut out of text whole."""

    content: str
    id: int | None
    special: bool
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


@dataclass(frozen=True)
class SideFiles:
    """The checkpoint's settings, each checked for its type; None where it says nothing."""

    tokenizer_class: str | None
    model_type: str | None
    names: Mapping[str, str]  # role → token, as "eos_token" → "</s>"
    added: tuple[Added, ...]
    add_bos: bool | None
    add_eos: bool | None
    add_prefix_space: bool | None
    legacy: bool | None
    bos_id: int | None  # from generation_config.json, else config.json
    eos_ids: tuple[int, ...]
    pad_id: int | None
    chat_format: str | None  # the first Qwen's generation_config.json has "chatml" or "raw"
    templates: Mapping[str, str]

    def within(self, vocab_size: int | None) -> SideFiles:
        """Without the ids that the model's configs give and the model cannot: those begin and end nothing."""
        if vocab_size is None:
            return self

        def inside(number: int | None) -> int | None:
            return None if number is None or number >= vocab_size else number

        ends = tuple(number for number in self.eos_ids if number < vocab_size)
        return replace(self, bos_id=inside(self.bos_id), eos_ids=ends, pad_id=inside(self.pad_id))


def read(folder: Path) -> SideFiles:
    """Everything that the files beside the vocabulary say."""
    config = optional_json(folder / NAMES[0], CONFIG_BYTES)
    special_map = optional_json(folder / NAMES[1])
    extra = optional_json(folder / NAMES[2], CONFIG_BYTES)
    generation = optional_json(folder / NAMES[3])
    model = optional_json(folder / NAMES[4])
    names = _names(special_map, NAMES[1]) | _names(config, NAMES[0])
    where = NAMES[0]
    return SideFiles(
        tokenizer_class=_text(config, "tokenizer_class", where),
        model_type=_text(model, "model_type", NAMES[4]),
        names={role: token for role, token in names.items() if token},  # "" is how LLaMA-1's first ports say "none"
        added=tuple(_added(config, special_map, extra, names)),
        add_bos=_flag(config, "add_bos_token", where),
        add_eos=_flag(config, "add_eos_token", where),
        add_prefix_space=_flag(config, "add_prefix_space", where),
        legacy=_flag(config, "legacy", where),
        bos_id=_first(_ids(generation, "bos_token_id", NAMES[3]) or _ids(model, "bos_token_id", NAMES[4])),
        eos_ids=_ids(generation, "eos_token_id", NAMES[3]) or _ids(model, "eos_token_id", NAMES[4]),
        pad_id=_first(_ids(generation, "pad_token_id", NAMES[3]) or _ids(model, "pad_token_id", NAMES[4])),
        chat_format=_text(generation, "chat_format", NAMES[3]),
        templates=_templates(folder, config),
    )


def _wrong(value: object, key: str, where: str, wanted: str) -> TokenizerError:
    shown = repr(value)
    return TokenizerError(f"{key} is {shown if len(shown) <= 60 else shown[:60] + '…'}, not {wanted}", where=where)


def _text(config: Json, key: str, where: str) -> str | None:
    value = config.get(key)
    if value is not None and not isinstance(value, str):
        raise _wrong(value, key, where, "a string")
    return value


def _flag(config: Json, key: str, where: str) -> bool | None:
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise _wrong(value, key, where, "true or false")
    return value


def _ids(config: Json, key: str, where: str) -> tuple[int, ...]:
    """One id or a list of them; −1 is how some publishers write "none"."""
    value = config.get(key)
    ids: dict[int, None] = {}
    for number in value if isinstance(value, list) else [] if value is None else [value]:
        if not isinstance(number, int) or isinstance(number, bool) or not -1 <= number < 1 << 31:
            raise _wrong(value, key, where, "a token id or a list of them")
        ids[number] = None
    ids.pop(-1, None)
    return tuple(ids)


def _first(ids: tuple[int, ...]) -> int | None:
    return ids[0] if ids else None


def _content(value: object, key: str, where: str) -> str:
    """A token's text, written as a string or as an object with `content`."""
    text = value.get("content") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise _wrong(value, key, where, "a token")
    return text


def _names(config: Json, where: str) -> dict[str, str]:
    return {role: _content(config[role], role, where) for role in ROLES if config.get(role) is not None}


def _added(config: Json, special_map: Json, extra: Json, names: Mapping[str, str]) -> Iterator[Added]:
    """Added tokens from all three places, those with an id first; the named ones are special."""
    where, special_texts = NAMES[0], set(names.values()) | set(_extra_specials(config, special_map))
    seen: set[str] = set()
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict) or len(decoder) > MAX_ADDED or len(extra) > MAX_ADDED:
        raise TokenizerError(f"added_tokens_decoder must be an object of at most {MAX_ADDED:,} tokens", where=where)
    for key, value in decoder.items():
        if not isinstance(value, dict) or not str(key).isascii() or not str(key).isdigit() or len(str(key)) > 9:
            raise _wrong({key: value}, "added_tokens_decoder", where, 'an object of "id": {"content": …}')
        token = Added(
            content=_content(value, "added_tokens_decoder", where),
            id=int(key),
            special=bool(_flag(value, "special", where)) or value.get("content") in special_texts,
            lstrip=bool(_flag(value, "lstrip", where)),
            rstrip=bool(_flag(value, "rstrip", where)),
            single_word=bool(_flag(value, "single_word", where)),
            normalized=bool(_flag(value, "normalized", where)),
        )
        seen.add(token.content)
        yield token
    for content, number in extra.items():
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 1 << 31:
            raise _wrong(number, content[:40], NAMES[2], "a token id")
        if content not in seen:
            seen.add(content)
            yield Added(content, number, special=content in special_texts)
    for content in special_texts - seen - {""}:
        yield Added(content, None, special=True)


def _extra_specials(config: Json, special_map: Json) -> Iterator[str]:
    for source, where in ((config, NAMES[0]), (special_map, NAMES[1])):
        for key in ("additional_special_tokens", "extra_special_tokens"):
            value = source.get(key) or ()
            listed = list(value.values()) if isinstance(value, dict) else value
            if not isinstance(listed, list | tuple) or len(listed) > MAX_ADDED:
                raise _wrong(value, key, where, "a list of tokens")
            for token in listed:
                yield _content(token, key, where)


def _templates(folder: Path, config: Json) -> dict[str, str]:
    """Chat templates by name: one string is "default"; a list has names; a file of its own goes before both."""
    value, key, where = config.get("chat_template"), "chat_template", NAMES[0]
    templates: dict[str, str] = {}
    if isinstance(value, str):
        templates["default"] = value
    elif isinstance(value, list):
        for item in cast(list[object], value):
            if not isinstance(item, dict) or not isinstance(item.get("name"), str):
                raise _wrong(item, key, where, "a list of named templates")
            templates[item["name"]] = _content({"content": item.get("template")}, key, where)
    elif value is not None:
        raise _wrong(value, key, where, "a template or a list of named ones")
    path = folder / "chat_template.jinja"
    if path.is_file():
        templates["default"] = read_text(path, TEMPLATE_BYTES)
        where = path.name
    for source in templates.values():
        if len(source.encode("utf-8", "surrogatepass")) > TEMPLATE_BYTES:
            raise TokenizerError(f"a chat template is longer than {TEMPLATE_BYTES:,} bytes", where=where)
    return templates
