"""The sections of a model card, each from the record that knows it."""

from __future__ import annotations

import importlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from allotrope.models.model import Model
from tools.train import models
from tools.train.card_words import KINDS, LIMITS, SHOW, STORIES, TAGS, WITHOUT
from tools.train.spec import Spec

Record = Mapping[str, Any]
BYTES = {"code": "code_bytes", "docs": "docs_bytes"}  # what sources.json counts of a kind; of the others, functions


def header(spec: Spec) -> str:
    """The YAML that model hubs read."""
    tags = "".join(f"  - {tag}\n" for tag in ("allotrope", spec.family, *TAGS[spec.name]))
    return f"---\nlicense: apache-2.0\nlanguage: en\npipeline_tag: text-generation\ntags:\n{tags}---"


def opening(spec: Spec) -> str:
    """What it is, and how to try it."""
    module = importlib.import_module(f"{models.__name__}.{spec.name.replace('-', '_')}")
    said = " ".join((module.__doc__ or "").split())
    return "\n".join(
        [
            f"# {spec.name}",
            "",
            said,
            "",
            "Trained in this repository, for its tests and demonstrations: small enough to travel with it, good enough",
            "that quantisation, speculation or a wrong kernel show in what it says.",
            "",
            "```sh",
            f"allotrope build models/{spec.name} -o engine",
            SHOW[spec.name],
            "allotrope verify engine",
            "```",
        ]
    )


def shape(model: Model, spec: Spec) -> str:
    """The architecture in figures."""
    recipe, block = model.recipe, model.recipe.blocks[0]
    attention = block.attention
    grouped = "" if attention.heads == attention.kv_heads else f" over {attention.kv_heads} key-value"
    positions = "rotary" if attention.rotary else "learned"
    if attention.logn:
        positions += f", dynamic NTK and log-n beyond {attention.logn}"
    rows = [
        ("family", f"{spec.family} (`{spec.config['architectures'][0]}`)"),
        ("parameters", f"{model.parameters:,}"),
        ("blocks", f"{len(recipe.blocks)}"),
        ("width", f"{recipe.hidden}"),
        ("heads", f"{attention.heads}{grouped}, {attention.head_dim} wide"),
        ("MLP", f"{block.mlp.width}, {block.mlp.activation}{', gated' if block.mlp.gated else ''}"),
        ("positions", positions),
        ("vocabulary", f"{recipe.vocab:,} ({spec.vocabulary.style}), head {'tied' if recipe.tied else 'of its own'}"),
        ("context", f"{recipe.max_len:,} tokens"),
        ("weights", "fp16, safetensors"),
    ]
    return "## Shape\n\n" + table(("", ""), rows)


def training(spec: Spec, record: Record, picture: str) -> str:
    """How it was trained, in enough detail to do it again."""
    recipe = record["spec"]["recipe"]
    rows = [
        (
            "steps",
            f"{record['steps']:,} of {recipe['rows']} × {recipe['window']:,} tokens ({record['tokens'] / 1e6:,.0f} M)",
        ),
        (
            "optimiser",
            f"Muon for the blocks' matrices ({recipe['matrix_rate']:g}), AdamW for the rest ({recipe['rate']:g})",
        ),
        (
            "schedule",
            f"up over {recipe['warmup']} steps, then down to 0 in a line; weight decay {recipe['weight_decay']:g}",
        ),
        (
            "dropout",
            f"{recipe['dropout']:g}{'; the weights of the lowest held-out loss are kept' if recipe['best'] else ''}",
        ),
        ("seed", f"{record['seed']}"),
        ("time", f"{record['seconds']:,.0f} s on {record['device']}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in record["versions"].items())),
        (_lost(spec), f"{record['held_out_loss']:.4f} nats per token, as stored in fp16"),
    ]
    mix = [
        (
            ": ".join(filter(None, (part["kind"], part["only"]))),
            KINDS[part["form"]],
            f"{part['share']:.0%}",
            _middle(part),
        )
        for part in record["spec"]["parts"]
    ]
    teacher = (
        f"It learns what `{spec.teacher}` would say next: on such texts, and mostly on what that wrote after "
        "stretches of them, likeliest token first (`tools/train/distil.py`).\n\n"
        if spec.teacher
        else ""
    )
    return "\n".join(
        [
            "## Training",
            "",
            "```sh",
            "python -m tools.train corpus",
            f"python -m tools.train tokenizer {spec.name}",
            f"python -m tools.train fit {spec.name}",
            *([f"python -m tools.train polish {spec.name}"] if "polish" in record else []),
            "```",
            "",
            f"{teacher}{table(('', ''), rows)}",
            "",
            table(("text", "as", "share of tokens", "rearranged to fill in the middle"), mix),
            "",
            f"![Training and held-out loss over the steps]({picture})",
            "",
            *([polish(record), ""] if "polish" in record else []),
            "The digests of the files that were read are in `training.json`.",
        ]
    )


def _lost(spec: Spec) -> str:
    """What the loss is of."""
    if not spec.teacher:
        return "held-out loss at the end"
    return f"at the end, on held-out text: from {spec.teacher}'s likeliest token and its distribution"


def polish(record: Record) -> str:
    """The second training, in words."""
    second, before = record["polish"], record["curve"][-1][2]
    wrote, ended = (
        " and then ".join(f"{one[name]:.1%}" for one in second["rounds"]) for name in ("repeating", "ended")
    )
    return (
        f"After that ({before:.4f} nats; the picture ends here) a second training of {second['steps']:,} steps, "
        f"{second['tokens'] / 1e6:,.0f} M tokens and {second['seconds']:,.0f} s, on its own writing for functions of "
        f"the training projects, on filling in the middle, and with rounded weights: `tools/train/polish.py` says how. "
        f"Of the bodies that it wrote for each round, {wrote} repeated a line three times; of the middles, "
        f"{ended} ended where they should. It costs "
        f"{record['held_out_loss'] - before:+.4f} nats on held-out text; with weights in int4, groups of 32, the "
        f"held-out loss is {second['held_out_rounded']:.4f}."
    )


def sturdiness(spec: Spec, record: Record, evaluation: Record) -> str:
    """What training did so that the model stands rounding, and what that cost."""
    recipe = {"noise": 0.0, "logit_limit": 0.0, **record["spec"]["recipe"]}  # older records have neither
    how = []
    if recipe["noise"]:
        how.append(f"each gradient is taken with all block weights off by up to {recipe['noise'] / 2:g} steps of int4")
    if recipe["logit_limit"]:
        how.append(f"a head's attention logits for a token are held within {recipe['logit_limit']:g} of each other")
    if not how:
        return ""
    said = f"**Trained to stand rounding**: {', and '.join(how)} (`tools/train/sturdy.py`)."
    if (before := WITHOUT.get(spec.name)) is not None:
        now = evaluation["text"]["bits_per_byte"]
        costs = ", ".join(
            f"{name} {evaluation['rounded']['formats'][name]['perplexity_cost']:+.1%} (before: {cost:+.1%})"
            for name, cost in before.items()
            if name != "bits_per_byte"
        )
        said += (
            f" That makes the model itself worse: {now:.3f} bits per byte, where the same recipe without it reached "
            f"{before['bits_per_byte']:.3f} on the same text. What it buys is perplexity when weights are rounded to "
            f"nearest: {costs}."
        )
    return said


def quality(evaluation: Record) -> str:
    """Bits per byte beside the baselines, and the targets."""
    texts = [("the bundled held-out text", evaluation["text"])]
    if "more_text" in evaluation:
        texts.append(("more held-out text", evaluation["more_text"]))
    rows = [
        (
            name,
            f"{text['bytes']:,}",
            f"**{text['bits_per_byte']:.3f}** ({_interval(text['bits_per_byte_interval'], 3)})",
            f"{text['trigram']:.3f}",
            f"{text['gzip_9']:.3f}",
            f"{text['xz_9']:.3f}",
            f"{text['perplexity']:.2f}",
        )
        for name, text in texts
    ]
    trained = f"{evaluation['text']['trigram_trained_on_tokens'] / 1e6:.1f} million tokens of the training text"
    lines = [
        "## Held-out quality",
        "",
        f"`{evaluation['command']}`, {evaluation['seconds_in_all']:.0f} s on {evaluation['device']}; the figures with "
        "all their digits are in `evaluation.json`.",
        "",
        table(("bits per byte", "bytes", "model", "trigram", "gzip -9", "xz -9", "perplexity per token"), rows),
        "",
        f"Method: {evaluation['method']}. In brackets: 95 % bootstrap interval over documents. The trigram is "
        f"interpolated Kneser-Ney over the model's own tokens, trained on {trained}.",
    ]
    if evaluation["targets"]:
        told = [
            (target["what"], f"{target['value']:.4g}", target["wanted"], "met" if target["met"] else "**missed**")
            for target in evaluation["targets"]
        ]
        lines += ["", table(("target", "measured", "wanted", ""), told)]
    return "\n".join(lines)


def tasks(evaluation: Record) -> str:
    """What else was measured."""
    told = {
        "bodies": _bodies,
        "fill_in": _fill_in,
        "summaries": _summaries,
        "chat": _chat,
        "chat_beyond_training_length": _chat_beyond,
        "drafting": _drafting,
        "rounded": _rounded,
    }
    return "\n\n".join(tell(evaluation[key]) for key, tell in told.items() if key in evaluation)


def _bodies(found: Record) -> str:
    return (
        f"**Completing functions.** {found['headers']} held-out headers with their docstrings, one body of at most "
        f"{found['tokens']} tokens each, sampled at temperature {found['temperature']:g} (seed {found['seed']}); what "
        "follows the function and an unfinished last line are dropped. "
        f"{_share(found, 'two_statements_and_parse')} have two or more statements and parse "
        f"({found['two_top_level_statements_and_parse']:.1%} two at the top level), "
        f"{_share(found, 'no_line_three_times')} repeat no line three times."
    )


def _fill_in(found: Record) -> str:
    return (
        f"**Filling in the middle.** {found['holes']} held-out functions without one of their lines, filled greedily: "
        f"{_share(found, 'exact')} exactly as it was, {_share(found, 'parse')} such that the function parses; "
        f"{found['ended']:.1%} of the middles end within {found['tokens']} tokens."
    )


def _summaries(found: Record) -> str:
    measures = list(found["model"])
    rows = [("this model", *(f"**{found['model'][name]:.4f}**" for name in measures), "")]
    for label, baseline in found["baselines"].items():
        interval = _interval(baseline["gain_interval"]["rouge1"], 4)
        rows.append(
            (label, *(f"{baseline[name]:.4f}" for name in measures), f"{baseline['gain']['rouge1']:+.4f} ({interval})")
        )
    return (
        f"**Summaries** of the {found['examples']} functions in `models/data/docsum_test.csv`, greedy, ROUGE F1 with "
        f"stemming; {found['exact']} are the author's word for word. In brackets: 95 % paired bootstrap interval.\n\n"
        + table(("", *(name.replace("rouge", "ROUGE-") for name in measures), "ROUGE-1 gained over it"), rows)
    )


def _chat(found: Record) -> str:
    low, high = found["prompt_tokens"]
    rows = [
        (kind, f"{some['answers']}", f"{some['stopped']:.1%}", f"{some['right']:.1%}")
        for kind, some in found["kinds"].items()
    ]
    return (
        f"**Answers** to {found['conversations']} held-out conversations of {low} to {high} tokens, greedy, at most "
        f"{found['tokens']} tokens: {_share(found, 'stopped')} end with `<|im_end|>`. Of the {found['checkable']} "
        f"questions that the source decides, {_share(found, 'right')} are answered word for word.\n\n"
        + table(("asked about", "answers", "stop", "word for word"), rows)
    )


def _chat_beyond(found: Record) -> str:
    low, high = found["prompt_tokens"]
    return (
        f"**Beyond the training length.** {found['conversations']} conversations of {low} to {high} tokens: "
        f"{_share(found, 'stopped')} end with `<|im_end|>`; of {found['checkable']} checkable answers "
        f"{_share(found, 'right')} are right. An Allotrope engine in fp32 wrote them, since transformers has no "
        "dynamic NTK and no log-n of the first Qwen."
    )


def _drafting(found: Record) -> str:
    return (
        f"**Drafting** for `{found['for']}`: of {found['drafted']} greedy tokens drafted in a round, "
        f"{found['accepted_per_round']:.2f} are accepted on average "
        f"({_interval(found['accepted_per_round_interval'], 2)}), over {found['rounds']:,} rounds in continuations of "
        f"{found['prompts']} held-out prompts of {found['prompt_tokens']} tokens by at most {found['new_tokens']}; "
        f"{found['left_out_for_repeating']} that repeat an 8-gram are left out."
    )


def _rounded(found: Record) -> str:
    rows = [
        (
            label,
            f"{one['weights']:,}",
            f"{one['perplexity_cost']:+.2%}",
            _interval([100 * end for end in one["perplexity_cost_interval"]], 2, " %"),
        )
        for label, one in found["formats"].items()
    ]
    return (
        f"**Rounded weights**, to nearest, simulated, on {found['bytes']:,} bytes of the held-out text. Without "
        "“embedding too” only the blocks' matrices are rounded.\n\n"
        + table(("format", "weights rounded", "added perplexity", "95 % interval"), rows)
    )


def samples(evaluation: Record) -> str:
    """What it says, unchosen."""
    if not evaluation.get("samples"):
        return ""
    parts = ["## Samples", "", "The first examples of the evaluation, not chosen ones."]
    for one in evaluation["samples"]:
        parts += ["", "Given:", "", fenced(one["prompt"]), "", "It says:", "", fenced(one["text"])]
        if "expected" in one:
            parts += ["", f"(The data has: {' '.join(one['expected'].split())})"]
    return "\n".join(parts)


def data(spec: Spec, sources: Iterable[Record]) -> str:
    """Where the text is from and under which licences, for what this model reads."""
    kinds = {part.kind for part in spec.parts}
    if kinds == {"stories"}:
        return f"## Data\n\n{STORIES}"
    used = [source for source in sources if any(source[BYTES.get(kind, "functions")] for kind in kinds)]
    trained: dict[str, list[str]] = defaultdict(list)
    for source in used:
        if source["split"] == "train":
            trained[source["license"]].append(f"{source['project']} {source['version']}")
    held = ", ".join(f"{one['project']} {one['version']} ({one['license']})" for one in used if one["split"] != "train")
    rows = [(licence, f"{len(listed)}", ", ".join(listed)) for licence, listed in sorted(trained.items())]
    return "\n".join(
        [
            "## Data",
            "",
            "Python packages under licences that let weights be given away, pinned with their hashes in",
            "`tools/train/sources.toml`, and the standard library of the Python that harvested them; files whose",
            "headers name other terms left out; deduplicated, and split by project. Trained on:",
            "",
            table(("licence", "projects", ""), rows),
            "",
            f"Held out, never trained on: {held}.",
        ]
    )


def limits(spec: Spec) -> str:
    """What it is not for."""
    return f"## Limits\n\n{LIMITS[spec.name]}"


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def fenced(text: str) -> str:
    """A block of code that holds the text whatever is in it; what cannot be seen is written as an escape."""
    seen = "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
    fence = "```"
    while fence in seen:
        fence += "`"
    return f"{fence}text\n{seen.strip(chr(10))}\n{fence}"


def _middle(part: Record) -> str:
    return f"{part['middle']:.0%}" if part["middle"] else "–"


def _share(found: Record, key: str) -> str:
    low, high = found[f"{key}_interval"]
    return f"{found[key]:.1%} ({low:.1%} to {high:.1%})"


def _interval(ends: Sequence[float], digits: int, unit: str = "") -> str:
    low, high = ends
    return f"{low:.{digits}f} to {high:.{digits}f}{unit}"
