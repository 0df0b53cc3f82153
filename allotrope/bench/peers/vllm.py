"""vLLM, compiled and with CUDA graphs as it comes."""

from __future__ import annotations

from typing import Any

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_SHARE = 0.5  # of the memory that is free: peers that are opened later need the rest


def versions() -> dict[str, str]:
    """vLLM's and torch's."""
    import torch
    import vllm

    return {"vllm": vllm.__version__, "torch": torch.__version__}


def open_model(folder: str, asked: dict[str, Any]) -> _Model:
    """Its engine, without a tokenizer and without memory of prompts seen before."""
    return _Model(folder, asked)


class _Model:
    def __init__(self, folder: str, asked: dict[str, Any]) -> None:
        import torch
        import vllm

        form = asked["form"]
        free, whole = torch.cuda.mem_get_info()
        self._engine = vllm.LLM(
            model=folder,
            skip_tokenizer_init=True,
            dtype=_DTYPES.get(form, "auto"),
            quantization="fp8" if form == "fp8" else None,
            max_model_len=asked["max_len"],
            max_num_seqs=asked["max_batch"],
            gpu_memory_utilization=_SHARE * free / whole,
            enable_prefix_caching=False,
        )
        self.actual = {"weights": form, "activations": form}

    def generate(self, prompts: list[list[int]], count: int, beams: int) -> list[list[int]]:
        import vllm

        params = vllm.SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
        given = [{"prompt_token_ids": prompt} for prompt in prompts]
        return [list(one.outputs[0].token_ids) for one in self._engine.generate(given, params, use_tqdm=False)]

    def device_peak(self) -> int:
        import torch

        return int(torch.cuda.max_memory_allocated())
