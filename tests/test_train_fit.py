"""How the bundled models are trained, on made-up text: vocabularies, windows, filling in the middle, export."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from allotrope import tokenizers
from allotrope.hw.detect import detect
from allotrope.models.model import open_model
from allotrope.verify.original import oracle
from tools.train import data, distil, fit, network, vocabulary
from tools.train.__main__ import changed
from tools.train.corpus.rows import write
from tools.train.middle import Cutter
from tools.train.muon import orthogonal
from tools.train.packing import Reading, Windows
from tools.train.spec import Part, Spec, Vocabulary, load, names

SIZES = {"starcoder": 512, "sentencepiece": 512, "qwen": 640, "galactica": 512, "gpt2": 512}
SMALL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "kv_channels": 16,
    "ffn_dim": 64, "word_embed_proj_dim": 32, "n_embd": 32, "n_head": 2, "n_layer": 2,
}  # fmt: skip
TEXTS = ("def f(x):\n    return x + 1234\n", "süß 世界 🎉\r\n\tend  ", " <|endoftext|> </s>", "caf\u00e9")


def made_up(number: int) -> dict[str, str]:
    """A function, its summary, and a file that has it."""
    source = random.Random(number)
    verb, noun = ("".join(source.choices(("ka", "ro", "mi", "tel", "ous", "ing"), k=count)) for count in (2, 3))
    body = "".join(f"    {noun}[{source.randrange(99)}] = {source.choice('abcxyz')} + {i}\n" for i in range(4))
    code = f"def {verb}_{noun}({noun}, depth=None):\n{body}    return {noun}\n"
    summary = f"{verb.title()} the {noun} of a table, {source.choice(('once', 'twice'))}."
    text = f'"""Module {number}."""\n\nimport os\n\n\n{code}\n\nclass Größe{number}:\n    pass  # {summary}\n'
    return {
        "project": "p",
        "path": str(number),
        "name": f"{verb}_{noun}",
        "code": code,
        "summary": summary,
        "text": text,
    }


def chat(number: int) -> dict[str, object]:
    row = made_up(number)
    turns = [("user", f"What is {row['name']}?"), ("assistant", row["summary"]), ("user", "Bye"), ("assistant", "Bye.")]
    return {"messages": [{"role": role, "content": content} for role, content in turns], "kind": "question"}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    for split, first, count in (("train", 0, 240), ("heldout", 1000, 24)):
        rows = [made_up(number) for number in range(first, first + count)]
        for kind in ("code", "docs", "functions"):
            write(folder / kind / f"{split}.jsonl.xz", rows)
        write(folder / "chat" / f"{split}.jsonl.xz", [chat(number) for number in range(first, first + count)])
        stories = [{**row, "project": name} for name in ("tinystories", "shakespeare") for row in rows]
        write(folder / "stories" / f"{split}.jsonl.xz", stories)
    return folder


def small(name: str) -> Spec:
    """A model's own spec, everything about it little."""
    spec = load(name)
    size = SIZES[spec.vocabulary.style]
    config = {key: SMALL.get(key, value) for key, value in spec.config.items()} | {"vocab_size": size}
    if config.get("num_key_value_heads", 1) > 1:
        config["num_key_value_heads"] = SMALL["num_attention_heads"]
    generation = dict(spec.generation)
    for key in ("eos_token_id", "bos_token_id", "pad_token_id"):
        if spec.vocabulary.style in ("qwen", "gpt2") and key in generation:
            generation[key] = size - 208 if spec.vocabulary.style == "qwen" else size - 1
    recipe = replace(spec.recipe, steps=16, rows=4, window=96, warmup=2, rate=1e-2, matrix_rate=1e-2, dropout=0.0)
    words = replace(spec.vocabulary, size=size)
    return replace(spec, config=config, generation=generation, vocabulary=words, recipe=recipe)


@pytest.fixture(scope="module")
def models(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every vocabulary, and every model trained for a few steps; the teacher before the one that it teaches."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("models")
    for name in sorted(names(), key=lambda name: bool(load(name).teacher)):
        folder = vocabulary.train(small(name), work, out)
        fit.fit(small(name), work, folder, out, "cpu")
    return out


@pytest.mark.parametrize("name", names())
def test_a_vocabulary_is_complete_and_gives_the_text_back(models: Path, name: str) -> None:
    spec = small(name)
    tokenizer = tokenizers.load(models / name, spec.vocabulary.size)
    assert tokenizer.vocab_size == spec.vocabulary.size
    assert tokenizer.eos_ids[0] == spec.generation["eos_token_id"]
    for text in TEXTS:
        ids = tokenizer.encode(text, special=False, allow_special=False)
        assert tokenizer.decode(ids, skip_special=False) == text
    digits = tokenizer.encode("1234", special=False)
    assert len(digits) >= 4 or name == "tinygpt2"  # each digit by itself; GPT-2 merges them


def test_publishers_special_tokens_have_their_ids(models: Path) -> None:
    def ids(name: str, *tokens: str) -> list[int]:
        tokenizer = tokenizers.load(models / name)
        return [token for text in tokens for token in tokenizer.encode(text, special=False)]

    assert ids("pycoder", "<|endoftext|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>") == [*range(5)]
    assert ids("tinygal", "<s>", "<pad>", "</s>", "<unk>", "[START_REF]", "[END_REF]") == [*range(6)]
    assert ids("tinygal-draft", "<work>", "</work>") == ids("tinygal", "<work>", "</work>") == [9, 10]
    assert ids("docsum", "<s>", "</s>") == [1, 2]
    assert ids("tinychat", "<|endoftext|>", "<|im_start|>", "<|im_end|>") == [432, 433, 434]


@pytest.mark.parametrize("name", names())
def test_training_learns_repeats_and_exports_what_it_trained(models: Path, name: str, work: Path) -> None:
    spec, record = small(name), json.loads((models / name / "training.json").read_text())
    assert record["curve"][-1][2] < record["curve"][0][2] - 0.3  # held out, and made up by the same rules
    found = open_model(models / name)  # every tensor in its place, none left over
    assert found.config == spec.config
    torch.manual_seed(spec.recipe.seed)
    again = network.network(spec)
    plan = fit.plan_of(spec, again, work, models / name, models, "cpu")
    assert fit.train(spec, again, plan, "cpu").points == record["curve"]
    ids = torch.arange(5, 69).view(1, -1)
    with torch.no_grad():
        ours = again.half().float().eval()(input_ids=ids, use_cache=False).logits
        theirs = oracle(found, "fp32", detect("cpu"), resident=True).model(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_teacher_must_be_there(work: Path, models: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="tinygal-draft learns from tinygal"):
        fit.fit(small("tinygal-draft"), work, models / "tinygal-draft", tmp_path, "cpu")


def test_middles_join_to_the_text_and_each_part_is_tokenised_as_if_alone(models: Path) -> None:
    tokenizer = tokenizers.load(models / "pycoder")
    cutter = Cutter(tokenizer, np.random.default_rng(0))

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, special=False, allow_special=False)

    orders, strange, parts_seen, inside = set(), 0, 0, 0
    for number in range(200):
        text = made_up(number)["text"]
        found = list(cutter.rearranged(np.array([*encode(text), 0], np.uint16), 0.7))
        if 2 not in found:
            assert tokenizer.decode(found) == text
            continue
        middle, suffix = found.index(2), found.index(3)
        assert found[0] == 1
        assert found[-1] == 0
        if suffix == 1:
            orders.add("suffix first")
            after, rest = found[2:middle], found[middle + 1 : -1]
            parts = [after]
            assert tokenizer.decode(rest) + tokenizer.decode(after) == text
        else:
            orders.add("prefix first")
            parts = [found[1:suffix], found[suffix + 1 : middle], found[middle + 1 : -1]]
            assert "".join(tokenizer.decode(parts[place]) for place in (0, 2, 1)) == text
            inside += encode(text)[: len(parts[0])] != parts[0]
        parts_seen += len(parts)
        strange += sum(encode(tokenizer.decode(part)) != part for part in parts)
    assert orders == {"suffix first", "prefix first"}
    assert inside > 10  # cuts fall within what would be one token of the whole text
    assert strange <= parts_seen // 50  # a second cut close to the first may begin inside a word


def test_middles_may_be_whole_lines(models: Path) -> None:
    tokenizer = tokenizers.load(models / "pycoder")
    cutter = Cutter(tokenizer, np.random.default_rng(0), lines=1.0)
    counts = []
    for number in range(100):
        text = made_up(number)["code"]
        ids = tokenizer.encode(text, special=False, allow_special=False)
        found = tokenizer.decode(list(cutter.rearranged(np.array([*ids, 0], np.uint16), 1.0)), skip_special=False)
        before, marked, after = found.removesuffix("<|endoftext|>").partition("<fim_suffix>")
        after, _, middle = after.partition("<fim_middle>")
        if before == "<fim_prefix>":
            continue  # the suffix comes first, and nothing marks where the prefix ends
        before = before.removeprefix("<fim_prefix>")
        assert marked
        assert before + middle + after == text
        assert before.endswith("\n")
        assert middle.endswith("\n")
        counts.append(middle.count("\n"))
    assert 1 in counts
    assert max(counts) > 1


def test_only_answers_weigh_fully(models: Path) -> None:
    tokenizer, part = tokenizers.load(models / "tinychat"), Part("chat", 1, form="chat")
    [(ids, weights)] = data.encode_rows([chat(3)], models / "tinychat", part, 256)
    assert weights is not None
    learned = tokenizer.decode(ids[weights == 100].tolist(), skip_special=False)
    assert learned == f"{made_up(3)['summary']}<|im_end|>Bye.<|im_end|>"
    assert set(weights[weights != 100]) == {data.GIVEN["chat"]}
    assert data.encode_rows([chat(3)], models / "tinychat", part, len(ids) - 1) == []  # too long to learn whole


def test_a_long_function_keeps_its_mark_and_its_summary(models: Path) -> None:
    tokenizer, row = tokenizers.load(models / "docsum"), made_up(5)
    row["code"] = "".join(f"    line_{i} = {i}\n" for i in range(200))
    for ids, weights in data.encode_rows([row] * 4, models / "docsum", Part("functions", 1, "summary"), 100):
        assert weights is not None
        assert len(ids) == 100
        assert ids[0] == tokenizer.bos_id
        assert tokenizer.decode(ids[weights < 100].tolist()).endswith(" TL;DR:")
        assert tokenizer.decode(ids[weights == 100].tolist()).strip() == row["summary"]
        assert ids[-1] == tokenizer.eos_ids[0]


def test_windows_are_the_same_for_a_seed_and_weigh_nothing_past_the_end(models: Path, work: Path) -> None:
    for name in ("pycoder", "tinychat"):
        spec = small(name)
        source = fit.read(spec, "train", work, models / name)

        def first(seed: int, source: Reading = source, spec: Spec = spec) -> tuple[torch.Tensor, torch.Tensor]:
            return next(iter(Windows(source, 8, 128, pack=spec.recipe.pack, seed=seed)))

        ids, percent = first(1)
        assert torch.equal(ids, first(1)[0])
        assert not torch.equal(ids, first(2)[0])
        assert ids.shape == (8, 129)
        assert percent.shape == (8, 128)
        assert torch.all(ids[:, 1:][percent == 0] == source.tokenizer.eos_ids[0])


def test_parts_have_their_shares_of_the_tokens(models: Path, work: Path) -> None:
    source = fit.read(small("pycoder"), "train", work, models / "pycoder")
    lengths = np.array([len(found.ids) / len(found) for found in source.pieces])
    np.testing.assert_allclose(source.odds * lengths / (source.odds * lengths).sum(), [0.85, 0.15])


def test_a_text_is_cut_before_lines_at_the_margin() -> None:
    text = "".join(f"def f{i}():\n    a = {i}\n\n    return a\n\n\n" for i in range(50))
    parts = data.stretches(text, 300)
    assert "".join(parts) == text
    assert all(part.startswith("def ") and len(part) <= 300 for part in parts)
    assert data.stretches("x" * 700, 300) == ["x" * 300, "x" * 300, "x" * 100]


def test_orthogonal_moves_singular_values_close_to_one() -> None:
    stack = torch.randn(3, 24, 40, generator=torch.Generator().manual_seed(0))
    for some in (stack, stack.mT):
        values = torch.linalg.svdvals(orthogonal(some))
        assert values.min() > 0.5
        assert values.max() < 1.3
        torch.testing.assert_close(orthogonal(some)[1:2], orthogonal(some[1:2]))


def test_what_repeats_teaches_nothing() -> None:
    straight = torch.arange(distil.PROMPT + distil.NEW)
    circling = straight.clone()
    circling[90:106] = circling[70:86]
    percent = distil.fresh(torch.stack([straight, circling]))
    assert percent.shape == (2, distil.PROMPT + distil.NEW - 1)
    assert percent[0].tolist() == [distil.GIVEN] * (distil.PROMPT - 1) + [100] * distil.NEW
    assert torch.nonzero(percent[1] == 0).flatten().tolist() == list(range(89, percent.shape[1]))


def test_continuations_and_text_take_turns_in_their_shares() -> None:
    ids, percent = torch.full((5, 4), 7), torch.ones(5, 3)
    text = (torch.zeros(2, 4), torch.ones(2, 3))
    mixed = itertools.islice(distil.alternate(itertools.repeat(text), (ids, percent), 3, 0), 40)
    own = [bool((batch[0] == 7).all()) for batch in mixed]
    assert sum(own) == 40 * distil.OWN
    assert set(own[:4]) == {True, False}


def test_distance_from_the_teacher_is_least_where_both_agree() -> None:
    theirs = torch.randn(1, 4, 9, generator=torch.Generator().manual_seed(0))
    ours = torch.zeros_like(theirs).requires_grad_()
    before = distil.apart(ours, theirs)
    [slope] = torch.autograd.grad(before.sum(), ours)
    assert torch.all(distil.apart(ours - 0.1 * slope, theirs) < before)
    spread = distil.apart(theirs, theirs) / distil.FORCED
    torch.testing.assert_close(spread, -torch.log_softmax(theirs, -1).max(-1).values)


def test_rates_rise_and_fall_to_nothing() -> None:
    recipe = replace(load("pycoder").recipe, steps=1000, warmup=100)
    rates = [fit.rate_at(step, recipe) for step in range(1000)]
    assert max(rates) == pytest.approx(1, abs=0.01)
    assert rates.index(max(rates)) in range(98, 102)
    assert 0 < rates[-1] < 0.002
    assert rates[0] == 0.01


def test_recipes_can_be_tried_with_other_numbers() -> None:
    spec = changed(load("pycoder"), ["steps=3", "matrix_rate=1e-3"])
    assert (spec.recipe.steps, spec.recipe.matrix_rate) == (3, 0.001)
    with pytest.raises(SystemExit, match="KEY=NUMBER, where KEY is one of steps"):
        changed(spec, ["speed=3"])


def test_specs_say_what_is_wrong_with_them() -> None:
    spec = load("tinygal")
    with pytest.raises(SystemExit, match="add up to 1"):
        replace(spec, parts=(Part("docs", 0.4),))
    with pytest.raises(SystemExit, match="its vocabulary another number"):
        replace(spec, vocabulary=Vocabulary("galactica", 4096))
    with pytest.raises(SystemExit, match="no model 'gpt5': there is docsum, pycoder"):
        load("gpt5")
