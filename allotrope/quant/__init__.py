"""Narrower weights and activations: what a format is, the ways onto it, and what each costs.

`formats` says what is stored and what it means, from the user's words (`parse_format`) to the bytes (`pack`); all else
ends there. Onto a format lead `round_to_nearest` (rounding), `gptq` (each column's error is answered by the columns not
yet rounded), `awq` (the loud channels' weights are made larger first) and `smooth` (what is loud is taken out of the
activations, for 8-bit products). `measure` and `total` (report) say what it cost, weight by weight. All these are
functions of tensors, on any device; none knows a model.

`policy` says which weight of a plan is stored how, `narrow` does it, weight by weight, and gives a `Narrowed`: the plan
that reads codes (`rewrite`), their bytes, and the errors.
"""
