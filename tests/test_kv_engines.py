"""Engines with narrow keys and values: a request's bits are its own, in every executor, and builds say what they did."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from allotrope.api import LLM, SamplingParams
from allotrope.artifact.engine import open_engine
from allotrope.artifact.plan import Plan
from allotrope.build import build
from allotrope.build.options import BuildOptions
from allotrope.cli import main
from allotrope.errors import BuildError, EngineError, UsageError
from allotrope.models.lower import lower
from allotrope.ops import registry
from allotrope.ops.kv_codes import fake
from allotrope.ops.kv_rows import NARROW, row_width
from allotrope.quant.cache import with_cache
from allotrope.runtime.buffers import make_caches, page_bytes
from allotrope.runtime.eager import EagerExecutor
from allotrope.runtime.graph import GraphExecutor
from tests import engine_kit
from tests.engines import CPU, GPT, LLAMA, MemoryEngine, deterministic, random_weights
from tests.test_graph import Traffic, capturable
from tests.tiny import FAMILIES
from tests.verifying import VOCAB, Forge, checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")
by_form = pytest.mark.parametrize("form", NARROW)
NEW = 6


def asked(vocab: int) -> tuple[list[list[int]], list[SamplingParams]]:
    """Prompts, two of which begin alike, greedy and drawn."""
    random = np.random.default_rng(5)
    prompts = [random.integers(3, vocab, int(random.integers(1, 30))).tolist() for _ in range(9)]
    prompts.append([*prompts[0], *random.integers(3, vocab, 9).tolist()])
    kinds = ({"temperature": 0.0}, {"temperature": 1.2, "top_k": 40})
    params = [SamplingParams(max_tokens=NEW, seed=i, logprobs=2, **kinds[i % 2]) for i in range(len(prompts))]
    return prompts, params


def answers(path: Path, **options: Any) -> list[Any]:
    """Token ids and the bits of their log-probabilities, all requests at once."""
    with LLM(str(path), **options) as llm:
        prompts, params = asked(llm.engine.manifest.plan.vocab)
        found = llm.generate(prompts, params)
        return [_bits(result) for result in found]


def _bits(result: Any) -> Any:
    out = result.outputs[0]
    return list(out.token_ids), repr(out.logprobs)
