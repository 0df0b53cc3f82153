"""CTranslate2: its Generator over its own converter's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_TYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "int16": "int16", "int8": "int8"}


def versions() -> dict[str, str]:
    """CTranslate2's."""
    import ctranslate2

    return {"ctranslate2": ctranslate2.__version__}


def convert(source: str, target: str, form: str) -> None:
    """Through transformers, as its users do."""
    import ctranslate2.converters

    converter = ctranslate2.converters.TransformersConverter(source, low_cpu_mem_usage=True)
    converter.convert(target, quantization=_TYPES[form], force=True)


def open_model(folder: str, asked: dict[str, Any]) -> _Model:
    """The generator, one replica."""
    return _Model(folder, asked)


class _Model:
    def __init__(self, folder: str, asked: dict[str, Any]) -> None:
        import ctranslate2

        self._generator = ctranslate2.Generator(
            folder,
            device=asked["device"],
            compute_type=_TYPES[asked["form"]],
            inter_threads=1,
            intra_threads=asked["threads"],
        )
        self._words = json.loads((Path(folder) / "vocabulary.json").read_text(encoding="utf-8"))
        # "int8" is a wish: the library takes another type where the CPU lacks one.
        kind = self._generator.compute_type
        weights, _, activations = kind.partition("_")
        self.actual = {"weights": weights, "activations": weights, "rest": activations or "float32"}

    def generate(self, prompts: list[list[int]], count: int, beams: int) -> list[list[int]]:
        found = self._generator.generate_batch(
            [[self._words[token] for token in prompt] for prompt in prompts],
            beam_size=beams,
            sampling_topk=1,
            max_length=count,
            min_length=count,
            include_prompt_in_result=False,
            max_batch_size=0,
            end_token=[],
        )
        return [list(one.sequences_ids[0]) for one in found]
