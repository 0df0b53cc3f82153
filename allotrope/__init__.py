"""Allotrope: a faster structure for an open-weights language model, and the proof that it is the same model."""

__version__ = "0.1.0"
