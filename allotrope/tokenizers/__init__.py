"""Tokenizers behind one face: `load(folder)` gives a `Tokenizer`, `files(folder)` what an engine keeps of it."""

from allotrope.tokenizers.absent import absent
from allotrope.tokenizers.base import Tokenizer
from allotrope.tokenizers.detokenizer import Detokenizer
from allotrope.tokenizers.loading import files, load

__all__ = ["Detokenizer", "Tokenizer", "absent", "files", "load"]
