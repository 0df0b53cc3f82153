"""Narrower weights and activations: what a format is, the ways onto it, and what each costs.

`formats` says what is stored and what it means; everything else ends there. Onto a format lead `round_to_nearest`
(rounding), `gptq` (which moves each column's error onto columns not yet rounded), `awq` (which makes the loud channels'
weights larger first) and `smooth` (which takes what is loud out of the activations, for products of int8 with int8,
`product`). `measure` and `total` (report) say what it cost, weight by weight. All are functions of tensors, on any
device; none knows a model.
"""
