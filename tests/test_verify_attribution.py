"""`verify --attribute`: which module costs how much, and what making it wide would buy back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from allotrope.artifact.engine import open_engine
from allotrope.errors import UsageError
from allotrope.verify.effective import Stored
from tests.narrow_engines import Narrow, asked
from tests.verifying import CPU, Forge

pytestmark = pytest.mark.usefixtures("one_thread")


def two_bits(array: Any) -> Any:
    """int8 codes, of which two bits are left."""
    codes = np.array(array).view(np.int8).astype(np.int16)
    return (np.clip(np.round(codes / 64), -2, 1) * 64).astype(np.int8).view(np.uint8)


@pytest.mark.parametrize(
    ("kind", "path"), (("llama", "blocks.1.mlp.down"), ("gpt2", "blocks.2.attn.v"), ("qwen", "blocks.0.mlp.gate"))
)
def test_a_planted_bad_layer_is_named_first(narrow: Narrow, forge: Forge, kind: str, path: str) -> None:
    bad = forge.planted(narrow(kind, weights="int8"), slots={f"{path}.codes": two_bits})
    found = asked(bad, ("logits",), attribute=True).findings.attribution
    assert found is not None and found.modules[0].module == path and found.widen[0].module == path
    assert found.modules[0].share > 0.5 and len(found.modules) == 3 * (6 if kind == "gpt2" else 7)
    assert found.whole == pytest.approx(found.sum_alone, rel=0.5)


def test_an_attribution_is_what_building_with_one_layer_wide_would_give(narrow: Narrow) -> None:
    """The engine is built again with the layer wide, and its cost measured: as much less as was said."""
    found = asked(narrow(weights="int4"), attribute=True).findings
    assert found.attribution is not None and found.cost is not None
    first = found.attribution.widen[0]
    other = asked(narrow(weights="int4", keep=[f"{first.module}=wide"]), ("logits",)).findings.cost
    assert other is not None and first.saved > 0
    # the text that is judged is each engine's own, so the two figures are of different tokens
    assert other.figures.mean_kl < found.cost.figures.mean_kl
    stored = Stored(open_engine(narrow(weights="int4"), device=CPU))
    wide = stored.decoded(first.module, torch.float32).numel() * 4
    assert wide * 0.8 < first.extra_bytes < wide


def test_many_modules_go_by_blocks_first(narrow: Narrow, forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("allotrope.verify.attribute.MOST", 8)
    bad = forge.planted(narrow(weights="int8"), slots={"blocks.2.attn.o.codes": two_bits})
    found = asked(bad, ("logits",), attribute=True).findings.attribution
    assert found is not None and found.blocks[0].module == "blocks.2"
    assert len(found.blocks) == 3 and len(found.modules) == 7
    assert found.modules[0].module == "blocks.2.attn.o" and found.parts == found.blocks


def test_nothing_to_attribute(forge: Forge) -> None:
    with pytest.raises(UsageError, match="nothing in it is quantised, so there is nothing to attribute"):
        asked(forge.built("llama"), attribute=True)
