"""OpenVINO GenAI's LLMPipeline, fed with token ids; the model comes through optimum-intel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_COMPUTE = {"fp32": "f32", "fp16": "f32", "bf16": "bf16"}  # by the format of the weights
_STORED = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_GROUPS = (128, 64, 32)  # weights that share a scale at 4 bits: the widest that divides the model's width


def versions() -> dict[str, str]:
    """OpenVINO's and its GenAI's."""
    import openvino
    import openvino_genai

    return {"openvino": openvino.__version__, "openvino-genai": openvino_genai.__version__}


def convert(source: str, target: str, form: str) -> None:
    """Export, compress, and put the tokenizers beside it that the pipeline insists on."""
    import openvino
    import torch
    from openvino_tokenizers import convert_tokenizer
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig
    from transformers import AutoTokenizer

    how: dict[str, Any] = {"load_in_8bit": False}
    if form in _STORED:  # by itself the export keeps weights as the checkpoint has them: 16 bits in a line of fp32
        how["torch_dtype"] = getattr(torch, _STORED[form])
    elif form == "int8":
        how = {"quantization_config": OVWeightQuantizationConfig(bits=8, sym=False)}
    elif form == "int4":
        group = _group(json.loads((Path(source) / "config.json").read_text(encoding="utf-8")))
        how = {"quantization_config": OVWeightQuantizationConfig(bits=4, sym=True, group_size=group, ratio=1.0)}
    model = OVModelForCausalLM.from_pretrained(
        source, export=True, compile=False, stateful=True, local_files_only=True, **how
    )
    model.save_pretrained(target)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.save_pretrained(target)
    forward, backward = convert_tokenizer(tokenizer, with_detokenizer=True)
    openvino.save_model(forward, Path(target) / "openvino_tokenizer.xml")
    openvino.save_model(backward, Path(target) / "openvino_detokenizer.xml")


def _group(config: dict[str, Any]) -> int:
    wide = int(config.get("hidden_size") or config["n_embd"])
    return next((size for size in _GROUPS if wide % size == 0), -1)


def open_model(folder: str, asked: dict[str, Any]) -> _Model:
    """The pipeline, set for latency."""
    return _Model(folder, asked)


class _Model:
    def __init__(self, folder: str, asked: dict[str, Any]) -> None:
        import openvino_genai

        form = asked["form"]
        # On CPUs with bf16 instructions its own default is bf16 whatever the model is: where fp32 is compared, it is
        # to compute in fp32. With codes it keeps its default, the fastest.
        settled = {"INFERENCE_PRECISION_HINT": _COMPUTE[form]} if form in _COMPUTE else {}
        self._pipeline = openvino_genai.LLMPipeline(
            folder, "CPU", INFERENCE_NUM_THREADS=asked["threads"], PERFORMANCE_HINT="LATENCY", **settled
        )
        # Compressed weights meet activations that the CPU plugin turns into int8 as it goes, by its own default.
        computed = "fp32" if form == "fp16" else form
        self.actual = {"weights": form, "activations": computed if settled else "int8 (dynamic)"}

    def generate(self, prompts: list[list[int]], count: int, beams: int) -> list[list[int]]:
        import numpy as np
        import openvino
        import openvino_genai

        ids = np.array(prompts, dtype=np.int64)
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = count
        config.ignore_eos, config.do_sample, config.apply_chat_template = True, False, False
        if beams > 1:
            config.num_beams, config.num_return_sequences = beams, 1
        inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        return [list(one) for one in self._pipeline.generate(inputs, config).tokens]
