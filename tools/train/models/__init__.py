"""One file per model; each defines `SPEC`. The folder listing is the registry."""
