"""The engine itself, through the same door as everybody: what `LLM.generate` does with prompts of token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

LIKELIEST = 20


def versions() -> dict[str, str]:
    """Allotrope's, and what it computes with."""
    from allotrope.hw.fingerprint import versions as known
    from allotrope.runtime.opening import open_folder  # noqa: F401 its import belongs here, not to loading

    return {name: version for name, version in known().items() if name in ("allotrope", "torch", "numpy")}


def open_model(folder: str, asked: dict[str, Any]) -> _Model:
    """The engine, with room for the largest cell and no memory of prompts seen before."""
    return _Model(folder, asked)


class _Model:
    def __init__(self, folder: str, asked: dict[str, Any]) -> None:
        from allotrope.runtime.buffers import page_bytes
        from allotrope.runtime.opening import open_folder
        from allotrope.runtime.options import RuntimeOptions

        self._opened = open_folder(Path(folder), RuntimeOptions(**{"prefix_cache": False, **asked["running"]}))
        self._device = self._opened.engine.manifest.device["kind"]
        self.actual = asked["form"]
        plan, page_size = self._opened.engine.manifest.plan, self._opened.loop.scheduler.page_size
        self.facts = {"kv_pool_bytes": self._opened.executor.pages * page_bytes(plan, page_size)}

    def generate(self, prompts: list[list[int]], count: int, beams: int) -> list[list[int]]:
        return [list(output.token_ids) for output in self._outputs(prompts, max_tokens=count, beams=beams)]

    def scores(self, prompts: list[list[int]]) -> list[dict[str, float]]:
        found = []
        for output in self._outputs(prompts, max_tokens=1, logprobs=LIKELIEST):
            places = output.logprobs
            first = places[0] if places else None
            found.append({str(token): float(one.logprob) for token, one in first.items()} if first else {})
        return found

    def _outputs(self, prompts: list[list[int]], **params: Any) -> list[Any]:
        from allotrope.runtime.loop import HOLD_S
        from allotrope.runtime.sampling_params import SamplingParams

        asked, loop = SamplingParams(temperature=0, ignore_eos=True, seed=0, **params), self._opened.loop
        generations = [loop.prepare(None, prompt, asked, index=i) for i, prompt in enumerate(prompts)]
        for generation in generations:
            loop.submit(generation, HOLD_S)
        for generation in generations:
            while not generation.ended:
                loop.step()
        return [generation.output().outputs[0] for generation in generations]

    def read_rate(self) -> float | None:
        """What memory gives at this moment; None where nobody can say."""
        measured = getattr(self._opened.executor, "read_rate", None)
        return None if measured is None else float(measured())

    def device_peak(self) -> int:
        if self._device != "cuda":
            return 0
        import torch

        return int(torch.cuda.max_memory_allocated())
