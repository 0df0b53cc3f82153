"""One file per family; each defines `FAMILY`. The folder listing is the registry."""
