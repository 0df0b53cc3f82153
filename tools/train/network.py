"""The network that is trained: transformers' own class for the family, its attention causal and without masks."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn
from torch.nn import functional

from allotrope.models.family import by_name
from tools.train.spec import Spec

CAUSAL = "allotrope-training"


def causal_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Windows are never padded on the left, so "what came before" is the whole mask, and the fast kernels know it."""
    grouped = key.shape[1] != query.shape[1]
    out = functional.scaled_dot_product_attention(
        query, key, value, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=grouped
    )
    return out.transpose(1, 2).contiguous(), None


def network(spec: Spec) -> Any:
    """The network with random weights, in fp32; draw from torch's seed."""
    transformers.AttentionInterface.register(CAUSAL, causal_attention)
    oracle = by_name(spec.family).oracle
    settings = dict(oracle.config(spec.config))
    settings |= {key: spec.recipe.dropout for key in settings if key in DROPOUTS}
    config = getattr(transformers, oracle.config_class)(**settings)
    config._attn_implementation = CAUSAL
    model = getattr(transformers, oracle.model_class)(config).float()
    if spec.family == "opt":
        for name, parameter in model.named_parameters():
            if name.endswith("layer_norm.bias"):  # Galactica has no biases; these stay zero
                parameter.requires_grad_(False)
    return model.train(spec.recipe.dropout > 0)  # OPT's training mode draws lots for each layer, which stops compilers


DROPOUTS = ("attn_pdrop", "embd_pdrop", "resid_pdrop", "dropout", "attention_dropout")


def matrices(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Matrices inside the blocks, and everything else that is trained: embeddings, positions, head, norms, biases."""
    ends = {id(model.get_input_embeddings().weight)}  # type: ignore[operator]
    ends |= {id(model.get_output_embeddings().weight)}  # type: ignore[operator]
    inside: list[nn.Parameter] = []
    outside: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            matrix = parameter.ndim == 2 and id(parameter) not in ends and "wpe" not in name and "position" not in name
            (inside if matrix else outside).append(parameter)
    return inside, outside


def losses(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Nats of each token after the first, as [rows, window]."""
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits.float()
    nats = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten().long(), reduction="none")
    return nats.view(ids.shape[0], -1)


def weighted(nats: torch.Tensor, percent: torch.Tensor) -> torch.Tensor:
    """The mean, each token with its weight."""
    weights = percent.float()
    return (nats * weights).sum() / weights.sum()
