"""What callers may give as a prompt, as sampling parameters and as a priority, read and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

from allotrope.errors import RequestError
from allotrope.runtime.bounds import show
from allotrope.runtime.sampling_params import SamplingParams

if TYPE_CHECKING:
    from allotrope.tokenizers import Tokenizer

Prompt = str | Sequence[int] | Mapping[str, Any]
Messages = Sequence[Mapping[str, object]]

_KINDS: dict[str, tuple[type, ...]] = {
    "prompt": (str,),
    "prompt_token_ids": (list, tuple),
    "either": (str, list, tuple),
}
_PRIORITIES = (-(2**31), 2**31 - 1)


def listed(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """A list of prompts, whether one or several were given; a list of integers is one prompt."""
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if not isinstance(prompts, list | tuple):
        raise RequestError(f"prompts is of type {type(prompts).__name__}; it must be a prompt or a list of prompts")
    if prompts and all(isinstance(item, Integral) for item in prompts):
        return [list(prompts)]
    return list(prompts)


def conversations(messages: Messages | Sequence[Messages]) -> list[Messages]:
    """A list of conversations, whether one or several were given; a list of messages is one conversation."""
    if not isinstance(messages, list | tuple):
        raise RequestError(f"messages is of type {type(messages).__name__}; it must be a list of messages")
    if messages and all(isinstance(item, list | tuple) for item in messages):
        return list(messages)
    return [messages]


def params_for(given: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
    """Sampling parameters for each prompt: the same for all, or as given."""
    params = _one_each("sampling_params", SamplingParams() if given is None else given, count)
    if not all(isinstance(item, SamplingParams) for item in params):
        raise RequestError("sampling_params must be SamplingParams or a list of them")
    return params


def priorities_for(given: int | Sequence[int], count: int, policy: str) -> list[int]:
    """A priority for each prompt; one that would change nothing is an error."""
    low, high = _PRIORITIES
    priorities = _one_each("priority", given, count)
    for i, priority in enumerate(priorities):
        if isinstance(priority, bool) or not isinstance(priority, Integral) or not low <= int(priority) <= high:
            raise RequestError(f"priority[{i}] is {show(priority)}; it must be a whole number from {low} to {high}")
        if int(priority) and policy != "priority":
            raise RequestError(
                f"priority[{i}] is {priority}; it must be 0 where the first come is served first",
                remedy="open the engine with policy='priority'",
            )
    return [int(priority) for priority in priorities]


def _one_each(name: str, given: Any, count: int) -> list[Any]:
    if not isinstance(given, list | tuple):
        return [given] * count
    if len(given) != count:
        raise RequestError(f"{name} holds {len(given)} entries for {count} prompts")
    return list(given)


def _all_are(kind: type, given: Any, whole: Any) -> bool:
    return isinstance(given, whole) and all(isinstance(one, kind) for one in given)


class Reader:
    """Reads prompts as one engine understands them."""

    def __init__(self, tokenizer: Tokenizer, bos_id: int | None) -> None:
        self._tokenizer, self._bos_id = tokenizer, bos_id

    def read(self, prompt: Prompt, name: str) -> tuple[str | None, Sequence[int]]:
        """A prompt's text, if it is text, and its token ids; `name` is what an error calls it."""
        given: Any = prompt
        kinds = _KINDS["either"]
        if isinstance(prompt, Mapping):
            key = next(iter(prompt)) if len(prompt) == 1 else None
            if key not in ("prompt", "prompt_token_ids"):
                raise RequestError(
                    f"{name} has the keys {sorted(map(str, prompt))}; it must have prompt or prompt_token_ids"
                )
            name, given, kinds = f"{name}.{key}", prompt[key], _KINDS[key]
        if not any(isinstance(given, kind) for kind in kinds):
            raise RequestError(f"{name} is of type {type(given).__name__}; it must be text or token ids")
        if isinstance(given, str):
            try:
                ids = self._tokenizer.encode(given)
            except RequestError as error:  # of several prompts, which one
                raise RequestError(error.problem, where=name, remedy=error.remedy) from None
            return given, ids or self._beginning(name)
        return None, list(given) or self._beginning(name)

    def conversation(
        self,
        messages: Messages,
        tools: Sequence[Mapping[str, object]] | None = None,
        variables: Mapping[str, object] | None = None,
    ) -> Prompt:
        """The prompt that a conversation is, as the checkpoint's template writes it, up to where the answer begins."""
        if not (tools is None or _all_are(Mapping, tools, list | tuple)):
            raise RequestError(f"tools is {show(tools)}; it must be a list of mappings")
        if not (variables is None or _all_are(str, variables, Mapping)):
            raise RequestError(f"variables is {show(variables)}; it must map names to values")
        return {"prompt_token_ids": self._tokenizer.chat_ids(messages, tools=tools, variables=variables)}

    def check(self, params: SamplingParams) -> None:
        """Refuse what needs text where there is no tokenizer."""
        if params.stop and not self._tokenizer.reads_text:
            raise RequestError("the engine has no tokenizer, so no text can stop it", remedy="use stop_token_ids")
        if params.bad_words and not self._tokenizer.reads_text:
            raise RequestError("the engine has no tokenizer, so bad_words mean nothing to it", remedy="use logit_bias")

    def _beginning(self, name: str) -> list[int]:
        if self._bos_id is None:
            raise RequestError(
                f"{name} is empty, and this model has no token to begin a text with", remedy="give some text"
            )
        return [self._bos_id]
