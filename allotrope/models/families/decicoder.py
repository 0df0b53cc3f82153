"""DeciCoder: LLaMA with few key-value heads, under its publisher's own class names."""

from collections.abc import Mapping
from typing import Any

from allotrope.models.families import llama
from allotrope.models.family import Oracle

# Which of the publisher's attention routines runs when: the same mathematics.
ROUTINES = frozenset({"naive_attention_prefill", "naive_attention_decode_batched", "naive_attention_decode_single"})


def as_llama(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the LLaMA that computes the same."""
    published = {"architectures", "auto_map", "model_type", *ROUTINES}
    return {key: value for key, value in config.items() if key not in published}


FAMILY = llama.FAMILY.derive(
    "decicoder",
    architectures=("DeciCoderForCausalLM",),
    model_types=("decicoder",),
    ignored=ROUTINES,
    code={
        "AutoConfig": "configuration_decicoder.DeciCoderConfig",
        "AutoModelForCausalLM": "modeling_decicoder.DeciCoderForCausalLM",
    },
    oracle=Oracle("LlamaConfig", "LlamaForCausalLM", family="llama", config=as_llama),
)
