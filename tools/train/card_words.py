"""What no record knows: how to try each model, and what it is not for."""

from __future__ import annotations

TAGS = {
    "pycoder": ("python", "code", "fill-in-the-middle"),
    "docsum": ("python", "summarization"),
    "tinychat": ("python", "chat"),
    "tinygal": ("documentation",),
    "tinygal-draft": ("documentation", "speculative-decoding"),
    "tinygpt2": ("stories",),
}

SHOW = {
    "pycoder": 'allotrope run engine "def mean(values):" --temperature 0.3',
    "docsum": 'allotrope run engine "$(cat function.py) TL;DR:"',
    "tinychat": '(echo "What is its name?"; echo; cat function.py) | allotrope chat engine',
    "tinygal": 'allotrope run engine "The configuration file"',
    "tinygal-draft": 'allotrope run engine "The configuration file"',
    "tinygpt2": 'allotrope run engine "Once upon a time" --temperature 0.6',
}

KINDS = {
    "text": "whole texts",
    "function": "single functions with their docstrings",
    "summary": "a function, ` TL;DR:`, its docstring's first sentence",
    "chat": "conversations in ChatML, made by rule from functions",
}

STORIES = """\
Short stories from TinyStories (Eldan and Li 2023; CDLA-Sharing-1.0, which lets what is computed from the data be given
away under any terms) and Shakespeare's plays (public domain). Each twentieth document is held out."""

WITHOUT = {
    "tinygal": {"bits_per_byte": 1.25944, "int4 groups of 32": 0.894911, "int4 groups of 32, with offset": 0.455645},
}
"""What the same recipe gave without `noise` and `logit_limit`, on the same text: docs/log.md, 2026-11-20."""

_PROSE = """\
It has the sound of technical documentation and no knowledge: names, options and facts in what it writes are made up.
It was never trained to follow instructions, and it may repeat short passages of what it was trained on."""

LIMITS = {
    "pycoder": """\
A few million weights have seen some hundred megabytes of Python. What it writes looks like code and often parses;
whether it is right is chance. Do not run it unread. Filling in the middle it ends where the suffix begins, but seldom
with the line that was there. It knows no other language, and little English beyond docstrings
and comments. It may repeat short passages of what it was trained on, whose licences are above.""",
    "docsum": """\
It has read Python functions of up to 60 lines and the first sentences of their docstrings. It mostly paraphrases the
name and what stands out in the body; on anything else (other languages, prose, whole files) it answers with something
that sounds like a docstring. Do not take a summary for a description of what the code does.""",
    "tinychat": """\
It answers a fixed set of questions about one short Python function at a time (its name, parameters, defaults, what it
returns, raises, calls, and what it does), greets, and refuses the rest. The conversations that it learned from were
made by rule, so its English is narrow. The longer the function, the more often it is wrong, and it does not notice.""",
    "tinygal": _PROSE,
    "tinygal-draft": """\
It exists to guess what `tinygal` says next; by itself it writes worse than `tinygal`. It shares that model's tokenizer
and drafts for no other.""",
    "tinygpt2": """\
It has read a small file of children's stories and one of plays. It forgets who is in a story after a few sentences and
knows nothing of the world. It is here for GPT-2's layout, not for its prose.""",
}
