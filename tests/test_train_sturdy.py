"""What lets models stand rounding: noise on the weights that leaves no trace, and logits held to a distance."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from tests.test_train_fit import models, small, work
from tools.train import fit, network, sturdy
from tools.train.__main__ import changed
from tools.train.evaluation import quantised
from tools.train.spec import Spec, load

__all__ = ["models", "work"]  # fixtures


def sharp(factor: float, seed: int = 0) -> tuple[Spec, Any, torch.Tensor]:
    """A small OPT whose queries and keys are `factor` times what they begin with, and a row to read."""
    torch.manual_seed(seed)
    spec = small("tinygal")
    model = network.network(spec)
    with torch.no_grad():
        for layer in model.model.decoder.layers:
            layer.self_attn.q_proj.weight.mul_(factor)
            layer.self_attn.k_proj.weight.mul_(factor)
    return spec, model, torch.randint(16, 512, (1, 40))


def told_apart(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """[layer, head]: by transformers' own attention. Softmax keeps distances: they are those of log-probabilities."""
    double = type(model)(model.config)
    double.load_state_dict(model.state_dict())
    double.set_attn_implementation("eager")
    with torch.no_grad():
        found = double.double().eval()(input_ids=ids, output_attentions=True, use_cache=False).attentions
    seen = torch.ones(ids.shape[1], ids.shape[1]).tril().bool()
    return torch.stack(
        [
            (part.masked_fill(~seen, 0).amax(-1).log() - part.masked_fill(~seen, 1).amin(-1).log()).amax((0, 2))
            for part in found
        ]
    )


def test_logits_are_held_to_their_limit_and_other_heads_left_alone() -> None:
    _, model, ids = sharp(12.0)
    attention = model.model.decoder.layers[0].self_attn
    with torch.no_grad():
        attention.q_proj.weight[attention.head_dim :].mul_(1e-3)  # the second head's logits are tiny
    before = told_apart(model, ids)
    weights = [part.weight.clone() for part in (attention.q_proj, attention.k_proj)]
    limit = float(before[0, 0]) / 4
    assert before[0, 1] < limit < before[1].max()
    for _ in model.model.decoder.layers:  # what a layer reads has changed when an earlier one is limited
        sturdy.limit_logits(model, ids, limit)
    after = told_apart(model, ids)
    assert float(after[0, 0]) == pytest.approx(limit, rel=1e-4)
    assert after.max() <= limit * 1.0001
    for part, old in zip((attention.q_proj, attention.k_proj), weights, strict=True):
        torch.testing.assert_close(part.weight[: attention.head_dim], old[: attention.head_dim] / 2)
        assert torch.equal(part.weight[attention.head_dim :], old[attention.head_dim :])


def test_what_all_keys_have_in_common_counts_for_nothing() -> None:
    torch.manual_seed(1)
    queries, keys = torch.randn(2, 1, 9, 12)
    found = sturdy.spreads(queries, keys, 3)
    torch.testing.assert_close(sturdy.spreads(queries, keys + 50 * torch.randn(12), 3), found, rtol=1e-3, atol=1e-3)
    q, k = queries[0, :, 4:8], keys[0, :, 4:8]
    by_hand = max(float(q[i] @ k[j] - q[i] @ k[n]) for i in range(9) for j in range(i + 1) for n in range(i + 1))
    assert float(found[1]) == pytest.approx(by_hand, rel=1e-5)


def test_limiting_costs_no_second_compilation() -> None:
    _, model, ids = sharp(12.0)
    counter = CompileCounter()
    loss = torch.compile(lambda: network.losses(model, ids).mean(), backend=counter)
    before = float(loss().detach())
    sturdy.limit_logits(model, ids[:, :-1], 1.0)
    assert float(loss().detach()) != before  # the weights that were compiled in are the ones that were limited
    assert counter.frame_count == 1


def test_training_keeps_the_limit_that_it_breaks_without(models: Path, work: Path) -> None:
    spec = small("tinygal")
    reached = []
    for limit in (0.0, 0.05):
        torch.manual_seed(1)
        tried = replace(spec, recipe=replace(spec.recipe, logit_limit=limit, noise=0.0))
        model = network.network(tried)
        plan = fit.plan_of(tried, model, work, models / "tinygal", models, "cpu")
        fit.train(tried, model, plan, "cpu")
        reached.append(float(told_apart(model, plan.held_out[0][0][:1]).max()))
    assert reached[0] > 0.1
    assert reached[1] < 0.06


def test_noise_is_what_rounding_may_do_and_leaves_no_trace() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 96) * torch.logspace(-2, 2, 64).view(-1, 1)
    moved = partial(sturdy.off, share=1.0, random=torch.Generator().manual_seed(0))
    error, rounding = (
        quantised.grouped(found - weight).square().mean(-1).sqrt()
        for found in (moved(weight), quantised.int4_group(weight))
    )
    assert float((error / rounding).log().mean().exp()) == pytest.approx(1, abs=0.05)
    assert not torch.equal(moved(weight), moved(weight))
    assert torch.isfinite(moved(torch.zeros(2, 48))).all()  # 48 is no multiple of 32: whole rows

    model = network.network(small("tinygpt2"))
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with sturdy.shaken(model, 0.5, torch.Generator().manual_seed(0)):
        different = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, kept[name])}
    assert len(different) == 4 * model.config.n_layer
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())
    with sturdy.shaken(model, 0.0, torch.Generator()):
        assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())


def test_recipes_say_what_cannot_be_limited() -> None:
    with pytest.raises(SystemExit, match=r"pycoder: logit_limit is 9, but only the family opt .* leave it at 0"):
        changed(load("pycoder"), ["logit_limit=9"])
    with pytest.raises(SystemExit, match=r"noise is -1\.0; it must be a number from 0 on"):
        changed(load("tinygal"), ["noise=-1"])
    with pytest.raises(SystemExit, match="logit_limit is inf; it must be a number from 0 on"):
        changed(load("tinygal"), [f"logit_limit={math.inf}"])
