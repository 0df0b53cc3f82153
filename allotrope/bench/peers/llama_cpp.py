"""llama.cpp through its C interface, as llama-bench drives it."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

_FILE = "model.gguf"
_LOGICAL, _PHYSICAL = 2048, 512  # tokens that one call takes, and that are computed together: llama-bench's own
_ACTIVATIONS = {"f32": "f32", "f16": "f16", "bf16": "bf16"}  # of codes: int8, a scale for each 32 values


def versions() -> dict[str, str]:
    """llama-cpp-python's; it carries llama.cpp with it."""
    import llama_cpp

    return {"llama-cpp-python": llama_cpp.__version__}


def open_model(folder: str, asked: dict[str, Any]) -> _Model:
    """The model and a context for one sequence; others come when they are needed."""
    return _Model(folder, asked)


class _Model:
    def __init__(self, folder: str, asked: dict[str, Any]) -> None:
        import llama_cpp

        self._api: Any = llama_cpp
        # It tells everything that it does; the callback must live as long as it may be called.
        self._silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._silent, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(str(Path(folder) / _FILE).encode(), params)
        if not self._model:
            raise ValueError("llama.cpp cannot load the file")
        self._threads, self._length = asked["threads"], asked["max_len"]
        self._contexts: dict[int, Any] = {1: self._context(1)}
        self._batch = llama_cpp.llama_batch_init(_LOGICAL, 0, 1)
        self._sampler = llama_cpp.llama_sampler_init_greedy()
        form = asked["form"]
        self.actual = {"weights": form, "activations": _ACTIVATIONS.get(form, "int8 per 32")}

    def _context(self, sequences: int) -> Any:
        params = self._api.llama_context_default_params()
        params.n_ctx = sequences * self._length
        params.n_batch, params.n_ubatch, params.n_seq_max = _LOGICAL, _PHYSICAL, sequences
        params.n_threads = params.n_threads_batch = self._threads
        params.no_perf, params.kv_unified = True, True
        made = self._api.llama_init_from_model(self._model, params)
        if not made:
            raise ValueError(f"llama.cpp has no memory for {sequences} sequences of {self._length} tokens")
        return made

    def generate(self, prompts: list[list[int]], count: int, beams: int) -> list[list[int]]:
        if len(prompts) not in self._contexts:
            self._contexts[len(prompts)] = self._context(len(prompts))
        context = self._contexts[len(prompts)]
        self._api.llama_memory_clear(self._api.llama_get_memory(context), True)
        fed = [
            (token, place, row, place == len(prompt) - 1)
            for row, prompt in enumerate(prompts)
            for place, token in enumerate(prompt)
        ]
        found: list[list[int]] = [[] for _ in prompts]
        for begin in range(0, len(fed), _LOGICAL):
            self._decode(context, fed[begin : begin + _LOGICAL], found)
        length = len(prompts[0])
        for step in range(count - 1):
            rows = [(tokens[-1], length + step, row, True) for row, tokens in enumerate(found)]
            self._decode(context, rows, found)
        return found

    def _decode(self, context: Any, rows: list[tuple[int, int, int, bool]], found: list[list[int]]) -> None:
        """One call; the rows that want logits give their sequence a token."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (token, place, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, place, 1, wanted
            batch.seq_id[i][0] = sequence
        code = self._api.llama_decode(context, batch)
        if code:
            raise ValueError(f"llama_decode failed with code {code}")
        for i, (_, _, sequence, wanted) in enumerate(rows):
            if wanted:
                found[sequence].append(int(self._api.llama_sampler_sample(self._sampler, context, i)))
