"""transformers: its own greedy `generate` (hf), or its forward pass compiled over a static cache (hf-compiled)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def versions() -> dict[str, str]:
    """transformers' and torch's."""
    import torch
    import transformers

    return {"transformers": transformers.__version__, "torch": torch.__version__}


def open_model(folder: str, asked: dict[str, Any]) -> _Model:
    """The original in one of its formats."""
    import torch

    torch.set_num_threads(asked["threads"])
    return _Compiled(folder, asked) if asked["variant"] == "compiled" else _Model(folder, asked)


class _Model:
    def __init__(self, folder: str, asked: dict[str, Any]) -> None:
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        form = asked["form"]
        kind = getattr(torch, _DTYPES.get(form, "float32"))
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=kind).eval()
        if form == "int8":
            quantise: Any = torch.ao.quantization.quantize_dynamic
            model = quantise(model, {torch.nn.Linear}, dtype=torch.qint8)
        self._device = asked["device"]
        self._model = model.to(self._device)
        settled = self._model.generation_config
        settled.eos_token_id, settled.pad_token_id = None, 0
        self.actual = {"weights": form, "activations": "int8" if form == "int8" else form}

    def generate(self, prompts: list[list[int]], count: int, beams: int) -> list[list[int]]:
        import torch

        ids = torch.tensor(prompts, device=self._device)
        with torch.inference_mode():
            whole = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=count,
                min_new_tokens=count,
                num_beams=beams,
            )
        found: list[list[int]] = whole[:, ids.shape[1] :].tolist()
        return found

    def device_peak(self) -> int:
        import torch

        return int(torch.cuda.max_memory_allocated()) if self._device == "cuda" else 0


class _Compiled(_Model):
    """A static cache as long as a cell needs and a compiled forward pass: prompts of one shape, compiled once."""

    def __init__(self, folder: str, asked: dict[str, Any]) -> None:
        import torch

        super().__init__(folder, asked)
        dynamo: Any = torch._dynamo.config
        dynamo.cache_size_limit = dynamo.recompile_limit = 256  # a static cache per batch size and length
        self._forward: Callable[..., Any] = torch.compile(self._model.forward, dynamic=False)
        self._caches: dict[tuple[int, int], Any] = {}
        self._seen: set[tuple[int, int]] = set()
        self._most = int(asked["max_len"])

    def generate(self, prompts: list[list[int]], count: int, beams: int) -> list[list[int]]:
        shape = (len(prompts), len(prompts[0]))
        if shape not in self._seen:  # compiles, and again once the cache is initialised
            self._seen.add(shape)
            for _ in range(2):
                self._run(prompts, min(3, self._most - shape[1]))
        return self._run(prompts, count)

    def _run(self, prompts: list[list[int]], count: int) -> list[list[int]]:
        import torch
        from transformers import StaticCache

        batch, length = len(prompts), len(prompts[0])
        cache = self._caches.get((batch, self._most))
        if cache is None:
            cache = StaticCache(config=self._model.config, max_cache_len=self._most)
            self._caches[batch, self._most] = cache
        cache.reset()
        ids = torch.tensor(prompts, device=self._device)
        places = torch.arange(length, device=self._device)[None].expand(batch, -1)
        # Without a mask OPT makes one as long as what it has seen, and a length of its own is compiled for each token.
        mask = torch.ones(batch, self._most, dtype=torch.long, device=self._device)
        drawn = []
        with torch.no_grad():
            for step in range(count):
                out = self._forward(
                    input_ids=ids,
                    attention_mask=mask,
                    past_key_values=cache,
                    use_cache=True,
                    position_ids=places,
                    logits_to_keep=1,
                )
                ids = out.logits[:, -1:].argmax(-1)
                places = torch.full((batch, 1), length + step, device=self._device)
                drawn.append(ids)
            found: list[list[int]] = torch.cat(drawn, dim=1).tolist()
        return found
