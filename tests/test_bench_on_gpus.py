"""How peers are driven on a GPU, as far as that can be told without one: made-up libraries, warm-up, whose memory."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from allotrope import settings
from allotrope.bench.peers import vllm, worker


class Counting:
    """A model that notes how many tokens it was asked for."""

    actual: dict[str, str] = {}  # noqa: RUF012 never written

    def __init__(self) -> None:
        self.asked: list[int] = []

    def generate(self, prompts: list[list[int]], count: int, beams: int) -> list[list[int]]:
        self.asked.append(count)
        return [[1] * count for _ in prompts]


@pytest.mark.parametrize(("device", "length"), [("cpu", 4), ("cuda", 120)])
def test_on_a_gpu_the_warm_up_is_as_long_as_what_counts(device: str, length: int, tmp_path: Any) -> None:
    """Libraries there prepare kernels for each new length of a context: a second in each of the first tokens."""
    model = Counting()
    script: Any = SimpleNamespace(versions=dict, open_model=lambda folder, asked: model)
    opened = worker.Worker(script)
    opened.do_open(str(tmp_path), {"device": device})
    opened.do_run([[[1, 2]]], count=120, beams=1, warm=2, patient=False)
    assert model.asked == [1, length, length, 120]


def test_vllm_is_one_process_and_leaves_memory_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself it takes nine tenths of the whole GPU, and its steps are another process's time."""
    given: dict[str, Any] = {}

    class LLM:
        def __init__(self, **options: Any) -> None:
            given.update(options)

        def generate(self, prompts: list[Any], params: dict[str, Any], use_tqdm: bool) -> list[Any]:
            tokens = list(range(params["max_tokens"]))
            return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=tokens)]) for _ in prompts]

    library = ModuleType("vllm")
    vars(library).update(__version__="0", LLM=LLM, SamplingParams=dict)
    torch = ModuleType("torch")
    cuda = SimpleNamespace(mem_get_info=lambda: (60, 100), max_memory_allocated=lambda: 17)
    vars(torch).update(__version__="0", cuda=cuda)
    monkeypatch.setitem(sys.modules, "vllm", library)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setenv("VLLM_USE_FLASHINFER_SAMPLER", "1")
    around = settings.for_worker(2, own=False)
    assert around["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert around["VLLM_USE_FLASHINFER_SAMPLER"] == "1", "whoever sets one knows better"
    assert vllm.versions() == {"vllm": "0", "torch": "0"}
    model = vllm.open_model("folder", {"form": "fp16", "max_len": 64, "max_batch": 2})
    assert given["gpu_memory_utilization"] == pytest.approx(0.3), "half of what is free"
    assert (given["dtype"], given["quantization"], given["enable_prefix_caching"]) == ("float16", None, False)
    assert model.generate([[1], [2]], 3, 1) == [[0, 1, 2], [0, 1, 2]]
    assert model.device_peak() == 17
